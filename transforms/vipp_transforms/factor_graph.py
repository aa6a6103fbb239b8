"""The densities of a staged program as factors of the choices to be summed out, group by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax

from vipp_transforms.chains import Chain, chain_of
from vipp_transforms.control_flow import MAX_UNROLLED
from vipp_transforms.dependence import Dependences
from vipp_transforms.errors import SiteError
from vipp_transforms.lane_classes import AxesOf, Joined, LaneAxes, axes_of, join_lanes
from vipp_transforms.peeling import Peeled, peel
from vipp_transforms.staging import Program, Site, live, trace

MAX_LAG = 4  # steps back that a step of a loop may look


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("log_prob", "scale"),
    meta_fields=("name", "plates"),
)
@dataclass(frozen=True)
class Density:
    """What a program says of one of its random choices.

    Attributes:
      name: of the choice; one that is summed out is drawn with that name.
      log_prob: its log density, one entry per lane; None for one that is summed out. In a loop it
        is what each step returns, stacked.
      plates: the names of plates, each with its axis of ``log_prob`` (of the lanes, if summed out).
      scale: what the log density is to be multiplied by, or None.
    """

    name: str
    log_prob: Any
    plates: tuple[tuple[str, int], ...] = ()
    scale: Any = None


class Member(NamedTuple):
    """A factor: a density of the program, or of one step of one of its loops.

    Attributes:
      density: which one.
      name: unique.
      atom: its log density; None for a site's.
      scale: an atom, or None.
      shape: of the log density.
      depends: on which sites.
      site: the site that it is the density of, or None.
      loop: the number of the loop that it is in, or None.
      step: of that loop.
    """

    density: Density
    name: str
    atom: Any
    scale: Any
    shape: tuple[int, ...]
    depends: AxesOf
    site: Site | None = None
    loop: int | None = None
    step: int = 0

    @property
    def plates(self) -> dict[str, int]:
        """Its axes by name of plate."""
        return dict(self.density.plates)


class Drawn(NamedTuple):
    """A site in a group.

    Attributes:
      name: its own, in a loop with the number of the step.
      site: it.
      member: its density.
      joined: the classes of the group.
      chain: the steps that its step stands for, or None.
    """

    name: str
    site: Site
    member: Member
    joined: Joined
    chain: Chain | None


@dataclass(frozen=True, eq=False)
class FactorGraph:
    """A staged program as a product of factors.

    Attributes:
      program: staged, its loops peeled.
      loops: these.
      depends: the dependence of its values.
      lanes: by site, its name and lanes.
      chains: by number of a loop, the steps that were not taken out of it.
      groups: factors that sites connect.
      joined: of each group, its classes of lanes.
    """

    program: Program
    loops: list[Peeled]
    depends: Dependences
    lanes: dict[int, LaneAxes]
    chains: dict[int, Chain]
    groups: list[list[Member]]
    joined: list[Joined]

    def drawn(self) -> Iterator[Drawn]:
        """The sites of all groups."""
        for group, joined in zip(self.groups, self.joined, strict=True):
            for member in group:
                if member.site is not None:
                    name = self.lanes[member.site.index].name
                    yield Drawn(name, member.site, member, joined, self.chain(member))

    def chain(self, member: Member) -> Chain | None:
        """The steps that a member's step stands for, if there are any."""
        chain = None if member.loop is None else self.chains.get(member.loop)
        return chain if chain is not None and member.step == chain.loop.first else None

    def stands_for_others(self, member: Member) -> bool:
        """Whether a member is of a step that stands for all that follow."""
        return self.chain(member) is not None


