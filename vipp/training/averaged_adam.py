"""Adam with a step size for each coordinate, which alignment raises and alternation lowers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

_MOMENTUM = 0.9
_MEMORY = 0.98
_FEWEST = 50.0  # gradients in an average of equal weights, those before it counted as so many
_FIRST_STEP = 0.01


class Controls(NamedTuple):
    """What is set between the steps of a run.

    Attributes:
      rate: how fast the step sizes are adapted; 0 if they are not.
      factor: of all step sizes.
      equal: 1 if squared gradients are averaged with equal weights, 0 if old ones are forgotten.
    """

    rate: jax.Array
    factor: jax.Array
    equal: jax.Array


class AveragedAdam(NamedTuple):
    """The state of :data:`averaged_adam`, vectors over all coordinates of the parameters.

    Attributes:
      controls: what is set from outside.
      count: the number of steps.
      equal_count: the number of squared gradients in an average of equal weights.
      moment: the mean of the gradients, old ones forgotten.
      square: the mean of the squared gradients.
      push: the last step in units of the step sizes.
      push_square: the mean of its squares.
      log_step: logarithms of the step sizes.
      origin: the parameters where the sums began.
      visits: the sum over steps of the parameters' distance from there.
      slopes: the sum of the gradients.
      sums: of how many steps.
    """

    controls: Controls
    count: jax.Array
    equal_count: jax.Array
    moment: jax.Array
    square: jax.Array
    push: jax.Array
    push_square: jax.Array
    log_step: jax.Array
    origin: jax.Array
    visits: jax.Array
    slopes: jax.Array
    sums: jax.Array


def _init(params: Any) -> AveragedAdam:
    flat, _ = ravel_pytree(params)
    none, zero = jnp.zeros_like(flat), jnp.zeros((), flat.dtype)
    first = jnp.full_like(flat, jnp.log(_FIRST_STEP))
    controls = Controls(zero, zero + 1.0, zero)
    return AveragedAdam(
        controls, zero, zero, none, none, none, none, first, flat, none, none, zero
    )  # fmt: skip


def _update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AveragedAdam]:
    g, _ = ravel_pytree(updates)
    flat, unravel = ravel_pytree(params)
    tiny = jnp.finfo(g.dtype).tiny ** 0.5
    count, equal_count = state.count + 1, state.equal_count + state.controls.equal
    forgetting = jnp.maximum(1 - _MEMORY, 1 / count)
    equal = 1 / (_FEWEST + equal_count)
    weight = jnp.where(state.controls.equal > 0, equal, forgetting)
    square = state.square + weight * (g**2 - state.square)
    moment = _MOMENTUM * state.moment + (1 - _MOMENTUM) * g
    size = jnp.sqrt(square) + tiny
    agreement = g / size * state.push / (jnp.sqrt(state.push_square) + tiny)
    log_step = state.log_step + state.controls.rate * jnp.clip(agreement, -1.0, 1.0)
    push = moment / (1 - _MOMENTUM**count) / size
    step = state.controls.factor * jnp.exp(log_step) * push
    new = state._replace(
        count=count,
        equal_count=equal_count,
        moment=moment,
        square=square,
        push=push,
        push_square=state.push_square + weight * (push**2 - state.push_square),
        log_step=log_step,
        visits=state.visits + (flat - state.origin),
        slopes=state.slopes + g,
        sums=state.sums + 1,
    )
    return unravel(-step), new


averaged_adam = optax.GradientTransformation(_init, _update)
