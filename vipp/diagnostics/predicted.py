"""What combinations of estimators would cost, from measurements of one site at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_MOST_WAYS = 4096
_MOST_KEPT = 512


class Option(NamedTuple):
    """One candidate of a site, the others' estimators being the present ones.

    Attributes:
      number: among the candidates; 0 for the present one.
      own: the variance given all other draws.
      seconds: more than with the present one.
    """

    number: int
    own: float
    seconds: float


class Group(NamedTuple):
    """Sites that meet.

    Attributes:
      options: of each site, the present one first.
      variance: that the group contributes with the present estimators.
    """

    options: Mapping[str, Sequence[Option]]
    variance: float


class Predicted(NamedTuple):
    """A combination.

    Attributes:
      numbers: of the candidates, by site.
      variance: predicted.
      seconds: predicted.
    """

    numbers: dict[str, int]
    variance: float
    seconds: float

    @property
    def rank(self) -> tuple[float, float]:
        """Less is better."""
        return self.variance * self.seconds, self.seconds


def ranked(groups: Sequence[Group], elsewhere: float, seconds: float) -> list[Predicted]:
    r"""Combinations by predicted variance times time; of many, those that others beat left out.

    Variances of groups add up, exactly, and so do times, more or less. Within a group, of which
    :math:`V` is the present variance and :math:`V_i(e)` is what site :math:`i` contributes given
    all other draws,

    .. math::
        V + \sum_i \big(V_i(e_i) - V_i(0)\big) \quad\text{within}\quad
        \max_i V_i(e_i) \;\text{to}\; \sum_i V_i(e_i),

    which is exact for a group of one site, and if one site is changed; the bounds are those of
    Efron and Stein.

    Args:
      groups: of sites.
      elsewhere: the variance that no site contributes.
      seconds: of one gradient, at present.

    Returns:
      The best first.
    """
    kept = [Predicted({}, elsewhere, seconds)]
    for group in groups:
        ways = _thinned([_within(group, way) for way in itertools.product(*_best(group))])
        kept = _thinned(
            [
                Predicted(
                    {**a.numbers, **b.numbers}, a.variance + b.variance, a.seconds + b.seconds
                )
                for a in kept
                for b in ways
            ]
        )
    return sorted(kept, key=lambda p: p.rank)


def _best(group: Group) -> list[list[Option]]:
    """Of each site the options; of many those that no other beats in both, the first of these."""
    found = [list(options) for options in group.options.values()]
    if math.prod(map(len, found)) > _MOST_WAYS:
        found = [_undominated(options) for options in found]
    while len(found) > 1 and math.prod(map(len, found)) > _MOST_WAYS:
        del max(found, key=len)[-1]
    return found


def _undominated(options: Sequence[Option]) -> list[Option]:
    first, *others = options
    alone = [Predicted({"": o.number}, o.own, o.seconds) for o in others]
    numbers = {p.numbers[""] for p in _frontier(alone)}
    return [first, *(o for o in others if o.number in numbers)]


def _within(group: Group, way: Sequence[Option]) -> Predicted:
    present = [options[0] for options in group.options.values()]
    moved = sum(o.own - p.own for o, p in zip(way, present, strict=True))
    owns = [o.own for o in way]
    variance = min(max(group.variance + moved, *owns, 0.0), sum(owns))
    if way == tuple(present):
        variance = group.variance
    numbers = {site: o.number for site, o in zip(group.options, way, strict=True)}
    return Predicted(numbers, variance, sum(o.seconds for o in way))


def _thinned(found: list[Predicted]) -> list[Predicted]:
    """All of them; of many those that no other beats in both."""
    return found if len(found) <= _MOST_KEPT else _frontier(found)


def _frontier(found: list[Predicted]) -> list[Predicted]:
    """Those that no other beats in both; of many, some all along."""
    kept: list[Predicted] = []
    for one in sorted(found, key=lambda p: (p.seconds, p.variance)):
        if not kept or one.variance < kept[-1].variance:
            kept.append(one)
    return kept[:: 1 + len(kept) // _MOST_KEPT]
