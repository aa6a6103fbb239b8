"""Several starts trained one after another, of which the best is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipp.training.adam_state import searching
from vipp.training.automatic_steps import AutomaticSteps
from vipp.training.early_stopping import Patience
from vipp.training.restarts import bound_at_end, largest, warn_of_failed
from vipp.training.result import FitResult, NonFiniteError, Restarts
from vipp.training.run import Run
from vipp.training.start import restarted


class InTurn:
    """Starts without an optimiser, each of which decides for itself when to do what.

    Args:
      run: the first of them, at its start.
      keys: of all, the first one included.
      init_params: initial constrained values by name.
      args: all arguments of the programs.
      validate: arguments to compare the bounds at, or None.
    """

    def __init__(
        self,
        run: Run,
        keys: jax.Array,
        init_params: dict[str, Any] | None,
        args: tuple[Any, ...],
        validate: tuple[Any, ...] | None,
    ):
        def start(key: jax.Array) -> Run:
            state = restarted(run.svi, key, args, run.kwargs, init_params, run.state)
            return replace(
                run,
                state=searching(state),
                key=jax.random.fold_in(key, 1),
                patience=None if run.patience is None else Patience(run.patience.rule),
                automatic=AutomaticSteps(run.planned),
                losses=[],
                history=[],
            )

        first = replace(run, key=jax.random.fold_in(keys[0], 1))
        self.runs = [first, *map(start, keys[1:])]
        self._validate = validate
        self._begun: list[Run] = []
        self._failed: dict[int, NonFiniteError] = {}

    def train(self, one: Callable[[Run, int], None]) -> None:
        """Train all.

        Args:
          one: trains a run, of which the number is given.

        Raises:
          NonFiniteError: if every start met a number that is not finite.
        """
        for number, run in enumerate(self.runs):
            self._begun.append(run)
            try:
                one(run, number)
            except NonFiniteError as error:
                self._failed[number] = error
            except Exception as error:
                error.result = self.outcome()  # pyright: ignore[reportAttributeAccessIssue]
                raise
            if run.stopped is not None and run.stopped.startswith(("interrupted", "the callback")):
                break
        if len(self._failed) == len(self._begun):
            raise self._failed[len(self._begun) - 1]

    def warn(self, stacklevel: int) -> None:
        """One warning of the starts that were left out, if there are any."""
        warn_of_failed(self._failed, len(self.runs), stacklevel + 1)

    def outcome(self) -> FitResult:
        """That of the best start."""
        bounds = np.array([self._bound(number) for number in range(len(self._begun))])
        best, losses = largest(bounds), _side_by_side(run.every_loss() for run in self._begun)
        every = Restarts(jnp.asarray(losses), jnp.asarray(bounds), best)
        return replace(self._begun[best].outcome(), restarts=every)

    def _bound(self, number: int) -> float:
        run = self._begun[number]
        if number in self._failed:
            return np.nan
        if run.patience is not None and run.patience.state is not None:
            return run.patience.best
        if self._validate is not None:
            return run.measured(run.shown(), self._validate, False, ())["validation"]
        return bound_at_end(run.every_loss())


def _side_by_side(series: Iterable[np.ndarray]) -> np.ndarray:
    """Rows of the longest's length, NaN behind the end of the others."""
    rows = list(series)
    length = max(map(len, rows))
    fill = lambda x: np.pad(x, (0, length - len(x)), constant_values=np.nan)
    return np.stack([fill(x) for x in rows])
