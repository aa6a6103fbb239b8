"""What vipp needs of a NumPyro distribution beyond its own methods."""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
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
        # infinite logits are certain outcomes, not 0 * inf
        limit = jnp.finfo(jnp.result_type(self.logits, float)).max
        logits = jnp.clip(self.logits, -limit, limit)
        return value * logits - _softplus(logits)


def exact(fn: Any) -> Any:
    """``fn`` with every Bernoulli in logits replaced by one whose gradient is right at zero."""
    if type(fn) is dist.BernoulliLogits:
        return _BernoulliLogits(fn.logits, validate_args=False)
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
