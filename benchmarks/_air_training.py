"""Training AIR under one objective and one choice of estimators, and its score on the way."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _air import Setting, inferred
from numpyro.infer import SVI

import vipp

BATCH = 64
LEARNING_RATE = 3e-3


def key(seed: int) -> jax.Array:
    """A key whose draws XLA compiles six times as fast as the default's."""
    return jax.random.key(seed, impl="rbg")


def optimiser() -> optax.GradientTransformation:
    """Adam, of all parameters in one vector: less to compile than a small update for each."""
    return optax.flatten(optax.adam(LEARNING_RATE))


@dataclasses.dataclass(frozen=True)
class History:
    """Of each epoch its seconds, the loss per canvas and the count accuracy; what was learnt."""

    first: float
    seconds: list[float]
    losses: list[float]
    accuracy: list[float]
    params: Any

    def reached(self, level: float) -> float | None:
        """Seconds of training until the count accuracy is at least ``level``, or None."""
        elapsed = np.cumsum(self.seconds)[np.asarray(self.accuracy) >= level]
        return float(elapsed[0]) if elapsed.size else None


def in_batches(step: Callable[[Any, Any], Any], batch: int = BATCH) -> Callable[..., Any]:
    """``step`` on each batch of a shuffled pass over the canvases."""

    def epoch(carry: Any, shuffle: jax.Array, x: jax.Array) -> Any:
        order = jax.random.permutation(shuffle, len(x))[: len(x) // batch * batch]
        return jax.lax.scan(lambda c, rows: step(c, x[rows]), carry, order.reshape(-1, batch))

    return epoch


def prepared(
    objective: vipp.Objective, model: Any, guide: Any, x: jax.Array, seed: int = 0
) -> tuple[SVI, Any, Any, float]:
    """The optimiser, its state, a compiled epoch, and the CPU seconds that it took to make."""
    svi = SVI(model, guide, optimiser(), loss=objective)
    state = svi.init(key(seed), x[:BATCH])
    started = time.process_time()
    epoch = jax.jit(in_batches(svi.update)).lower(state, key(0), x).compile()
    return svi, state, epoch, time.process_time() - started


def train(
    objective: vipp.Objective,
    model: Any,
    guide: Any,
    data: tuple[jax.Array, jax.Array],
    held_out: tuple[jax.Array, jax.Array],
    setting: Setting,
    epochs: int,
    seed: int = 0,
) -> History:
    """Train on canvases; after each epoch count the objects on those held out."""
    svi, state, epoch, first = prepared(objective, model, guide, data[0], seed)
    seconds, losses, accuracy = [], [], []
    for number in range(epochs):
        shuffle = jax.random.fold_in(key(seed), number)
        started = time.perf_counter()
        state, loss = jax.block_until_ready(epoch(state, shuffle, data[0]))
        seconds.append(time.perf_counter() - started)
        losses.append(float(loss.mean()) / BATCH)
        accuracy.append(counted_right(guide, svi.get_params(state), held_out, setting))
    return History(first, seconds, losses, accuracy, svi.get_params(state))


_SCORES: dict[Any, Callable[..., jax.Array]] = {}


def counted_right(guide: Any, params: Any, held_out: Any, setting: Setting) -> float:
    """The share of canvases on which a draw of the guide has the right number of objects."""
    if setting not in _SCORES:  # the estimators don't matter: one program for all

        @jax.jit
        def score(params: Any, x: jax.Array, counts: jax.Array) -> jax.Array:
            present, _, _ = inferred(guide, params, key(7), x, setting.objects)
            return jnp.mean(present.sum(0) == counts)

        _SCORES[setting] = score
    return float(_SCORES[setting](params, *held_out))
