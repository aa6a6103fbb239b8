"""Log densities of the Bernoulli and the Binomial that are right at all logits and values."""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import gammaln
from numpyro.distributions.distribution import ExpandedDistribution, Independent, MaskedDistribution
from numpyro.distributions.util import clamp_probs

from vipp.distributions.labels import LabelLogits, LabelProbs
from vipp.distributions.softplus import softplus
from vipp_transforms.elementwise import Elementwise


def _inside(value: jax.Array) -> jax.Array:
    """From zero to one: estimators that relax a choice score the model there."""
    # what goes straight through is zero or one but for rounding
    return jnp.abs(value - 0.5) <= 0.501


class _BernoulliLogits(dist.BernoulliLogits):
    """A Bernoulli whose log probability has the right gradient at logits of exactly zero.

    NumPyro's (0.22) differentiates ``max(x, 0)`` and ``abs(x)`` separately there, and a
    zero-initialised logit would train wrongly. Defined between zero and one.
    """

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        logits = _finite(self.logits)
        value = jnp.asarray(value, jnp.result_type(logits))
        return jnp.where(_inside(value), value * logits - softplus(logits), -jnp.inf)


@Elementwise
def _x_log_y(x: jax.Array, y: jax.Array) -> jax.Array:
    return x * jnp.log(y)


_x_log_y.defjvps(
    lambda dx, x, y: jnp.log(y) * dx,
    # x / y first: with the cotangent first, y near the smallest number gives inf * 0
    lambda dy, x, y: jnp.where(x == 0, 0.0, x / y) * dy,
)


class _BernoulliProbs(dist.BernoulliProbs):
    """A Bernoulli whose log probability has a gradient where the probability is zero or one.

    Defined between zero and one.
    """

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        probs = clamp_probs(self.probs)
        value = jnp.asarray(value, probs.dtype)
        linear = _x_log_y(value, probs) + _x_log_y(1 - value, 1 - probs)
        return jnp.where(_inside(value), linear, -jnp.inf)


class _BinomialLogits(dist.BinomialLogits):
    """A Binomial whose log probability has the right gradient at logits of exactly zero."""

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        n = jnp.asarray(self.total_count, jnp.result_type(float))
        logits = _finite(self.logits, 1 + n)
        inside = (value >= 0) & (value <= n) & (jnp.mod(value, 1) == 0)
        value = jnp.where(inside, value, 0)  # what is masked must have a gradient that is a number
        ways = gammaln(n + 1) - gammaln(value + 1) - gammaln(n - value + 1)
        return jnp.where(inside, ways + value * logits - n * softplus(logits), -jnp.inf)


def _finite(logits: Any, times: Any = 1) -> jax.Array:
    """Infinite logits are certain outcomes, not ``0 * inf``; finite even this many ``times``."""
    logits = jnp.asarray(logits, jnp.result_type(logits, float))
    return _within(logits, jnp.asarray(jnp.finfo(logits.dtype).max / times, logits.dtype))


@Elementwise
def _within(x: jax.Array, limit: jax.Array) -> jax.Array:
    # no comparison: a relaxed choice that reaches it would be taken to decide something
    return jnp.minimum(jnp.maximum(x, -limit), limit)


_within.defjvps(lambda dx, x, limit: dx, lambda dx, x, limit: jnp.zeros_like(x))


def guarded(fn: Any, *, observed: bool = False) -> Any:
    """``fn``, a Bernoulli or Binomial replaced by one that is right at all logits and values.

    Args:
      fn: a distribution.
      observed: whether it is to score data: a choice that is drawn may be relaxed.
    """
    if type(fn) is dist.BernoulliLogits:
        logits = LabelLogits if observed else _BernoulliLogits
        return logits(fn.logits, validate_args=False)
    if type(fn) is dist.BernoulliProbs:
        probs = LabelProbs if observed else _BernoulliProbs
        return probs(fn.probs, validate_args=False)
    if type(fn) is dist.BinomialLogits:
        return _BinomialLogits(fn.logits, fn.total_count, validate_args=False)
    if isinstance(fn, ExpandedDistribution | Independent | MaskedDistribution):
        base = guarded(fn.base_dist, observed=observed)
        if base is not fn.base_dist:
            fn = copy.copy(fn)
            fn.base_dist = base
    return fn
