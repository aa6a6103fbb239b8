"""Measure-valued (weak) derivatives."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms.distributions import Weak
from vipp_transforms.errors import SiteError
from vipp_transforms.estimators._linear import (
    combine,
    direction,
    num_together,
    selectors,
    swap,
)
from vipp_transforms.estimators.base import (
    Axis,
    Estimator,
    Expansion,
    SiteInfo,
    Source,
    Term,
    Traits,
    estimator,
)


@estimator
class MeasureValued(Estimator):
    r"""The derivative of a density as a difference of two densities.

    .. math::
        \nabla_\theta q_\theta = c_\theta\,(q^+ - q^-), \qquad
        \nabla_\theta E[f(x)] = c_\theta\,(E_{q^+}[f] - E_{q^-}[f])

    with the two draws coupled by common random numbers. Lanes that no term mixes are perturbed side
    by side; lanes that a term mixes one at a time, and so the entries of one draw, which costs
    evaluations in proportion but keeps the estimator's small variance. Needs no derivative of
    ``f``.

    Takes every finite support, whose density is the sum of its probabilities, and Normal (mean and
    scale), Poisson, Exponential, Gamma and Weibull, also with ``to_event`` (for instance a diagonal
    multivariate Normal). The shape parameters of the last two have no such decomposition: their
    derivative is that of the score function.

    Example:
      >>> import vipp
      >>> vipp.MeasureValued()
      MeasureValued()

    References:
      Mohamed, Rosca, Figurnov and Mnih, *Monte Carlo gradient estimation in machine learning*,
      2020, section 6 and table 1.
    """

    traits: ClassVar[Traits] = Traits(orders=1, linear=True)

    def validate(self, site: SiteInfo) -> None:
        """A finite support, or a distribution with a known decomposition."""
        if site.support is None and site.num_weak_derivatives is None:
            raise SiteError(
                f"Site '{site.name}': MeasureValued knows no weak derivative, got {site.kind}, "
                "expected a finite support, or one of Normal, Poisson, Exponential, Gamma and "
                "Weibull drawn with vipp.sample. Fix: use Pathwise(), or "
                "ScoreFunction(num_samples=2, baseline='leave_one_out')."
            )

    def axis(self, site: SiteInfo) -> Axis | None:
        """The draw, then both perturbed values of each parameter and number changed on its own."""
        if site.support is None:
            pairs = 2 * (site.num_weak_derivatives or 0) * math.prod(site.event_shape)
        else:
            pairs = site.support.shape[0]
        return Axis(f"site:{site.name}", 1 + pairs * num_together(site))

    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """The draw and the perturbed values, and each one's coefficient."""
        base = source.draw()
        if site.support is not None:
            parts = source.map(lambda here, x: _finite(here.distribution, site.support, x), base)
            signed = [(slope, value) for slope, value, _ in parts]
            log_probs = [log_prob for _, _, log_prob in parts]
            score = jnp.zeros(site.lane_shape)
        else:
            weak, score = source.map(
                lambda here, x: here.distribution.weak_derivatives(here.key, x), base
            )
            score = score.sum(tuple(range(len(site.lane_shape), score.ndim)))
            log_probs = []  # what a weak derivative draws can occur
            signed = [pair for w in weak for pair in _one_by_one(w, base, site.event_shape)]
        chosen = selectors(site)
        values = [base[None], *(swap(site, base, value.astype(base.dtype)) for _, value in signed)]
        slopes = [score[None], *(chosen * slope[None] for slope, _ in signed)]
        # a value of probability 0 has a slope all the same, but its term may not be finite
        weights = [jnp.zeros_like(slopes[0]), *(jnp.where(chosen > 0, x, 0.0) for x in log_probs)]
        log_weight = jnp.concatenate(weights) if log_probs else None
        return Expansion(jnp.concatenate(values), (jnp.concatenate(slopes),), log_weight)

    def contract(self, term: Term) -> jax.Array:
        """The term at the draw, sloped by the perturbed values."""
        first = [1.0] + [0.0] * (term.value.shape[0] - 1)
        return combine(term.value, first, term.potentials[0])


def _one_by_one(
    weak: Weak, base: jax.Array, event_shape: tuple[int, ...]
) -> list[tuple[jax.Array, jax.Array]]:
    """Slopes per lane and values that differ from ``base`` in one entry of the event."""
    signed = []
    for index in np.ndindex(event_shape):
        here = np.zeros(event_shape, bool)
        here[index] = True
        here = here.reshape((1,) * (base.ndim - len(event_shape)) + event_shape)
        slope = weak.slope[(..., *index)]
        signed.append((slope, jnp.where(here, weak.positive.astype(base.dtype), base)))
        signed.append((-slope, jnp.where(here, weak.negative.astype(base.dtype), base)))
    return signed


def _finite(distribution: Any, support: Any, base: jax.Array) -> list[tuple[jax.Array, ...]]:
    """A finite support: the density is the sum of its probabilities at points.

    For each point the slope, the point, and its log probability.
    """
    constants = [jnp.broadcast_to(jnp.asarray(v, base.dtype), base.shape) for v in support]
    log_probs = [distribution.log_prob(c) for c in constants]
    pairs = zip(log_probs, constants, strict=True)
    return [(direction(jnp.exp(log_prob)), c, log_prob) for log_prob, c in pairs]
