"""When two calls of ``fit`` may share what was compiled: the same programs, equal values."""

from __future__ import annotations

import dis
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import numpy as np

_VALUES = (bool, int, float, complex, str, bytes, type(None))


class Same:
    """An object that equals nothing but itself, kept alive as long as it is compared with."""

    def __init__(self, thing: Any):
        self.thing = thing

    def __hash__(self) -> int:
        return id(self.thing)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.thing is other.thing


def identity(thing: Any) -> Hashable:
    """A key that is equal for things that compile to the same program.

    Numbers, strings and tuples of such go by their value; arrays, objects and functions are
    themselves, and a function is also what it reads from around it: the variables that it closes
    over, and those of its module, as far as functions of that module lead. So a program that reads
    a number from outside is compiled again when the number has been changed.
    """
    if isinstance(thing, types.FunctionType):
        return Same(thing), *_captured(thing)
    return _value(thing)


def _value(thing: Any) -> Hashable:
    if isinstance(thing, _VALUES):
        return type(thing), thing
    if isinstance(thing, tuple):
        return type(thing), tuple(map(_value, thing))
    if isinstance(thing, np.generic):
        return type(thing), thing.item()
    hashable_by_value = type(thing).__eq__ is not object.__eq__ and type(thing).__hash__
    if hashable_by_value and not isinstance(thing, jax.Array) and _has_hash(thing):
        return thing
    return Same(thing)


def _has_hash(thing: Any) -> bool:
    """Whether a thing hashes: a module of another library may hold arrays, which don't."""
    try:
        hash(thing)
    except TypeError:
        return False
    return True


def _captured(fn: types.FunctionType) -> Iterator[Hashable]:
    """What a function reads from around it, and so on through its module's functions."""
    seen: set[int] = {id(fn)}
    waiting = [fn]
    while waiting:
        here = waiting.pop()
        for name, thing in _read_by(here):
            yield name, _value(thing)
            inner = thing.__func__ if isinstance(thing, types.MethodType) else thing
            local = isinstance(inner, types.FunctionType) and inner.__globals__ is fn.__globals__
            if local and id(inner) not in seen:
                seen.add(id(inner))
                waiting.append(inner)


def _read_by(fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        if not _is_empty(cell):
            yield name, cell.cell_contents
    for name in sorted(_names(fn.__code__)):
        if name in fn.__globals__:
            yield name, fn.__globals__[name]
    yield "defaults", (fn.__defaults__ or ()) + tuple((fn.__kwdefaults__ or {}).items())


def _is_empty(cell: Any) -> bool:
    return cell == types.CellType()


def _names(code: types.CodeType) -> set[str]:
    """The global names that a piece of code reads, the functions inside it included."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    read = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    return read.union(*map(_names, inner))


def structure(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], Hashable, Callable]:
    """Split arguments into arrays and the rest.

    Returns:
      The arrays, NumPy's included; a key of all else, with the arrays' shapes and dtypes; and how
      to put arguments together again from arrays.
    """
    leaves, treedef = jax.tree_util.tree_flatten((args, kwargs))
    dynamic = [isinstance(x, jax.Array | np.ndarray) for x in leaves]
    arrays = [x for x, d in zip(leaves, dynamic, strict=True) if d]
    shapes = tuple((x.shape, str(x.dtype)) for x in arrays)
    rest = tuple(None if d else identity(x) for x, d in zip(leaves, dynamic, strict=True))

    def build(arrays: Any) -> Any:
        given = iter(arrays)
        merged = [next(given) if d else x for x, d in zip(leaves, dynamic, strict=True)]
        return jax.tree_util.tree_unflatten(treedef, merged)

    return arrays, (treedef, rest, shapes), build
