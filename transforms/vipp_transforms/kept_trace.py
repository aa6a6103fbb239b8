"""A traced program that is looked at first and evaluated later, traced once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax

from vipp_transforms import _jax
from vipp_transforms.staging import Traced


class _Kept(NamedTuple):
    """A program, and the objects that its key names."""

    closed: Any
    aux_tree: Any
    sums: list[str]
    named: list[Any]


Kept = dict[Hashable, _Kept]
_KEPT: ContextVar[Kept | None] = ContextVar("kept", default=None)
_GIVEN: ContextVar[Kept | None] = ContextVar("given", default=None)


@contextlib.contextmanager
def keeping_traces() -> Iterator[Kept]:
    """What is traced within it is kept, for one later use."""
    programs: Kept = {}
    token = _KEPT.set(programs)
    try:
        yield programs
    finally:
        _KEPT.reset(token)


@contextlib.contextmanager
def traced_before(programs: Kept) -> Iterator[None]:
    """Within it these are not traced again, the first time that they are wanted."""
    token = _GIVEN.set(programs)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def kept(fn: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Traced, list[str]] | None:
    """The program that was kept for arguments of these shapes, taken out, and the sums in it."""
    programs = _GIVEN.get()
    if not programs:
        return None
    key, arrays, _ = _signature(fn, args, kwargs)
    found = programs.pop(key, None)
    return found and (Traced(found.closed, arrays, found.aux_tree), found.sums)


def keep(
    fn: Callable[..., Any], args: Any, kwargs: Any, traced: Traced, sums: Sequence[str]
) -> None:
    """Keep a program for its arguments; not one that holds a value of the trace around it."""
    programs = _KEPT.get()
    if programs is None or any(map(_jax.is_tracer, _jax.open_jaxpr(traced.closed)[1])):
        return
    key, _, named = _signature(fn, args, kwargs)
    programs[key] = _Kept(traced.closed, traced.aux_tree, list(sums), named)


def _signature(fn: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Hashable, list[Any], Any]:
    """A key, the arrays among the arguments, and what is in the key by its identity."""
    leaves, treedef = jax.tree_util.tree_flatten((args, kwargs))
    described, arrays = [], []
    for leaf in leaves:
        is_array = isinstance(leaf, jax.Array)
        described.append(jax.typeof(leaf) if is_array else id(leaf))
        arrays += [leaf] * is_array
    return (fn, treedef, *described), arrays, leaves
