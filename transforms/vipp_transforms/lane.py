"""What a value knows of one lane axis of one random choice.

An entry of a value depends on some of the lanes along that axis: on any of them (:class:`Mixed`),
on the one that its own index names (:class:`Apart`), inside a loop's body on that of this step
(:class:`Step`), on the one that several indices name, or a part of one (:class:`Digits`), or on
those up to it (:class:`UpTo`). Each says at most as much as the ones before
it in the order ``Apart, UpTo, Mixed``; more may be claimed only where it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mixed:
    """Any of the lanes: always a correct answer."""


@dataclass(frozen=True)
class Apart:
    """The lane with the entry's index along ``axis``."""

    axis: int


@dataclass(frozen=True)
class Step:
    """The lane of this step of ``loop``; every loop that is being analysed has its own token."""

    loop: Any


@dataclass(frozen=True)
class UpTo:
    """The lanes up to the entry's index along ``axis``, or up to a step: from it on, reversed."""

    axis: int | Step
    reverse: bool


@dataclass(frozen=True)
class Digits:
    """The lane whose number has these digits, the first counting most.

    A digit ``(place, stride, size)`` is ``(i // stride) % size`` of the entry's index at a place:
    what a reshape makes of an axis, until another one brings it back. No axis names such a lane, so
    that for a term it is a mixed one.
    """

    digits: tuple[tuple[int | Step, int, int], ...]


Place = int | Step  # where lanes lie: along an axis, or inside a loop's body at its step
Lane = Mixed | Apart | Step | UpTo | Digits
MIXED = Mixed()


def place(lane: Lane) -> Place | None:
    """Where the lanes lie, if anywhere."""
    match lane:
        case Apart(axis) | UpTo(axis, _):
            return axis
        case Step():
            return lane
        case _:
            return None


def at(where: Place | None) -> Lane:
    """The lane that a place names."""
    if where is None:
        return MIXED
    return where if isinstance(where, Step) else Apart(where)


def move(lane: Lane, to: Callable[[Place], Place | None]) -> Lane:
    """The same lanes after what lay at a place came to lie elsewhere, or nowhere."""
    if isinstance(lane, Digits):
        return _moved(lane, to)
    before = place(lane)
    after = None if before is None else to(before)
    if after is not None and isinstance(lane, UpTo):
        return UpTo(after, lane.reverse)
    return at(after)


def _moved(lane: Digits, to: Callable[[Place], Place | None]) -> Lane:
    digits = []
    for where, stride, size in lane.digits:
        after = to(where)
        if after is None:
            return MIXED
        digits.append((after, stride, size))
    return Digits(tuple(digits))


def named(lane: Lane) -> Lane:
    """The lane as far as one place names it."""
    return MIXED if isinstance(lane, Digits) else lane


def join(a: Lane, b: Lane) -> Lane:
    """The least that covers both."""
    if a == b:
        return a
    one, two = (x.reverse if isinstance(x, UpTo) else None for x in (a, b))
    where = place(a)
    if where is None or where != place(b) or None not in (one, two):
        return MIXED
    return UpTo(where, bool(two if one is None else one))


def within(lane: Lane, lanes: Sequence[Lane]) -> Lane:
    """What depends on the lanes ``lanes`` of a choice that depends on another's ``lane``.

    Args:
      lane: of the other, with the axes of ``lanes`` for places.
      lanes: one entry per axis.
    """
    axis = place(lane)
    if not isinstance(axis, int):
        return MIXED
    outer = lanes[axis]
    return outer if isinstance(lane, Apart) else join(outer, _spread(outer, lane))


def _spread(outer: Lane, lane: Lane) -> Lane:
    where = place(outer)
    return UpTo(where, lane.reverse) if where is not None and isinstance(lane, UpTo) else MIXED


def carried(lane: Lane, loop: Step, reverse: bool) -> Lane:
    """What depended on this step's lane, one step later: it is now among those up to the step."""
    if lane == loop:
        return UpTo(loop, reverse)
    if isinstance(lane, Digits):
        return MIXED if any(where == loop for where, *_ in lane.digits) else lane
    return MIXED if place(lane) == loop and lane != UpTo(loop, reverse) else lane


def distinct(lanes: Iterable[Lane]) -> tuple[Lane, ...]:
    """No two lane axes of one choice lie at one place: of ``z[t, t]`` the first does."""
    found: set[Place] = set()
    kept = []
    for lane in lanes:
        where = place(lane)
        kept.append(MIXED if where in found else lane)
        if where is not None:
            found.add(where)
    return tuple(kept)
