"""What happens between the steps of a training run: looks, callbacks, stops, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vipp.training.automatic_steps import AutomaticSteps
from vipp.training.batches import Batches, check_alike
from vipp.training.checkpoint import Checkpoints, Saved
from vipp.training.compiled import MOST_STEPS_AT_ONCE
from vipp.training.progress import Progress
from vipp.training.result import FitResult

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


@dataclass(frozen=True)
class Between:
    """What happens between the steps of a run, or of several together.

    Attributes:
      log_every: the number of steps between looks, or None.
      validate: arguments to evaluate the bound at, or None.
      metrics: whether to measure the gradient's noise.
      callback: is given each look; true to stop.
      checkpoints: where the run is saved, or None.
      checkpoint_every: the number of steps between two.
      automatic: what decides the step sizes, or None.
    """

    log_every: int | None
    validate: tuple[Any, ...] | None
    metrics: bool
    callback: Callable[[FitProgress], Any] | None
    checkpoints: Checkpoints | None
    checkpoint_every: int
    automatic: AutomaticSteps | None = None

    def next_stop(self, done: int, num_steps: int) -> int:
        """The number of steps after which something is to be done."""
        every = [self.log_every] + [self.checkpoint_every if self.checkpoints else None]
        due = [] if self.automatic is None else [self.automatic.due]
        return min([num_steps, *due, *((done // n + 1) * n for n in every if n)])

    def happen(self, run: Any, num_steps: int, batch: Any) -> None:
        """Do what is due after the steps done."""
        if self.automatic is not None and run.done == self.automatic.due:
            self.automatic.decide(run)
        last = run.done == num_steps
        if self.log_every and (last or run.done % self.log_every == 0):
            run.look(self.validate, self.metrics, batch)
            if self.callback is not None:
                moment = FitProgress(run.done, num_steps, run.latest(), run.result)
                if self.callback(moment):
                    run.stopped = f"the callback asked for it at step {run.done}"
            run.judge()
        last = last or run.stopped is not None
        if self.checkpoints and (last or run.done % self.checkpoint_every == 0):
            self.checkpoints.save(run.done, run.saved(), run.every_loss(), run.notes())

    def resume(self, run: Any, num_steps: int, batch: tuple[Any, ...]) -> None:
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
        saved = self.checkpoints.latest(run.saved())
        if saved is None:
            return
        if saved.step > num_steps:
            what = f"{saved.step} steps, more than the {num_steps} asked for"
            self.checkpoints.refuse(saved.step, what)
        _check_beginning(run, saved, batch, self.checkpoints)
        run.restore(saved)


def _check_beginning(
    run: Any, saved: Saved, batch: tuple[Any, ...], checkpoints: Checkpoints
) -> None:
    """The first losses tell whether programs, data and optimiser are those of the checkpoint.

    The second loss is that of a step of the optimiser; with batches it is that of another batch.
    """
    count = min(saved.step, 1 if batch else 2)
    before, now = saved.series[:count], run.first_losses(count, batch)
    if not np.allclose(before, now, *_SAME_LOSSES, equal_nan=True):
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
            if len(losses):
                progress.advance(len(losses), float(losses.mean()))
            if time.perf_counter() - started < _SECONDS_AT_ONCE:
                chunk *= 2
            if run.done == stop:
                between.happen(run, num_steps, ())


def train_on_batches(
    run: Any,
    between: Between,
    num_steps: int,
    progress_bar: bool,
    source: Iterable[Any],
    before: tuple[Any, ...],
) -> None:
    """Take the steps of a run that are left, each on a batch of its own, made as ``before`` is."""
    with Batches(source, run.done) as batches, Progress(num_steps, progress_bar, run.done) as bar:
        while run.done < num_steps and run.stopped is None:
            batch = batches.next()
            if batch is None:
                run.stopped = f"batches ended after {run.done} of {num_steps} steps"
                return
            check_alike(batch, before, run.done)
            before, stop = batch, between.next_stop(run.done, num_steps)
            losses = run.steps(1, batch)
            if len(losses):
                bar.advance(1, float(losses[0]))
            if run.done == stop:
                between.happen(run, num_steps, batch)
