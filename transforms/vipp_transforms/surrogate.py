"""Stage, credit, lift, eliminate: a program that draws values as an unbiased gradient estimator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms.evaluation import Evaluation, value_of
from vipp_transforms.learning import mixture_moments, squared_gradient
from vipp_transforms.lifting import Axes, Lifted, evaluate
from vipp_transforms.plan import Plan, derive
from vipp_transforms.staging import Program, trace


def surrogate(fn: Callable[..., Any]) -> Callable[..., Any]:
    r"""A function whose value and derivatives estimate those of :math:`E[f(x)]` without bias.

    Args:
      fn: returns ``(value, aux)``, the value a real scalar; draws with
        :func:`vipp_transforms.sample`. Keys are its own business.

    Returns:
      A function of the same arguments returning ``(estimate, aux)``; ``jax.grad`` of it (with
      ``has_aux=True``) is unbiased. ``aux`` is that of one plain run, without gradient.

    Raises:
      SiteError: when called, where no sound estimator exists for a site as asked.
      ValueError: when called, where the value is not a real scalar.

    Example:
      >>> import jax, numpyro.distributions as dist
      >>> import vipp_transforms as vt
      >>> def f(p):
      ...     z = vt.sample(jax.random.key(0), dist.Bernoulli(p), vt.Enumerate(), name="z")
      ...     return 3.0 * z, None
      >>> value, slope = jax.value_and_grad(lambda p: vt.surrogate(f)(p)[0])(jax.numpy.float32(0.5))
      >>> float(value), float(slope)
      (1.5, 3.0)

    References:
      Lew et al., *ADEV: sound automatic differentiation of expected values*, POPL 2023.
      Becker, Lew et al., *Probabilistic programming with programmable variational inference*,
      PLDI 2024.
    """
    return lambda *args, **kwargs: estimate(fn, *args, **kwargs)[:2]


def estimate(
    fn: Callable[..., Any], *args: Any, **kwargs: Any
) -> tuple[jax.Array, Any, dict[str, Any]]:
    """The :func:`surrogate` of ``fn`` at its arguments, and what :func:`run` reports besides."""
    traced = trace(fn, args, kwargs)
    return run(derive(traced)) if traced.draws() else (*traced.evaluate(), {})


def run(planned: Plan) -> tuple[jax.Array, Any, dict[str, Any]]:
    """Evaluate a plan.

    Args:
      planned: made by :func:`plan`.

    Returns:
      The estimate, the auxiliary outputs, and by site name what stateful estimators keep: the mean
      cost of a lane for a baseline, the moments that the best weight of a mixture follows from.
    """
    sites = planned.program.sites.values()
    chosen = {site: planned.choices[site.index].estimator for site in sites}
    evaluation, value = _evaluate(planned, [e.tangent for e in chosen.values()])
    report: dict[str, list[jax.Array]] = {}
    for site, estimator in chosen.items():
        found = report.setdefault(site.template.name, [])
        if site.index in evaluation.costs:
            found.append(evaluation.costs[site.index].mean())
            if estimator.learns:
                value = value + evaluation.regression(site)
        elif estimator.learns:
            value = value - squared_gradient(planned, site)
        elif estimator.adaptive:
            found.append(mixture_moments(planned, site))
    means = {name: jnp.stack(found).mean(0) for name, found in report.items() if found}
    return value, _auxiliary(planned.program), means


def _evaluate(planned: Plan, tangents: list[bool]) -> tuple[Evaluation, jax.Array]:
    if not any(tangents):
        evaluation = Evaluation(planned)
        return evaluation, evaluation.value()
    evaluation = Evaluation(planned)
    value = evaluation.value()

    def along(step: jax.Array) -> jax.Array:
        return Evaluation(planned, step=step).value()

    # zero in expectation, with all its derivatives: a control variate
    _, slope = jax.jvp(along, (jnp.zeros(()),), (jnp.ones(()),))
    return evaluation, value + slope


def _auxiliary(program: Program) -> Any:
    """The auxiliary outputs of one plain run; not differentiated."""
    values = []
    if program.aux:
        env = {v: Lifted(jax.lax.stop_gradient(x)) for v, x in program.env.items()}
        evaluate(program.eqns, env, Axes(), {}, program.aux, lambda _: frozenset())
        values = [value_of(env, v).array for v in program.aux]
    return jax.tree_util.tree_unflatten(program.aux_tree, values)
