"""When two calls of ``fit`` may share what was compiled: the same programs, equal values."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import numpy as np
from numpyro.optim import _NumPyroOptim

_VALUES = (bool, int, float, complex, str, bytes, type(None), types.EllipsisType)
_READS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
# what these hold is not changed between two runs
_LIBRARIES = {"jax", "jaxlib", "numpy", "numpyro", "optax", "flax", "vipp", "vipp_transforms"}
_LIBRARIES |= {"builtins", "collections", "functools", "itertools", "math", "operator", "typing"}
_MOST_SEEN = 10_000  # things behind one, among which functions are looked for


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

    Numbers, strings and tuples of such go by their value; arrays and objects are themselves. A
    function is its code and what it reads from around it: the variables that it closes over, and
    those of its module, as far as functions lead. So what a factory makes again of equal numbers,
    an optimiser say, is the same, and a program that reads a number from outside is compiled again
    when the number has been changed.

    A function that reads something else, which may have been changed in place in between, is also
    itself: an object's attribute, say, a list, or a module that is not of a library. So is all that
    holds functions, such as a handler, a method or an instance; what these read counts as well.
    """
    if isinstance(thing, types.FunctionType | tuple | functools.partial | _NumPyroOptim):
        try:
            of_library = _root(type(thing)) in ("optax", "numpyro")
            return "made", _Making().key(thing, of_library=of_library)
        except _ChangeableError:
            pass
    return _value(thing), *_captured(thing)


def _value(thing: Any) -> Hashable:
    if isinstance(thing, float | complex):
        return type(thing), repr(thing)  # 0.0 == -0.0
    if isinstance(thing, _VALUES):
        return type(thing), thing
    if isinstance(thing, tuple):
        return type(thing), tuple(map(_value, thing))
    if isinstance(thing, np.generic):
        return type(thing), _value(thing.item())
    return thing if _is_a_value(thing) else Same(thing)


def _is_a_value(thing: Any) -> bool:
    """Whether a thing is hashed, and compared, by what it holds."""
    hashable_by_value = type(thing).__eq__ is not object.__eq__ and type(thing).__hash__
    return bool(hashable_by_value) and not isinstance(thing, jax.Array) and _has_hash(thing)


def _has_hash(thing: Any) -> bool:
    """Whether a thing hashes: a module of another library may hold arrays, which don't."""
    try:
        hash(thing)
    except TypeError:
        return False
    return True


def _captured(thing: Any) -> Iterator[Hashable]:
    """What the functions in a thing, and those that they lead to, read from around them."""
    seen: dict[int, Any] = {}  # kept, so that no other thing has the number of one
    waiting = [thing]
    while waiting and len(seen) < _MOST_SEEN:
        here = waiting.pop()
        if id(here) in seen:
            continue
        seen[id(here)] = here
        if isinstance(here, types.FunctionType) and not _is_of_library(here):
            for name, read in _read_by(here):
                yield name, _value(read)
                waiting.append(read)
        else:
            waiting += _parts(here)


def _parts(thing: Any) -> list[Any]:
    """What of a thing may hold a function: of partials, methods, handlers, instances, classes."""
    if isinstance(thing, (*_VALUES, types.ModuleType, np.ndarray, np.generic, jax.Array)):
        return []
    if isinstance(thing, types.FunctionType):
        return [read for _, read in _closed_over(thing)]
    if isinstance(thing, tuple | list):
        return list(thing)
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, functools.partial):
        return [thing.func, thing.args, thing.keywords]
    if isinstance(thing, types.MethodType | staticmethod | classmethod):
        return [thing.__func__, getattr(thing, "__self__", None)]
    if isinstance(thing, property):
        return [thing.fget]
    if isinstance(thing, type):
        return [] if _is_of_library(thing) else [*vars(thing).values(), *thing.__bases__]
    return [type(thing), *getattr(thing, "__dict__", {}).values()]