def factor_graph(fn: Callable[[], list[Density]], *, barren: bool = False) -> FactorGraph:
    """Stage a program that returns its densities, with as many steps of its loops as it takes.

    Args:
      fn: the program.
      barren: whether to keep the sites that nothing else depends on.

    Raises:
      SiteError: naming a site without a finite support, or one of a loop that is no finite chain.
    """
    traced = trace(lambda: (0.0, fn()), (), {})
    wanted: dict[int, int] = {}
    while True:
        program, loops = peel(traced, wanted)
        depends = Dependences(program)
        lanes = _lanes(program, loops)
        members = _summable(_members(program, depends, loops), lanes, barren)
        chains = {
            n: chain_of(loop, [_atoms(m) for m in members if (m.loop, m.step) == (n, loop.first)])
            for n, loop in enumerate(loops)
            if not loop.unrolled
        }
        used = _used(program, members)
        more = {n: c for n, chain in chains.items() if (c := _more(chain, program, depends, used))}
        if not more:
            break
        wanted |= more
    groups = _groups(members if barren else _without_barren(members, lanes))
    joined = [join_lanes(g, lanes) for g in groups]
    return FactorGraph(program, loops, depends, lanes, chains, groups, joined)


def _more(chain: Chain, program: Program, depends: Dependences, used: set[Any]) -> int | None:
    """How many steps must be taken out of a loop, or None if those are enough."""
    loop, taken = chain.loop, len(chain.loop.steps)
    site = next((program.sites[v] for v in loop.steps[-1].sites if v in program.sites), None)
    if not used.isdisjoint(loop.outvars):
        return _all_steps(loop, site, "what it returns is used after it")
    if chain.depth > taken - 1:
        return min(chain.depth + 1, loop.length)
    index = {v: s.index for v, s in program.sites.items()}
    if chain.steady(depends, index):
        return None
    if taken <= MAX_LAG:
        return min(taken + 1, loop.length)
    return _all_steps(loop, site, "what it carries depends on more and more choices")


def _all_steps(loop: Peeled, site: Site | None, why: str) -> int:
    if loop.length <= MAX_UNROLLED:
        return loop.length
    name = site.template.name if site else "?"
    raise SiteError(
        f"marginal(exact=True): site '{name}' is drawn in a loop of {loop.length} steps that is no "
        f"finite chain, as {why}: it would have to be unrolled, expected at most {MAX_UNROLLED} "
        f"steps. Fix: carry the choices of the last steps alone and observe inside the loop, keep "
        f"'{name}' (keep=[...]), or integrate it out by importance weights (num_particles=)."
    )


# -- members -------------------------------------------------------------------------------------


def _members(program: Program, depends: Dependences, loops: Sequence[Peeled]) -> list[Member]:
    place = {v: (n, i) for n, loop in enumerate(loops) for i, v in enumerate(loop.outvars)}
    in_loop = {
        v: (n, t) for n, loop in enumerate(loops) for t, step in enumerate(loop.steps)
        for v in step.sites
    }  # fmt: skip
    members = []
    for density in jax.tree_util.tree_unflatten(program.aux_tree, program.aux):
        if density.log_prob is None:
            for var, site in program.sites.items():
                if site.template.name == density.name:
                    loop, step = in_loop.get(var, (None, 0))
                    at = Member(
                        density, _label(density.name, loop, step), None, None, site.lane_shape,
                        axes_of(depends.log_prob(site)), site, loop, step,
                    )  # fmt: skip
                    members.append(_with_scale(at, place, loops))
        elif density.log_prob in place if _is_var(density.log_prob) else False:
            loop, position = place[density.log_prob]
            for step, taken in enumerate(loops[loop].steps):
                name = _label(density.name, loop, step)
                at = _member(density, name, taken.results[position], depends)
                members.append(_with_scale(at._replace(loop=loop, step=step), place, loops))
        else:
            at = _member(density, density.name, density.log_prob, depends)
            members.append(_with_scale(at, place, loops))
    return members


def _is_var(atom: Any) -> bool:
    return hasattr(atom, "aval") and not hasattr(atom, "val")


def _member(density: Density, name: str, atom: Any, depends: Dependences) -> Member:
    return Member(density, name, atom, None, tuple(atom.aval.shape), axes_of(depends[atom]))


def _with_scale(member: Member, place: Any, loops: Sequence[Peeled]) -> Member:
    """Its scale, in a loop that of its step."""
    scale = member.density.scale
    if scale is not None and _is_var(scale) and scale in place:
        loop, position = place[scale]
        scale = loops[loop].steps[member.step].results[position]
    return member._replace(scale=scale)


