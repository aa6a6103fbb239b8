"""Functions of a draw whose expectation is known, for estimators that fit them to the program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms.elimination import Form
from vipp_transforms.estimators._linear import direction, support_of
from vipp_transforms.expansion import Potentials
from vipp_transforms.lane import Apart
from vipp_transforms.lifting import Lifted
from vipp_transforms.mean_slopes import mean_slopes
from vipp_transforms.seen_slopes import slopes_of
from vipp_transforms.single_lanes import Summed
from vipp_transforms.source import LaneSource
from vipp_transforms.staging import Site

stop = jax.lax.stop_gradient


def fitted_sites(planned: Any) -> list[Site]:
    """The choices whose estimator fits functions of the draw."""
    sites = planned.program.sites.values()
    return [s for s in sites if planned.choices[s.index].estimator.traits.fitted]


def alone(each: Summed, form: Form) -> bool:
    """Whether a term has one entry for each lane of one choice, and depends on nothing else."""
    lanes = form.depends.get(each.site.index)
    inside = tuple(Apart(a) for a in range(len(each.site.lane_shape)))
    return len(form.depends) == 1 and lanes == inside and form.shape == each.site.lane_shape


def fitted_leaves(planned: Any) -> list[tuple[Summed, int]]:
    """Terms of single lanes that are functions to be fitted, by number."""
    sites = {s.index for s in fitted_sites(planned)}
    forms = planned.elimination.leaves
    return [
        (each, k)
        for each in planned.summed
        for k in each.leaves
        if each.site.index in sites and alone(each, forms[k].form)
    ]


def drawn_leaves(planned: Any) -> list[Any]:
    """What they are at the draws."""
    return [planned.split.leaves[k] for _, k in fitted_leaves(planned)]


def with_functions(evaluation: Any) -> dict[int, Potentials]:
    """Potentials of the fitted sites: the score, then of each function of a draw three.

    What it is off its mean; zero, with the derivative of its mean; its variance.

    Args:
      evaluation: once the program is evaluated.
    """
    planned = evaluation.plan
    sites = [s for s in fitted_sites(planned) if s.index not in evaluation.given]
    if not sites:
        return {}
    chosen = {s.index for s in sites}
    wanted = lambda site: site.index in chosen
    slopes = slopes_of(planned.program, planned.depends, planned.split, planned.elimination, wanted)
    at_mean = mean_slopes(planned, {v: s for v, s in slopes.items() if s.seen})
    made = {}
    for site in sites:
        functions = [_slope(evaluation, site, at_mean[site.index])] if site.index in at_mean else []
        own = [_lane(evaluation, *pair) for pair in fitted_leaves(planned)
               if pair[0].site is site]  # fmt: skip
        if own:
            functions.append(tuple(evaluation.axes.add(parts) for parts in zip(*own, strict=True)))
        leaves = [x for f in functions for x in f]
        tree = jax.tree.structure([(0, *(0 for _ in leaves)), None])
        made[site.index] = Potentials((*evaluation.potentials[site.index].leaves, *leaves), tree)
    return made


def _slope(evaluation: Any, site: Site, slope: jax.Array) -> tuple[Lifted, ...]:
    """The product of a draw and the slope at the mean."""
    support = site.template.support
    leaves = evaluation.leaves_of(site)
    key = evaluation.env[site.key]

    def functions(here: Any, x: jax.Array, slope: jax.Array) -> tuple[jax.Array, ...]:
        values, probs = support_of(here.distribution, support, jnp.result_type(float))
        rank = probs.ndim - len(here.distribution.batch_shape) - 1
        events = tuple(range(-rank, 0))
        inner = lambda y: (slope * y).sum(events) if events else slope * y
        weights = probs.reshape(probs.shape[: probs.ndim - rank])
        products = jnp.stack([inner(v) for v in values])
        mean = (weights * products).sum(0)
        # what is not among the values is zero
        none = jnp.maximum(1.0 - weights.sum(0), 0.0)
        variance = (weights * (products - mean[None]) ** 2).sum(0) + none * mean**2
        return inner(x) - stop(mean), direction(mean), stop(variance)

    def one(key: Any, x: jax.Array, *leaves: Any) -> list[jax.Array]:
        source = LaneSource(site.template, site.lanes, key, leaves)
        return list(source.map(functions, x, slope))

    return tuple(evaluation.axes.apply(one, key, evaluation.env[site.var], *leaves))


def _lane(evaluation: Any, each: Summed, number: int) -> tuple[Lifted, ...]:
    """A term of single lanes."""
    planned, term = evaluation.plan, evaluation.at_values[number]
    how = planned.elimination.leaves[number]
    scale = evaluation.scale[number]
    drawn = evaluation.arranged(evaluation.env[planned.split.leaves[number]], how, scale)
    fixed = term._replace(array=stop(term.array))
    mean = evaluation.sum_over_lane(each, fixed, how.form)
    (draws, centre), names = evaluation.axes.aligned(drawn, mean)
    every, middle = evaluation.axes.aligned(fixed, mean)[0]
    squares = Lifted((every - stop(middle)) ** 2, evaluation.axes.union([fixed, mean]))
    away = Lifted(stop(draws - centre), names)
    spread = evaluation.sum_over_lane(each, squares, how.form)
    moved = mean._replace(array=direction(mean.array))
    return away, moved, spread._replace(array=stop(spread.array))
