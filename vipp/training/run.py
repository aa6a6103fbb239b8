"""A training run: steps in blocks, and what happens between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState

from vipp.training.batches import Batches
from vipp.training.blame import Blame, blame
from vipp.training.checkpoint import Checkpoints, Saved
from vipp.training.compiled import MOST_STEPS_AT_ONCE, Compiled, advance, state_of
from vipp.training.early_stopping import Patience
from vipp.training.mesh import Placement
from vipp.training.metrics import evaluate, measure
from vipp.training.progress import Progress
from vipp.training.result import FitResult, NonFiniteError

_SECONDS_AT_ONCE = 0.25
_SAME_LOSSES = 1e-4, 1e-6  # relative and absolute: of another kind of device at most


@dataclass(frozen=True)
class FitProgress:
    """A look at a training run under way, as ``fit(callback=...)`` gets it.

    Attributes:
      step: the number of steps done.
      num_steps: of all that were asked for.
      metrics: what was measured at this step, by name.
      result: makes a :class:`FitResult` of the run so far.
    """

    step: int
    num_steps: int
    metrics: Mapping[str, float]
    result: Callable[[], FitResult]


@dataclass
class Run:
    """A run under way.

    Attributes:
      svi: initialised.
      optim: its optimiser, as the user made it.
      guide: with the arguments.
      state: after the steps done.
      args: of the programs, behind those of a batch if there are batches.
      kwargs: of the programs.
      key: of what is drawn beside the training.
      done: the number of steps.
      losses: block by block.
      history: what was measured, look by look.
      stopped: why, if before its last step.
    """

    svi: SVI
    optim: Any
    guide: jax.tree_util.Partial
    state: SVIState
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    key: jax.Array
    done: int = 0
    losses: list[np.ndarray] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    stopped: str | None = None

    def __post_init__(self) -> None:
        self.compiled = Compiled(self.svi, self.optim)
        self.placed: Callable[[Any], Any] = lambda data: data
        self.everywhere: Callable[[Any], Any] = lambda state: state

    def share_out(self, where: Placement, data: Any) -> None:
        """Have the data, and each batch to come, lie there.

        Raises:
          ValueError: if ``data`` cannot be shared evenly.
        """
        where.check(data)
        self.placed, self.everywhere = where.data, where.everywhere
        self.state = self.everywhere(self.state)
        self.args, self.kwargs = where.data(self.args), where.data(self.kwargs)

    def result(self, state: SVIState | None = None) -> FitResult:
        """What the run has given so far, with the parameters of ``state``, now's if None."""
        state = self.state if state is None else state
        names = dict.fromkeys(n for look in self.history for n in look)
        metrics = {n: np.array([look[n] for look in self.history]) for n in names}
        params = self.svi.get_params(state)
        return FitResult(
            params,
            jnp.asarray(self.every_loss()),
            state,
            self.guide,
            self.svi.model,
            metrics,
            self.stopped,
        )

    def every_loss(self) -> np.ndarray:
        """The losses of all steps done."""
        return np.concatenate([np.zeros(0, np.float32), *self.losses])

    def steps(self, count: int, batch: tuple[Any, ...] = ()) -> np.ndarray:
        """Take steps, on a batch.

        Returns:
          Their losses.

        Raises:
          NonFiniteError: if a loss or a parameter was not finite; the state is the one before it.
        """
        left, *report = self._train(batch)(self.state, count)
        taken, ok, block = jax.device_get(report)  # interrupts come here, and find all as it was
        state = state_of(left)
        self.state, self.done = state, self.done + int(taken)
        self.losses.append(block[:taken])
        if not ok:
            blamed = blame(self.svi, state, (*batch, *self.args), self.kwargs)
            raise not_finite(self.done - 1, self.result(), block[taken - 1], blamed)
        return block[:taken]

    def first_losses(self, count: int, batch: tuple[Any, ...]) -> np.ndarray:
        """What :meth:`steps` would return from here; the run stays as it is."""
        _, taken, _, block = jax.device_get(self._train(batch)(self.state, count))
        return block[:taken]

    def _train(self, batch: tuple[Any, ...]) -> Callable[..., Any]:
        return self.compiled.function(advance, (*self.placed(batch), *self.args), self.kwargs)

    def look(self, validate: tuple[Any, ...] | None, metrics: bool, batch: Any = ()) -> None:
        """Measure, and add to the history."""
        since = int(self.history[-1]["step"]) if self.history else 0
        losses = self.every_loss()[since:]
        key = jax.random.fold_in(self.key, self.done)
        found: dict[str, Any] = {"step": self.done, "loss": losses.mean()}
        if metrics:
            measured = self.compiled.function(measure, (*batch, *self.args), self.kwargs)
            found |= measured(self.state, key)
        if validate is not None:
            # the same draws at each look: what differs between looks is the parameters
            bound = self.compiled.function(evaluate, validate, self.kwargs)
            found["validation"] = bound(self.state, self.key)
        self.history.append({n: float(x) for n, x in jax.device_get(found).items()})


