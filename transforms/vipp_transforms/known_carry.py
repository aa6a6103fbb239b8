"""What a loop carries that is known at every value of the choices before a step.

A loop that carries what it chose last carries, for all values of that choice at once, its support:
the same in every step. Only the first step is given a number instead, or another choice. If that is
one of the support, it is as if the step before the first had chosen it: no step is an exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vipp_transforms.estimators.enumerate import lane_numbers
from vipp_transforms.loop_start import Start
from vipp_transforms.support_numbers import Numbers, follow, numbers_of
from vipp_transforms.windows import Windows


class Known(NamedTuple):
    """What is known when a step begins.

    Attributes:
      carried: by number of the carried value, the numbers it is at the choices before the step.
      start: for each value of the choice that the loop starts from, or once, by choice before the
        first step the place of its value, as if it had been made.
    """

    carried: dict[int, Numbers]
    start: list[dict[str, int]]


def known_carry(windows: Windows, start: Start, order: Sequence[str]) -> Known:
    """Find out which carried values are known.

    Args:
      windows: of the loop.
      start: what is known of the values carried into the first step.
      order: of the names of choices, :func:`choice_name` of their numbers.
    """
    allowed = {i: x for i, x in enumerate(start.firsts) if x is not None}
    while True:
        found = _carried(windows, [*allowed], order)
        made: list[dict[str, int]] = [{} for _ in range(start.size)]
        unfit = next((i for i in found if not _starts(found[i], allowed[i], made)), None)
        if unfit is None:
            return Known(found, made)
        del allowed[unfit]


def choice_name(number: int) -> str:
    """The name of the axis of a choice of a window."""
    return f"choice:{number}"


def choice_number(name: str) -> int:
    """The number of the choice with this name."""
    return int(name.removeprefix("choice:"))


def _carried(windows: Windows, allowed: Sequence[int], order: Sequence[str]) -> dict[int, Numbers]:
    """The numbers that carried values are in every step, being so in the step before."""
    sites: dict[object, Numbers] = {}
    for site, info in zip(windows.sites, windows.infos, strict=True):
        table = lane_numbers(info, site.var.aval.dtype)
        if table is not None:
            sites[site.var] = Numbers(table, (choice_name(site.index),))
    found: dict[int, Numbers] = {}
    while True:
        carried = windows.steps.carried
        known = {**sites, **{carried[i].var: x for i, x in found.items()}}
        follow(windows.steps.eqns, known, order)
        results = {i: numbers_of(carried[i].result, known) for i in allowed}
        more = {i: _later(x, len(windows.sites)) for i, x in results.items() if x and x.axes}
        if more.keys() == found.keys():  # what was known stays so, and stays the same
            return found
        found = more


def _later(numbers: Numbers, count: int) -> Numbers:
    """Numbers one step later."""
    return numbers._replace(axes=tuple(choice_name(choice_number(n) + count) for n in numbers.axes))


def _starts(numbers: Numbers, first: Numbers, made: list[dict[str, int]]) -> bool:
    """Whether first values are among those known, given choices settled before; settles more."""
    firsts = np.broadcast_to(first.table, len(made))
    places = [_place(numbers, x, chosen) for x, chosen in zip(firsts, made, strict=True)]
    for chosen, place in zip(made, places, strict=True):
        chosen.update(place or {})
    return None not in places


def _place(numbers: Numbers, value: Any, chosen: dict[str, int]) -> dict[str, int] | None:
    for place in np.argwhere(numbers.table == value).tolist():
        found = dict(zip(numbers.axes, place, strict=True))
        if all(chosen.get(n, at) == at for n, at in found.items()):
            return found
    return None
