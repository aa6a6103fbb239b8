"""Numbers that are known at every value of a choice, the same at every entry.

A choice whose every value is tried takes the same one in all of its lanes. So does what is computed
from it by adding, comparing or moving about: an index, above all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vipp_transforms import _jax

MAX_NUMBERS = 2**12  # values of the choices together of which numbers are followed


class Numbers(NamedTuple):
    """One number for each value of some choices, whatever the entry.

    Attributes:
      table: the numbers, one axis per name.
      axes: the names.
    """

    table: np.ndarray
    axes: tuple[str, ...] = ()


def numbers_of(atom: Any, known: Mapping[Any, Numbers]) -> Numbers | None:
    """What is known of a variable or a literal."""
    if not isinstance(atom, _jax.Literal):
        return known.get(atom)
    aval: Any = atom.aval
    return None if np.ndim(atom.val) else Numbers(np.asarray(atom.val, aval.dtype))


def numbers_in(value: Any) -> Numbers | None:
    """What is known of a constant: one number, if all its entries are the same."""
    if _jax.is_tracer(value) or not 0 < np.size(value) <= MAX_NUMBERS:
        return None
    dtype = getattr(value, "dtype", None) or np.asarray(value).dtype
    if not (jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_):
        return None  # keys, above all
    entries = np.ravel(np.asarray(value))
    return Numbers(entries[0]) if np.all(entries == entries[0]) else None


def follow(eqns: Iterable[Any], known: dict[Any, Numbers], order: Sequence[str]) -> None:
    """Add to ``known`` what follows from it by ``eqns``.

    Args:
      eqns: in order.
      known: numbers by variable.
      order: of the names of axes.
    """
    for eqn in eqns:
        name = eqn.primitive.name
        if name not in _MOVES and name not in FUNCTIONS:
            continue
        inputs = [numbers_of(v, known) for v in eqn.invars]
        if any(x is None for x in inputs):
            continue
        found = inputs[0] if name in _MOVES else _computed(eqn, inputs, order)
        if found is not None:
            known[eqn.outvars[0]] = found


def table_over(numbers: Numbers, names: Sequence[str]) -> np.ndarray:
    """The table with the axes ``names``, of size one where it has them not."""
    absent = tuple(i for i, n in enumerate(names) if n not in numbers.axes)
    return np.expand_dims(numbers.table, absent)


def _computed(eqn: Any, inputs: Sequence[Any], order: Sequence[str]) -> Numbers | None:
    present = {n for x in inputs for n in x.axes}
    names = tuple(n for n in order if n in present)
    tables = [table_over(x, names) for x in inputs]
    shape = np.broadcast_shapes(*(t.shape for t in tables))
    if np.prod(shape) > MAX_NUMBERS:
        return None
    dtype = eqn.outvars[0].aval.dtype
    if eqn.primitive.name in ("div", "rem") and not np.all(tables[1]):
        return None  # what a machine makes of it
    with np.errstate(all="ignore"):
        found = FUNCTIONS[eqn.primitive.name](*tables)
    return Numbers(np.broadcast_to(found, shape).astype(dtype), names)


def _select(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    return np.choose(which.astype(int), cases)


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Towards nought, as machines divide whole numbers."""
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


def _div(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _quotient(a, b) if np.issubdtype(a.dtype, np.integer) else a / b


_MOVES = frozenset(
    {"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "copy", "copy_p",
     "slice", "rev", "stop_gradient"}
)  # fmt: skip
FUNCTIONS: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "abs": np.abs,
    "sign": np.sign, "max": np.maximum, "min": np.minimum, "rem": np.fmod, "div": _div,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "not": np.bitwise_not, "floor": np.floor, "select_n": _select,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "convert_element_type": lambda x: x,
}  # fmt: skip
