"""What vipp needs of a NumPyro distribution beyond its own methods."""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import gammaln
from numpyro.distributions.distribution import ExpandedDistribution, Independent, MaskedDistribution


@jax.custom_jvp
def _softplus(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@_softplus.defjvp
def _softplus_jvp(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    return _softplus(x), jax.nn.sigmoid(x) * dx


class _BernoulliLogits(dist.BernoulliLogits):
    """A Bernoulli whose log probability has the right gradient at logits of exactly zero.

    NumPyro's (0.22) differentiates ``max(x, 0)`` and ``abs(x)`` separately there, and a
    zero-initialised logit would train wrongly.
    """

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        logits = _finite(self.logits)
        return value * logits - _softplus(logits)


class _BinomialLogits(dist.BinomialLogits):
    """A Binomial whose log probability has the right gradient at logits of exactly zero."""

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        n = jnp.asarray(self.total_count, jnp.result_type(float))
        logits = _finite(self.logits, 1 + n)
        ways = gammaln(n + 1) - gammaln(value + 1) - gammaln(n - value + 1)
        return ways + value * logits - n * _softplus(logits)


def _finite(logits: Any, times: Any = 1) -> jax.Array:
    """Infinite logits are certain outcomes, not ``0 * inf``; finite even this many ``times``."""
    limit = jnp.finfo(jnp.result_type(logits, float)).max / times
    return jnp.clip(logits, -limit, limit)


def exact(fn: Any) -> Any:
    """``fn``, a Bernoulli or Binomial in logits replaced by one with the right gradient at zero.

    A Bernoulli of either kind scores any number, as estimators that relax a choice need.
    """
    if type(fn) is dist.BernoulliLogits:
        return _BernoulliLogits(fn.logits, validate_args=False)
    if type(fn) is dist.BernoulliProbs:  # NumPyro's validation makes it -inf between 0 and 1
        return dist.BernoulliProbs(fn.probs, validate_args=False)
    if type(fn) is dist.BinomialLogits:
        return _BinomialLogits(fn.logits, fn.total_count, validate_args=False)
    if isinstance(fn, ExpandedDistribution | Independent | MaskedDistribution):
        base = exact(fn.base_dist)
        if base is not fn.base_dist:
            fn = copy.copy(fn)
            fn.base_dist = base
    return fn


def lane_distribution(fn: Any) -> Any:
    """The distribution that ``fn`` draws from, with every independent coordinate a batch element.

    ``to_event`` dimensions become batch axes again, and a mask, which changes what is counted but
    not what is drawn, is taken off.
    """
    if isinstance(fn, MaskedDistribution | Independent):
        return lane_distribution(fn.base_dist)
    if isinstance(fn, ExpandedDistribution):
        base = fn.base_dist
        stripped = lane_distribution(base)
        events = tuple(stripped.batch_shape[len(base.batch_shape) :])
        return stripped.expand((*fn.batch_shape, *events))
    return exact(fn)


def reparameterised(fn: Any) -> bool:
    """Whether gradients flow through ``fn``'s sampler to all its parameters."""
    return bool(fn.has_rsample)
