"""Which lanes an entry depends on after a reshape.

In row-major order entry ``f`` of an array has index ``(f // below) % size`` along an axis, where
``below`` entries have one index. So a digit of a lane's number is ``(f // start) % size`` for some
``start``, whatever the shape, and lies along an axis of the result, or along several in turn.
"""

from __future__ import annotations

import math

from vipp_transforms.lane import MIXED, Apart, Digits, Lane, Place, Step

Digit = tuple[Place, int, int]


def reshaped(lane: Lane, before: tuple[int, ...], after: tuple[int, ...]) -> Lane:
    """The lane that an entry of the result depends on.

    Args:
      lane: of the operand; one that is apart, or known by digits.
      before: the operand's shape.
      after: the result's.
    """
    digits = lane.digits if isinstance(lane, Digits) else _of_axis(lane, before)
    moved: list[Digit] = []
    for where, stride, size in digits:
        if isinstance(where, Step):
            moved.append((where, stride, size))
            continue
        found = _placed(stride * math.prod(before[where + 1 :]), size, after)
        if found is None:
            return MIXED
        moved += found
    return _simplest(_joined(moved), after)


def _of_axis(lane: Lane, shape: tuple[int, ...]) -> tuple[Digit, ...]:
    assert isinstance(lane, Apart)
    return ((lane.axis, 1, shape[lane.axis]),)


def _placed(start: int, size: int, shape: tuple[int, ...]) -> list[Digit] | None:
    """The digit ``(f // start) % size`` by the axes of a shape, or None if it is cut."""
    found: list[Digit] = []
    for axis, entries in enumerate(shape):
        below = math.prod(shape[axis + 1 :])
        low, high = max(start, below), min(start * size, below * entries)
        if low >= high:
            continue
        whole = [(low, start), (start * size, high), (high, low), (low, below)]
        if any(a % b for a, b in [*whole, (below * entries, high)]):
            return None
        found.append((axis, low // below, high // low))
    return found if math.prod(n for *_, n in found) == size else None


def _joined(digits: list[Digit]) -> list[Digit]:
    """Neighbours at one place as one digit."""
    joined: list[Digit] = []
    for where, stride, size in digits:
        if joined and joined[-1][0] == where and joined[-1][1] == stride * size:
            size *= joined.pop()[2]
        joined.append((where, stride, size))
    return joined


def _simplest(digits: list[Digit], shape: tuple[int, ...]) -> Lane:
    if len(digits) == 1:
        where, stride, size = digits[0]
        if isinstance(where, int) and (stride, size) == (1, shape[where]):
            return Apart(where)
    return Digits(tuple(digits)) if digits else MIXED