def _label(name: str, loop: int | None, step: int) -> str:
    return name if loop is None else f"{name}[{step}]"


def _unsupported(site: Site) -> SiteError:
    return SiteError(
        f"marginal(exact=True): site '{site.template.name}' cannot be summed out, as "
        f"{site.template.kind} has no finite support that is known before compilation. Fix: give "
        "a total or a bound as a number outside of compiled code (a Multinomial: one for all "
        "lanes, with few splits), keep the site, or integrate it out with importance weights "
        "(exact=False)."
    )


def _atoms(member: Member) -> list[Any]:
    """What a factor is computed from."""
    return [member.atom] if member.site is None else list(member.site.leaves)


def _used(program: Program, members: Sequence[Member]) -> set[Any]:
    """What the factors need of a program."""
    needed = [a for m in members for a in _atoms(m)]
    eqns = live(without_keys(program.sites, program.eqns), needed)
    return {v for e in eqns for v in e.invars if _is_var(v)} | {a for a in needed if _is_var(a)}


def without_keys(sites: Mapping[Any, Site], eqns: Sequence[Any]) -> list[Any]:
    """The equations, those of sites without inputs: what is lifted over its support needs none."""
    drawn = lambda e: e.outvars and e.outvars[0] in sites
    return [e.replace(invars=[]) if drawn(e) else e for e in eqns]


def _lanes(program: Program, loops: Sequence[Peeled]) -> dict[int, LaneAxes]:
    copies = {}
    for loop in loops:
        for step, taken in enumerate(loop.steps):
            for var, first in zip(taken.sites, loop.steps[0].sites, strict=True):
                copies[var] = (program.sites[first].index, step)
    lanes = {}
    for var, site in program.sites.items():
        family, step = copies.get(var, (site.index, 0))
        name = _label(site.template.name, 0, step) if var in copies else site.name
        lanes[site.index] = LaneAxes(family, name, site.lane_shape)
    return lanes


# -- groups --------------------------------------------------------------------------------------


def _summable(members: list[Member], lanes: dict[int, LaneAxes], barren: bool) -> list[Member]:
    """Leave out sites without a finite support that nothing else depends on; no others may be."""
    infinite = lambda m: m.site is not None and m.site.template.support is None
    left = _without_barren(members, lanes, infinite)
    needed = left if barren else _without_barren(members, lanes)
    for member in needed:
        if member.site is not None and member.site.template.support is None:
            raise _unsupported(member.site)
    return left


def _without_barren(
    members: list[Member],
    lanes: dict[int, LaneAxes],
    droppable: Callable[[Member], bool] = lambda m: m.site is not None,
) -> list[Member]:
    """Leave out the sites that nothing else depends on: what is summed over them is one."""
    left = list(members)
    families = dict.fromkeys(
        lanes[m.site.index].family for m in members[::-1] if m.site and droppable(m)
    )
    for family in families:
        own = [m for m in left if m.site and lanes[m.site.index].family == family]
        others = [m for m in left if not any(m is o for o in own)]
        if not any(lanes[r].family == family for m in others for r in m.depends):
            left = others
    return left


def _groups(members: list[Member]) -> list[list[Member]]:
    """The members that depend on sites, connected through them, in order."""
    group_of: dict[int, int] = {}
    for number, member in enumerate(members):
        joined = {group_of[r] for r in member.depends if r in group_of}
        for r, g in list(group_of.items()):
            if g in joined:
                group_of[r] = number
        group_of.update((r, number) for r in member.depends)
    of_density = {
        m.density.name: group_of[next(iter(m.depends))] for m in reversed(members) if m.depends
    }
    groups: dict[int, list[Member]] = {}
    for member in members:
        if member.depends:
            groups.setdefault(group_of[next(iter(member.depends))], []).append(member)
        elif member.density.name in of_density:  # a step that depends on nothing, of a loop
            groups.setdefault(of_density[member.density.name], []).append(member)
    return list(groups.values())