@dataclass(frozen=True)
class Between:
    """What happens between the steps of a run.

    Attributes:
      log_every: the number of steps between looks, or None.
      validate: arguments to evaluate the bound at, or None.
      metrics: whether to measure the gradient's noise.
      callback: is given each look; true to stop.
      patience: when to stop, or None.
      checkpoints: where the run is saved, or None.
      checkpoint_every: the number of steps between two.
    """

    log_every: int | None
    validate: tuple[Any, ...] | None
    metrics: bool
    callback: Callable[[FitProgress], Any] | None
    patience: Patience | None
    checkpoints: Checkpoints | None
    checkpoint_every: int

    def next_stop(self, done: int, num_steps: int) -> int:
        """The number of steps after which something is to be done."""
        every = [self.log_every] + [self.checkpoint_every if self.checkpoints else None]
        return min([num_steps, *((done // n + 1) * n for n in every if n)])

    def happen(self, run: Run, num_steps: int, batch: Any) -> None:
        """Do what is due after the steps done."""
        last = run.done == num_steps
        if self.log_every and (last or run.done % self.log_every == 0):
            run.look(self.validate, self.metrics, batch)
            latest = run.history[-1]
            if self.callback is not None:
                moment = FitProgress(run.done, num_steps, latest, run.result)
                if self.callback(moment):
                    run.stopped = f"the callback asked for it at step {run.done}"
            if self.patience is not None:
                bound = latest.get("validation", -latest["loss"])
                if self.patience.spent(bound, run.state):
                    looks = self.patience.rule.patience
                    run.stopped = f"the bound had not improved for {looks} looks"
        last = last or run.stopped is not None
        if self.checkpoints and (last or run.done % self.checkpoint_every == 0):
            self.checkpoints.save(run.done, self.saved(run), run.every_loss(), self.notes(run))

    def saved(self, run: Run) -> Any:
        """The arrays of a checkpoint."""
        best = None if self.patience is None else self.patience.state
        return {"state": run.state, "best": run.state if best is None else best}

    def notes(self, run: Run) -> dict[str, Any]:
        """The numbers of a checkpoint."""
        patience = self.patience
        waited = None if patience is None else [patience.best, patience.waited]
        return {"history": run.history, "waited": waited, "stopped": run.stopped}

    def resume(self, run: Run, num_steps: int, batch: tuple[Any, ...]) -> None:
        """Go on from the last checkpoint, if there is one.

        Args:
          run: at its start.
          num_steps: of the whole run.
          batch: the first one.

        Raises:
          CheckpointError: if the checkpoint is of another run, or behind ``num_steps``.
        """
        if self.checkpoints is None:
            return
        saved = self.checkpoints.latest(self.saved(run))
        if saved is None:
            return
        if saved.step > num_steps:
            self.checkpoints.refuse(
                saved.step, f"{saved.step} steps, more than the {num_steps} asked for"
            )
        _check_beginning(run, saved, batch, self.checkpoints)
        run.done, run.state = saved.step, run.everywhere(saved.arrays["state"])
        run.losses = [saved.series]
        run.history, run.stopped = saved.notes["history"], saved.notes["stopped"]
        if self.patience is not None and saved.notes["waited"] is not None:
            self.patience.best, self.patience.waited = saved.notes["waited"]
            self.patience.state = run.everywhere(saved.arrays["best"])


def _check_beginning(
    run: Run, saved: Saved, batch: tuple[Any, ...], checkpoints: Checkpoints
) -> None:
    """The first losses tell whether programs, data and optimiser are those of the checkpoint.

    The second loss is that of a step of the optimiser; with batches it is that of another batch.
    """
    count = min(saved.step, 1 if batch else 2)
    before, now = saved.series[:count], run.first_losses(count, batch)
    if not np.allclose(before, now, *_SAME_LOSSES):
        checkpoints.refuse(
            saved.step,
            f"other losses at its start ({before.tolist()}, now {now.tolist()}): of another model, "
            "guide or optimiser, or on other data",
        )


def train(run: Any, between: Between, num_steps: int, progress_bar: bool) -> None:
    """Take the steps that are left of a run, or of several together."""
    chunk = 1 if progress_bar else num_steps
    with Progress(num_steps, progress_bar, run.done) as progress:
        while run.done < num_steps and run.stopped is None:
            started = time.perf_counter()
            stop = between.next_stop(run.done, num_steps)
            losses = run.steps(min(chunk, stop - run.done, MOST_STEPS_AT_ONCE))
            progress.advance(len(losses), float(losses.mean()))
            if time.perf_counter() - started < _SECONDS_AT_ONCE:
                chunk *= 2
            if run.done == stop:
                between.happen(run, num_steps, ())


def train_on_batches(
    run: Run, between: Between, num_steps: int, progress_bar: bool, source: Iterable[Any]
) -> None:
    """Take the steps of a run that are left, each on a batch of its own."""
    with Batches(source, run.done) as batches, Progress(num_steps, progress_bar, run.done) as bar:
        while run.done < num_steps and run.stopped is None:
            batch = batches.next()
            if batch is None:
                run.stopped = f"batches ended after {run.done} of {num_steps} steps"
                return
            stop = between.next_stop(run.done, num_steps)
            losses = run.steps(1, batch)
            bar.advance(1, float(losses[0]))
            if run.done == stop:
                between.happen(run, num_steps, batch)


def not_finite(step: int, result: FitResult, loss: Any, blamed: Blame) -> NonFiniteError:
    """The error that says at which step, where, and what there is so far."""
    what = "a parameter after the step" if np.isfinite(loss) else f"the loss ({loss})"
    return NonFiniteError(
        f"Training stopped at step {step}: {what} is not finite. There: {blamed.text}. The last "
        "good parameters and state are in this error's .result. Fix: check the data for NaN or "
        "inf, constrain scale parameters (constraint=constraints.positive), or lower the step "
        "size.",
        step,
        result,
        blamed.sites,
        blamed.parameters,
    )
