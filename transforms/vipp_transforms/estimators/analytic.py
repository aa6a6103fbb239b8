"""Expectations in closed form, where terms are polynomials of a choice of degree two or less."""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms.checks import positive_int
from vipp_transforms.errors import SiteError
from vipp_transforms.estimators._linear import num_together, selectors, swap
from vipp_transforms.estimators._relaxation import require_relaxable
from vipp_transforms.estimators.base import (
    Axis,
    Estimator,
    Expansion,
    Local,
    SiteInfo,
    Source,
    Term,
    Traits,
    estimator,
)


@estimator
class Analytic(Estimator):
    r"""The expectation itself, of terms that are quadratic in the choice: no variance.

    A polynomial :math:`f` of degree two or less has an expectation that depends on mean :math:`m`
    and covariance :math:`\Sigma = L L^\top` alone, and so is the same under :math:`d + 1` points
    that have them, the corners :math:`s_k` of a simplex:

    .. math:: E[f(x)] = f(m) + \tfrac12 \mathrm{tr}(\nabla^2 f\, \Sigma)
        = \frac{1}{d + 1} \sum_{k=0}^{d} f(m + \sqrt d\, L s_k)

    for every parameter, so that value and all derivatives are exact. A Bernoulli or one-hot choice
    changes one lane at a time, the others being at their means,

    .. math:: E[f(x)] = f(m) + \sum_j \sum_k q_j(k)\, \big(f(m_{-j}, x_j = k) - f(m)\big),

    which is exact for every term of one lane, and for quadratic ones of several. Which terms are
    polynomials is read off their equations: sums, linear maps, products of two linear ones,
    squares. So a linear Gaussian decoder's evidence lower bound has no variance.

    Args:
      max_evaluations: the most evaluations that are made; more raise.

    Raises:
      ValueError: if ``max_evaluations`` is not a positive int.

    Example:
      >>> import vipp
      >>> vipp.Analytic()
      Analytic(max_evaluations=4096)

    References:
      Shao et al., *Zero-variance gradients for variational autoencoders*, 2025. Stroud, *Some
      fifth degree integration formulas for symmetric regions*, 1966, of the simplex.
    """

    max_evaluations: int = 4096
    traits: ClassVar[Traits] = Traits(relaxed=True, polynomial=True)

    def __post_init__(self) -> None:
        positive_int("Analytic: max_evaluations", self.max_evaluations)

    def validate(self, site: SiteInfo) -> None:
        """Values that may be any numbers, terms that are polynomials, and not too many of both."""
        if site.support is not None:
            require_relaxable(site, "Analytic")
        if site.degree is not None and site.degree.number is None:
            several = "" if site.support is None else " of several of its lanes"
            raise SiteError(
                f"Site '{site.name}': Analytic needs every term{several} to be a polynomial in it "
                f"of degree two or less, got {site.degree.why}. Fix: use Pathwise() where the "
                "distribution has a differentiable sampler, or ScoreFunction(num_samples=2, "
                "baseline='leave_one_out'); or make the other term one of its own, such as by "
                "ELBO(kl='analytic')."
            )
        if _size(site) > self.max_evaluations:
            raise SiteError(
                f"Site '{site.name}': Analytic would make {_size(site)} evaluations; expected at "
                f"most {self.max_evaluations}. Fix: use Pathwise() or ScoreFunction(num_samples=2, "
                "baseline='leave_one_out'), or raise Analytic(max_evaluations=)."
            )

    def axis(self, site: SiteInfo) -> Axis | None:
        """The corners of a simplex; or every value of every lane that is changed on its own."""
        return Axis(f"site:{site.name}", _size(site))

    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """Values with the choice's mean and covariance, whatever is drawn."""
        return _corners(site, source) if site.support is None else _one_by_one(site, source)

    def contract(self, term: Term) -> jax.Array:
        """The weighted sum."""
        if term.site.support is None:
            return term.value.mean(0)
        (weights,) = term.potentials
        count = term.site.support.shape[0] * num_together(term.site)
        value, weights = term.value[:count], weights[:count]
        if term.lanes == 1:
            return (weights * value).sum(0)
        at_mean = term.value[-1:]
        return at_mean[0] + (weights * (value - at_mean)).sum(0)


def _size(site: SiteInfo) -> int:
    together = num_together(site)
    if site.support is None:
        return together * math.prod(site.event_shape) + 1
    return site.support.shape[0] * together + (together > 1)


def _corners(site: SiteInfo, source: Source) -> Expansion:
    def moments(here: Local) -> tuple[jax.Array, jax.Array]:
        found = here.distribution.moments()
        if found is None:
            raise SiteError(
                f"Site '{site.name}': Analytic needs the mean and the covariance, which "
                f"{site.kind} does not know. Fix: use Pathwise(), or "
                "ScoreFunction(num_samples=2, baseline='leave_one_out')."
            )
        return found

    mean, root = source.map(moments)
    shape = [n if m else 1 for n, m in zip(site.lane_shape, site.mixed, strict=True)]
    numbers = math.prod(site.event_shape)
    steps = jnp.asarray(_simplex(math.prod(shape) * numbers), mean.dtype)
    steps = steps.reshape((-1, *shape, *(1 for _ in site.event_shape), numbers))
    values = mean[None] + (root[None] * steps).sum(-1)
    return Expansion(values, ())  # parameters enter through them


def _simplex(d: int) -> np.ndarray:
    """Points of mean zero and covariance one, ``(d + 1, d)``."""
    points = np.zeros((d + 1, d))
    for j in range(d):  # each coordinate tells point j from the later ones
        later = d - j
        points[j, j] = later
        points[j + 1 :, j] = -1.0
        points[:, j] *= math.sqrt((d + 1) / (later * (later + 1)))
    return points


def _one_by_one(site: SiteInfo, source: Source) -> Expansion:
    assert site.support is not None
    full = (*site.lane_shape, *site.event_shape)
    values = [jnp.broadcast_to(value, full) for value in site.support]
    constants = [value.astype(jnp.result_type(float)) for value in values]
    log_probs = [source.map(_log_prob, value) for value in values]
    probs = jnp.exp(jnp.stack(log_probs))
    events = tuple(-1 - i for i in range(len(site.event_shape)))
    mean = (jnp.expand_dims(probs, events) * jnp.stack(constants)).sum(0)
    chosen = selectors(site)
    rows = [swap(site, mean, constant) for constant in constants]
    weights = [chosen * p for p in probs[:, None]]
    log_weight = [jnp.where(chosen > 0, x[None], 0.0) for x in log_probs]
    if num_together(site) > 1:
        rows.append(mean[None])
        weights.append(jnp.zeros_like(weights[0][:1]))
        log_weight.append(jnp.zeros_like(log_weight[0][:1]))
    return Expansion(
        jnp.concatenate(rows), (jnp.concatenate(weights),), jnp.concatenate(log_weight)
    )


def _log_prob(here: Local, value: jax.Array) -> jax.Array:
    return here.distribution.log_prob(value)
