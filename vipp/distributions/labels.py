"""Log densities of what is observed to be zero or one.

The logarithm of a Bernoulli's density is linear in its value. Of a label it is one of two numbers,
which takes no product (``-softplus(-logits)`` of a one, so that infinite logits need no care) and
one logarithm instead of two; all its derivatives, those in the label included, are those of the
linear function.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.util import clamp_probs

from vipp.distributions.softplus import softplus
from vipp_transforms.elementwise import Elementwise


class LabelLogits(dist.BernoulliLogits):
    """A Bernoulli that scores labels."""

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        """The log probability; minus infinity of what is neither zero nor one."""
        logits = jnp.asarray(self.logits, jnp.result_type(self.logits, float))
        return _log_prob_of_logits(jnp.asarray(value, logits.dtype), logits)


class LabelProbs(dist.BernoulliProbs):
    """A Bernoulli that scores labels."""

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        """The log probability; minus infinity of what is neither zero nor one."""
        probs = clamp_probs(self.probs)
        return _log_prob_of_probs(jnp.asarray(value, probs.dtype), probs)


def _either(label: Any, one: Any, zero: Any, neither: float) -> jax.Array:
    return jnp.where(label == 1, one, jnp.where(label == 0, zero, neither))


@Elementwise
def _log_prob_of_logits(label: jax.Array, logits: jax.Array) -> jax.Array:
    return -softplus.formula(_either(label, -logits, logits, jnp.inf))


def _in_logits(dx: Any, label: Any, logits: Any) -> jax.Array:
    wrong = jax.nn.sigmoid(_either(label, -logits, logits, jnp.inf))
    return wrong * _either(label, dx, -dx, 0.0) + _none(label, jnp.ones_like(logits)) * dx


_log_prob_of_logits.defjvps(lambda dx, label, logits: logits * dx, _in_logits)


@Elementwise
def _log_prob_of_probs(label: jax.Array, probs: jax.Array) -> jax.Array:
    log_prob = jnp.log(_either(label, probs, 1 - probs, 1.0))
    return jnp.where((label == 0) | (label == 1), log_prob, -jnp.inf)


def _in_probs(dx: Any, label: Any, probs: Any) -> jax.Array:
    right = _either(label, probs, 1 - probs, 1.0)
    slope = 1 / probs + 1 / (1 - probs)
    return _either(label, dx, -dx, 0.0) / right + _none(label, slope) * dx


_log_prob_of_probs.defjvps(
    lambda dx, label, probs: (jnp.log(probs) - jnp.log(1 - probs)) * dx, _in_probs
)


@Elementwise
def _none(label: jax.Array, slope: jax.Array) -> jax.Array:
    """Zero, with a slope in the label."""
    return jnp.zeros_like(slope)


_none.defjvps(
    lambda dx, label, slope: slope * dx,
    lambda dx, label, slope: _none(label, jnp.ones_like(slope)) * dx,
)
