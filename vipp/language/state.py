"""Estimators with parameters or state of their own, and where these live from step to step.

Parameters are ``numpyro.param`` sites, trained with all others. State is ``numpyro.mutable``: an
objective reads it when it draws, and returns the next one with the module state of the programs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from numpyro.primitives import mutable

import vipp_transforms as vt
from vipp.distributions.lanes import lane_distribution

SUFFIX = "$estimator"


def settle(name: str, fn: Any, estimator: Any, call: Callable[..., Any] | None = None) -> Any:
    """The estimator with its parameters and state filled in.

    Args:
      name: of the site.
      fn: its distribution.
      estimator: as the user wrote it.
      call: applies a function to the program's arguments; None where they are not at hand.

    Returns:
      An estimator of numbers and arrays.
    """
    if isinstance(estimator, vt.Relax) and estimator.parameters is None:
        size = max(1, math.prod(fn.event_shape))
        init = lambda key: estimator.init(key, size)
        learned = numpyro.param(name + SUFFIX, init)
        _check_own(name, learned, jax.eval_shape(init, jax.random.key(0)))
        return dataclasses.replace(estimator, parameters=learned)
    if isinstance(estimator, vt.ScoreFunction):
        return _with_baseline(name, estimator, call)
    if isinstance(estimator, vt.Mix) and isinstance(estimator.weight, str):
        total, count = _moments(name, jnp.zeros(2), estimator.decay)
        best = jnp.where(total[1] > 0, total[0] / jnp.where(total[1] > 0, total[1], 1.0), 0.5)
        return dataclasses.replace(estimator, weight=best, learning=True)
    scheduled = _schedules(estimator)
    if scheduled:
        step = _state(name, {"step": jnp.zeros((), int)})["step"]
        now = {key: jnp.asarray(schedule(step)) for key, schedule in scheduled.items()}
        return dataclasses.replace(estimator, **now)
    return estimator


def _schedules(estimator: Any) -> dict[str, Callable[[Any], Any]]:
    if not dataclasses.is_dataclass(estimator) or not isinstance(estimator, vt.Estimator):
        return {}
    values = {f.name: getattr(estimator, f.name) for f in dataclasses.fields(estimator)}
    return {key: value for key, value in values.items() if callable(value)}


def _with_baseline(name: str, estimator: vt.ScoreFunction, call: Any) -> vt.ScoreFunction:
    baseline = estimator.baseline
    if isinstance(baseline, vt.MovingAverage):
        total, count = _moments(name, jnp.zeros(()), baseline.decay)
        mean = jnp.where(count > 0, total / jnp.where(count > 0, count, 1.0), 0.0)
        return dataclasses.replace(estimator, baseline=mean)
    network = baseline.network if isinstance(baseline, vt.Learned) else baseline
    if not callable(network):
        return estimator
    if call is None:
        raise vt.SiteError(
            f"Site '{name}': a baseline that is a function of the program's arguments was given "
            "where these are not at hand. Fix: pass its value, or set the estimator with "
            "vipp.with_estimators."
        )
    values = call(network)
    values = vt.Learned(values) if isinstance(baseline, vt.Learned) else values
    return dataclasses.replace(estimator, baseline=values)


def _moments(name: str, zero: jax.Array, decay: float) -> tuple[jax.Array, jax.Array]:
    """A decaying sum and the sum of its weights."""
    start = {"sum": zero, "weight": jnp.zeros(()), "decay": jnp.asarray(float(decay))}
    state = _state(name, start)
    return state["sum"], state["weight"]


def _state(name: str, start: dict[str, Any]) -> Any:
    initial: Any = start  # NumPyro's annotation knows arrays alone
    state = mutable(name + SUFFIX, initial)
    _check_own(name, state, start)
    return state


def _check_own(name: str, kept: Any, start: Any) -> None:
    """Raise if what is kept for a site is that of another estimator."""
    shapes = lambda tree: jax.tree.map(lambda x: tuple(jnp.shape(x)), tree)
    if jax.tree.structure(kept) != jax.tree.structure(start) or shapes(kept) != shapes(start):
        raise vt.SiteError(
            f"Site '{name}': its estimator found {shapes(kept)} under '{name}{SUFFIX}', expected "
            f"{shapes(start)}. Fix: give the site the same estimator in model and guide, and go on "
            "only from a state or parameters that this estimator has made."
        )


def advance(states: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """The next state of every estimator, given what the objective reported of its site."""
    return {name: _next(name, state, report) for name, state in states.items()}


def _next(name: str, state: Any, report: Mapping[str, Any]) -> Any:
    if not name.endswith(SUFFIX):
        return state
    if "step" in state:
        return {"step": state["step"] + 1}
    seen = report.get(name.removesuffix(SUFFIX))
    if seen is None:
        return state
    old = jax.lax.stop_gradient(state["decay"])
    total = old * state["sum"] + (1 - old) * jax.lax.stop_gradient(seen)
    return {**state, "sum": total, "weight": old * state["weight"] + (1 - old)}


def aligned(name: str, fn: Any, estimator: Any) -> Any:
    """A baseline's values with one axis for each of the site's lanes, the event's included."""
    scheduled = [] if isinstance(estimator, vt.ScoreFunction) else list(_schedules(estimator))
    if scheduled:
        raise vt.SiteError(
            f"Site '{name}': {type(estimator).__name__} has a schedule for '{scheduled[0]}', and "
            "so state that the program does not know of. Fix: set the estimator with "
            "vipp.sample(..., estimator=) or vipp.with_estimators, not through "
            "infer={'estimator': ...}."
        )
    if not isinstance(estimator, vt.ScoreFunction) or estimator.baseline_of is None:
        return estimator
    learned = isinstance(estimator.baseline, vt.Learned)
    values, batch = jnp.asarray(estimator.baseline_of), tuple(fn.batch_shape)
    try:
        fits = jnp.broadcast_shapes(values.shape, batch) == batch
    except ValueError:
        fits = False
    if not fits:
        raise vt.SiteError(
            f"Site '{name}': the baseline has shape {values.shape}, expected one that broadcasts "
            f"to the batch shape {batch} of its distribution. Fix: give one value per element of "
            "the batch."
        )
    extra = len(lane_distribution(fn).batch_shape) - len(batch)
    values = values.reshape(values.shape + (1,) * extra)
    baseline = vt.Learned(values) if learned else values
    return dataclasses.replace(estimator, baseline=baseline)
