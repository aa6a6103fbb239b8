"""What estimators share that evaluate a term at several values and combine the results linearly.

Along the axis, index ``s`` has a weight in the value and a *potential*: an array per lane that is
zero in value and whose derivative is the coefficient of the term's value at ``s``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms.errors import SiteError
from vipp_transforms.estimators.base import Local, SiteInfo, Source

# A logit in place of minus infinity, of which differences are not numbers: no part of any softmax.
IMPOSSIBLE = -1e4


def direction(parameter: jax.Array) -> jax.Array:
    """Zero, with the derivative of ``parameter``."""
    return parameter - jax.lax.stop_gradient(parameter)


def combine(value: jax.Array, weights: Any, potential: jax.Array) -> jax.Array:
    """``sum_s weights[s] value[s] + sg(value[s]) potential[s]`` along the leading axis."""
    weights = jnp.reshape(jnp.asarray(weights, value.dtype), (-1,) + (1,) * (value.ndim - 1))
    return (weights * value + jax.lax.stop_gradient(value) * potential).sum(0)


def per_lane(source: Source, fn: Callable[[Local], Any]) -> jax.Array:
    """``fn(here)``, a value for each batch element or one for all, at every lane."""
    return source.map(lambda here: jnp.broadcast_to(fn(here), here.distribution.batch_shape))


def num_together(site: SiteInfo) -> int:
    """How many lanes must be changed one at a time because some term mixes them."""
    return math.prod(n for n, m in zip(site.lane_shape, site.mixed, strict=True) if m)


def selectors(site: SiteInfo) -> jax.Array:
    """``(num_together, *lane_shape)``: one for the lanes that are changed at once, else zero."""
    shape = tuple(n if m else 1 for n, m in zip(site.lane_shape, site.mixed, strict=True))
    count = math.prod(shape)
    return jnp.broadcast_to(jnp.eye(count).reshape((count, *shape)), (count, *site.lane_shape))


def swap(site: SiteInfo, base: jax.Array, other: jax.Array) -> jax.Array:
    """``other`` put into ``base`` at some lanes at a time: ``(num_together, *lanes, *event)``."""
    chosen = selectors(site).astype(bool)
    chosen = chosen.reshape(chosen.shape + (1,) * len(site.event_shape))
    return jnp.where(chosen, other[None], base[None])


def is_binary(site: SiteInfo) -> bool:
    """Whether the support is the numbers 0 and 1."""
    return site.support is not None and site.event_shape == () and site.support.tolist() == [0, 1]


def require_binary(site: SiteInfo, estimator: str) -> None:
    """Raise unless the site is a Bernoulli."""
    if not is_binary(site):
        raise SiteError(
            f"Site '{site.name}': {estimator} needs a Bernoulli distribution, got {site.kind}. "
            "Fix: use LocalExpectation(), or ScoreFunction(num_samples=2, "
            "baseline='leave_one_out')."
        )


def require_support(site: SiteInfo, estimator: str) -> None:
    """Raise unless the site has a finite support, whose mean is known."""
    if site.support is None:
        raise SiteError(
            f"Site '{site.name}': {estimator} needs a finite support that is known "
            f"before compilation, got {site.kind}. Fix: use ScoreFunction(num_samples=8, "
            "baseline='leave_one_out')."
        )


def support_of(distribution: Any, support: Any, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Of each lane the values and, to be multiplied with them, their probabilities.

    Without the value zero, which adds nothing to a mean.
    """
    batch, event = distribution.batch_shape, support.shape[1:]
    counts = (support != 0).any(tuple(range(1, support.ndim)))
    values = jnp.asarray(support[counts] if counts.any() else support).reshape(
        (-1, *(1,) * len(batch), *event)
    )
    values = jnp.broadcast_to(values, (len(values), *batch, *event))
    probs = jnp.exp(jax.vmap(distribution.log_prob)(values))
    return values.astype(dtype), probs.reshape(probs.shape + (1,) * len(event))


def mean_of(distribution: Any, support: Any, dtype: Any) -> jax.Array:
    """The mean of each lane's draw."""
    values, probs = support_of(distribution, support, dtype)
    return (probs * values).sum(0)


def logit(distribution: Any) -> jax.Array:
    """Log odds of a binary distribution, whatever its parameters are; finite."""
    shape = distribution.batch_shape
    odds = distribution.log_prob(jnp.ones(shape)) - distribution.log_prob(jnp.zeros(shape))
    return jnp.clip(odds, IMPOSSIBLE, -IMPOSSIBLE)
