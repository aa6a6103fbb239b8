"""Which integers of a program are known: an axis's own index, or the number of a loop's step.

Only what follows from the equations themselves is known: `iota`, literals, the sums, comparisons
and selections by which an index is wrapped, and carried integers that provably grow by one a step.
So `x[t]` inside a loop, and `x[arange(n), labels]`, take the lanes of `x` one by one.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vipp_transforms import _jax
from vipp_transforms.axis_rules import axis_maps
from vipp_transforms.lane import Place, Step


class Index(NamedTuple):
    """Integers ``first + i``, where ``i < size`` counts along ``place`` (None: one number)."""

    place: Place | None
    first: int
    size: int = 1


class Columns(NamedTuple):
    """What is known of each entry along the last axis."""

    parts: tuple[Index | None, ...]


Known = Index | Columns
Scope = dict[Any, Known]


def of(atom: Any, known: Mapping[Any, Known]) -> Known | None:
    """What is known of a variable or a literal."""
    return of_array(atom.val) if isinstance(atom, _jax.Literal) else known.get(atom)


def of_array(value: Any) -> Index | None:
    """What is known of a constant."""
    if _jax.is_tracer(value) or np.ndim(value) > 1 or not _is_integer(value):
        return None
    entries = np.asarray(value)
    if entries.ndim == 0:
        return Index(None, int(entries))
    if not entries.size or not np.array_equal(entries, entries[0] + np.arange(entries.size)):
        return None
    return _index(0, int(entries[0]), entries.size)


def _index(where: Place | None, first: int, size: int) -> Index:
    return Index(None, first) if size == 1 else Index(where, first, size)


def follow(eqns: Iterable[Any], known: Scope) -> None:
    """Add to ``known`` what follows from it by ``eqns``."""
    for eqn in eqns:
        if any(map(_is_integer, (v.aval for v in eqn.outvars))):
            results = _results(eqn, [of(v, known) for v in eqn.invars])
            pairs = zip(eqn.outvars, results, strict=True)
            known.update((v, k) for v, k in pairs if k is not None and _fits(k, v.aval.dtype))


def inside(jaxpr: Any, inputs: Sequence[Known | None]) -> Scope:
    """What is known inside a jaxpr, given what is known of its operands."""
    opened, consts = _jax.open_jaxpr(jaxpr)
    values = [*map(of_array, consts), *inputs]
    pairs = zip((*opened.constvars, *opened.invars), values, strict=True)
    known: Scope = {v: k for v, k in pairs if k is not None}
    follow(opened.eqns, known)
    return known


def inside_loop(eqn: Any, inputs: Sequence[Known | None], loop: Step) -> Scope:
    """What is known inside the body of a scan: its counters above all.

    A carried integer that starts at a known ``c`` is ``c + t`` at step ``t``, if from that follows
    that it is ``c + t + 1`` behind it. Those of which it doesn't follow are given up, until it
    follows of all: an induction over the steps.
    """
    body, _ = _jax.open_jaxpr(eqn.params["jaxpr"])
    consts, count = _jax.scan_arity(eqn)
    length = eqn.params["length"]
    scanned = [_sliced(k, loop) for k in inputs[consts + count :]]
    counting = {} if eqn.params["reverse"] else _starts(inputs[consts : consts + count])
    while True:
        carry = [_index(loop, counting[k], length) if k in counting else None for k in range(count)]
        known = inside(eqn.params["jaxpr"], [*inputs[:consts], *carry, *scanned])
        grown = {
            k: start
            for k, start in counting.items()
            if of(body.outvars[k], known) == _index(loop, start + 1, length)
        }
        if grown == counting:
            return known
        counting = grown


def _starts(carry: Sequence[Known | None]) -> dict[int, int]:
    """Where the carried values start that are known numbers."""
    numbers = ((k, x) for k, x in enumerate(carry) if isinstance(x, Index))
    return {k: x.first for k, x in numbers if x.place is None}


def _sliced(known: Known | None, loop: Step) -> Index | None:
    """What is known of a slice along the first axis."""
    if not isinstance(known, Index) or not isinstance(known.place, int):
        return known if isinstance(known, Index) else None
    return known._replace(place=known.place - 1 if known.place else loop)


def _is_integer(x: Any) -> bool:
    dtype = getattr(x, "dtype", None) or np.asarray(x).dtype
    return jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.bool_


def _fits(known: Known, dtype: Any) -> bool:
    if isinstance(known, Columns) or dtype == jnp.bool_:
        return True
    bounds = np.iinfo(dtype)
    return bounds.min <= known.first and known.first + known.size - 1 <= bounds.max


_COMPARISONS = {"lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}
_MOVES = frozenset({"broadcast_in_dim", "reshape", "squeeze", "transpose", "expand_dims", "copy"})


def _results(eqn: Any, inputs: list[Known | None]) -> Sequence[Known | None]:
    inner = _jax.called(eqn)
    if inner is not None:
        known = inside(inner, inputs) if any(inputs) else {}
        return [of(v, known) for v in _jax.open_jaxpr(inner)[0].outvars]
    if len(eqn.outvars) > 1:
        return [None] * len(eqn.outvars)
    return [_result(eqn, inputs)]


def _result(eqn: Any, inputs: list[Known | None]) -> Known | None:
    name = eqn.primitive.name
    if name == "iota":
        dimension, shape = eqn.params["dimension"], eqn.params["shape"]
        return _index(dimension, 0, shape[dimension]) if shape[dimension] else None
    if name == "concatenate":
        return _columns(eqn, inputs)
    first = inputs[0] if inputs else None
    if not isinstance(first, Index):
        return first if name == "convert_element_type" else None
    if name == "convert_element_type":
        return first
    if name in _MOVES:
        return _moved(eqn, first)
    if name == "select_n" and first.place is None:
        return inputs[1 + first.first]
    second = inputs[1] if len(inputs) > 1 else None
    return _combined(name, first, second) if isinstance(second, Index) else None


def _combined(name: str, a: Index, b: Index) -> Index | None:
    if name in _COMPARISONS:
        compare = _COMPARISONS[name]
        ends = [(x.first, x.first + x.size - 1) for x in (a, b)]
        # whether a comparison comes out alike at all entries is seen at the ends
        found = {compare(i, j) for i in ends[0] for j in ends[1]}  # monotone in both
        return Index(None, int(found.pop())) if len(found) == 1 else None
    if name == "add" and a.place is None:
        return b._replace(first=a.first + b.first)
    if name in ("add", "sub") and b.place is None:
        return a._replace(first=a.first + (b.first if name == "add" else -b.first))
    return None


def _moved(eqn: Any, known: Index) -> Index | None:
    if not isinstance(known.place, int):
        return known
    to = axis_maps(eqn)[0][0][known.place]
    return None if to is None else known._replace(place=to)


def _columns(eqn: Any, inputs: list[Known | None]) -> Columns | None:
    last = len(eqn.outvars[0].aval.shape) - 1
    single = all(v.aval.shape[-1] == 1 for v in eqn.invars)
    if eqn.params["dimension"] != last or not single:
        return None
    return Columns(tuple(k if isinstance(k, Index) else None for k in inputs))


def lanes_taken(eqn: Any, inputs: Sequence[Known | None]) -> dict[int, Place]:
    """Axes of the indexed operand that are taken one by one, and the place that counts along them.

    The index then never is out of bounds: it runs through the whole axis.
    """
    name = eqn.primitive.name
    if name == "dynamic_slice":
        found = dict(enumerate(inputs[1:]))
    elif name == "gather":
        found = _gathered(eqn, inputs[1])
    else:
        return {}
    operand, sizes = eqn.invars[0].aval.shape, eqn.params["slice_sizes"]
    return {
        axis: known.place
        for axis, known in found.items()
        if isinstance(known, Index) and known.place is not None
        and (known.first, known.size, sizes[axis]) == (0, operand[axis], 1)
    }  # fmt: skip


def _gathered(eqn: Any, known: Known | None) -> dict[int, Index | None]:
    """Per axis that is indexed, what is known of the index, with the output's axes for places."""
    numbers, indices = eqn.params["dimension_numbers"], eqn.invars[1].aval.shape
    if isinstance(known, Columns):
        parts = known.parts
    else:
        parts = (known,) * indices[-1]
    rank = len(eqn.outvars[0].aval.shape)
    looped = [axis for axis in range(rank) if axis not in numbers.offset_dims]
    found = {}
    for axis, part in zip(numbers.start_index_map, parts, strict=True):
        if part is not None and isinstance(part.place, int):
            last = part.place == len(indices) - 1
            part = None if last else part._replace(place=looped[part.place])
        found[axis] = part
    return found
