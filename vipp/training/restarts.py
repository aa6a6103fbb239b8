"""Several starts trained together, of which the best is kept."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipp.training.blame import blame
from vipp.training.compiled import advance_each
from vipp.training.metrics import evaluate
from vipp.training.result import FitResult, Restarts
from vipp.training.run import Run, not_finite
from vipp.training.start import restarted
from vipp_transforms.checks import positive_int


class Several:
    """Several starts of a run under way.

    Args:
      run: the first of them, at its start.
      keys: of the others.
      init_params: initial constrained values by name.
      validate: arguments to compare the bounds at, or None.
    """

    def __init__(
        self,
        run: Run,
        keys: jax.Array,
        init_params: dict[str, Any] | None,
        validate: tuple[Any, ...] | None,
    ):
        first = run.state
        states = [restarted(run.svi, key, run.args, run.kwargs, init_params, first) for key in keys]
        self._run, self._validate = run, validate
        self._states = jax.tree.map(lambda *x: jnp.stack(x), first, *states)
        self._going = jnp.ones(1 + len(keys), bool)
        self._losses: list[np.ndarray] = []
        self.done = 0
        self.stopped: str | None = None

    def steps(self, count: int) -> np.ndarray:
        """Take steps.

        Returns:
          Their losses, the mean of those starts that go on.

        Raises:
          NonFiniteError: if there is no start left whose loss and parameters are finite.
        """
        train = self._run.compiled.function(advance_each, self._run.args, self._run.kwargs)
        states, going, *report = train(self._states, self._going, count)
        taken, block = jax.device_get(report)  # interrupts come here, and find all as it was
        self._states, self._going = states, going
        self.done += int(taken)
        self._losses.append(block[:taken])
        if not going.any():
            last = int(np.isfinite(self._every_loss()).sum(1).argmax())
            run = self._run
            blamed = blame(run.svi, self._state(last), run.args, run.kwargs)
            raise not_finite(self.done - 1, self.result(last), block[taken - 1, last], blamed)
        return np.nanmean(block[:taken], axis=1)

    def result(self, best: int | None = None) -> FitResult:
        """That of the start with the largest bound, or of another."""
        losses = self._every_loss()
        bounds = self._bounds(losses)
        if best is None:
            best = int(np.where(np.isnan(bounds), -np.inf, bounds).argmax())
        run = replace(
            self._run, state=self._state(best), losses=[losses[best]], stopped=self.stopped
        )
        every = Restarts(jnp.asarray(losses), jnp.asarray(bounds), best)
        return replace(run.result(), restarts=every)

    def warn(self, stacklevel: int) -> None:
        """One warning of the starts that were left out, if there are any."""
        out = np.flatnonzero(~np.asarray(self._going)).tolist()
        if out:
            warnings.warn(
                f"fit: restarts {out} of {len(self._going)} met a loss or parameter that is not "
                "finite, and are left out; .restarts.losses of the result has theirs.",
                stacklevel=stacklevel + 1,
            )

    def _state(self, number: int) -> Any:
        return jax.tree.map(lambda x: x[number], self._states)

    def _every_loss(self) -> np.ndarray:
        empty = np.zeros((0, len(self._going)), np.float32)
        return np.concatenate([empty, *self._losses]).T

    def _bounds(self, losses: np.ndarray) -> np.ndarray:
        if self._validate is None:
            bounds = -losses[:, -max(1, self.done // 10) :].mean(1)
        else:  # with the same draws: what differs is the parameters
            run = self._run
            bound = run.compiled.function(evaluate, self._validate, run.kwargs)
            states = map(self._state, range(len(losses)))
            bounds = np.array([bound(state, run.key) for state in states])
        return np.where(self._going, bounds, np.nan)


def keys_of(rng_key: jax.Array, number: int, asked: Mapping[str, Any]) -> jax.Array:
    """A key for each start; the one given, if there is one start.

    Args:
      rng_key: a PRNG key.
      number: of starts.
      asked: what goes with one start only, by name; None or False if it is not asked for.

    Raises:
      ValueError: if ``number`` is not a positive int, or naming what is asked for with several.
    """
    positive_int("fit: num_restarts", number)
    if number == 1:
        return rng_key[None]
    for name, value in asked.items():
        if value is not None and value is not False:
            raise ValueError(
                f"fit: {name} follows one run, got it with num_restarts, which trains several in "
                f"one loop. Expected one of them. Fix: find the best start first, then go on from "
                f"it: fit(..., {name}=..., init_state=result.state)."
            )
    return jax.random.split(rng_key, number)
