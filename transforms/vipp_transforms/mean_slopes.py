"""The derivative of a program in its choices, all of them at their means."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms import _jax, lifting
from vipp_transforms.estimators._linear import mean_of
from vipp_transforms.lifting import Axes, Env, Lifted, Node, value_of
from vipp_transforms.plan import Plan
from vipp_transforms.slopes import Slope, Sloped
from vipp_transforms.source import AT_MEANS, LaneSource
from vipp_transforms.staging import Site, live
from vipp_transforms.terms import weights

stop = jax.lax.stop_gradient


def mean_slopes(planned: Plan, slopes: Mapping[Any, Slope]) -> dict[int, jax.Array]:
    """For the choices of ``slopes``, by index, the derivative of what sees them, a constant.

    The program is evaluated once, every such choice at the mean of its distribution given the
    earlier ones wherever a float is made of it; where it is compared or an index, and of all other
    choices, a draw is taken that nothing else sees. A derivative that is no number counts as none.
    """
    program, split = planned.program, planned.split
    seen = frozenset().union(*(slope.seen for slope in slopes.values()))
    ends = [
        k
        for k, leaf in enumerate(split.leaves)
        if not isinstance(leaf, _jax.Literal) and leaf in seen
    ]
    needed = [split.leaves[k] for k in ends]
    for eqn, operands in split.opened:
        needed += [v for i, v in enumerate(eqn.invars) if i not in operands]
    sloped = Sloped(live(list(program.eqns), needed), slopes)
    eqns = live(sloped.eqns, needed)
    whole = sloped.seen_whole.union(*map(sloped.linear_in, needed))
    none: frozenset[str] = frozenset()

    def total(shifts: list[jax.Array]) -> jax.Array:
        env: Env = {v: Lifted(stop(x)) for v, x in program.env.items()}
        nodes = {}
        for var, site in program.sites.items():
            if site.loop is None:
                # what only floats are made of is at its mean in all of them
                drawn = var not in slopes or var in whole
                nodes[var] = Node(none, partial(_drawn if drawn else _nought, site))
            else:
                env[site.loop.trajectory] = Lifted(jnp.int32(0))
        for (var, slope), shift in zip(slopes.items(), shifts, strict=True):
            nodes[slope.var] = Node(none, partial(_off, program.sites[var], shift))
        lifting.evaluate(eqns, env, Axes(), nodes, needed, lambda _: none)
        scale = weights(split, program.out, lambda v: value_of(env, v).array)
        parts = [split.weigh(scale[k], value_of(env, split.leaves[k]).array).sum() for k in ends]
        return sum(parts, start=jnp.zeros(()))

    zeros = [jnp.zeros(s.var.aval.shape, s.var.aval.dtype) for s in slopes.values()]
    made = zip(slopes, jax.grad(total)(zeros), strict=True)
    usable = lambda x: stop(jnp.where(jnp.isfinite(x), x, 0.0))
    return {program.sites[v].index: usable(x) for v, x in made}


def _source(site: Site, env: Env) -> LaneSource:
    leaves = [value_of(env, v).array for v in site.leaves]
    return LaneSource(site.template, site.lanes, env[site.key].array, leaves)


def _drawn(site: Site, env: Env) -> Lifted:
    """A draw by a key of its own, which is that of no sample."""
    made = _source(site, env).map(lambda here: here.distribution.sample(here.key), salt=AT_MEANS)
    return Lifted(stop(made).astype(site.var.aval.dtype))


def _nought(site: Site, env: Env) -> Lifted:
    """In place of a draw that nothing depends on."""
    return Lifted(jnp.zeros(site.var.aval.shape, site.var.aval.dtype))


def _off(site: Site, shift: jax.Array, env: Env) -> Lifted:
    """What the mean is off the draw."""
    support = site.template.support

    def mean(here: Any) -> jax.Array:
        return mean_of(here.distribution, support, jnp.result_type(float))

    draw = env[site.var].array
    return Lifted(shift + stop(_source(site, env).map(mean) - draw))
