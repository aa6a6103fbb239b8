"""A training run: steps in blocks, looks, and what a checkpoint keeps of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState

from vipp.training.automatic_steps import AutomaticSteps
from vipp.training.blame import Blame, blame
from vipp.training.checkpoint import Saved
from vipp.training.compiled import (
    MOST_STEPS_AT_ONCE,
    Compiled,
    advance,
    advance_singly,
)
from vipp.training.early_stopping import Patience, ended_by_patience
from vipp.training.mesh import Placement
from vipp.training.metrics import evaluate, measure
from vipp.training.result import FitResult, NonFiniteError
from vipp.training.same_run import Ahead, ahead_of
from vipp.training.stepping import ravelled, state_of
from vipp_transforms.uncompiled import uncompiled

LONG = 10_000  # steps, from which on drawing their noise ahead is worth what it costs to compile


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
      patience: when to stop, or None.
      automatic: what decides its step sizes, or None if the optimiser does.
      planned: how many steps are to be taken in all.
      done: the number of steps.
      judged: the number of averages at the last look that counted.
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
    patience: Patience | None = None
    automatic: AutomaticSteps | None = None
    planned: int = 1
    done: int = 0
    judged: int = 0
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

    @uncompiled()
    def result(self, state: SVIState | None = None) -> FitResult:
        """What the run has given so far, with the parameters of ``state``, now's if None."""
        state = self.shown() if state is None else state
        names = dict.fromkeys(n for look in self.history for n in look)
        metrics = {n: np.array([look.get(n, np.nan) for look in self.history]) for n in names}
        params = self.svi.get_params(state)
        return FitResult(
            params,
            jnp.asarray(self.every_loss()),
            state,
            self.guide,
            self.svi.model,
            metrics,
            self.stopped,
            automatic=None if self.automatic is None else self.automatic.record(self.state),
        )

    def shown(self) -> SVIState:
        """The state with the parameters that the run would give now."""
        return self.state if self.automatic is None else self.automatic.shown(self.state)

    def outcome(self) -> FitResult:
        """The result at the end, with the parameters of the best look if there is patience."""
        return self.result(None if self.patience is None else self.patience.state)

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
        left, *report = self._train(batch)(ravelled(self.state), count)
        taken, ok, block = jax.device_get(report)  # interrupts come here, and find all as it was
        state, good = state_of(left), int(taken) - 1
        if not ok and self.automatic is not None and self.automatic.retreat(self, self.done + good):
            self.done += good
            extend(self.losses, block[:good])
            return block[:good]
        self.state, self.done = state, self.done + int(taken)
        extend(self.losses, block[:taken])
        if not ok:
            blamed = blame(self.svi, state, (*batch, *self.args), self.kwargs)
            raise not_finite(self.done - 1, self.result(), block[taken - 1], blamed)
        return block[:taken]

    def ahead(self, count: int, batch: tuple[Any, ...]) -> Ahead:
        """What :meth:`steps` would do from here; the run stays as it is."""
        left, *report = self._train(batch)(ravelled(self.state), count)
        taken, _, block = jax.device_get(report)
        raw = self.svi.optim.get_params
        before, after = (raw(x.optim_state) for x in (self.state, state_of(left)))
        return ahead_of(block[:taken], before, after)

    def _train(self, batch: tuple[Any, ...]) -> Callable[..., Any]:
        what = advance_singly if batch or self.planned < LONG else advance
        return self.compiled.function(what, (*self.placed(batch), *self.args), self.kwargs)

    def due(self, num_steps: int) -> int:
        """The number of steps after which to decide, at most ``num_steps``."""
        return num_steps if self.automatic is None else min(num_steps, self.automatic.due)

    def decide(self) -> None:
        """Say what comes next, if that is due."""
        if self.automatic is not None and self.done == self.automatic.due:
            self.automatic.decide(self)

    def look(self, validate: tuple[Any, ...] | None, metrics: bool, batch: Any = ()) -> None:
        """Measure, and add to the history."""
        since = int(self.history[-1]["step"]) if self.history else 0
        found = {"step": self.done, "loss": float(self.every_loss()[since:].mean())}
        self.history.append(found | self.measured(self.shown(), validate, metrics, batch))

    def measured(
        self, state: SVIState, validate: tuple[Any, ...] | None, metrics: bool, batch: Any
    ) -> dict[str, float]:
        """What a look measures of a state."""
        found: dict[str, Any] = {}
        if metrics:
            args = (*self.placed(batch), *self.args)
            key = jax.random.fold_in(self.key, self.done)
            found |= self.compiled.function(measure, args, self.kwargs)(state, key)
        if validate is not None:
            # the same draws at each look: what differs between looks is the parameters
            bound = self.compiled.function(evaluate, self.placed(validate), self.kwargs)
            found["validation"] = bound(state, self.key)
        return {n: float(x) for n, x in jax.device_get(found).items()}

    def latest(self) -> dict[str, float]:
        """The last look."""
        return self.history[-1]

    def judge(self) -> None:
        """Stop if the last look was one too many without a better bound.

        A further look at the same average of parameters does not count.
        """
        averages = 0 if self.automatic is None else self.automatic.averages
        if self.patience is None or (averages and averages == self.judged):
            return
        self.judged = averages
        if self.patience.spent(bound_of(self.latest()), self.shown()):
            self.stopped = self.stopped or self.patience.reason()

    def saved(self) -> Any:
        """The arrays of a checkpoint."""
        best = None if self.patience is None else self.patience.state
        found = {"state": self.state, "best": self.state if best is None else best}
        return found if self.automatic is None else found | {"automatic": self.automatic.saved()}

    def notes(self) -> dict[str, Any]:
        """The numbers of a checkpoint."""
        return {
            "history": self.history,
            "waited": None if self.patience is None else self.patience.saved(),
            "stopped": self.stopped,
            "judged": self.judged,
            "automatic": None if self.automatic is None else self.automatic.notes(),
        }

    def like(self, notes: Mapping[str, Any]) -> Any:
        """What :meth:`saved` returned where :meth:`notes` returned these, without its values."""
        found = {"state": self.state, "best": self.state}
        if self.automatic is None or notes["automatic"] is None:
            return found
        course = self.automatic.like(notes["automatic"], self.state, self.key)
        return found | {"automatic": course}

    def restore(self, saved: Saved) -> None:
        """Be where the run was when a checkpoint was made."""
        arrays, notes = saved.arrays, saved.notes
        self.done, self.losses = saved.step, [saved.series]
        self.state, best = self.everywhere((arrays["state"], arrays["best"]))
        self.history, self.stopped = notes["history"], notes["stopped"]
        self.judged = notes["judged"]
        if self.patience is not None and notes["waited"] is not None:
            self.patience.restore(notes["waited"], best)
        if self.automatic is not None:
            self.automatic.restore(self, arrays["automatic"], notes["automatic"])

    def go_on(self) -> str | None:
        """Be ready for more than the run that was restored had been asked for; or say why not."""
        patience = self.patience
        if ended_by_patience(self.stopped) and (patience is None or not patience.is_spent()):
            self.stopped = None
        if self.automatic is not None:
            self.automatic.go_on(self)
        return None


def bound_of(look: Mapping[str, float]) -> float:
    """The bound that looks are compared by."""
    return look.get("validation", -look["loss"])


def extend(series: list[np.ndarray], block: np.ndarray) -> None:
    """Add what a block holds to a series, which keeps no more than that of it."""
    if series and len(series[-1]) < MOST_STEPS_AT_ONCE:
        series[-1] = np.concatenate([series[-1], block])
    else:
        series.append(block.copy())


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