def _read_by(fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
    yield from _closed_over(fn)
    yield from _read_globals(fn)


def _closed_over(fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What was given to a function when it was made."""
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        if not _is_empty(cell):
            yield name, cell.cell_contents
    yield "defaults", fn.__defaults__ or ()
    yield "keyword defaults", tuple((fn.__kwdefaults__ or {}).items())


def _read_globals(fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name in sorted(_names(fn.__code__)):
        if name in fn.__globals__:
            yield name, fn.__globals__[name]


def _is_empty(cell: Any) -> bool:
    return cell == types.CellType()


def _names(code: types.CodeType) -> set[str]:
    """The global names that a piece of code reads, the functions inside it included."""
    return {name for op in _READS for name in _operations(code).get(op, ())}


@functools.lru_cache(maxsize=4096)
def _operations(code: types.CodeType) -> dict[str, set[Any]]:
    """The operations of a piece of code, of the functions inside it too, and what each is on."""
    found: dict[str, set[Any]] = {}
    for op in dis.get_instructions(code):
        if op.opname in _READS or op.opname == "IMPORT_NAME":
            found.setdefault(op.opname, set()).add(op.argval)
    for inner in (c for c in code.co_consts if isinstance(c, types.CodeType)):
        for name, arguments in _operations(inner).items():
            found.setdefault(name, set()).update(arguments)
    return found


class _ChangeableError(Exception):
    """What may be changed in place is among what a function reads."""


class _Making:
    """The key of one thing by what its factory was given, of which nothing can have been changed.

    Equal keys are equal graphs of functions: each is numbered when it is met first, and told by its
    number when it is met again.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def key(self, thing: Any, *, of_library: bool) -> Hashable:
        """The key of something that is read, by a function of a library or by one of the user's.

        A library's lists and dicts are what they hold. The user's may be there for what is written
        into them as a program runs, by which each is another.
        """
        inner = functools.partial(self.key, of_library=of_library)
        if isinstance(thing, types.FunctionType):
            return self._function(thing)
        if isinstance(thing, tuple) or (of_library and type(thing) is list):
            return type(thing), tuple(map(inner, thing))
        if of_library and type(thing) is dict:
            return dict, tuple((_value(name), inner(x)) for name, x in thing.items())
        if type(thing) is functools.partial:
            return inner(("partial", thing.func, thing.args, tuple(thing.keywords.items())))
        if isinstance(thing, _NumPyroOptim) and _is_of_library(type(thing)):
            return Same(type(thing)), inner(tuple(sorted(vars(thing).items())))
        if isinstance(thing, (*_VALUES, np.generic)):
            return _value(thing)
        if _is_fixed(thing):
            return Same(thing)
        if _is_a_value(thing) and not hasattr(thing, "__self__"):  # no method of what may change
            return thing
        raise _ChangeableError

    def _function(self, fn: types.FunctionType) -> Hashable:
        if id(fn) in self._numbers:
            return "again", self._numbers[id(fn)]
        self._numbers[id(fn)] = len(self._numbers)
        of_library = _is_of_library(fn)
        if of_library and not fn.__closure__ and "<locals>" not in fn.__qualname__:
            return Same(fn)
        if vars(fn).keys() - {"__wrapped__"} or not (of_library or _says_what_it_reads(fn)):
            raise _ChangeableError
        read = [*_closed_over(fn), *vars(fn).items()]
        read += () if of_library else _read_globals(fn)
        parts = [(name, self.key(thing, of_library=of_library)) for name, thing in read]
        return Same(fn.__code__), Same(fn.__globals__), len(fn.__closure__ or ()), *parts


def _is_fixed(thing: Any) -> bool:
    """Whether something is as it was when it was made, as far as programs go."""
    if isinstance(thing, types.ModuleType | type):
        return _is_of_library(thing)
    if isinstance(thing, types.BuiltinFunctionType):
        return isinstance(thing.__self__, types.ModuleType | None)
    return isinstance(thing, jax.Array | np.ufunc) or _root(type(thing)) in ("jax", "jaxlib")


def _is_of_library(thing: Any) -> bool:
    return _root(thing) in _LIBRARIES


def _root(thing: Any) -> str:
    """The package of a module, a class or a function."""
    name = thing.__name__ if isinstance(thing, types.ModuleType) else thing.__module__
    return (name or "").partition(".")[0]


def _says_what_it_reads(fn: types.FunctionType) -> bool:
    """Whether a function imports nothing when it runs."""
    return "IMPORT_NAME" not in _operations(fn.__code__)


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
