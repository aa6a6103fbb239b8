"""Particles in plates: along which of these each element can have particles of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipp.programs.densities import SiteDensity, joint_per_plate, subsampling
from vipp.programs.particles import Begun, Particles
from vipp.programs.weights import enclosing_plates, of_possible_draws
from vipp_transforms import _jax
from vipp_transforms.dependence import Dependence, follow, join, mixed, relabel
from vipp_transforms.lane import MIXED, Apart, Step


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("of_p", "of_q", "random", "drawn", "scores"),
    meta_fields=(),
)
@dataclass(frozen=True, eq=False)
class Moved:
    """What one particle gained by a move.

    Attributes:
      of_p: densities under the model.
      of_q: densities under the guide.
      random: those of ``of_q`` that are drawn by chance.
      drawn: for each of these the value, and what the draw went through on its way to it.
      scores: and the density that it was drawn with.
    """

    of_p: list[SiteDensity]
    of_q: list[SiteDensity]
    random: list[SiteDensity]
    drawn: list[list[jax.Array]]
    scores: list[jax.Array]

    @staticmethod
    def of(of_p: list[SiteDensity], of_q: list[SiteDensity]) -> Moved:
        """What is weighed, of all densities."""
        of_p, of_q = of_possible_draws(of_p, of_q)
        counted = lambda sites: [s.counted() for s in sites]
        random = [s for s in of_q if s.random]
        drawn = [[s.value, *jax.tree.leaves(s.intermediates)] for s in random]
        scores = [s.as_drawn().log_prob for s in random]
        return Moved(counted(of_p), counted(of_q), counted(random), drawn, scores)

    @property
    def sites(self) -> list[SiteDensity]:
        """All densities."""
        return [*self.of_p, *self.of_q]

    def log_weight(self, elements: Elements) -> jax.Array:
        """The log weight, one entry per element."""
        names = elements.names
        log_w = joint_per_plate(self.of_p, names) - joint_per_plate(self.of_q, names)
        return jnp.broadcast_to(log_w, elements.shape)


class Elements(NamedTuple):
    """The plates whose elements have particles of their own, and where these lie in an array.

    Attributes:
      names: the plates.
      shape: their sizes.
      scale: what a sum over them is to be multiplied by for subsampling.
      axes: of each array that a particle has of its own, those of its state first, then what its
        step is closed over and what it scans over, the axis of each plate; None for a plate of size
        one, or in the place of all for an array that does not depend on what is drawn.
      mixed: what mixes the elements of other plates that enclose every site, by name.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    scale: float
    axes: list[tuple[int | None, ...] | None]
    mixed: dict[str, str]

    def __str__(self) -> str:
        """What to tell the user."""
        if self.names:
            names = ", ".join(f"'{n}'" for n in self.names)
            said = f"one bound, and particles of its own, for each element of plate {names}"
        else:
            said = "one bound over everything"
        reasons = [f"{why} mixes the elements of '{name}'" for name, why in self.mixed.items()]
        return "; ".join([said, *reasons])


def elements(begun: Begun, particles: Particles, own: Particles, per_plate: Any) -> Elements:
    """The plates whose elements have particles of their own.

    They enclose every site, and what is drawn for one element says nothing of what another's are
    drawn from, nor of their densities.

    Args:
      begun: how a particle begins; its value a :class:`Moved`.
      particles: how they move, with a :class:`Moved` for result.
      own: which arrays each has of its own.
      per_plate: ``"auto"`` for all such plates, the names of those that must be, or None.

    Raises:
      ValueError: naming a site outside of a plate asked for, or what mixes its elements; or one
        that is subsampled by another plate.
    """
    _, moved = jax.tree.unflatten(particles.out, range(len(particles.jaxpr.outvars)))
    sites = [*begun.places.value.sites, *moved.sites]
    names = enclosing_plates(per_plate, sites)
    for site in sites:
        site.check_inside(names)
    flow = _Flow(begun, particles, moved, names)
    for name, why in flow.mixed.items():
        if per_plate != "auto" or any(s.subsampling[name] != 1 for s in sites):
            raise ValueError(
                f"FilteringBound: {why} mixes the elements of plate '{name}', which can have no "
                "particles of their own then, expected elements that say nothing of each other. "
                "Fix: give what belongs to an element an axis of the plate, or use per_plate=None, "
                "without subsample_size."
            )
    kept = tuple(n for n in names if n not in flow.mixed)
    shape = tuple(flow.sizes[n] for n in kept)
    return Elements(kept, shape, subsampling(sites, kept), flow.axes(own, kept), flow.mixed)


