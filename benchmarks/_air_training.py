"""Training AIR under one objective and one choice of estimators, and its score on the way."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from _air import Canvases, Setting, inferred, on_digits
from numpyro.infer import SVI

import vipp

BATCH = 64


def key(seed: int) -> jax.Array:
    """A key whose draws XLA compiles six times as fast as the default's."""
    return jax.random.key(seed, impl="rbg")


def optimiser(rate: float) -> optax.GradientTransformation:
    """Adam, of all parameters in one vector: less to compile than a small update for each."""
    return optax.flatten(optax.adam(rate))


@dataclasses.dataclass(frozen=True)
class History:
    """Of each epoch its seconds, the loss per canvas and the accuracies; what was learnt."""

    first: float
    seconds: list[float]
    losses: list[float]
    accuracy: list[float]
    placed: list[float]
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
    objective: vipp.Objective,
    model: Any,
    guide: Any,
    x: jax.Array,
    setting: Setting,
    seed: int = 0,
) -> tuple[SVI, Any, Any, float]:
    """The optimiser, its state, a compiled epoch, and the CPU seconds that it took to make."""
    svi = SVI(model, guide, optimiser(setting.rate), loss=objective)
    state = svi.init(key(seed), x[:BATCH])
    started = time.process_time()
    epoch = jax.jit(in_batches(svi.update)).lower(state, key(0), x).compile()
    return svi, state, epoch, time.process_time() - started


def train(
    objective: vipp.Objective,
    model: Any,
    guide: Any,
    data: Canvases,
    held_out: Canvases,
    setting: Setting,
    epochs: int,
    seed: int = 0,
) -> History:
    """Train on canvases; after each epoch count and find the objects on those held out."""
    svi, state, epoch, first = prepared(objective, model, guide, data.x, setting, seed)
    seconds, losses, accuracy, placed = [], [], [], []
    for number in range(epochs):
        shuffle = jax.random.fold_in(key(seed), number)
        started = time.perf_counter()
        state, loss = jax.block_until_ready(epoch(state, shuffle, data.x))
        seconds.append(time.perf_counter() - started)
        losses.append(float(loss.mean()) / BATCH)
        right, found = scored(guide, svi.get_params(state), held_out, setting)
        accuracy.append(right)
        placed.append(found)
    return History(first, seconds, losses, accuracy, placed, svi.get_params(state))


_SCORES: dict[Any, Callable[..., Any]] = {}


def scored(guide: Any, params: Any, held_out: Canvases, setting: Setting) -> tuple[float, float]:
    """By a draw of the guide, the share of canvases whose number of objects is right, and of those
    where moreover each digit has a window."""
    if setting not in _SCORES:  # the estimators don't matter: one program for all

        @jax.jit
        def score(params: Any, held_out: Canvases) -> tuple[jax.Array, jax.Array]:
            present, where, _ = inferred(guide, params, key(7), held_out.x, setting.objects)
            right = present.sum(0) == held_out.counts
            placed = right & on_digits(setting, present, where, held_out.centres)
            return right.mean(), placed.mean()

        _SCORES[setting] = score
    right, placed = _SCORES[setting](params, held_out)
    return float(right), float(placed)
