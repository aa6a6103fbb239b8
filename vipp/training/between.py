"""What happens between the steps of a training run: looks, callbacks, stops, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vipp.training.batches import Batches, check_alike
from vipp.training.checkpoint import Checkpoints, Saved
from vipp.training.compiled import MOST_STEPS_AT_ONCE
from vipp.training.progress import Progress
from vipp.training.result import FitResult
from vipp.training.same_run import difference, noted, same_losses

_SECONDS_AT_ONCE = 0.25
_OF_ANOTHER = "of another model, guide or optimiser, or on other data"


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
      first: the first batch, if there are batches.
    """

    log_every: int | None
    validate: tuple[Any, ...] | None
    metrics: bool
    callback: Callable[[FitProgress], Any] | None
    checkpoints: Checkpoints | None
    checkpoint_every: int
    first: tuple[Any, ...] = ()

    def next_stop(self, run: Any, num_steps: int) -> int:
        """The number of steps after which something is to be done."""
        done = run.done
        every = [self.log_every] + [self.checkpoint_every if self.checkpoints else None]
        return min([run.due(num_steps), *((done // n + 1) * n for n in every if n)])

    def happen(self, run: Any, num_steps: int, batch: Any, digest: int | None = None) -> None:
        """Do what is due after the steps done.

        Args:
          run: under way.
          num_steps: of the whole run.
          batch: that of the last step, if there are batches.
          digest: what stands for the batches so far.
        """
        run.decide()
        last = run.done == num_steps or run.stopped is not None
        if self.log_every and (last or run.done % self.log_every == 0):
            run.look(self.validate, self.metrics, batch)
            if self.callback is not None:
                moment = FitProgress(run.done, num_steps, run.latest(), run.result)
                if self.callback(moment) and run.stopped is None:
                    run.stopped = f"the callback asked for it at step {run.done}"
            run.judge()
        last = last or run.stopped is not None
        if self.checkpoints and (last or run.done % self.checkpoint_every == 0):
            notes = run.notes() | {"ahead": noted(run, self.first), "batches": digest}
            self.checkpoints.save(run.done, run.saved(), run.every_loss(), notes)

    def resume(self, run: Any, num_steps: int) -> int | None:
        """Go on from the last checkpoint, if there is one.

        Args:
          run: at its start.
          num_steps: of the whole run.

        Returns:
          What stands for the batches that were used, or None if there are none.

        Raises:
          CheckpointError: if the checkpoint is of another run, or behind ``num_steps``.
        """
        if self.checkpoints is None:
            return None
        saved = self.checkpoints.latest(run.like)
        if saved is None:
            return None
        if saved.step > num_steps:
            what = f"{saved.step} steps, more than the {num_steps} asked for"
            self.checkpoints.refuse(saved.step, what)
        self._check_beginning(run, saved, self.checkpoints)
        run.restore(saved)
        found = difference(run, saved.notes["ahead"], self.first)
        if found is not None:
            self.checkpoints.refuse(saved.step, f"{found}: {_OF_ANOTHER}")
        if self.callback is None and (run.stopped or "").startswith("the callback"):
            run.stopped = None
        against = run.go_on()
        if against is not None:
            self.checkpoints.refuse(saved.step, against)
        return saved.notes["batches"]

    def _check_beginning(self, run: Any, saved: Saved, checkpoints: Checkpoints) -> None:
        """The first losses are those of the checkpoint; with batches the second is of another."""
        count = min(saved.step, 1 if self.first else 2)
        before, now = saved.series[:count], run.ahead(count, self.first).losses
        if not same_losses(before, now):
            losses = f"({before.tolist()}, now {now.tolist()})"
            checkpoints.refuse(saved.step, f"other losses at its start {losses}: {_OF_ANOTHER}")


def train(run: Any, between: Between, num_steps: int, progress_bar: bool) -> None:
    """Take the steps that are left of a run, or of several together."""
    chunk = 1 if progress_bar else num_steps
    with Progress(num_steps, progress_bar, run.done) as progress:
        while run.done < num_steps and run.stopped is None:
            started = time.perf_counter()
            stop = between.next_stop(run, num_steps)
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
    passed: int | None,
) -> None:
    """Take the steps of a run that are left, each on a batch of its own, made as the first is.

    Args:
      run: at its start, or where a checkpoint was made.
      between: what happens between steps.
      num_steps: of the whole run.
      progress_bar: whether to show one.
      source: of batches.
      passed: what stands for those that were used before, or None.
    """
    before, digests = between.first, between.checkpoints is not None
    with (
        Batches(source, run.done, passed, digests=digests) as batches,
        Progress(num_steps, progress_bar, run.done) as bar,
    ):
        while run.done < num_steps and run.stopped is None:
            batch = batches.next()
            if batch is None:
                run.stopped = f"batches ended after {run.done} of {num_steps} steps"
                return
            check_alike(batch, before, run.done)
            before, stop = batch, between.next_stop(run, num_steps)
            losses = run.steps(1, batch)
            if len(losses):
                bar.advance(1, float(losses[0]))
            if run.done == stop:
                between.happen(run, num_steps, batch, batches.digest)
