"""Factors evaluated at all values of the sites that they depend on."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.contraction import Factor
from vipp_transforms.errors import SiteError
from vipp_transforms.estimators.base import Axis, SiteInfo
from vipp_transforms.estimators.enumerate import joint_size
from vipp_transforms.every_value import every_value
from vipp_transforms.factor_graph import FactorGraph, Member, without_keys
from vipp_transforms.lane_classes import Joined
from vipp_transforms.lifting import Axes, Env, Lifted, value_of
from vipp_transforms.sharing import call, evaluate
from vipp_transforms.sites import lifting
from vipp_transforms.staging import Site, live
from vipp_transforms.value_numbering import ValueNumbering

MAX_JOINT = 2**16  # values of the lanes that a factor mixes
MAX_TABLE = 2**24  # entries of a factor, of each of its lanes


class FactorValues:
    """The values of a factor graph's program, its sites lifted over their supports.

    Args:
      graph: the factors.

    Attributes:
      env: the values, but for what changes from step to step of a chain.
      axes: the sites' axes.
      sites: what is known of the sites, by index.
      probes: by name of a site, zeros to be added to its log density.
    """

    def __init__(self, graph: FactorGraph):
        self.graph, self.program, self.depends = graph, graph.program, graph.depends
        self.probes: Mapping[str, Any] = {}
        self.axes = Axes()
        self.sites: dict[int, SiteInfo] = {}
        for group, joined in zip(graph.groups, graph.joined, strict=True):
            self._register(group, joined)
        self.env: Env = {v: Lifted(x) for v, x in self.program.env.items()}
        eqns, needed = self._fixed()
        drawn = self.program.sites.items()
        nodes = {
            v: every_value(info, info.name, v.aval.dtype)
            for v, s in drawn
            if (info := self.sites.get(s.index)) is not None
        }
        self.compute(live(eqns, needed), self.env, nodes, needed)

    def probed(self, probes: Mapping[str, Any]) -> FactorValues:
        """The same with zeros added to the log densities of sites."""
        other = copy.copy(self)
        other.probes = probes
        return other

    def compute(self, eqns: Sequence[Any], env: Env, nodes: Any, needed: Sequence[Any]) -> None:
        """Evaluate equations into ``env``."""
        with lifting():
            evaluate(eqns, env, self.axes, nodes, needed, self.names)

    def _fixed(self) -> tuple[list[Any], list[Any]]:
        """The equations that don't change from step to step of a chain, and what is needed."""
        chains = self.graph.chains.values()
        changing = {id(e) for chain in chains for e in chain.eqns}
        eqns = [e for e in self.program.eqns if id(e) not in changing]
        made = {v for chain in chains for e in chain.eqns for v in e.outvars}
        needed = [a for group in self.graph.groups for m in group for a in atoms_of(m)]
        factors = list(needed)
        for chain in chains:
            results = [chain.step.results[i] for i in chain.needed]
            in_use = live(list(chain.eqns), [*factors, *results])
            needed += [v for e in in_use for v in e.invars]
            needed += [*chain.inputs(), *chain.loop.xs]
            needed += [chain.step.results[i] for i in chain.varying]
        return without_keys(self.program.sites, eqns), [
            v for v in needed if not isinstance(v, _jax.Literal) and v not in made
        ]

    def _register(self, group: list[Member], joined: Joined) -> None:
        lanes = self.graph.lanes
        for member in group:
            site = member.site
            if site is None:
                continue
            family, name = lanes[site.index].family, lanes[site.index].name
            mixing = [joined.mixed.get((family, j)) for j in range(len(site.lane_shape))]
            flags = tuple(by is not None for by in mixing)
            info = site.template.placed(name, site.lane_shape, flags)
            self.sites[site.index] = info
            _check_joint(info, mixing)
            self.axes.register(Axis(name, joint_size(info)))
        for member in group:
            _check_table(member.name, [self.sites[r] for r in member.depends])

    def names(self, atom: Any) -> frozenset[str]:
        """The axes that a value may carry."""
        return frozenset(self.sites[r].name for r in self.depends[atom] if r in self.sites)

    def factor(self, member: Member, joined: Joined, env: Env | None = None) -> Factor:
        """A member with its axes named, sites and then plates, and summed over all others."""
        env = self.env if env is None else env
        value = self._log_prob(member.site, env) if member.site else value_of(env, member.atom)
        named = len(value.axes)
        dims = joined.dims[member.name]
        others = tuple(named + a for a, d in enumerate(dims) if d is None)
        array = jnp.sum(value.array, axis=others) if others else value.array
        kept = tuple(d for d in dims if d is not None)
        return Factor(array, (*value.axes, *kept), (member.density.name,))

    def probe(self, name: str, member: Member, joined: Joined, values: Any = None) -> Factor:
        """The zeros that are added to the log density of a site."""
        dims = tuple(d for d in joined.dims[member.name] if d is not None)
        return Factor(self.probes[name] if values is None else values, (name, *dims))

    def _log_prob(self, site: Site, env: Env) -> Lifted:
        atoms = (site.var, *site.leaves)
        (value,) = call(site.log_prob, [value_of(env, v) for v in atoms], self.axes, env, atoms)
        return value

    def scale(self, group: list[Member], plates: Sequence[str]) -> Any:
        """What a group's sum is to be multiplied by: all members must agree."""
        number = ValueNumbering(self.program.eqns, self.program.env)
        first = group[0]
        of = lambda m: None if _is_one(m.scale) else number(m.scale)
        for other in group:
            if of(other) != of(first):
                raise _partly_scaled(first.density.name, other.density.name)
        if _is_one(first.scale):
            return None
        eqns = live(list(self.program.eqns), [first.scale])
        if self.depends[first.scale]:
            raise _scale_depends(first.density.name)
        env = {v: Lifted(x) for v, x in self.program.env.items()}
        self.compute(eqns, env, {}, [first.scale])
        scale = value_of(env, first.scale).array
        member = next(m for m in group if m.site is None)
        at = {member.plates[n] - len(member.shape): n for n in plates}
        ndim = jnp.ndim(scale)
        if any(scale.shape[a] != 1 and a not in at for a in range(-ndim, 0)):
            raise _scale_varies(first.density.name)
        keep = sorted(a for a in at if a >= -ndim)
        scale = jnp.squeeze(scale, [a for a in range(-ndim, 0) if a not in keep])
        return jnp.expand_dims(scale, range(len(at) - len(keep))) if keep else scale


