"""What a loop carries that is known at every value of the choices before a step.

A loop that carries what it chose last carries, for all values of that choice at once, its support:
the same in every step. Only the first step is given a number instead. If that is one of the
support, it is as if the step before the first had chosen it, and no step is an exception.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vipp_transforms.estimators.enumerate import lane_numbers
from vipp_transforms.support_numbers import Numbers, follow, numbers_of
from vipp_transforms.windows import Windows


class Known(NamedTuple):
    """What is known when a step begins.

    Attributes:
      carried: by number of the carried value, the numbers it is at the choices before the step.
      start: by choice before the first step, the place of its value, as if it had been made.
    """

    carried: dict[int, Numbers]
    start: dict[str, int]


def known_carry(windows: Windows, firsts: Sequence[Numbers | None], order: Sequence[str]) -> Known:
    """Find out which carried values are known.

    Args:
      windows: of the loop.
      firsts: what is known of the values carried into the first step.
      order: of the names of choices, :func:`choice_name` of their numbers.
    """
    allowed = {i: x for i, x in enumerate(firsts) if x is not None and not x.axes}
    while True:
        found = _carried(windows, [*allowed], order)
        start: dict[str, int] = {}
        unfit = next((i for i in found if not _starts(found[i], allowed[i], start)), None)
        if unfit is None:
            return Known(found, start)
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


def _starts(numbers: Numbers, first: Numbers, start: dict[str, int]) -> bool:
    """Whether a first value is one of those known, given choices settled before; settles more."""
    for place in np.argwhere(numbers.table == first.table).tolist():
        chosen: Mapping[str, int] = dict(zip(numbers.axes, place, strict=True))
        if all(start.get(n, at) == at for n, at in chosen.items()):
            start.update(chosen)
            return True
    return False
