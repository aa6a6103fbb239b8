"""A program differentiated at the first of many draws alone, and its choices by all of them.

The derivative of an estimate has two parts: the choices' own, through their potentials, which
multiply what the program came to; and that of the program at given draws. For the first the draws
need only be evaluated forwards. The second is a mean over joint trajectories, of which the first
alone has the same expectation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms.lifting import Lifted
from vipp_transforms.plan import Plan
from vipp_transforms.staging import Site


def scored_sites(planned: Plan) -> frozenset[int]:
    """The choices that the program is differentiated at the first draws of.

    All that share such an axis, as trajectories are joint. None where one of another axis depends
    on them and they on it: its draws given the first ones would be others than those seen.
    """
    sites = list(planned.program.sites.values())
    axis_of = {s.index: _axis(planned, s) for s in sites}
    asked = {axis_of[s.index] for s in sites if planned.choices[s.index].estimator.traits.first}
    chosen = frozenset(s.index for s in sites if axis_of[s.index] in asked - {None})
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


def first_draws(evaluation: Any) -> dict[int, Lifted]:
    """Of the choices that are scored, the first draws, by index."""
    sites = evaluation.plan.program.sites.values()
    scored = [s for s in sites if s.index in evaluation.scored]
    return {s.index: _first(evaluation, evaluation.env[s.var]) for s in scored}


def forced_draws(evaluation: Any) -> Callable[[Site, tuple[int, ...]], Any] | None:
    """Of the other choices, the draws that a test forced, at the first ones of those."""
    if evaluation.draws is None:
        return None
    return lambda site, _: _first(evaluation, evaluation.drawn[site.index]).array


def _first(evaluation: Any, value: Lifted) -> Lifted:
    gone = {evaluation.axis_of[i].name for i in evaluation.scored}
    array = jax.lax.stop_gradient(value.array)
    for at in reversed(range(len(value.axes))):
        if value.axes[at] in gone:
            array = jnp.take(array, 0, at)
    return Lifted(array, tuple(name for name in value.axes if name not in gone))