def atoms_of(member: Member) -> list[Any]:
    """The atoms that a factor is computed from."""
    return [member.atom] if member.site is None else [member.site.var, *member.site.leaves]


def _is_one(scale: Any) -> bool:
    return scale is None or (isinstance(scale, _jax.Literal) and scale.val == 1)


def _check_joint(site: SiteInfo, mixing: Sequence[str | None]) -> None:
    if joint_size(site) <= MAX_JOINT:
        return
    lanes = math.prod(n for n, m in zip(site.lane_shape, site.mixed, strict=True) if m)
    by = next(name for name in mixing if name is not None)
    assert site.support is not None
    raise SiteError(
        f"marginal(exact=True): site '{site.name}' has lanes of shape {site.lane_shape} with "
        f"{site.support.shape[0]} values each, and '{by}' depends on {lanes} of them together: "
        f"summing them out takes {site.support.shape[0]}**{lanes} values, expected at most "
        f"{MAX_JOINT}. Fix: keep '{site.name}' (keep=[...]), integrate it out by importance "
        f"weights (num_particles= instead of exact=True), or write '{by}' so that each entry of "
        "it depends on one lane (a plate around both)."
    )


def _check_table(name: str, sites: Sequence[SiteInfo]) -> None:
    entries = math.prod(map(joint_size, sites))
    if entries <= MAX_TABLE:
        return
    table = ", ".join(f"'{site.name}' ({joint_size(site)} values)" for site in sites)
    raise SiteError(
        f"marginal(exact=True): the density of '{name}' depends on sites {table} together: a table "
        f"of {entries} entries, expected at most {MAX_TABLE}. Fix: keep some of them (keep=[...]), "
        "or integrate them out by importance weights (num_particles= instead of exact=True)."
    )


def _partly_scaled(one: str, other: str) -> SiteError:
    return SiteError(
        f"marginal(exact=True): sites '{one}' and '{other}' are summed over together but scaled "
        "differently (by handlers.scale or a subsampled plate around one of them alone): a power "
        "of a part of a sum is no density. Fix: put the scale or the plate around all of them, "
        "keep the site that connects them, or drop the scale."
    )


def _scale_depends(name: str) -> SiteError:
    return SiteError(
        f"marginal(exact=True): the scale of site '{name}' depends on a site that is summed out. "
        "Expected the same scale for all of its values. Fix: keep that site."
    )


def _scale_varies(name: str) -> SiteError:
    return SiteError(
        f"marginal(exact=True): the scale of site '{name}' is an array along an axis that is no "
        "plate around all that is summed over together. Fix: scale per element of such a plate, "
        "or by one number."
    )
