"""A scalar program evaluated and differentiated as one packed program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms import _jax, packing
from vipp_transforms.flattening import Flat

WORTHWHILE = packing.WORTHWHILE // 2  # of the value: its gradient has as many equations again


def packed_scalar(
    closed: Any, inputs: Sequence[Any], identities: frozenset[Any] = frozenset()
) -> list[Any] | None:
    """The results of a program, packed where it has many small equations.

    So is the gradient of the first, a scalar, together with the value: a first derivative in any
    inputs is the product of the gradient with their tangents. Derivatives of that are those of the
    packed program.

    Args:
      closed: the program; what it returns behind the scalar is not differentiated.
      inputs: of it.
      identities: primitives that stand for their first operand.

    Returns:
      The results, or None if packing does not pay.
    """
    if packing.is_apart() or sum(1 for _ in _jax.equations(closed)) < WORTHWHILE:
        return None
    program = packing.flatten(closed, identities=identities)
    if not packing.pays(program, WORTHWHILE):
        return None
    inner = [v for v, x in program.consts.items() if _jax.is_tracer(x)]
    values = [*inputs, *(program.consts.pop(v) for v in inner)]
    program.invars = [*program.invars, *inner]
    # what repeats until a condition is met has derivatives forwards alone
    repeats = any(eqn.primitive.name == "while" for eqn in _jax.equations(closed))
    alone = repeats or packing.is_packed()
    first, *rest = (_forwards(program) if alone else _with_gradient(program))(*values)
    return [first, *map(jax.lax.stop_gradient, rest)]


def _with_gradient(program: Flat) -> Callable[..., list[Any]]:
    """A program, whose first result is a scalar, packed; so is its gradient."""
    evaluate = jax.custom_jvp(lambda *xs: packing.evaluated(program, xs))

    def jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        moving = _moving(tangents)
        positions = tuple(i for i, moves in enumerate(moving) if moves)

        def scalar(*xs: Any) -> tuple[Any, list[Any]]:
            first, *rest = _forwards(program)(*xs)
            return first, rest

        both = packing.pack(jax.value_and_grad(scalar, positions, has_aux=True), worthwhile=0)
        (first, rest), slopes = both(*primals)
        along = [jnp.vdot(g, tangents[i]) for g, i in zip(slopes, positions, strict=True)]
        tangent = sum(along, start=jnp.zeros((), first.dtype)).astype(first.dtype)
        return [first, *rest], [tangent, *map(_no_tangent, rest)]

    evaluate.defjvp(jvp, symbolic_zeros=True)
    return evaluate


def _forwards(program: Flat) -> Callable[..., list[Any]]:
    """A program, packed, whose derivatives are those of the packed program.

    A stack has a tangent if one of its entries has, and rules that refuse to be differentiated, or
    count how often they are, would take the others' noughts for tangents: what moves with the
    inputs that have one is packed by itself.
    """
    evaluate = jax.custom_jvp(lambda *xs: packing.evaluated(program, xs))

    def jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
        moving = _moving(tangents)
        moves = [t for t, m in zip(tangents, moving, strict=True) if m]

        def partial(*given: Any) -> list[Any]:
            rest = iter(given)
            merged = [next(rest) if m else x for x, m in zip(primals, moving, strict=True)]
            return packing.evaluated(program, merged, moving)

        return jax.jvp(partial, [x for x, m in zip(primals, moving, strict=True) if m], moves)

    evaluate.defjvp(jvp, symbolic_zeros=True)
    return evaluate


def _moving(tangents: Sequence[Any]) -> list[bool]:
    zero = jax.custom_derivatives.SymbolicZero
    return [not isinstance(t, zero) for t in tangents]


def _no_tangent(x: Any) -> Any:
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    return jnp.zeros_like(x) if inexact else np.zeros(x.shape, jax.dtypes.float0)
