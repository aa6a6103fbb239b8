"""Estimators with parameters or state of their own, and where these live from step to step.

Parameters are ``numpyro.param`` sites, trained with all others. State is ``numpyro.mutable``: an
objective reads it when it draws, and returns the next one with the module state of the programs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from numpyro.primitives import mutable

import vipp_transforms as vt
from vipp.distributions.lanes import lane_distribution
from vipp_transforms.settings import at_step, scheduled, with_elements

SUFFIX = "$estimator"


def with_state(name: str, fn: Any, estimator: Any, call: Callable[..., Any] | None = None) -> Any:
    """The estimator with its parameters and state filled in, schedules read off at this step.

    Args:
      name: of the site.
      fn: its distribution.
      estimator: as the user wrote it.
      call: applies a function to the program's arguments; None where they are not at hand.

    Returns:
      An estimator of numbers and arrays.
    """
    if not isinstance(estimator, vt.Estimator):
        return estimator
    estimator = with_elements(estimator, lambda values: _at_arguments(name, values, call))
    learning, site = estimator.learning, _site(name, fn)
    init = None if learning is None else learning.init
    if learning is not None and init is not None and learning.update is None:
        return _with_parameters(name, site, estimator)
    start = {"step": jnp.zeros((), int)} if scheduled(estimator) else {}
    start |= {} if init is None else init(jax.random.key(0), site)
    if not start:
        return estimator
    state = _state(name, start)
    now = at_step(estimator, state["step"]) if "step" in start else estimator
    return now if init is None else now.learning.fill(state)


def _with_parameters(name: str, site: vt.SiteInfo, estimator: Any) -> Any:
    init = lambda key: estimator.learning.init(key, site)
    parameters = numpyro.param(name + SUFFIX, init)
    _check_own(name, parameters, jax.eval_shape(init, jax.random.key(0)))
    return estimator.learning.fill(parameters)


def _site(name: str, fn: Any) -> vt.SiteInfo:
    """A site as its author sees it: the lanes of its batch, its event as one."""
    batch, event = tuple(fn.batch_shape), tuple(fn.event_shape)
    return vt.SiteInfo(name, type(fn).__name__, None, batch, event, (False,) * len(batch))


def _at_arguments(name: str, values: Any, call: Callable[..., Any] | None) -> Any:
    """Values for the batch, those that are a function of the program's arguments included."""
    if not callable(values):
        return values
    if call is None:
        raise vt.SiteError(
            f"Site '{name}': a baseline that is a function of the program's arguments was given "
            "where these are not at hand. Fix: pass its value, or set the estimator with "
            "vipp.with_estimators."
        )
    return call(values)


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


def advance(states: Mapping[str, Any], updates: Mapping[str, Any]) -> dict[str, Any]:
    """The next state of every estimator, given what the objective says of its site."""
    return {name: _next(name, state, updates) for name, state in states.items()}


def _next(name: str, state: Any, updates: Mapping[str, Any]) -> Any:
    if not name.endswith(SUFFIX):
        return state
    update = updates.get(name.removesuffix(SUFFIX))
    step = {"step": state["step"] + 1} if "step" in state else {}
    return {**state, **({} if update is None else update(state)), **step}


def per_lane(name: str, fn: Any, estimator: Any) -> Any:
    """The estimator's values for the batch with an axis for each lane, the event's included."""
    if not isinstance(estimator, vt.Estimator):
        return estimator
    batch = tuple(fn.batch_shape)
    extra = len(lane_distribution(fn).batch_shape) - len(batch)

    def aligned(values: Any) -> Any:
        if callable(values):
            return values  # without the arguments of the program: the engine says so
        values = jnp.asarray(values)
        try:
            fits = jnp.broadcast_shapes(values.shape, batch) == batch
        except ValueError:
            fits = False
        if fits:
            return values.reshape(values.shape + (1,) * extra)
        raise vt.SiteError(
            f"Site '{name}': the baseline has shape {values.shape}, expected one that broadcasts "
            f"to the batch shape {batch} of its distribution. Fix: give one value per element of "
            "the batch."
        )

    return with_elements(estimator, aligned)
