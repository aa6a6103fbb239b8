"""Step sizes and stopping by themselves: what is decided between the blocks of a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from numpyro.infer.svi import SVIState

from vipp.training.adam_state import (
    averaged_at,
    emptied,
    position,
    probing,
    retreated,
    searching,
    slope,
    step_sizes,
    stepping,
    visited,
)
from vipp.training.windows import (
    Window,
    Windows,
    batches,
    extrapolated,
    joined,
    spread,
    standard_errors,
    still_to_go,
    symmetrised,
)

TOLERANCE = 0.03
_DECAY, _DECAY_ON_THE_WAY = 0.5, 0.7
_ON_THE_WAY = 0.25  # a gain, in spreads, from which on iterates are not yet where they settle
_BLOCK = 50
_FEWEST_WINDOWS = 8
_WINDOWS_SO_FAR = 40  # as long would be those of a search that goes on
_FAR = 0.25  # nats
_FIRST = 0.4  # of the steps of the search, those of the first round
_PARTS = 10  # of a round, the first two of which are left out of its average
_WORSE = 6.0
_MOST_RETREATS = 20
_TOO_FEW = "the steps that are left are too few for another round"
_NUMBERS = (
    "_searching", "_searched", "_retreats", "_in_a_row", "_factor", "_length", "_part", "_since",
    "due",
)  # fmt: skip


class AveragedRound(NamedTuple):
    """Steps of one size, whose parameters were averaged.

    Attributes:
      step: the number of steps done at its end.
      factor: of all step sizes.
      length: the number of steps.
      spread: by how much the bound at the average is short of the largest because the average is
        over so few steps, in nats.
      change: half of the symmetrised divergence of this average from that of the round before, in
        nats; NaN of the first round.
      gain: by how much the bound would be larger at the best point of the plane of the averages
        of the round's quarters, in nats.
      divergence: an estimate of how far the bound at the average is from the largest, in nats.
    """

    step: int
    factor: float
    length: int
    spread: float
    change: float
    gain: float
    divergence: float


class StepSizes(NamedTuple):
    """What ``fit`` decided where no optimiser was given.

    Attributes:
      searched: the number of steps after which the step sizes were found.
      rounds: those that were averaged afterwards, in order.
      step_sizes: those of the last step, for the unconstrained value of each parameter by name.
    """

    searched: int
    rounds: tuple[AveragedRound, ...]
    step_sizes: dict[str, Any]


class _Probe(NamedTuple):
    """Points whose gradients are measured, with the same draws."""

    points: list[np.ndarray]
    slopes: list[np.ndarray]
    steps: int
    key: jax.Array


class AutomaticSteps:
    """The course of a run without an optimiser, decided block by block.

    Args:
      num_steps: the most.
    """

    def __init__(self, num_steps: int):
        self._num_steps = self._asked_before = num_steps
        self._safe: SVIState | None = None
        self._safe_loss: Window | None = None
        self._kept: SVIState | None = None
        self._probe: _Probe | None = None
        self._average: np.ndarray | None = None
        self._before: np.ndarray | None = None
        self._rounds: list[AveragedRound] = []
        self._searching, self._searched = True, 0
        self._retreats = self._in_a_row = 0
        self._factor, self._length, self._part = 1.0, 0, _BLOCK
        self._windows, self._since = Windows(), 0
        self.due = min(_BLOCK, num_steps)

    def shown(self, state: SVIState) -> SVIState:
        """The state with the parameters of the last average, if there is one."""
        state = state if self._kept is None else self._kept
        return state if self._average is None else averaged_at(state, self._average)

    def record(self, state: SVIState) -> StepSizes:
        """What was decided so far."""
        searched = self._searched if self._searched or self._rounds else self._since
        return StepSizes(searched, tuple(self._rounds), step_sizes(state))

    def decide(self, run: Any) -> None:
        """Look at the block that was done, and say what comes next."""
        losses, self._since = run.every_loss()[self._since :], run.done
        if self._probe is not None:
            self._probed(run)
        else:
            longer = self._windows.add(visited(run.state), slope(run.state), losses)
            run.state = emptied(run.state)
            if self._searching:
                self._part *= 2 if longer else 1
                self._search(run)
            else:
                self._round(run)
        self.due = min(self.due, self._num_steps)
        if run.done == self._num_steps:
            self._end(run)

    @property
    def averages(self) -> int:
        """The number of averages so far."""
        return len(self._rounds)

    def saved(self) -> dict[str, Any]:
        """The arrays of a checkpoint."""
        return {
            "safe": self._safe, "safe_loss": self._safe_loss, "kept": self._kept,
            "probe": self._probe, "average": self._average, "before": self._before,
            "windows": self._windows.all,
        }  # fmt: skip

    def notes(self) -> dict[str, Any]:
        """The numbers of a checkpoint."""
        probe = self._probe
        return {
            "there": [name for name, x in self.saved().items() if x is not None],
            "probed": None if probe is None else [len(probe.points), len(probe.slopes)],
            "windows": len(self._windows.all),
            "rounds": [list(r) for r in self._rounds],
            "numbers": {name: getattr(self, name) for name in _NUMBERS},
            "num_steps": self._num_steps,
        }

    def like(self, notes: Mapping[str, Any], state: SVIState, key: jax.Array) -> dict[str, Any]:
        """What :meth:`saved` returned where :meth:`notes` returned these, without its values."""
        vector = position(state)
        window = Window(vector, vector, np.float64(0.0), np.float64(0.0), 0)
        points, slopes = notes["probed"] or (0, 0)
        whole = {
            "safe": state, "safe_loss": window, "kept": state,
            "probe": _Probe([vector] * points, [vector] * slopes, 0, key),
            "average": vector, "before": vector, "windows": [window] * notes["windows"],
        }  # fmt: skip
        return {name: x if name in notes["there"] else None for name, x in whole.items()}

    def restore(self, run: Any, arrays: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        """Be where the run was when a checkpoint was made.

        Args:
          run: where it was then.
          arrays: as :meth:`saved` returned them.
          notes: as :meth:`notes` did.
        """
        self._safe, self._kept = run.everywhere((arrays["safe"], arrays["kept"]))
        self._safe_loss, self._probe = arrays["safe_loss"], arrays["probe"]
        self._average, self._before = arrays["average"], arrays["before"]
        self._windows.all = list(arrays["windows"])
        self._rounds = [AveragedRound(*r) for r in notes["rounds"]]
        for name in _NUMBERS:
            setattr(self, name, notes["numbers"][name])
        self._asked_before = notes["num_steps"]

    def go_on(self, run: Any) -> None:
        """Search on from the end of a run that is restored, if more steps are asked for now."""
        at_end = run.stopped is None and run.done == self._asked_before
        if (run.stopped == _TOO_FEW or at_end) and self._asked_before < self._num_steps:
            run.stopped = None
            run.state = searching(run.state)
            self._windows = Windows()
            self._search_on(run.done)

    def retreat(self, run: Any, done: int) -> bool:
        """Go back to where the loss was lowest, with smaller steps, unless that was in vain.

        Args:
          run: under way.
          done: the number of its steps so far.

        Returns:
          Whether it went back.
        """
        self._retreats, self._in_a_row = self._retreats + 1, self._in_a_row + 1
        if self._retreats > _MOST_RETREATS:
            return False
        self._kept = self._probe = None
        key = jax.random.fold_in(run.key, self._retreats)
        run.state = retreated(run.state if self._safe is None else self._safe, key, self._in_a_row)
        self._windows, self._part = Windows(), _BLOCK
        self._search_on(done)
        return True

    def _search_on(self, done: int) -> None:
        self._searching, self._since = True, done
        self.due = min(done + self._part, self._num_steps)

    def _search(self, run: Any) -> None:
        latest, count = self._windows.all[-1], len(self._windows.all)
        if self._is_worse(latest):
            self.retreat(run, run.done)
            return
        if self._safe_loss is None or latest.loss < self._safe_loss.loss:
            self._safe, self._safe_loss, self._in_a_row = run.state, latest, 0
        self.due = run.done + self._part
        if 2 * run.done >= self._num_steps:
            self._first_round(run, _DECAY_ON_THE_WAY)
        elif count >= _FEWEST_WINDOWS and not self._windows.improving():
            self._measure(run, self._windows.latter_half(), run.done)

    def _is_worse(self, window: Window) -> bool:
        best = self._safe_loss
        if best is None:
            return False
        return standard_errors(window, best) > _WORSE and window.loss - best.loss > 1.0

    def _measure(self, run: Any, windows: list[Window], length: int) -> None:
        """Have gradients measured next: at averages of windows, and at the one of the last time."""
        key = jax.random.fold_in(run.key, run.done)
        before = [] if self._before is None else [self._before]
        self._kept, self._before = run.state, joined(windows).mean
        self._probe = _Probe(batches(windows) + before, [], _measuring(length), key)
        self._to_next_point(run)

    def _to_next_point(self, run: Any) -> None:
        probe, kept = self._probe, self._kept
        assert probe is not None and kept is not None
        run.state = probing(kept, probe.points[len(probe.slopes)], probe.key)
        self.due = run.done + probe.steps

    def _probed(self, run: Any) -> None:
        probe, kept = self._probe, self._kept
        assert probe is not None and kept is not None
        probe.slopes.append(slope(run.state))
        if len(probe.slopes) < len(probe.points):
            self._to_next_point(run)
            return
        run.state, self._kept, self._probe = kept, None, None
        if self._searching:
            self._end_of_search(run, probe)
        else:
            self._end_of_round(run, probe)

    def _end_of_search(self, run: Any, probe: _Probe) -> None:
        found = spread(probe.points[:4], probe.slopes[:4])
        used = joined(self._windows.latter_half())
        way, gain = extrapolated(probe.points, probe.slopes, used.slope)
        if gain > max(TOLERANCE, found):
            self._windows, self._part = Windows(), max(_BLOCK, run.done // _WINDOWS_SO_FAR)
            self.due = run.done + self._part
            run.state = averaged_at(run.state, used.mean + way)
        else:
            self._first_round(run, _decay(found, gain))

    def _first_round(self, run: Any, decay: float) -> None:
        self._searched = run.done
        self._factor *= decay
        self._begin_round(run, max(4 * _BLOCK, int(run.done * _FIRST)))

    def _begin_round(self, run: Any, length: int) -> None:
        left = self._num_steps - run.done
        if left < 2 * _cost(length):
            length = left - 5 * _measuring(left)
        self._length = max(_PARTS, length) // _PARTS * _PARTS
        self._searching, self._windows = False, Windows()
        run.state = stepping(emptied(run.state), self._factor)
        self.due = run.done + self._length // _PARTS

    def _round(self, run: Any) -> None:
        if len(self._windows.all) < _PARTS:
            self.due = run.done + self._length // _PARTS
            return
        self._measure(run, self._windows.all[2:], self._length)

    def _end_of_round(self, run: Any, probe: _Probe) -> None:
        whole = joined(self._windows.all[2:])
        if self._is_worse(whole):
            self.retreat(run, run.done)
            return
        points, slopes = probe.points[:4], probe.slopes[:4]
        found, change = spread(points, slopes), math.nan
        if self._average is not None:
            middle = np.mean(slopes, 0)
            change = symmetrised(probe.points[4], whole.mean, probe.slopes[4], middle)
        way, gain = extrapolated(probe.points, probe.slopes, whole.slope)
        changes = [r.change for r in self._rounds] + [change]
        spreads = [r.spread for r in self._rounds] + [found]
        divergence = found + gain + still_to_go(changes, spreads)
        self._rounds.append(
            AveragedRound(run.done, self._factor, self._length, found, change, gain, divergence)
        )
        self._average = whole.mean
        self._safe, self._safe_loss, self._in_a_row = run.state, whole, 0
        if gain > max(TOLERANCE, found):
            run.state = averaged_at(run.state, whole.mean + way)
            if 2 * run.done < self._num_steps:
                self._windows, self._part = Windows(), max(_BLOCK, run.done // _WINDOWS_SO_FAR)
                run.state = searching(run.state)
                self._search_on(run.done)
                return
        self._next_round(run)

    def _next_round(self, run: Any) -> None:
        latest = self._rounds[-1]
        divergence = latest.divergence
        index = (0.5 + TOLERANCE / max(divergence, 1e-12)) * _cost(2 * self._length) / run.done
        if index > 1:
            run.stopped = (
                f"the estimated divergence from the optimum, {divergence:.2g} nats, is not worth "
                "another round"
            )
        elif self._num_steps - run.done > _cost(self._length):
            self._factor *= _decay(latest.spread, latest.gain)
            self._begin_round(run, 2 * self._length)
        else:
            run.stopped = _TOO_FEW

    def _end(self, run: Any) -> None:
        """Average what there is of an unfinished round, if it is enough."""
        run.state = run.state if self._kept is None else self._kept
        windows = self._windows.all
        if self._searching:
            windows = windows[-max(1, len(windows) // 4) :]
        else:
            windows = windows[len(windows) // 5 :]
        enough = self._average is None or 2 * joined(windows).steps > self._rounds[-1].length
        if windows and enough:
            self._average = joined(windows).mean


def _decay(spread: float, gain: float) -> float:
    """By how much steps become shorter: less where what is left is a way to go and not noise."""
    on_the_way = gain > _ON_THE_WAY * spread or spread + gain > _FAR
    return _DECAY_ON_THE_WAY if on_the_way else _DECAY


def _measuring(length: int) -> int:
    """How many gradients to measure at each point of a round."""
    return max(8, length // 32)


def _cost(length: int) -> int:
    return length + 5 * _measuring(length)
