"""Expectations in closed form, where terms are polynomials of a choice of degree two or less."""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp

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

    A polynomial :math:`f` of degree two has an expectation that depends on mean :math:`m` and
    covariance :math:`\Sigma = L L^\top` alone. With :math:`q` its quadratic part,

    .. math:: E[f(x)] = f(m) + E[q(x - m)] = f(m) + \sum_j q(L_{\cdot j})

    for every parameter, so that value and all derivatives are exact. The program is evaluated at
    the mean, and its quadratic part, of which only that is computed, in every direction; where
    numbers are independent these are unit vectors, the same for all lanes that no term mixes, and
    the variances come last: of a linear decoder the squares of its weights, once for all rows.
    Terms of one lane take one direction for all lanes.

    A Bernoulli or one-hot choice changes one lane at a time, the others being at their means,

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
      Shao et al., *Zero-variance gradients for variational autoencoders*, 2025.
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

    def sums_single(self, site: SiteInfo) -> bool:
        """Where other terms have lanes changed one at a time."""
        return num_together(site) > 1

    def axis(self, site: SiteInfo) -> Axis | None:
        """Every direction away from the mean, or every value, of every lane on its own."""
        unit = site.support is None and not site.event_shape
        return Axis(f"site:{site.name}", _size(site), unit=unit)

    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """Ways off the mean with the choice's covariance, or its values; whatever is drawn."""
        return _directions(site, source) if site.support is None else _one_by_one(site, source)

    def contract(self, term: Term) -> jax.Array:
        """The weighted sum."""
        (weights,) = term.potentials
        if term.site.support is None:
            return (weights * term.value).sum(0)
        count = term.site.support.shape[0] * num_together(term.site)
        value, weights = term.value[:count], weights[:count]
        if term.lanes == 1:
            return (weights * value).sum(0)
        at_mean = term.value[-1:]
        return at_mean[0] + (weights * (value - at_mean)).sum(0)


def _size(site: SiteInfo) -> int:
    together = num_together(site)
    if site.support is None:
        return together * math.prod(site.event_shape)
    return site.support.shape[0] * together + (together > 1)


def _directions(site: SiteInfo, source: Source) -> Expansion:
    """Of numbers the unit vectors and their variances; of events, columns of a root."""
    root = source.map(lambda here: here.distribution.moments()[1])
    chosen = selectors(site)
    if not site.event_shape:
        return Expansion(chosen, (jnp.square(root[..., 0]),))
    columns = jnp.moveaxis(root, -1, 0)
    weights = jnp.repeat(chosen, len(columns), axis=0)
    events = tuple(-1 - i for i in range(len(site.event_shape)))
    value = jnp.expand_dims(weights, events) * jnp.tile(
        columns, (len(chosen), *(1 for _ in root.shape[:-1]))
    )
    return Expansion(value, (weights,))


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
