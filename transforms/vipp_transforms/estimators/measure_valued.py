"""Measure-valued (weak) derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms.errors import SiteError
from vipp_transforms.estimators._linear import (
    FIRST_ORDER,
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
    Lot,
    Source,
    Term,
    estimator,
)


class Weak(NamedTuple):
    """One parameter's weak derivative: ``slope`` times the difference of two densities.

    Attributes:
      slope: the constant times the parameter, zero in value, one entry per number drawn.
      positive: a draw from the first density.
      negative: a draw from the second, coupled to the first.
    """

    slope: jax.Array
    positive: jax.Array
    negative: jax.Array


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

    Takes Bernoulli, Categorical, Normal (mean and scale), Poisson, Exponential, Gamma and Weibull,
    all but the first two also with ``to_event`` (for instance a diagonal multivariate Normal). The
    shape parameters of the last two have no such decomposition: their derivative is that of the
    score function.

    Example:
      >>> import vipp_transforms as vt
      >>> vt.MeasureValued()
      MeasureValued()

    References:
      Mohamed, Rosca, Figurnov and Mnih, *Monte Carlo gradient estimation in machine learning*,
      2020, section 6 and table 1.
    """

    orders: ClassVar[int | None] = FIRST_ORDER

    def validate(self, lot: Lot) -> None:
        """A distribution with a known decomposition."""
        if lot.kind not in _DECOMPOSITIONS:
            raise SiteError(
                f"Site '{lot.name}': MeasureValued knows no weak derivative, got {lot.kind}, "
                f"expected one of {sorted(_DECOMPOSITIONS)}. Fix: use Pathwise(), or "
                "ScoreFunction(num_samples=2, baseline='leave_one_out')."
            )
        if _DECOMPOSITIONS[lot.kind] == (1, _finite) and lot.support is None:
            raise SiteError(
                f"Site '{lot.name}': MeasureValued needs a finite support that is known before "
                f"compilation, got {lot.kind} with event shape {lot.event_shape}. Fix: draw "
                "without to_event."
            )

    def axis(self, lot: Lot) -> Axis | None:
        """The draw, then both perturbed values of each parameter and number changed on its own."""
        count, _ = _DECOMPOSITIONS[lot.kind]
        count = 2 * count * math.prod(lot.event_shape)
        pairs = count if lot.support is None else lot.support.shape[0]
        return Axis(f"site:{lot.name}", 1 + pairs * num_together(lot))

    def expand(self, lot: Lot, source: Source) -> Expansion:
        """The draw and the perturbed values, and each one's coefficient."""
        base = source.draw()
        _, decompose = _DECOMPOSITIONS[lot.kind]
        if lot.support is not None:
            parts = source.map(lambda here, x: _finite(here.distribution, lot.support, x), base)
            signed = [(slope, value) for slope, value in parts]
            score = jnp.zeros(lot.lane_shape)
        else:
            weak, score = source.map(
                lambda here, x: decompose(here.key, here.distribution, x), base
            )
            score = score.sum(tuple(range(len(lot.lane_shape), score.ndim)))
            signed = [pair for w in weak for pair in _one_by_one(w, base, lot.event_shape)]
        chosen = selectors(lot)
        values = [base[None], *(swap(lot, base, value.astype(base.dtype)) for _, value in signed)]
        slopes = [score[None], *(chosen * slope[None] for slope, _ in signed)]
        return Expansion(jnp.concatenate(values), (jnp.concatenate(slopes),))

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


def _finite(distribution: Any, support: Any, base: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """A finite support: the density is the sum of its probabilities at points."""
    constants = [jnp.broadcast_to(jnp.asarray(v, base.dtype), base.shape) for v in support]
    return [(direction(jnp.exp(distribution.log_prob(c))), c) for c in constants]


def _parameter(distribution: Any, name: str) -> jax.Array:
    shape = (*distribution.batch_shape, *distribution.event_shape)
    while not hasattr(distribution, name):
        distribution = distribution.base_dist
    return jnp.broadcast_to(getattr(distribution, name), shape)


def _normal(key: Any, distribution: Any, base: jax.Array) -> Any:
    loc, scale = _parameter(distribution, "loc"), _parameter(distribution, "scale")
    m, s = jax.lax.stop_gradient((loc, scale))
    rayleigh, maxwell, sign, uniform = jax.random.split(key, 4)
    w = jnp.sqrt(-2.0 * jnp.log1p(-jax.random.uniform(rayleigh, m.shape)))
    mean = Weak(direction(loc) / (s * math.sqrt(2 * math.pi)), m + s * w, m - s * w)
    # a double-sided Maxwell number times a uniform one is a standard Normal one
    length = jnp.linalg.norm(jax.random.normal(maxwell, (*m.shape, 3)), axis=-1)
    wide = length * jax.random.rademacher(sign, m.shape)
    narrow = wide * jax.random.uniform(uniform, m.shape)
    spread = Weak(direction(scale) / s, m + s * wide, m + s * narrow)
    return [mean, spread], jnp.zeros(m.shape)


def _poisson(key: Any, distribution: Any, base: jax.Array) -> Any:
    rate = _parameter(distribution, "rate")
    return [Weak(direction(rate), base + 1, base)], jnp.zeros(rate.shape)


def _exponential(key: Any, distribution: Any, base: jax.Array) -> Any:
    rate = _parameter(distribution, "rate")
    r = jax.lax.stop_gradient(rate)
    longer = base + jax.random.exponential(key, r.shape) / r
    return [Weak(direction(rate) / r, base, longer)], jnp.zeros(r.shape)


def _gamma(key: Any, distribution: Any, base: jax.Array) -> Any:
    shape, rate = _parameter(distribution, "concentration"), _parameter(distribution, "rate")
    a, r = jax.lax.stop_gradient((shape, rate))
    longer = base + jax.random.exponential(key, r.shape) / r
    log_density = shape * jnp.log(r * base) - jax.scipy.special.gammaln(shape)
    return [Weak(direction(rate) * a / r, base, longer)], direction(log_density)


def _weibull(key: Any, distribution: Any, base: jax.Array) -> Any:
    scale, shape = _parameter(distribution, "scale"), _parameter(distribution, "concentration")
    s, k = jax.lax.stop_gradient((scale, shape))
    power = (base / s) ** k  # a standard exponential number
    longer = s * (power + jax.random.exponential(key, s.shape)) ** (1 / k)
    ratio = base / s
    log_density = jnp.log(shape) + (shape - 1) * jnp.log(ratio) - ratio**shape
    return [Weak(direction(scale) * k / s, longer, base)], direction(log_density)


# name: (number of parameters decomposed, (key, distribution, draw) -> their weak derivatives and
# the score of the other parameters)
_DECOMPOSITIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "BernoulliLogits": (1, _finite),
    "BernoulliProbs": (1, _finite),
    "CategoricalLogits": (1, _finite),
    "CategoricalProbs": (1, _finite),
    "Normal": (2, _normal),
    "Poisson": (1, _poisson),
    "Exponential": (1, _exponential),
    "Gamma": (1, _gamma),
    "Weibull": (1, _weibull),
}
