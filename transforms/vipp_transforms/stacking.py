"""Arrays of one shape along a new first axis, and back, in one equation each.

Written with ``concatenate`` and ``slice`` a stack of n scalars is 2n equations, its derivative as
many again; and that a value is an entry of an array would have to be guessed from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from vipp_transforms import _jax


def stack(*arrays: Any) -> Any:
    """Arrays of one shape and dtype along a new first axis."""
    return stack_p.bind(*arrays)


def unstack(array: Any) -> list[Any]:
    """The entries of an array along its first axis."""
    return unstack_p.bind(array)


def joined(*arrays: Any) -> Any:
    """What :func:`stack` is in JAX's own operations."""
    return lax.concatenate([lax.expand_dims(x, (0,)) for x in arrays], 0)


def entries(array: Any) -> list[Any]:
    """What :func:`unstack` is in JAX's own operations."""
    return [lax.index_in_dim(array, i, keepdims=False) for i in range(array.shape[0])]


def _stack_abstract(*avals: Any) -> Any:
    return _jax.shaped_array((len(avals), *avals[0].shape), avals[0].dtype)


def _unstack_abstract(aval: Any) -> list[Any]:
    return [_jax.shaped_array(aval.shape[1:], aval.dtype)] * aval.shape[0]


def _stack_batch(operands: Any, dims: Any) -> tuple[Any, int]:
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    spread = lambda x: jnp.broadcast_to(x, (size, *x.shape))
    lanes = [
        spread(x) if d is None else jnp.moveaxis(x, d, 0)
        for x, d in zip(operands, dims, strict=True)
    ]
    return stack(*lanes), 1


def _unstack_batch(operands: Any, dims: Any) -> tuple[list[Any], list[int]]:
    outs = unstack(jnp.moveaxis(operands[0], dims[0], 1))
    return outs, [0] * len(outs)


def _filled(tangents: Sequence[Any]) -> list[Any]:
    """Tangents as arrays, those that are symbolically zero, too."""
    return [jnp.zeros(t.aval.shape, t.aval.dtype) if _jax.is_zero(t) else t for t in tangents]


def _stack_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    out = stack(*primals)
    return out, _jax.zero_like(out) if all(map(_jax.is_zero, tangents)) else stack(
        *_filled(tangents)
    )


def _unstack_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    outs = unstack(primals[0])
    still = _jax.is_zero(tangents[0])
    return outs, [_jax.zero_like(x) for x in outs] if still else unstack(tangents[0])


def _stack_transpose(cotangent: Any, *operands: Any) -> list[Any]:
    return [cotangent] * len(operands) if _jax.is_zero(cotangent) else unstack(cotangent)


def _unstack_transpose(cotangents: Any, operand: Any) -> list[Any]:
    return [stack(*_filled(cotangents))]


stack_p = _jax.define_primitive(
    "stack", joined, _stack_abstract, _stack_batch, _stack_jvp, _stack_transpose
)
unstack_p = _jax.define_primitive(
    "unstack", entries, _unstack_abstract, _unstack_batch, _unstack_jvp, _unstack_transpose,
    several=True,
)  # fmt: skip
