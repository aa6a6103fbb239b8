"""A program differentiated at the first of many draws alone, and its choices by all of them.

The derivative of an estimate has two parts: the choices' own, through their potentials, which
multiply what the program came to; and that of the program at given draws. For the first the draws
need only be evaluated forwards. The second is a mean over joint trajectories, of which the first
alone has the same expectation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from vipp_transforms.lifting import Env, Lifted
from vipp_transforms.plan import Plan
from vipp_transforms.staging import Site


def scored_sites(planned: Plan) -> frozenset[int]:
    """The choices that the program is differentiated at the first draws of.

    All that share such an axis, as trajectories are joint. None where one of another axis depends
    on them and they on it: its draws given the first ones would be others than those seen. Nor
    where one of them needs the program's derivative in its own draws, all of them.
    """
    sites = list(planned.program.sites.values())
    asking = [s for s in sites if planned.choices[s.index].estimator.traits.first]
    if not asking:
        return frozenset()
    axes = {_axis(planned, s) for s in asking} - {None}
    chosen = frozenset(s.index for s in sites if _axis(planned, s) in axes)
    if any(planned.choices[i].estimator.traits.sloped for i in chosen):
        return frozenset()
    before: dict[int, set[int]] = {}
    for s in sites:
        depends = {r for v in (s.key, *s.leaves) for r in planned.depends[v]}
        before[s.index] = depends.union(*(before.get(r, set()) for r in depends))
        between = [r for r in before[s.index] - chosen if before.get(r, set()) & chosen]
        drawn = [r for r in between if not planned.choices[r].estimator.traits.exhaustive]
        if s.index in chosen and (drawn or s.loop is not None):
            return frozenset()
    return chosen


def _axis(planned: Plan, site: Site) -> str | None:
    choice = planned.choices[site.index]
    axis = choice.estimator.axis(choice.site)
    return axis.name if axis is not None and axis.shared else None


class First(NamedTuple):
    """What the second evaluation is given.

    Attributes:
      draws: of the choices that are scored, the first ones, by index.
      known: what depends on no draw, so that it is evaluated, and differentiated, once.
    """

    draws: Mapping[int, Lifted]
    known: Env


def first_of(evaluation: Any) -> First:
    """What the second evaluation is given by the first."""
    program, env = evaluation.plan.program, evaluation.env
    scored = [s for s in program.sites.values() if s.index in evaluation.scored]
    made = [v for e in program.eqns for v in e.outvars if v in env]
    fixed = [
        v for v in made if not evaluation.plan.depends[v] and v not in evaluation.axes.facts.thin
    ]
    known = {v: env[v] for v in fixed if not env[v].axes}
    return First({s.index: _first(evaluation, env[s.var]) for s in scored}, known)


def unknown(eqns: Sequence[Any], env: Env) -> list[Any]:
    """The equations whose results are not known."""
    return [e for e in eqns if not e.outvars or any(v not in env for v in e.outvars)]


def forced_draws(evaluation: Any) -> Callable[[Site, tuple[int, ...]], Any] | None:
    """Of the other choices, the draws that a test forced, at the first ones of those."""
    if evaluation.draws is None:
        return None
    return lambda site, _: _first(evaluation, evaluation.drawn[site.index]).array


def _first(evaluation: Any, value: Lifted) -> Lifted:
    gone = {evaluation.axis_of[i].name for i in evaluation.scored}
    array = value.array  # whose derivative, if it has one, is that of a choice drawn pathwise
    for at in reversed(range(len(value.axes))):
        if value.axes[at] in gone:
            array = jnp.take(array, 0, at)
    return Lifted(array, tuple(name for name in value.axes if name not in gone))
