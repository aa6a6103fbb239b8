"""Auxiliary sites, which the other program lacks: which of them leave the others a density."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpyro.distributions import Delta

from vipp.distributions.masks import lane_mask
from vipp.distributions.wrappers import factor
from vipp.programs.trace import Trace
from vipp_transforms import _jax
from vipp_transforms.dependence import Dependence, follow
from vipp_transforms.lane import MIXED


class Auxiliary(NamedTuple):
    r"""A random, scored site marked ``is_auxiliary``, and the deterministic ones that follow it.

    :math:`q(u, z)` may be scored in the place of :math:`q(z)` where ``z`` is a one-to-one function
    of ``u``, a ``Delta`` that accounts for the volume: so do NumPyro's autoguides, which draw all
    latent values as one vector. It has as many coordinates as ``u`` then. Where ``u`` has more, or
    ``z`` is random itself, or does not depend on ``u``, :math:`q(u, z)` is no density of ``z``.

    Attributes:
      name: of the site.
      size: its number of coordinates.
      followers: names and sizes of the sites that are not auxiliary, are deterministic, and depend
        on it.
    """

    name: str
    size: int
    followers: tuple[tuple[str, int], ...]


def auxiliaries(
    latent: Mapping[str, Any],
    marked: Iterable[str],
    again: Callable[[dict[str, Any]], Mapping[str, Any]],
) -> tuple[Auxiliary, ...]:
    """The random, scored auxiliary sites of a run.

    Args:
      latent: the messages of the run's latent sites, by name.
      marked: the names of those marked ``is_auxiliary``.
      again: runs the program with the random sites' values; gives the values of all sites.
    """
    marked = set(marked)
    fixed = {n for n, site in latent.items() if isinstance(factor(site["fn"]), Delta)}
    names = [n for n in marked - fixed if lane_mask(latent[n]["fn"]) is not False]
    if not names:
        return ()
    values = {n: site["value"] for n, site in latent.items() if n not in fixed}
    ends = sorted(fixed - marked)

    def deterministic(values: dict[str, Any]) -> list[Any]:
        found = again(values)
        return [found[n] for n in ends]

    closed, _ = _jax.trace(deterministic, values)
    inputs = dict(zip(sorted(values), closed.jaxpr.invars, strict=True))
    anything: dict[Any, Dependence] = {inputs[n]: {i: (MIXED,)} for i, n in enumerate(names)}
    reached = dict(zip(ends, follow(closed.jaxpr, anything), strict=True))
    size = lambda name: int(np.size(latent[name]["value"]))
    return tuple(
        Auxiliary(n, size(n), tuple((e, size(e)) for e in ends if i in reached[e]))
        for i, n in enumerate(names)
    )


def loose(auxiliary: Iterable[Auxiliary], given: Collection[str]) -> list[str]:
    """Those whose coordinates find no room in their followers, each of which has room for its own.

    Args:
      auxiliary: sites that the other program does not have.
      given: the names of those that it is given.
    """
    room: dict[str, int] = {}
    taken: dict[tuple[str, str], int] = {}
    followers = {a.name: [n for n, _ in a.followers if n in given] for a in auxiliary}
    for a in auxiliary:
        room.update(a.followers)

    def place(name: str, amount: int, tried: set[str]) -> int:
        """Place some of the coordinates of ``name``, moving others on where that makes room."""
        for end in followers[name]:
            if end in tried:
                continue
            tried.add(end)
            others = [n for (n, e), x in taken.items() if e == end and n != name and x]
            free = min(amount, room[end])
            room[end] -= free
            for other in others:
                if free:
                    break
                free = place(other, min(amount, taken[other, end]), tried)
                taken[other, end] -= free
            if free:
                taken[name, end] = taken.get((name, end), 0) + free
                return free
        return 0

    found = []
    for a in auxiliary:
        left = a.size
        while left and (placed := place(a.name, left, set())):
            left -= placed
        found += [a.name] if left else []
    return found


def check_known(given: Trace, names: Collection[str]) -> None:
    """Raise if a value was given for a site not in ``names``, unless it may be left out."""
    unknown = [a for a in given.random_auxiliary if a.name not in names]
    left = loose(unknown, given.values)
    for name in given.values:
        if name in names or (name in given.auxiliary and name not in left):
            continue
        if name in left:
            others = [n for n in given if n in names]
            raise ValueError(
                f"Site '{name}' is auxiliary and random, the program has no such site, and the "
                f"deterministic sites that depend on it have fewer coordinates: scored with it, "
                f"the others {others} would have no density of their own, and a bound would exceed "
                f"the evidence. Fix: integrate it out, vipp.marginal(guide, keep={others})."
            )
        raise ValueError(
            f"Site '{name}' has a value but the program has no such site, got sites "
            f"{sorted(names)}. Fix: rename it, add it to the program, or integrate it out where it "
            "is drawn (vipp.marginal)."
        )
