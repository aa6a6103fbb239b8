"""Which lanes of sites and axes of factors run side by side, and which must be taken together.

Where a factor keeps the lanes of a site apart along one of its axes, the axis and the lanes are of
one *class*: a plate that both are in. Lanes that some factor mixes are in no plate: the site has
one joint value for all of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from vipp_transforms.dependence import Dependence
from vipp_transforms.lane import Apart

AxesOf = Mapping[int, tuple[int | None, ...]]  # by site, the axis of each of its lane axes


def axes_of(dependence: Dependence) -> AxesOf:
    """The axes along which lanes stay apart, None where they are mixed."""
    return {
        site: tuple(lane.axis if isinstance(lane, Apart) else None for lane in lanes)
        for site, lanes in dependence.items()
    }


class LaneAxes(NamedTuple):
    """A site, as far as its lanes go.

    Attributes:
      family: the number of its kind; the lanes of the copies of a site in the steps of a loop are
        the same.
      name: unique.
      lane_shape: sizes of its lane axes.
    """

    family: int
    name: str
    lane_shape: tuple[int, ...]


class Member(Protocol):
    """A factor, as far as its axes go."""

    @property
    def name(self) -> str:
        """Of the factor."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the factor."""
        ...

    @property
    def depends(self) -> AxesOf:
        """Its lanes of sites, by axis."""
        ...

    @property
    def plates(self) -> Mapping[str, int]:
        """Its axes by name of plate."""
        ...


Lane = tuple[int, int]  # family of a site, number of its lane axis


class Joined(NamedTuple):
    """The classes of a group of factors.

    Attributes:
      sites: those that the factors depend on, in order.
      dims: by name of the factor, the class of each of its axes; None for one of size one, and
        where no site has lanes along it.
      mixed: by lane that is not kept apart, the factor that mixes it.
      plates_of: by name of the site, the classes of its lanes.
    """

    sites: tuple[LaneAxes, ...]
    dims: dict[str, tuple[str | None, ...]]
    mixed: dict[Lane, str]
    plates_of: dict[str, frozenset[str]]


def join_lanes(members: Sequence[Member], sites: Mapping[int, LaneAxes]) -> Joined:
    """Find the classes of a group of factors of these sites."""
    here = [sites[r] for r in sorted({r for m in members for r in m.depends})]
    mixed = _mixed(members, sites)
    while True:
        classes = _Classes()
        for member in members:
            _unite(classes, member, sites, mixed)
        # two axes of one array cannot be one plate: such lanes are summed out jointly
        clash = _clash(classes, members, here, mixed)
        if not clash:
            break
        mixed |= clash
    label = classes.labels()
    lane = lambda s, j: label[classes.find((s.family, j))]
    plates_of = {s.name: frozenset(lane(s, j) for j in _apart(s, mixed)) for s in here}
    used = frozenset().union(*plates_of.values())
    dims = {}
    for m in members:
        named = [label.get(classes.find((m.name, a))) for a in range(len(m.shape))]
        named = [c if m.shape[a] > 1 and c in used else None for a, c in enumerate(named)]
        dims[m.name] = tuple(named)
    return Joined(tuple(here), dims, mixed, plates_of)


def _mixed(members: Iterable[Member], sites: Mapping[int, LaneAxes]) -> dict[Lane, str]:
    found: dict[Lane, str] = {}
    for member in members:
        for r, axes in member.depends.items():
            for j, axis in enumerate(axes):
                if axis is None and sites[r].lane_shape[j] > 1:
                    found.setdefault((sites[r].family, j), member.name)
    return found


def _apart(site: LaneAxes, mixed: Mapping[Lane, str]) -> list[int]:
    """The lane axes of a site that stay apart."""
    return [j for j, n in enumerate(site.lane_shape) if n > 1 and (site.family, j) not in mixed]


def _unite(
    classes: _Classes, member: Member, sites: Mapping[int, LaneAxes], mixed: Mapping[Lane, str]
) -> None:
    for name, axis in member.plates.items():
        if member.shape[axis] > 1:
            classes.unite(("plate", name), (member.name, axis))
    for r, axes in member.depends.items():
        for j in _apart(sites[r], mixed):
            if axes[j] is not None:
                classes.unite((sites[r].family, j), (member.name, axes[j]))


def _clash(
    classes: _Classes,
    members: Iterable[Member],
    sites: Iterable[LaneAxes],
    mixed: Mapping[Lane, str],
) -> dict[Lane, str]:
    """The lanes of a class that two axes of one factor, or of one site, are in."""
    both = [(m.name, [(m.name, a) for a in range(len(m.shape))]) for m in members]
    both += [(s.name, [(s.family, j) for j in _apart(s, mixed)]) for s in sites]
    for name, keys in both:
        roots = [classes.find(k) for k in keys if k in classes]
        for root in roots:
            if roots.count(root) > 1:
                lanes = [(s.family, j) for s in sites for j in _apart(s, mixed)]
                found = {lane: name for lane in lanes if classes.find(lane) == root}
                if found:
                    return found
    return {}


class _Classes:
    """Disjoint sets of lanes, axes and named plates."""

    def __init__(self) -> None:
        self._parent: dict[Hashable, Hashable] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._parent

    def find(self, key: Hashable) -> Hashable:
        while (up := self._parent.get(key, key)) != key:
            key = up
        return key

    def unite(self, one: Hashable, other: Hashable) -> None:
        for key in (one, other):
            self._parent.setdefault(key, key)
        self._parent[self.find(one)] = self.find(other)

    def labels(self) -> dict[Hashable, str]:
        """A name for each class: that of its plate, or a number."""
        names: dict[Hashable, str] = {}
        for key in self._parent:
            root = self.find(key)
            if isinstance(key, tuple) and key[0] == "plate":
                names[root] = min(str(key[1]), names.get(root, str(key[1])))
        number = 0
        for key in self._parent:
            if self.find(key) not in names:
                names[self.find(key)] = f"lanes {number}"
                number += 1
        return names
