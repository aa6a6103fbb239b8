"""The softplus, right with all its derivatives at every number."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vipp_transforms.elementwise import Elementwise


@Elementwise
def softplus(x: jax.Array) -> jax.Array:
    """The logarithm of one plus the exponential."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


softplus.defjvps(lambda dx, x: jax.nn.sigmoid(x) * dx)
