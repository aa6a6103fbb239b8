"""The gradient of an estimate in the parameters of one choice: what adaptive estimators look at."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms.estimators.mix import Mix
from vipp_transforms.evaluation import Evaluation, value_of
from vipp_transforms.lifting import Axes, Lifted, evaluate
from vipp_transforms.plan import Plan
from vipp_transforms.staging import Site, live


def squared_gradient(planned: Plan, site: Site) -> jax.Array:
    r"""Zero, with the derivative of the squared gradient in the estimator's array parameters.

    .. math:: \nabla_\phi \mathrm{Var}[\hat g_\phi] = \nabla_\phi E[\hat g_\phi^2]

    as the mean of an unbiased :math:`\hat g_\phi` does not depend on :math:`\phi`. The gradient
    is that in the parameters of the site's distribution.

    References:
      Grathwohl et al., *Backpropagation through the void*, 2018, equation 10.
    """
    gradient = _gradient(_constant(planned), site, _settings(planned, site))
    square = sum((jnp.sum(jnp.square(g)) for g in gradient), start=jnp.zeros(()))
    return square - jax.lax.stop_gradient(square)


def mixture_moments(planned: Plan, site: Site) -> jax.Array:
    r"""What the best weight of a mixture follows from, ``(2,)``.

    .. math:: \big(\langle g_b - g_a, g_b \rangle,\ \lVert g_a - g_b \rVert^2\big), \qquad
        w^* = \frac{E \langle g_b - g_a, g_b \rangle}{E \lVert g_a - g_b \rVert^2}

    minimises the expected square of :math:`w g_a + (1 - w) g_b`.
    """
    constant, estimator = _constant(planned), planned.choices[site.index].estimator
    settings = _settings(planned, site)
    assert isinstance(estimator, Mix)
    index = estimator.weight_index
    first, second = (
        _gradient(
            constant, site, [*settings[:index], _full(settings[index], w), *settings[index + 1 :]]
        )
        for w in (1.0, 0.0)
    )
    pairs = list(zip(first, second, strict=True))
    inner = sum(jnp.sum((b - a) * b) for a, b in pairs)
    square = sum(jnp.sum(jnp.square(a - b)) for a, b in pairs)
    return jax.lax.stop_gradient(jnp.stack([jnp.asarray(inner), jnp.asarray(square)]))


def _full(value: Lifted, number: float) -> Lifted:
    return value._replace(array=jnp.full_like(value.array, number))


def _settings(planned: Plan, site: Site) -> list[Lifted]:
    """The estimator's array parameters, as functions of the program's."""
    env = {v: Lifted(x) for v, x in planned.program.env.items()}
    eqns = live(list(planned.program.eqns), list(site.settings))
    evaluate(eqns, env, Axes(), {}, site.settings, lambda _: frozenset())
    return [value_of(env, v) for v in site.settings]


def _constant(planned: Plan) -> Plan:
    env = {v: jax.lax.stop_gradient(x) for v, x in planned.program.env.items()}
    return dataclasses.replace(planned, program=dataclasses.replace(planned.program, env=env))


def _gradient(planned: Plan, site: Site, settings: list[Lifted]) -> list[Any]:
    """The estimate's gradient in the float parameters of the site's distribution."""
    shapes = [v.aval for v in site.parameters]
    floats = [jnp.issubdtype(x.dtype, jnp.floating) for x in shapes]

    def estimate(probes: list[jax.Array]) -> jax.Array:
        given = iter(probes)
        every = [next(given) if f else jnp.zeros((), int) for f in floats]
        return Evaluation(planned, given={site.index: settings}, probes={site.index: every}).value()

    zeros = [jnp.zeros(x.shape, x.dtype) for x, f in zip(shapes, floats, strict=True) if f]
    return jax.grad(estimate)(zeros)
