"""The order and grouping in which terms are contracted, worked out on dependences alone.

Sites are visited last to first. The terms that depend on a site are grouped by equal dependence,
merged (so that a chain of sites costs as much as dynamic programming), contracted, and put back as
terms of the earlier sites that the site's distribution depended on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from vipp_transforms.dependence import MIXED, Dependence, Dependences, join, relabel
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
      lanes: per lane axis of the site, the axis of the term, or mixed.
      layout: of the result.
      result: the number of the new term.
      finest: whether it keeps the most lanes apart of all steps of its site.
      constant: whether nothing that was drawn gets a gradient from it.
    """

    site: Site
    members: tuple[int, ...]
    form: Form
    lanes: tuple[int | None, ...]
    layout: Layout
    result: int
    finest: bool
    constant: bool


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
                flags = [f or a is MIXED for f, a in zip(flags, step.lanes, strict=True)]
        return tuple(f and n > 1 for f, n in zip(flags, site.lane_shape, strict=True))


def eliminate(program: Program, depends: Dependences, split: Split) -> Elimination:
    """Plan the elimination of every site from the terms of ``split``."""
    leaves = tuple(layout(v.aval.shape, depends[v]) for v in split.leaves)
    alive = {k: leaf.form for k, leaf in enumerate(leaves)}
    constants = {k for k in alive if split.constant[k]}
    steps: list[Step] = []
    number = len(leaves)
    for site in reversed(program.sites.values()):
        groups: dict[Any, list[int]] = {}
        for k, form in alive.items():
            if site.index in form.depends:
                groups.setdefault((k in constants, *_signature(form)), []).append(k)
        live = [g for g in groups.values() if g[0] not in constants]
        finest = max(live, key=lambda g: _apart(site, alive[g[0]]), default=None)
        for members in groups.values():
            form = alive[members[0]]
            constant = members[0] in constants
            step = _contraction(site, members, form, depends, number, members is finest, constant)
            steps.append(step)
            if constant:
                constants.add(number)
            for k in members:
                del alive[k]
            alive[number] = step.layout.form
            number += 1
    return Elimination(leaves, tuple(steps), tuple(alive))


def layout(shape: tuple[int, ...], depends: Dependence) -> Layout:
    """Keep the axes along which some site's lanes stay apart, ordered by site and lane."""
    owners: dict[int, tuple[int, int]] = {}
    for site in sorted(depends):
        for lane, axis in enumerate(depends[site]):
            if axis is not None:
                owners.setdefault(axis, (site, lane))
    axes = tuple(sorted(owners, key=owners.__getitem__))
    moved: list[int | None] = [MIXED] * len(shape)
    for to, axis in enumerate(axes):
        moved[axis] = to
    return Layout(axes, Form(tuple(shape[a] for a in axes), relabel(depends, moved)))


def _apart(site: Site, form: Form) -> int:
    """How many of the site's lane axes a term keeps apart."""
    return sum(axis is not MIXED for axis in form.depends[site.index])


def _signature(form: Form) -> Any:
    return form.shape, tuple(sorted(form.depends.items()))


def _contraction(
    site: Site,
    members: list[int],
    form: Form,
    depends: Dependences,
    number: int,
    finest: bool,
    constant: bool,
) -> Step:
    lanes = form.depends[site.index]
    rest = {r: axes for r, axes in form.depends.items() if r != site.index}
    density: Mapping[int, Any] = depends.log_prob(site)
    # sites of one loop may depend on each other: a term depends on all of them from the start
    earlier = {r: axes for r, axes in density.items() if r < site.index}
    upstream = {r: axes for r, axes in earlier.items() if not depends.same_loop(r, site.index)}
    looped = {r: axes for r, axes in earlier.items() if r not in upstream}
    # up to step t, a causal site's density depends on whatever belongs to the steps before
    outer = (MIXED, *lanes[1:]) if site.index in depends.causal else lanes
    left = join((rest, relabel(looped, lanes), relabel(upstream, outer)))
    after = layout(form.shape, left)
    return Step(site, tuple(members), form, lanes, after, number, finest, constant)
