"""Equations that come down to less: doing nothing, spreading twice, arithmetic of numbers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from vipp_transforms import _jax
from vipp_transforms.equations import spreading
from vipp_transforms.spreads import Spread, is_spread

Atom = Any  # a variable or a literal of a jaxpr


def simplified(
    eqn: Any, operands: tuple[Atom, ...], spreads: Mapping[Any, Spread]
) -> tuple[Any, tuple[Atom, ...]]:
    """An equation for less, and its operands; None for an equation whose result is the operand.

    Args:
      eqn: an equation.
      operands: what it is of.
      spreads: by variable, those known.
    """
    if _does_nothing(eqn):
        return None, operands[:1]
    number = _number(eqn, operands)
    if number is not None:
        return None, (number,)
    kept = _times_one(eqn, operands)
    if kept is not None:
        return None, (kept,)
    return _of_spread(eqn, operands, spreads)


def type_of(aval: Any) -> Hashable:
    """Equal for arrays that may stand for each other."""
    if not hasattr(aval, "dtype"):
        return str(aval)
    return aval.shape, aval.dtype, getattr(aval, "weak_type", False)


# where shape and type stay the same, these do nothing
_SAME = frozenset(
    {"copy", "slice", "squeeze", "reshape", "broadcast_in_dim", "convert_element_type",
     "reduce_sum", "reduce_max", "reduce_min"}
)  # fmt: skip
_ARITHMETIC: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative,
}  # fmt: skip


def _does_nothing(eqn: Any) -> bool:
    name, params = eqn.primitive.name, eqn.params
    if name == "transpose":
        return params["permutation"] == tuple(range(len(params["permutation"])))
    same = name in _SAME and params.get("sharding") is None
    return same and type_of(eqn.invars[0].aval) == type_of(eqn.outvars[0].aval)


def _value(atom: Atom) -> Any:
    """The number that a literal is."""
    if not isinstance(atom, _jax.Literal) or np.ndim(atom.val):
        return None
    aval: Any = atom.aval
    return np.asarray(atom.val, aval.dtype)[()]


def _number(eqn: Any, operands: tuple[Atom, ...]) -> Any:
    """The result of arithmetic on numbers of the program's text, if it is exact."""
    name = eqn.primitive.name
    if name not in _ARITHMETIC and name != "div":
        return None
    values = [_value(x) for x in operands]
    if any(x is None or not np.isfinite(x) for x in values):
        return None
    if name == "div":
        if values[1] != 1:
            return None
        found = values[0]
    else:
        found = _ARITHMETIC[name](*values)
    return _jax.Literal(found.astype(eqn.outvars[0].aval.dtype), eqn.outvars[0].aval)


def _times_one(eqn: Any, operands: tuple[Atom, ...]) -> Atom | None:
    """What is multiplied by one, or divided."""
    if eqn.primitive.name not in ("mul", "div"):
        return None
    wanted = type_of(eqn.outvars[0].aval)
    pairs = [(operands[0], operands[1])]
    pairs += [(operands[1], operands[0])] if eqn.primitive.name == "mul" else []
    kept = [x for x, by in pairs if type_of(x.aval) == wanted and _value(by) == 1]
    return kept[0] if kept else None


def _of_spread(
    eqn: Any, operands: tuple[Atom, ...], spreads: Mapping[Any, Spread]
) -> tuple[Any, tuple[Atom, ...]]:
    """What is spread, or freed of axes that were added, as spread of the original."""
    name = eqn.primitive.name
    if not (is_spread(eqn) or name == "squeeze") or isinstance(operands[0], _jax.Literal):
        return eqn, operands
    known = spreads.get(operands[0])
    if known is None:
        return eqn, operands
    at = known.places
    if name == "squeeze":
        ndim = len(known.eqn.params["shape"])
        gone = {d % ndim for d in eqn.params["dimensions"]}
        if not gone.isdisjoint(at):
            return eqn, operands
        places = tuple(a - sum(d < a for d in gone) for a in at)
    else:
        places = tuple(eqn.params["broadcast_dimensions"][a] for a in at)
    out = eqn.outvars[0].aval
    if type_of(known.operand.aval) == type_of(out) and places == tuple(range(len(out.shape))):
        return None, (known.operand,)
    return spreading(known.operand, eqn.outvars[0], places), (known.operand,)
