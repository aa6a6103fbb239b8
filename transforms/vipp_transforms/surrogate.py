"""Stage, credit, lift, eliminate: a program that draws values as an unbiased gradient estimator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.evaluation import Evaluation
from vipp_transforms.flattening import flatten
from vipp_transforms.kept_trace import keep, kept
from vipp_transforms.learning import Updates, learn
from vipp_transforms.lifting import Axes, Lifted, evaluate, value_of
from vipp_transforms.loop_distribution import evaluator
from vipp_transforms.noting import SUMS
from vipp_transforms.outlining import outlined
from vipp_transforms.own_keys import check_keys
from vipp_transforms.packed_gradient import packed_scalar
from vipp_transforms.packing import one_by_one
from vipp_transforms.plan import Plan, derive
from vipp_transforms.sites import lane_key_p
from vipp_transforms.staging import Program, Traced, live
from vipp_transforms.undifferentiated import undifferentiated


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


def estimate(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[jax.Array, Any, Updates]:
    """The :func:`surrogate` of ``fn`` at its arguments, and what :func:`run` returns besides."""
    return _evaluated(*derive(fn, args, kwargs))


def packed_estimate(
    then: Callable[[Any, Updates], Any], fn: Callable[..., Any], *args: Any, **kwargs: Any
) -> tuple[jax.Array, Any]:
    """What :func:`estimate` returns, value and gradient packed if ``fn`` has many small equations.

    Only where all its choices are pathwise: the tables of enumerated choices take fewer operations
    one by one than stacked. Where they are not, equal equations are evaluated, and differentiated,
    once: it is often the same table that is read along the axes of several choices, or for a term
    and for the probabilities of its lanes. And what is done again and again is a function's call.

    Args:
      then: is given the auxiliary outputs and the updates, and returns arrays instead, which are
        not differentiated.
      fn: as that of :func:`surrogate`.
      *args: of ``fn``.
      **kwargs: of ``fn``.

    Returns:
      The estimate, and what ``then`` returns.
    """
    traced, planned, sums = _derived(fn, args, kwargs)
    if planned is None:
        check_keys(traced.closed)
        outs = (_once if sums else _packed)(traced.closed, traced.arrays)
        if outs is not None:
            aux = jax.tree_util.tree_unflatten(traced.aux_tree, jax.lax.stop_gradient(outs[1:]))
            return outs[0], then(aux, {})
    elif not any(eqn.effects for eqn in planned.program.plain):
        closed, shape = jax.make_jaxpr(partial(_then, then, planned), return_shape=True)()
        outs = _once(closed, ())
        if outs is not None:
            return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(shape), outs)
    value, aux, updates = _evaluated(traced, planned)
    return value, then(aux, updates)


def _derived(
    fn: Callable[..., Any], args: Any, kwargs: Any
) -> tuple[Traced, Plan | None, list[str]]:
    """A program, its plan if it has one, and the sites that are summed out in it."""
    found = kept(fn, args, kwargs)
    if found is not None:
        return found[0], None, found[1]
    with SUMS.held() as sums:
        traced, planned = derive(fn, args, kwargs)
    if planned is None:
        keep(fn, args, kwargs, traced, sums)
    return traced, planned, sums


def _then(then: Callable[[Any, Updates], Any], planned: Plan) -> tuple[jax.Array, Any]:
    value, aux, updates = run(planned)
    return value, then(aux, updates)


def _packed(closed: Any, arrays: Sequence[Any]) -> list[Any] | None:
    return packed_scalar(closed, arrays, frozenset({lane_key_p}))


def _once(closed: Any, arrays: Sequence[Any]) -> list[Any] | None:
    """The results of a program, equal equations evaluated once, repeated ones as calls.

    None if it has effects.
    """
    program = flatten(closed, sums=False)
    return one_by_one(outlined(undifferentiated(program)), arrays) if program.packable else None


def _evaluated(traced: Traced, planned: Plan | None) -> tuple[jax.Array, Any, Updates]:
    if planned is not None:
        return run(planned)
    check_keys(traced.closed)
    jaxpr, consts = _jax.open_jaxpr(traced.closed)
    inputs = [*jaxpr.constvars, *jaxpr.invars]
    of_arrays = evaluator(live(jaxpr.eqns, jaxpr.outvars), inputs, jaxpr.outvars)
    value, *aux = of_arrays(*consts, *traced.arrays)
    return value, jax.tree_util.tree_unflatten(traced.aux_tree, jax.lax.stop_gradient(aux)), {}


def run(planned: Plan) -> tuple[jax.Array, Any, Updates]:
    """Evaluate a plan.

    Args:
      planned: made by :func:`plan`.

    Returns:
      The estimate, the auxiliary outputs, and by site name, of those estimators that keep a state
      from step to step, the function that takes it to the next.
    """
    evaluation = Evaluation(planned)
    value = evaluation.value()
    if any(axis is not None and axis.tangent for axis in evaluation.axis_of.values()):
        value = value + _slope(planned)
    learnt, updates = learn(evaluation)
    value = value if learnt is None else value + learnt
    return value, _auxiliary(planned.program), updates


def _slope(planned: Plan) -> jax.Array:
    """Zero in expectation, with all its derivatives: a control variate."""
    along = lambda step: Evaluation(planned, step=step).value()
    return jax.jvp(along, (jnp.zeros(()),), (jnp.ones(()),))[1]


def _auxiliary(program: Program) -> Any:
    """The auxiliary outputs, and the effects, of one plain run; not differentiated."""
    values = []
    eqns = live(list(program.plain), list(program.aux))
    if eqns or program.aux:
        env = {v: Lifted(jax.lax.stop_gradient(x)) for v, x in program.env.items()}
        evaluate(eqns, env, Axes(), {}, program.aux, lambda _: frozenset())
        values = [value_of(env, v).array for v in program.aux]
    return jax.tree_util.tree_unflatten(program.aux_tree, values)
