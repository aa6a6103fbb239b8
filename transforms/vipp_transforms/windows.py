"""What each value of a loop's step depends on: which of its choices, and how many steps back.

A choice of some steps back is a choice of its own, with the same lanes. If no carried value depends
on choices of more than a few steps back, the loop is a chain, and what a step sees is its *window*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vipp_transforms.agreement import check_agreement
from vipp_transforms.dependence import Dependence, Dependences, join
from vipp_transforms.estimators.base import SiteInfo
from vipp_transforms.estimators.enumerate import joint_size
from vipp_transforms.lane_classes import AxesOf, Joined, LaneAxes, axes_of, join_lanes
from vipp_transforms.loop_fusion import Steps
from vipp_transforms.staging import Program, Site, sites_of
from vipp_transforms.unrolling import NotSummed

MAX_LAG = 4  # steps back that a step may look


class _Value(NamedTuple):
    """An array of a step, as far as its axes go."""

    name: str
    shape: tuple[int, ...]
    depends: AxesOf
    plates: dict[str, int]


@dataclass(frozen=True, eq=False)
class Windows:
    """A loop, and the choices that its values depend on.

    The choice with index ``i`` of ``k`` steps back has the number ``i + k * len(sites)``.

    Attributes:
      steps: the loop.
      program: one step.
      sites: its choices, by index.
      depends: the dependence of its values on choices by number.
      entering: by carried value, the numbers that it depends on when a step begins.
      infos: by index, what is known of a choice.
      joined: the classes of lanes of ``"log_prob i"``, ``"carried i"`` and ``"passed i"``.
    """

    steps: Steps
    program: Program
    sites: tuple[Site, ...]
    depends: Dependences
    entering: tuple[frozenset[int], ...]
    infos: tuple[SiteInfo, ...]
    joined: Joined

    @property
    def parts(self) -> list[Any]:
        """What is added to all totals."""
        return [a for t in self.steps.totals for _, a in t.parts]

    def noted(self) -> list[tuple[Any, Dependence]]:
        """What the analysis noted, of choices by index."""
        count = len(self.sites)
        return [
            (eqn, {n % count: lanes for n, lanes in found.items()})
            for eqn, found in self.depends.noted
        ]

    def classes(self, name: str) -> tuple[tuple[str, int], ...]:
        """The classes along an array's axes, each with its axis."""
        return tuple((c, a) for a, c in enumerate(self.joined.dims[name]) if c is not None)


def step_sites(steps: Steps) -> list[Site]:
    """The choices of one step."""
    return list(sites_of(list(steps.eqns), []).values())


def windows(steps: Steps) -> Windows | NotSummed:
    """Find out what the values of a loop depend on, or why it is no chain.

    Raises:
      SiteError: naming a choice without a finite support.
    """
    sites = tuple(step_sites(steps))
    by_var = {s.var: s for s in sites}
    inputs = [v for v, _ in steps.fixed] + [c.var for c in steps.carried]
    inputs += [s.var for s in steps.scanned]
    program = Program(steps.env, steps.eqns, steps.eqns, by_var, None, (), None, tuple(inputs))
    check_agreement(program)
    found = _to_fixed_point(steps, program)
    if found is None:
        names = tuple(s.template.name for s in sites)
        return NotSummed(names, "what it carries depends on more and more choices")
    depends, entering = found
    values = _values(steps, sites, depends, entering)
    count, deepest = len(sites), max((n for v in values for n in v.depends), default=0)
    lanes = {
        n: LaneAxes(n % count, str(n), sites[n % count].lane_shape)
        for n in range(deepest + 1 if sites else 0)
    }
    joined = join_lanes(values, lanes)
    infos = tuple(_info(s, joined) for s in sites)
    for site, info in zip(sites, infos, strict=True):
        estimator: Any = site.template.estimator
        if info.support is not None and joint_size(info) > estimator.max_evaluations:
            return NotSummed((site.template.name,), "a step depends on too many lanes together")
        estimator.validate(info)
    each = tuple(frozenset(d) for d in entering)
    return Windows(steps, program, sites, depends, each, infos, joined)


def _to_fixed_point(steps: Steps, program: Program) -> tuple[Dependences, list[Dependence]] | None:
    """What the carried values depend on, or None if that is more with every step."""
    count = len(program.sites)
    entering: list[Dependence] = [{} for _ in steps.carried]
    while True:
        pairs = zip(steps.carried, entering, strict=True)
        depends = Dependences(program, {c.var: found for c, found in pairs})
        passed = [
            {n + count: lanes for n, lanes in depends[c.result].items()} for c in steps.carried
        ]
        grown = [join(pair) for pair in zip(entering, passed, strict=True)]
        if grown == entering:
            return depends, entering
        if any(n >= count * (MAX_LAG + 1) for found in grown for n in found):
            return None
        entering = grown


def _values(
    steps: Steps, sites: Sequence[Site], depends: Dependences, entering: Sequence[Dependence]
) -> list[_Value]:
    found = [
        _Value(f"log_prob {s.index}", s.lane_shape, axes_of(depends.log_prob(s)), {}) for s in sites
    ]
    for i, (c, before) in enumerate(zip(steps.carried, entering, strict=True)):
        found.append(_Value(f"carried {i}", tuple(c.var.aval.shape), axes_of(before), {}))
        found.append(_Value(f"passed {i}", tuple(c.var.aval.shape), axes_of(depends[c.result]), {}))
    return found


def _info(site: Site, joined: Joined) -> SiteInfo:
    """What is known of a choice, its lanes mixed where some value mixes them."""
    mixing = [joined.mixed.get((site.index, j)) for j in range(len(site.lane_shape))]
    flags = tuple(by is not None for by in mixing)
    return site.template.placed(site.name, site.lane_shape, flags)
