"""What changes between steps: the state and the parameters of estimators that learn.

Each says itself what it looks at and what it makes of that (its
:class:`~vipp_transforms.estimators.base.Learning`); here is what it can look at, a
:class:`SiteProbe`: what the site's lanes contributed, and the estimate's gradient in the parameters
of the one choice, under these or other settings of its estimator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms.entries import permute
from vipp_transforms.estimators.base import Learning, Local
from vipp_transforms.evaluation import Evaluation
from vipp_transforms.lifting import Axes, Lifted, evaluate, value_of
from vipp_transforms.plan import Plan
from vipp_transforms.source import LaneSource
from vipp_transforms.staging import Site, live

Updates = dict[str, Callable[[Any], Any]]


def learn(evaluation: Evaluation) -> tuple[jax.Array | None, Updates]:
    """What all estimators learn from one evaluation.

    Args:
      evaluation: whose value was taken.

    Returns:
      Zero, with minus the derivative of all that is to become small (the value being one that is
      made large), or None if nothing is; and by site name, ``kept -> kept`` for the next step of
      those with state.
    """
    found: dict[str, list[tuple[Learning, Any]]] = {}
    losses: list[jax.Array] = []
    for site in evaluation.plan.program.sites.values():
        learning = evaluation.plan.choices[site.index].estimator.learning
        if learning is None:
            continue
        seen = learning.observe(SiteProbe(evaluation, site))
        if seen.loss is not None:
            losses.append(seen.loss)
        if seen.news is not None:
            found.setdefault(site.template.name, []).append((learning, seen.news))
    updates = {name: _mean_update(each) for name, each in found.items()}
    if not losses:
        return None, updates
    total = sum(losses[1:], start=losses[0])
    return jax.lax.stop_gradient(total) - total, updates


def _mean_update(found: list[tuple[Learning, Any]]) -> Callable[[Any], Any]:
    """Of sites with one name, such as the steps of a loop, the mean of what they saw."""
    update = found[0][0].update
    assert update is not None
    return partial(update, jax.tree.map(lambda *x: jnp.stack(x).mean(0), *(n for _, n in found)))


class SiteProbe:
    """The :class:`~vipp_transforms.estimators.base.Probe` of one site."""

    def __init__(self, evaluation: Evaluation, site: Site):
        self._evaluation, self._site = evaluation, site

    @cached_property
    def estimator(self) -> Any:
        """The site's estimator, its array parameters as functions of the program's."""
        program, site = self._evaluation.plan.program, self._site
        env = {v: Lifted(x) for v, x in program.env.items()}
        eqns = live(list(program.eqns), list(site.settings))
        evaluate(eqns, env, Axes(), {}, site.settings, lambda _: frozenset())
        return site.template.build_estimator([value_of(env, v).array for v in site.settings])

    @property
    def costs(self) -> jax.Array | None:
        """What each lane contributed, the mean over all named axes."""
        return self._costs

    @cached_property
    def _costs(self) -> jax.Array | None:
        found = self._evaluation.credited.get(self._site.index)
        if not found:
            return None
        parts = [self._contribution(step, term) for step, term in found]
        return sum(parts[1:], start=parts[0])

    def _contribution(self, step: Any, term: Lifted) -> jax.Array:
        x = jax.lax.stop_gradient(term.array)
        x = jnp.mean(x, axis=tuple(range(len(term.axes)))) if term.axes else x
        kept = [a for a in step.axes if a is not None]
        x = jnp.sum(x, axis=tuple(a for a in range(x.ndim) if a not in kept))
        x = permute(x, 0, [sorted(kept).index(a) for a in kept])
        x = jnp.expand_dims(x, tuple(j for j, a in enumerate(step.axes) if a is None))
        return jnp.broadcast_to(x, self._site.lane_shape)

    def error(self, predict: Callable[[Local], Any]) -> jax.Array:
        """Half the squared error of a prediction for each lane, the mean over all named axes."""
        assert self.costs is not None
        site, evaluation = self._site, self._evaluation
        shape = site.template.batch_shape

        def predicted(key: Any, *leaves: Any) -> list[Any]:
            source = LaneSource(site.template, site.lanes, key, leaves)
            return [source.map(lambda here: jnp.broadcast_to(predict(here), shape))]

        leaves = [value_of(evaluation.env, v) for v in site.leaves]
        (b,) = evaluation.axes.apply(predicted, evaluation.env[site.key], *leaves)
        error = jnp.square(b.array - jnp.expand_dims(self.costs, range(len(b.axes))))
        return 0.5 * jnp.mean(error, axis=tuple(range(len(b.axes)))).sum()

    def gradient(self, estimator: Any) -> list[jax.Array]:
        r"""The estimate's gradient in the float parameters of the site's distribution.

        Of its square, the derivative in the estimator's own parameters is that of the variance,

        .. math:: \nabla_\phi \mathrm{Var}[\hat g_\phi] = \nabla_\phi E[\hat g_\phi^2]

        as the mean of an unbiased :math:`\hat g_\phi` does not depend on :math:`\phi`.

        References:
          Grathwohl et al., *Backpropagation through the void*, 2018, equation 10.
        """
        site, planned = self._site, _constant(self._evaluation.plan)
        settings = [Lifted(x) for x in site.template.settings_of(estimator)]
        moved = [i for i, v in enumerate(site.parameters) if _is_float(v)]

        def estimate(shifts: list[jax.Array]) -> jax.Array:
            def leaves(other: Site, values: list[Lifted]) -> list[Lifted]:
                if other is not site:
                    return values
                values = [*values[: len(site.parameters)], *settings]
                for i, shift in zip(moved, shifts, strict=True):
                    named = tuple(range(len(values[i].axes)))
                    array = values[i].array + jnp.expand_dims(shift, named)
                    values[i] = values[i]._replace(array=array)
                return values

            return Evaluation(planned, leaves=leaves).value()

        avals = [site.parameters[i].aval for i in moved]
        return jax.grad(estimate)([jnp.zeros(a.shape, a.dtype) for a in avals])


def _is_float(atom: Any) -> bool:
    return jnp.issubdtype(atom.aval.dtype, jnp.floating)


def _constant(planned: Plan) -> Plan:
    env = {v: jax.lax.stop_gradient(x) for v, x in planned.program.env.items()}
    return dataclasses.replace(planned, program=dataclasses.replace(planned.program, env=env))
