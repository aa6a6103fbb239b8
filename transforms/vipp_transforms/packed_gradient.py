"""A scalar function evaluated and differentiated as one packed program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms import _jax, packing

WORTHWHILE = packing.WORTHWHILE // 2  # of the value: its gradient has as many equations again


def packed_scalar(fn: Callable[[], tuple[Any, Any]], size: int) -> tuple[Any, Any]:
    """``fn() -> (value, aux)``, packed where it has many small equations.

    So is its gradient, together with the value: a first derivative in any inputs is the product of
    the gradient with their tangents. Derivatives of that are those of the program as it stands.

    Args:
      fn: of a scalar, and what goes with it and is not differentiated; it reads its inputs from
        around it.
      size: how many equations it has at most, before they are counted.

    Returns:
      What ``fn`` does.
    """
    if size < WORTHWHILE or packing.is_packed():
        return fn()
    with packing.around():
        closed, shape = _jax.trace(fn)
    outs = _value_and_rest(closed)
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(shape), outs)


def _value_and_rest(closed: Any) -> list[Any]:
    if not packing.pays(packing.flatten(closed), WORTHWHILE):
        return _jax.evaluated(closed, ())
    jaxpr, consts = _jax.open_jaxpr(closed)
    pairs = list(zip(jaxpr.constvars, consts, strict=True))
    inputs = [(v, x) for v, x in pairs if _jax.is_tracer(x)]
    fixed = [(v, x) for v, x in pairs if not _jax.is_tracer(x)]
    whole = _jax.evaluator(jaxpr.eqns, [v for v, _ in fixed + inputs], jaxpr.outvars)
    plain = lambda *xs: whole(*(x for _, x in fixed), *xs)
    # what repeats until a condition is met has derivatives forwards alone
    repeats = any(eqn.primitive.name == "while" for eqn in _jax.equations(closed))
    packed = _packed(plain) if repeats else _with_gradient(plain)
    return packed(*(x for _, x in inputs))


def _with_gradient(plain: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """``plain``, whose first result is a scalar, packed; so is its gradient."""
    evaluate = jax.custom_jvp(_packed(plain))

    def jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        moving = _moving(tangents)
        scalar = lambda *xs: (lambda first, *rest: (first, rest))(*plain(*xs))
        both = jax.value_and_grad(scalar, argnums=moving, has_aux=True)
        (first, rest), slopes = _packed(both)(*primals)
        along = [jnp.vdot(g, tangents[i]) for g, i in zip(slopes, moving, strict=True)]
        tangent = sum(along, start=jnp.zeros((), first.dtype)).astype(first.dtype)
        return [first, *rest], [tangent, *map(_no_tangent, rest)]

    evaluate.defjvp(jvp, symbolic_zeros=True)
    return evaluate


def _packed(plain: Callable[..., Any]) -> Callable[..., Any]:
    """``plain``, packed. Its derivatives are not.

    A stack has a tangent if one of its entries has, and rules that refuse to be differentiated, or
    count how often they are, would take the others' noughts for tangents.
    """
    evaluate = jax.custom_jvp(packing.pack(plain, worthwhile=WORTHWHILE))

    def jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
        moving = _moving(tangents)

        def partial(*moved: Any) -> Any:
            given = dict(zip(moving, moved, strict=True))
            return plain(*(given.get(i, x) for i, x in enumerate(primals)))

        return jax.jvp(
            partial, tuple(primals[i] for i in moving), tuple(tangents[i] for i in moving)
        )

    evaluate.defjvp(jvp, symbolic_zeros=True)
    return evaluate


def _moving(tangents: Sequence[Any]) -> tuple[int, ...]:
    zero = jax.custom_derivatives.SymbolicZero
    return tuple(i for i, t in enumerate(tangents) if not isinstance(t, zero))


def _no_tangent(x: Any) -> Any:
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    return jnp.zeros_like(x) if inexact else np.zeros(x.shape, jax.dtypes.float0)
