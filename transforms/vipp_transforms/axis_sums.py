"""Sums and maxima over one axis of an array whose entries lie far apart along it.

XLA's CPU compiler reduces such an axis entry by entry, up to thirty times slower than by additions
of whole slices, which it fuses with what computes them.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms import _jax

APART = 256  # entries between two of the axis from which on slices are taken
LARGE = 2**12  # entries from which on an array is worth it, and is laid out by itself


def sum_over(x: Any, axis: int) -> Any:
    """The sum over an axis."""
    if not _far_apart(x, axis):
        return jnp.sum(x, axis=axis)
    # a product with ones, whose derivative repeats what it is given
    shape = jnp.shape(x)
    before, size, behind = math.prod(shape[:axis]), shape[axis], shape[axis + 1 :]
    ones = jnp.ones((before, 1, size), x.dtype)
    flat = jnp.reshape(x, (before, size, math.prod(behind)))
    total = jnp.matmul(ones, flat, precision=jax.lax.Precision.HIGHEST)
    return jnp.reshape(total, (*shape[:axis], *behind))


def max_over(x: Any, axis: int) -> Any:
    """The largest entries along an axis, which are not to be differentiated."""
    x = jax.lax.stop_gradient(x)
    if not _far_apart(x, axis):
        return jnp.max(x, axis=axis)
    left = []
    while (size := jnp.shape(x)[axis]) > 1:
        half = size // 2
        slices = [jax.lax.slice_in_dim(x, i * half, (i + 1) * half, axis=axis) for i in (0, 1)]
        if size % 2:
            left.append(jax.lax.slice_in_dim(x, size - 1, size, axis=axis))
        x = jnp.maximum(*slices)
    for other in left:
        x = jnp.maximum(x, other)
    return jnp.squeeze(x, axis)


def settled(x: Any) -> Any:
    """``x``, whose cotangent is laid out as it is before anything else is made of it, if large.

    Else a sum over one of its axes may become one over an axis of what it was turned into, where
    the entries lie far apart.
    """
    return _settled_p.bind(x) if jnp.size(x) >= LARGE else x


def _batch(operands: Any, dims: Any) -> tuple[Any, Any]:
    return _settled_p.bind(*operands), dims[0]


def _jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    (x,), (dx,) = primals, tangents
    return _settled_p.bind(x), dx if _jax.is_zero(dx) else _settled_p.bind(dx)


_settled_p = _jax.define_linear(
    "vipp_settled", lambda x: x, _batch, _jvp, jax.lax.optimization_barrier
)


def _far_apart(x: Any, axis: int) -> bool:
    return jnp.size(x) >= LARGE and math.prod(jnp.shape(x)[axis + 1 :]) >= APART
