"""What the trace of a sampler says of it, for distributions that declare nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.reach import Labels, Walk, reach


def parameters(fn: Any, key: Any) -> list[Any]:
    """The arrays that the sampler of ``fn`` reads, whatever it lists."""
    return list(jax.make_jaxpr(copy.copy(fn).sample)(key).consts)


def moves_with_parameters(fn: Any) -> bool:
    """Whether the draw depends differentiably on every parameter that the density reads.

    Told from the sampler's and the density's own traces, as other libraries declare nothing: each
    array that the density reads must reach the draw's derivative. A loop that goes on until a
    parameter says so, as rejection does, is not trusted; nor is what is discrete.
    """
    key = jax.random.key(0)
    fn = copy.copy(fn)  # it may keep what it works out while it is traced
    try:
        drawn = jax.make_jaxpr(fn.sample)(key)
        (shape,) = drawn.out_avals
        scored = jax.make_jaxpr(fn.log_prob)(jax.ShapeDtypeStruct(shape.shape, shape.dtype))
    except (NotImplementedError, TypeError, ValueError, AttributeError):
        return False
    if not jnp.issubdtype(shape.dtype, jnp.inexact):
        return False
    read = {id(c) for c, reached in zip(scored.consts, _reached(scored, 1), strict=True) if reached}
    read &= {id(c) for c in scored.consts if _is_float(c)}
    return read <= {id(c) for c in _moving(drawn, key)}


def _moving(drawn: Any, key: Any) -> list[Any]:
    """The arrays that the draw's derivative depends on."""
    floats = [c for c in drawn.consts if _is_float(c)]
    if _loops_on_a_parameter(drawn):
        return []

    def slope(given: list[Any], tangents: list[Any]) -> Any:
        def draw(floats: list[Any]) -> Any:
            rest = iter(floats)
            consts = [next(rest) if _is_float(c) else c for c in drawn.consts]
            return _by_constants(drawn)(consts, key)[0]

        return jax.jvp(draw, (given,), (tangents,))[1]

    traced = jax.make_jaxpr(slope)(floats, floats)
    count = len(floats)
    labels: list[Labels] = [frozenset()] * count  # of the values, then of the tangents
    found = reach(traced, [*labels, *(frozenset({i}) for i in range(count))])
    return [floats[i] for i in frozenset().union(*found)]


def _reached(jaxpr: Any, skipped: int) -> list[bool]:
    """Which of a jaxpr's constants reach its result."""
    found = _labels(jaxpr, skipped, Walk())
    return [i in found for i in range(len(jaxpr.consts))]


def _loops_on_a_parameter(jaxpr: Any) -> bool:
    met: list[Any] = []

    def known(eqn: Any, operands: list[Labels]) -> None:
        if eqn.primitive.name == "while":
            met.append(eqn)

    _labels(jaxpr, 1, Walk(known))
    return bool(met)


def _labels(jaxpr: Any, skipped: int, walk: Walk) -> Labels:
    as_inputs = jax.make_jaxpr(_by_constants(jaxpr))(jaxpr.consts, *_shapes(jaxpr))
    labels = [frozenset({i}) for i in range(len(jaxpr.consts))]
    return frozenset().union(*reach(as_inputs, [*labels, *[frozenset()] * skipped], walk))


def _by_constants(jaxpr: Any) -> Callable[..., Any]:
    bare = jaxpr.jaxpr
    fn = _jax.evaluator(bare.eqns, (*bare.constvars, *bare.invars), bare.outvars)
    return lambda consts, *inputs: fn(*consts, *inputs)


def _shapes(jaxpr: Any) -> list[Any]:
    return [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in jaxpr.in_avals]


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)
