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


@jax.custom_jvp
def _softplus(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@_softplus.defjvp
def _softplus_jvp(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    return _softplus(x), jax.nn.sigmoid(x) * dx


def _where_relaxed(value: Any, log_prob: jax.Array) -> jax.Array:
    """``log_prob`` from zero to one, where it is linear in the value; no label lies outside.

    Estimators that relax a choice score the model there, where NumPyro's validation says ``-inf``.
    """
    # what goes straight through is zero or one but for rounding
    return jnp.where(jnp.abs(value - 0.5) <= 0.501, log_prob, -jnp.inf)


class _BernoulliLogits(dist.BernoulliLogits):
    """A Bernoulli whose log probability has the right gradient at logits of exactly zero.

    NumPyro's (0.22) differentiates ``max(x, 0)`` and ``abs(x)`` separately there, and a
    zero-initialised logit would train wrongly. Defined between zero and one.
    """

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        logits = _finite(self.logits)
        value = jnp.asarray(value, jnp.result_type(logits))
        return _where_relaxed(value, value * logits - _softplus(logits))


@jax.custom_jvp
def _x_log_y(x: jax.Array, y: jax.Array) -> jax.Array:
    return x * jnp.log(y)


@_x_log_y.defjvp
def _x_log_y_jvp(primals: Any, tangents: Any) -> Any:
    # x / y first: with the cotangent first, y near the smallest number gives inf * 0
    (x, y), (dx, dy) = primals, tangents
    return _x_log_y(x, y), jnp.log(y) * dx + jnp.where(x == 0, 0.0, x / y) * dy


class _BernoulliProbs(dist.BernoulliProbs):
    """A Bernoulli whose log probability has a gradient where the probability is zero or one.

    Defined between zero and one.
    """

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        probs = clamp_probs(self.probs)
        value = jnp.asarray(value, probs.dtype)
        linear = _x_log_y(value, probs) + _x_log_y(1 - value, 1 - probs)
        return _where_relaxed(value, linear)


class _BinomialLogits(dist.BinomialLogits):
    """A Binomial whose log probability has the right gradient at logits of exactly zero."""

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        n = jnp.asarray(self.total_count, jnp.result_type(float))
        logits = _finite(self.logits, 1 + n)
        inside = (value >= 0) & (value <= n) & (jnp.mod(value, 1) == 0)
        value = jnp.where(inside, value, 0)  # what is masked must have a gradient that is a number
        ways = gammaln(n + 1) - gammaln(value + 1) - gammaln(n - value + 1)
        return jnp.where(inside, ways + value * logits - n * _softplus(logits), -jnp.inf)


def _finite(logits: Any, times: Any = 1) -> jax.Array:
    """Infinite logits are certain outcomes, not ``0 * inf``; finite even this many ``times``."""
    limit = jnp.finfo(jnp.result_type(logits, float)).max / times
    return jnp.clip(logits, -limit, limit)


def guarded(fn: Any) -> Any:
    """``fn``, a Bernoulli or Binomial replaced by one that is right at all logits and values."""
    if type(fn) is dist.BernoulliLogits:
        return _BernoulliLogits(fn.logits, validate_args=False)
    if type(fn) is dist.BernoulliProbs:
        return _BernoulliProbs(fn.probs, validate_args=False)
    if type(fn) is dist.BinomialLogits:
        return _BinomialLogits(fn.logits, fn.total_count, validate_args=False)
    if isinstance(fn, ExpandedDistribution | Independent | MaskedDistribution):
        base = guarded(fn.base_dist)
        if base is not fn.base_dist:
            fn = copy.copy(fn)
            fn.base_dist = base
    return fn
