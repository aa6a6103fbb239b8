"""The order and grouping in which terms are contracted, worked out on dependences alone.

Sites are visited last to first. The terms that depend on a site are grouped by equal dependence,
merged (so that a chain of sites costs as much as dynamic programming), contracted, and put back as
terms of the earlier sites that the site's distribution depended on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from vipp_transforms.dependence import Dependence, Dependences, join, relabel, within
from vipp_transforms.lane import MIXED, Lane, UpTo, place
from vipp_transforms.staging import Program, Site
from vipp_transforms.terms import Split


class Form(NamedTuple):
    """A term's shape and dependence, every axis being some site's lanes.

    Attributes:
      shape: axis sizes.
      depends: its dependence.
    """

    shape: tuple[int, ...]
    depends: Dependence


class Layout(NamedTuple):
    """How an array is brought to its form: kept axes, in order; the others are summed."""

    axes: tuple[int, ...]
    form: Form


@dataclass(frozen=True, eq=False)
class Step:
    """One contraction: terms ``members`` over ``site``, giving term ``result``.

    Attributes:
      site: eliminated.
      members: numbers of the terms merged; all of form ``form``.
      form: before.
      lanes: per lane axis of the site, those that an entry of the term depends on.
      layout: of the result.
      result: the number of the new term.
      finest: whether it keeps the most lanes apart of all steps of its site.
      constant: whether nothing that was drawn gets a gradient from it.
    """

    site: Site
    members: tuple[int, ...]
    form: Form
    lanes: tuple[Lane, ...]
    layout: Layout
    result: int
    finest: bool
    constant: bool

    @property
    def axes(self) -> tuple[int | None, ...]:
        """Per lane axis of the site, the axis of the term that its lanes lie along, if any."""
        places = map(place, self.lanes)
        return tuple(p if isinstance(p, int) else None for p in places)


@dataclass(frozen=True, eq=False)
class Elimination:
    """All steps.

    Attributes:
      leaves: how each leaf of the split is brought to its form; leaf ``k`` is term ``k``.
      steps: in order, the last site first.
      final: terms that depend on nothing; their sum is the estimate.
    """

    leaves: tuple[Layout, ...]
    steps: tuple[Step, ...]
    final: tuple[int, ...]

    def mixed(self, site: Site) -> tuple[bool, ...]:
        """Per lane axis of ``site``, whether some term mixes its lanes."""
        flags = [False] * len(site.lane_shape)
        for step in self.steps:
            if step.site is site:
                flags = [f or a == MIXED for f, a in zip(flags, step.lanes, strict=True)]
        return tuple(f and n > 1 for f, n in zip(flags, site.lane_shape, strict=True))

    def mixes(self, site: Site, depends: Dependence) -> tuple[bool, ...] | None:
        """Per lane axis of ``site``, whether such a dependence mixes its lanes, if it is one."""
        lanes = depends.get(site.index)
        if lanes is None:
            return None
        return tuple(a == MIXED and n > 1 for a, n in zip(lanes, site.lane_shape, strict=True))

    def grouped(self, site: Site) -> tuple[bool, ...]:
        """Per lane axis of ``site``, whether it is among the fewest lanes that some term mixes."""
        levels = [self.mixes(site, step.form.depends) for step in self.steps if step.site is site]
        size = lambda level: math.prod(
            n for n, mixed in zip(site.lane_shape, level, strict=True) if mixed
        )
        apart = (False,) * len(site.lane_shape)
        return min((level for level in levels if level and any(level)), key=size, default=apart)


def eliminate(program: Program, depends: Dependences, split: Split) -> Elimination:
    """Plan the elimination of every site from the terms of ``split``."""
    credit = _Credit(program, depends)
    leaves = tuple(layout(v.aval.shape, credit.of(depends[v])) for v in split.leaves)
    alive = {k: leaf.form for k, leaf in enumerate(leaves)}
    constants = {k for k in alive if split.constant[k]}
    steps: list[Step] = []
    number = len(leaves)
    # the tower property, last site first: F[i-1] = C_i F_i (docs/engine.md, the proof)
    for site in reversed(program.sites.values()):
        groups: dict[Any, list[int]] = {}
        for k, form in alive.items():
            # E[g] = g over a site that g does not depend on: such a term stays as it is (credit)
            if site.index in form.depends:
                groups.setdefault((k in constants, *_signature(form)), []).append(k)
        # what is learned about a site (a baseline, say) is learned from its finest term
        live = [g for g in groups.values() if g[0] not in constants]
        finest = max(live, key=lambda g: _apart(site, alive[g[0]]), default=None)
        for members in groups.values():
            form, constant = alive[members[0]], members[0] in constants
            lanes, after = form.depends[site.index], credit.after(site, form)
            whole = members is finest
            steps.append(Step(site, tuple(members), form, lanes, after, number, whole, constant))
            if constant:
                constants.add(number)
            for k in members:
                del alive[k]
            # equal terms are added first, so a chain contracts one function of one state a step
            alive[number] = after.form
            number += 1
    return Elimination(leaves, tuple(steps), tuple(alive))


class _Credit:
    """Which lanes a term is to be credited to.

    Up to a step there is credit only for what is drawn in a loop, whose estimators can give it.
    """

    def __init__(self, program: Program, depends: Dependences):
        self._depends = depends
        self._looped = {s.index for s in program.sites.values() if s.loop is not None}

    def of(self, dependence: Dependence) -> Dependence:
        """The dependence of a term, with all that its loops' choices depend on step by step.

        The choices of a loop are eliminated one after the other, each with all its steps; but they
        may depend on each other's steps before, later ones on earlier ones and the other way round.
        So a term that depends on one of them depends on the others' from the start.
        """
        found = {r: self._admitted(r, lanes) for r, lanes in dependence.items()}
        # to a fixed point: what comes in may bring others in
        while True:
            besides = [within(self._depends.beside(r), lanes) for r, lanes in found.items()]
            grown = join((found, *besides))
            if grown == found:
                return found
            found = dict(grown)

    def _admitted(self, index: int, lanes: tuple[Lane, ...]) -> tuple[Lane, ...]:
        if index in self._looped:
            return lanes
        return tuple(MIXED if isinstance(x, UpTo) else x for x in lanes)

    def after(self, site: Site, form: Form) -> Layout:
        """A term once ``site`` is eliminated: it depends on what the site's density did."""
        density = within(self._depends.log_prob(site), form.depends[site.index])
        left = self.of(join((form.depends, density)))
        # of a loop's choices, the later ones are eliminated: what they entail was there before
        return layout(form.shape, {r: lanes for r, lanes in left.items() if r < site.index})


def layout(shape: tuple[int, ...], depends: Dependence) -> Layout:
    """Keep the axes along which some site's lanes lie, ordered by site and lane."""
    owners: dict[int, tuple[int, int]] = {}
    for site in sorted(depends):
        for number, lane in enumerate(depends[site]):
            axis = place(lane)
            if isinstance(axis, int):
                # an axis belongs to the first site whose lanes lie along it; the others share it
                owners.setdefault(axis, (site, number))
    axes = tuple(sorted(owners, key=owners.__getitem__))
    moved: list[int | None] = [None] * len(shape)
    for to, axis in enumerate(axes):
        moved[axis] = to
    return Layout(axes, Form(tuple(shape[a] for a in axes), relabel(depends, moved)))


def _apart(site: Site, form: Form) -> int:
    """How many of the site's lane axes a term keeps apart."""
    return sum(lane != MIXED for lane in form.depends[site.index])


def _signature(form: Form) -> Any:
    return form.shape, tuple(sorted(form.depends.items()))
