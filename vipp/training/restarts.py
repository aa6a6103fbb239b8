"""Several starts trained together, of which the best is kept."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from vipp.training.blame import blame
from vipp.training.checkpoint import Saved
from vipp.training.compiled import advance_each
from vipp.training.early_stopping import Patience
from vipp.training.mesh import Placement
from vipp.training.result import FitResult, Restarts
from vipp.training.run import Run, bound_of, extend, not_finite
from vipp.training.same_run import Ahead, ahead_of
from vipp.training.start import restarted
from vipp_transforms.checks import positive_int
from vipp_transforms.uncompiled import uncompiled


class Several:
    """Several starts of a run under way.

    Each takes the steps that a run of its own would. One that has met a number that is not finite,
    or whose patience is spent, stays as it is from then on.

    Args:
      run: the first of them, at its start.
      keys: of the others.
      init_params: initial constrained values by name.
      args: all arguments of the programs.
      validate: arguments to compare the bounds at, or None.

    Attributes:
      done: the number of steps.
      history: what was measured, look by look, a number for each start.
      stopped: why, if before its last step.
    """

    def __init__(
        self,
        run: Run,
        keys: jax.Array,
        init_params: dict[str, Any] | None,
        args: tuple[Any, ...],
        validate: tuple[Any, ...] | None,
    ):
        first = run.state
        states = [restarted(run.svi, key, args, run.kwargs, init_params, first) for key in keys]
        self._run, self._validate = run, validate
        self._number = 1 + len(keys)
        self._states = jax.tree.map(lambda *x: jnp.stack(x), first, *states)
        self._going = jnp.ones(self._number, bool)
        rule = None if run.patience is None else run.patience.rule
        self._patience = [] if rule is None else [Patience(rule) for _ in range(self._number)]
        self._ended: list[int | None] = [None] * self._number  # after how many steps, by patience
        self._losses: list[np.ndarray] = []
        self.done = 0
        self.history: list[dict[str, Any]] = []
        self.stopped: str | None = None

    def share_out(self, where: Placement, data: Any) -> None:
        """Have the data, and each batch to come, lie there; every start is on all devices.

        Raises:
          ValueError: if ``data`` cannot be shared evenly.
        """
        self._run.share_out(where, data)
        self._states, self._going = where.everywhere((self._states, self._going))

    def steps(self, count: int, batch: tuple[Any, ...] = ()) -> np.ndarray:
        """Take steps, on a batch.

        Returns:
          Their losses, the mean of those starts that go on.

        Raises:
          NonFiniteError: if no start is left and none ended by itself.
        """
        states, going, *report = self._train(batch)(self._states, self._going, count)
        taken, block = jax.device_get(report)  # interrupts come here, and find all as it was
        self._states, self._going = states, going
        self.done += int(taken)
        extend(self._losses, block[:taken])
        if not np.asarray(going).any():
            if self._ended.count(None) == self._number:
                self._raise_not_finite(block[taken - 1], batch)
            self._stop()
        count = np.isfinite(block[:taken]).sum(1)
        return np.nansum(block[:taken], axis=1) / np.where(count, count, np.nan)

    def _train(self, batch: tuple[Any, ...]) -> Any:
        args = (*self._run.placed(batch), *self._run.args)
        return self._run.compiled.function(advance_each, args, self._run.kwargs)

    def _raise_not_finite(self, losses: np.ndarray, batch: tuple[Any, ...]) -> NoReturn:
        last, run = int(np.isfinite(self._each_loss()).sum(1).argmax()), self._run
        blamed = blame(run.svi, self._state(last), (*batch, *run.args), run.kwargs)
        raise not_finite(self.done - 1, self.result(last), losses[last], blamed)

    def ahead(self, count: int, batch: tuple[Any, ...]) -> Ahead:
        """What :meth:`steps` would do from here, start by start; all stay as they are."""
        states, _, *report = self._train(batch)(self._states, self._going, count)
        taken, block = jax.device_get(report)
        raw = self._run.svi.optim.get_params
        before, after = (raw(x.optim_state) for x in (self._states, states))
        return ahead_of(block[:taken], before, after)

    def due(self, num_steps: int) -> int:
        """The number of steps after which to decide: the last."""
        return num_steps

    def decide(self) -> None:
        """Go on: the optimiser decides."""

    def look(self, validate: tuple[Any, ...] | None, metrics: bool, batch: Any = ()) -> None:
        """Measure every start, and add to the history."""
        since = int(self.history[-1]["step"]) if self.history else 0
        found: dict[str, Any] = {"loss": self._each_loss()[:, since:].mean(1).tolist()}
        states = map(self._state, range(self._number))
        self._run.done = self.done
        each = [self._run.measured(state, validate, metrics, batch) for state in states]
        found |= {n: [one[n] for one in each] for n in each[0]}
        self.history.append({"step": self.done} | found)

    def latest(self) -> dict[str, float]:
        """The last look at the start that is best there."""
        look = self.history[-1]
        bounds = np.array(look.get("validation", [-x for x in look["loss"]]))
        return _of(look, largest(np.where(self._failed(), np.nan, bounds)))

    def judge(self) -> None:
        """Stop the starts of which the last look was one too many without a better bound."""
        going = np.asarray(self._going).copy()
        for number, patience in enumerate(self._patience):
            bound = bound_of(_of(self.history[-1], number))
            if going[number] and patience.spent(bound, self._state(number)):
                going[number], self._ended[number] = False, self.done
        self._going = self._run.everywhere(jnp.asarray(going))
        if not going.any():
            self._stop()

    def _stop(self) -> None:
        reason = self._patience[0].reason()
        self.stopped = self.stopped or f"{reason}, of every start"

    def result(self, best: int | None = None) -> FitResult:
        """That of the start with the largest bound now, or of another."""
        bounds = self._bounds()
        best = largest(bounds) if best is None else best
        return self._result(best, bounds, self._state(best))

    def outcome(self) -> FitResult:
        """That of the best start at the end, at its best look if there is patience."""
        if not any(patience.state is not None for patience in self._patience):
            return self.result()
        bounds = np.array([patience.best for patience in self._patience])
        bounds = np.where(self._failed(), np.nan, bounds)
        best = largest(bounds)
        return self._result(best, bounds, self._patience[best].state)

    def _result(self, best: int, bounds: np.ndarray, state: Any) -> FitResult:
        losses, end = self._each_loss(), self._ended[best]
        history = [_of(x, best) for x in self.history if end is None or x["step"] <= end]
        stopped = self.stopped if end is None else self._patience[best].reason()
        run = replace(
            self._run, state=state, losses=[losses[best, :end]], history=history, stopped=stopped
        )
        every = Restarts(jnp.asarray(losses), jnp.asarray(bounds), best)
        return replace(run.result(), restarts=every)

    def warn(self, stacklevel: int) -> None:
        """One warning of the starts that were left out, if there are any."""
        warn_of_failed(np.flatnonzero(self._failed()), self._number, stacklevel + 1)

    def every_loss(self) -> np.ndarray:
        """The losses of all steps done, an axis for the starts behind."""
        return np.concatenate([np.zeros((0, self._number), np.float32), *self._losses])

    def saved(self) -> Any:
        """The arrays of a checkpoint."""
        now = [self._state(number) for number in range(self._number)]
        best = [now[n] if p.state is None else p.state for n, p in enumerate(self._patience)]
        return {"states": self._states, "going": self._going, "best": best}

    def notes(self) -> dict[str, Any]:
        """The numbers of a checkpoint."""
        waited = [patience.saved() for patience in self._patience]
        return {
            "history": self.history, "waited": waited, "ended": self._ended,
            "stopped": self.stopped,
        }  # fmt: skip

    def like(self, notes: Mapping[str, Any]) -> Any:
        """What :meth:`saved` returned where :meth:`notes` returned these, without its values."""
        best = [self._state(number) for number in range(len(notes["waited"]))]
        return {"states": self._states, "going": self._going, "best": best}

    def restore(self, saved: Saved) -> None:
        """Be where the starts were when a checkpoint was made."""
        arrays, notes = self._run.everywhere(saved.arrays), saved.notes
        self._states, self._going = arrays["states"], arrays["going"]
        self.done, self._losses, self.history = saved.step, [saved.series], notes["history"]
        self.stopped, self._ended = notes["stopped"], notes["ended"]
        kept = zip(
            self._patience, notes["waited"], arrays["best"], strict=False
        )  # if both have any
        for patience, waited, best in kept:
            patience.restore(waited, best)

    def go_on(self) -> str | None:
        """Say why more steps would not be those of a run that was asked for them from the start.

        A start that ended has taken fewer steps than the others, and can't catch up with them.
        """
        ended = [number for number, end in enumerate(self._ended) if end is not None]
        onward = [n for n in ended if not self._patience or not self._patience[n].is_spent()]
        rule = self._patience[0].rule if self._patience else None
        what = f"starts {onward} that its stop has ended, and stop={rule!r} would not have"
        return what if onward else None

    def _state(self, number: int) -> Any:
        return jax.tree.map(lambda x: x[number], self._states)

    def _failed(self) -> np.ndarray:
        ended = np.array([end is not None for end in self._ended])
        return ~np.asarray(self._going) & ~ended

    def _each_loss(self) -> np.ndarray:
        return self.every_loss().T

    def _bounds(self) -> np.ndarray:
        losses = self._each_loss()
        if self._validate is None:
            bounds = np.array([bound_at_end(x[: np.isfinite(x).sum()]) for x in losses])
        else:
            states = map(self._state, range(self._number))
            validate = self._validate
            each = [self._run.measured(state, validate, False, ()) for state in states]
            bounds = np.array([one["validation"] for one in each])
        return np.where(self._failed(), np.nan, bounds)


def bound_at_end(losses: np.ndarray) -> float:
    """Minus the mean loss of the last tenth of the steps."""
    tail = losses[-max(1, len(losses) // 10) :]
    return -tail.mean() if tail.size else -np.inf


def warn_of_failed(numbers: Iterable[int], of: int, stacklevel: int) -> None:
    """One warning of starts that were left out, if there are any."""
    out = [int(n) for n in numbers]
    if out:
        warnings.warn(
            f"fit: restarts {out} of {of} met a loss or parameter that is not finite, and are left "
            "out; .restarts.losses of the result has theirs.",
            stacklevel=stacklevel + 1,
        )


def largest(bounds: np.ndarray) -> int:
    """The number of the largest bound, of those that are not NaN."""
    return int(np.where(np.isnan(bounds), -np.inf, bounds).argmax())


def _of(look: Mapping[str, Any], number: int) -> dict[str, float]:
    """What one start has of a look."""
    return {n: x[number] if isinstance(x, list) else x for n, x in look.items()}


@uncompiled()
def keys_of(rng_key: jax.Array, number: int, init_state: Any) -> jax.Array:
    """A key for each start; the one given, if there is one start.

    Args:
      rng_key: a PRNG key.
      number: of starts.
      init_state: an earlier state, or None.

    Raises:
      ValueError: if ``number`` is not a positive int, or for several starts from one state.
    """
    positive_int("fit: num_restarts", number)
    if number == 1:
        return rng_key[None]
    if init_state is not None:
        raise ValueError(
            "fit: init_state is one state, from which all starts would take the same steps, got it "
            f"with num_restarts={number}. Expected one of them. Fix: leave out num_restarts to go "
            "on from the state, or init_state to start anew."
        )
    return jax.random.split(rng_key, number)
