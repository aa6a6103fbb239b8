"""What is read from, and set in, the state of a run with :data:`averaged_adam`, on the host."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from numpyro.infer.svi import SVIState

from vipp.training.averaged_adam import AveragedAdam

_RATE = 0.05
_RETREAT = 4.0


def position(state: SVIState) -> np.ndarray:
    """The unconstrained parameters as a vector."""
    leaves = [np.ravel(np.asarray(x)) for x in jax.tree.leaves(_params(state))]
    return np.concatenate([np.zeros(0), *leaves])


def visited(state: SVIState) -> np.ndarray:
    """The mean of the parameters over the steps since the sums were emptied."""
    adam = _adam(state)
    return np.asarray(adam.origin, float) + np.asarray(adam.visits, float) / float(adam.sums)


def slope(state: SVIState) -> np.ndarray:
    """The mean of the gradients over the steps since the sums were emptied."""
    adam = _adam(state)
    return np.asarray(adam.slopes, float) / float(adam.sums)


def step_sizes(state: SVIState) -> dict[str, Any]:
    """The step sizes, for each unconstrained parameter by name."""
    adam = _adam(state)
    sizes = float(adam.controls.factor) * np.exp(np.asarray(adam.log_step))
    return _unravelled(_params(state), sizes)


def searching(state: SVIState) -> SVIState:
    """Have the step sizes adapted."""
    return _set_adam(emptied(state), controls=(_RATE, 1.0, 0.0))


def stepping(state: SVIState, factor: float) -> SVIState:
    """Have the step sizes kept, times a factor."""
    return _set_adam(emptied(state), controls=(0.0, factor, 1.0), equal_count=0.0)


def probing(state: SVIState, where: np.ndarray, key: jax.Array) -> SVIState:
    """Have the parameters stay at a point."""
    moved = emptied(averaged_at(state, where))
    return _set_adam(moved, controls=(0.0, 0.0, 1.0))._replace(rng_key=key)


def retreated(state: SVIState, key: jax.Array, times: int) -> SVIState:
    """Search anew from a state with smaller steps."""
    smaller = np.asarray(_adam(state).log_step) - times * math.log(_RETREAT)
    again = _set_adam(searching(state), log_step=smaller, count=0.0, moment=0.0, push=0.0)
    return again._replace(rng_key=key)


def emptied(state: SVIState) -> SVIState:
    """Begin the sums anew."""
    return _set_adam(state, origin=position(state), visits=0.0, slopes=0.0, sums=0.0)


def averaged_at(state: SVIState, where: np.ndarray) -> SVIState:
    """The state with other parameters, given as a vector."""
    count, (params, adam) = state.optim_state
    moved = jax.tree.map(_like, params, _unravelled(params, where))
    return state._replace(optim_state=(count, (moved, adam)))


def _params(state: SVIState) -> Any:
    return state.optim_state[1][0]


def _adam(state: SVIState) -> AveragedAdam:
    return state.optim_state[1][1]


def _set_adam(state: SVIState, **changes: Any) -> SVIState:
    count, (params, adam) = state.optim_state
    if "controls" in changes:
        old = adam.controls
        new = map(_like, old, changes["controls"])
        changes["controls"] = type(old)(*new)
    plain = {n: x if n == "controls" else _like(getattr(adam, n), x) for n, x in changes.items()}
    return state._replace(optim_state=(count, (params, adam._replace(**plain))))


def _like(old: jax.Array, new: Any) -> jax.Array:
    value = np.broadcast_to(np.asarray(new, old.dtype), old.shape)
    return jax.device_put(value, old.sharding)


def _unravelled(tree: Any, vector: np.ndarray) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    ends = np.cumsum([x.size for x in leaves])[:-1]
    parts = np.split(vector, ends) if leaves else []
    shaped = [np.reshape(p, x.shape) for p, x in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(treedef, shaped)
