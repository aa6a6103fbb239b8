"""Functions of arrays, entry by entry, with a derivative of their own.

What ``jax.custom_jvp`` makes is traced anew, and another function, wherever it is called, mapped or
differentiated: equal calls can't be told to be equal, and each is differentiated by itself. These
are operations, of which two are the same if what they do is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms import _jax

Formula = Callable[..., Any]


class Elementwise:
    """A function of arrays, entry by entry; decorate its formula.

    Its operands are broadcast. Until :meth:`defjvps` has said what its derivatives are, it can't
    be differentiated.

    Args:
      formula: what it computes, in JAX, of operands of one shape; one array.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vipp_transforms.elementwise import Elementwise
      >>> @Elementwise
      ... def size(x):
      ...     return jnp.abs(x)
      >>> size.defjvps(lambda dx, x: jnp.where(x < 0, -1.0, 1.0) * dx)
      >>> float(jax.grad(size)(0.0))
      1.0
    """

    def __init__(self, formula: Formula):
        self.formula = formula
        self.slopes: tuple[Formula, ...] = ()
        functools.update_wrapper(self, formula)

    def defjvps(self, *slopes: Formula) -> None:
        """Say what its derivatives are.

        Args:
          *slopes: for each operand what its tangent contributes to that of the result, a function
            of ``(tangent, *operands)``; not asked where nothing moves the operand.
        """
        self.slopes = slopes

    def __call__(self, *operands: Any) -> Any:
        """Its values at operands."""
        arrays = [jnp.asarray(x) for x in operands]
        if len({x.shape for x in arrays}) > 1:
            arrays = jnp.broadcast_arrays(*arrays)
        types = tuple((x.shape, x.dtype, jax.typeof(x).weak_type) for x in arrays)
        return elementwise_p.bind(*arrays, fn=self, call_jaxpr=_traced(self.formula, types))


@functools.lru_cache(maxsize=4096)
def _traced(formula: Formula, types: tuple[Any, ...]) -> Any:
    """The same jaxpr for operands of the same types: that is how calls are known to be equal."""
    avals = [_jax.shaped(_jax.shaped_array(*each)) for each in types]
    return _jax.trace(formula, *avals)[0]


def is_elementwise(eqn: Any) -> bool:
    """Whether an equation is a call of such a function."""
    return eqn.primitive is elementwise_p


def _value(*operands: Any, fn: Elementwise, call_jaxpr: Any) -> Any:
    return fn.formula(*operands)


def _type(*operands: Any, fn: Elementwise, call_jaxpr: Any) -> Any:
    (out,) = _jax.open_jaxpr(call_jaxpr)[0].outvars
    return out.aval


def _batch(operands: Any, dims: Any, *, fn: Elementwise, call_jaxpr: Any) -> tuple[Any, int]:
    front = [
        jnp.expand_dims(x, 0) if d is None else jnp.moveaxis(x, d, 0)
        for x, d in zip(operands, dims, strict=True)
    ]
    return fn(*front), 0


def _jvp(primals: Any, tangents: Any, *, fn: Elementwise, call_jaxpr: Any) -> tuple[Any, Any]:
    if not fn.slopes:
        name = getattr(fn.formula, "__name__", repr(fn.formula))
        raise TypeError(f"'{name}' has no derivative, expected one. Fix: give it one by `defjvps`.")
    moving = zip(fn.slopes, tangents, strict=True)
    parts = [slope(t, *primals) for slope, t in moving if not _jax.is_zero(t)]
    out = fn(*primals)
    return out, sum(parts[1:], start=parts[0]) if parts else _jax.zero_like(out)


elementwise_p = _jax.define_primitive("vipp_elementwise", _value, _type, _batch, _jvp)