class _Flow:
    """Which elements of the plates ``names`` each array of a particle depends on.

    Attributes:
      sizes: of the plates.
      mixed: what mixes the elements, by plate.
    """

    def __init__(self, begun: Begun, particles: Particles, moved: Moved, names: tuple[str, ...]):
        self.names, self.places = names, begun.places
        self.mixed: dict[str, str] = {}
        first, then = (begun.jaxpr, begun.places.value), (particles.jaxpr, moved)
        self.sizes = dict(zip(names, _sizes([first, then], names), strict=True))
        anything: Dependence = {0: (MIXED,) * len(names)}
        known = {**dict.fromkeys(begun.jaxpr.invars, anything), **self._drawn(*first)}
        self.start = follow(begun.jaxpr, known)
        self.state = self._of(begun.places.state)
        before = self._of(begun.places.closed_over)
        xs = [relabel(d, _within_step) for d in self._of(begun.places.xs)]
        found = self._steps(particles.jaxpr, before, [anything], xs, self._drawn(*then))
        self._judge("before the scan", *first, self.start)
        self._judge("in the scan", *then, found)
        self._note("what the scan carries", self.state)
        self._note("what the step of the scan is closed over", before)
        self._note("what is scanned over", xs)

    def _of(self, places: Any) -> list[Dependence]:
        return [self.start[i] for i in jax.tree.leaves(places)]

    def _steps(
        self, jaxpr: Any, before: Any, key: Any, xs: Any, drawn: dict[Any, Dependence]
    ) -> list[Dependence]:
        """What the results of a step depend on, its state brought to a fixed point."""
        operands = (*jaxpr.constvars, *jaxpr.invars)
        while True:
            given = zip(operands, [*before, *key, *self.state, *xs], strict=True)
            found = follow(jaxpr, {**dict(given), **drawn})
            grown = [join(pair) for pair in zip(self.state, found, strict=False)]
            if grown == self.state:
                return found
            self.state = grown

    def _drawn(self, jaxpr: Any, moved: Moved) -> dict[Any, Dependence]:
        """What is drawn depends on its own elements; what it is drawn from, its density shows."""
        known: dict[Any, Dependence] = {}
        for site, places in zip(moved.random, moved.drawn, strict=True):
            found = [jaxpr.outvars[i] for i in places]
            shape: tuple[int, ...] = found[0].aval.shape
            batch = shape[: len(shape) - site.event_dim]
            axes = [len(batch) + site.plates[n] for n in self.names]
            lanes = tuple(Apart(a) if batch[a] > 1 else MIXED for a in axes)
            for var in found:
                if not isinstance(var, _jax.Literal) and var.aval.shape[: len(batch)] == batch:
                    known[var] = {0: lanes}
        return known

    def _judge(self, where: str, jaxpr: Any, moved: Any, found: Sequence[Dependence]) -> None:
        """Note densities of one element that depend on another's draws."""
        pairs = [(s, s.log_prob) for s in moved.sites]
        pairs += zip(moved.random, moved.scores, strict=True)
        for site, at in pairs:
            ndim = len(jaxpr.outvars[at].aval.shape)
            axes = [ndim + site.plates[n] for n in self.names]
            self._note(f"the density of site '{site.name}' {where}", [found[at]], axes)
            scales = [mixed(found[i]) for i in jax.tree.leaves(site.scale)]
            self._note(f"the scale of site '{site.name}' {where}", scales)

    def _note(self, what: str, found: Sequence[Dependence], axes: Any = None) -> None:
        for dependence in found:
            for i, lane in enumerate(dependence.get(0, ())):
                apart = isinstance(lane, Apart) and (axes is None or lane.axis == axes[i])
                if self.sizes[self.names[i]] > 1 and not apart:
                    self.mixed.setdefault(self.names[i], what)

    def axes(self, own: Particles, kept: tuple[str, ...]) -> list[tuple[int | None, ...] | None]:
        """See :class:`Elements`."""
        found = list(self.state)
        for part, places in (own.closed_over, self.places.closed_over), (own.xs, self.places.xs):
            pairs = zip(self._of(places), jax.tree.leaves(part), strict=True)
            found += [dependence for dependence, varies in pairs if varies]
        return [self._axes_of(dependence, kept) for dependence in found]

    def _axes_of(
        self, dependence: Dependence, kept: tuple[str, ...]
    ) -> tuple[int | None, ...] | None:
        if kept and not dependence:
            return None
        lanes = dict(zip(self.names, dependence.get(0, ()), strict=False))
        return tuple(lane.axis if isinstance(lane := lanes[n], Apart) else None for n in kept)


def _sizes(runs: Sequence[tuple[Any, Moved]], names: tuple[str, ...]) -> list[int]:
    place: Callable[[SiteDensity], Any] = lambda site: site.log_prob
    found = [(jaxpr.outvars[place(s)].aval.shape, s) for jaxpr, m in runs for s in m.sites]
    return [max(shape[site.plates[n]] for shape, site in found) for n in names]


def _within_step(where: Any) -> Any:
    """Where an axis of what is scanned over lies in a step's part of it."""
    return where if isinstance(where, Step) else where - 1 if where else None
