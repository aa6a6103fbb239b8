"""Gradients under several choices of estimators, measured in turns, none compiled twice."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpyro.handlers import seed, substitute, trace

from vipp.diagnostics.gradient_draws import Call, Gradients, Problem, compiled
from vipp.language.sample import with_estimators
from vipp.objectives.objective import Objective
from vipp_transforms.settings import scheduled

Chosen = tuple[int, ...]  # the number of the objective, then of each site's candidate
Task = tuple[Chosen, tuple[str, ...]]  # a choice, and the sites drawn anew within a pair
_NOTHING = 1e-11  # of the squared gradient: the rounding of single precision
FAR_WORSE = 8  # times the variance x time of the present choice
FAR_SLOWER = 3  # times all that it took
BEATEN_BY = 2  # standard errors


class Estimate(NamedTuple):
    """A number that was measured.

    Attributes:
      value: of it.
      error: its standard error.
    """

    value: float
    error: float

    def between(self, errors: float) -> tuple[float, float]:
        """As many standard errors below and above."""
        return self.value - errors * self.error, self.value + errors * self.error

    def __str__(self) -> str:
        if self.error == 0:
            return f"{self.value:.3g}"
        return f"{self.value:.3g} ± {self.error:.1g}"


def times(a: Estimate, b: Estimate) -> Estimate:
    """The product of two that are independent."""
    error = np.hypot(a.error * b.value, a.value * b.error)
    return Estimate(a.value * b.value, float(error))


@dataclass(eq=False)
class Draws:
    """What was drawn of one gradient.

    Attributes:
      calls: with the time of each, but the first, which warms up.
    """

    calls: list[Call] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many gradients."""
        return 2 * sum(len(c.scatter) for c in self.calls)

    @property
    def mean(self) -> np.ndarray:
        """Of all gradients."""
        return np.array([c.mean for c in self.calls], np.float64).mean(0)

    @property
    def variance(self) -> Estimate:
        """The trace of the covariance."""
        return self._mean("scatter")

    @property
    def within(self) -> Estimate:
        """That given what the two of a pair have in common."""
        return self._mean("within")

    @property
    def each(self) -> float:
        """Median seconds of a gradient."""
        return float(np.median([c.seconds for c in self.calls[1:]]))

    def _mean(self, what: str) -> Estimate:
        # the pairs of a call are compared with its mean, hence are a little alike
        each = np.concatenate([getattr(c, what) for c in self.calls]).astype(np.float64)
        pairs = len(self.calls[0].scatter)
        error = each.std(ddof=1) / (len(each) * (pairs - 1) / pairs) ** 0.5
        if each.mean() <= _NOTHING * float(np.square(self.mean).sum()):
            return Estimate(0.0, 0.0)
        return Estimate(float(each.mean()), float(error))


@dataclass(eq=False)
class Measurements:
    """Draws gradients under choices of estimators.

    Args:
      problem: the programs.
      guide: that of the problem.
      objectives: the candidates among them, the present one first.
      candidates: by site, the estimators, the present one first.
      left_alone: sites that get no estimator as long as they have the present one.
      key: a PRNG key; the n-th call of each gradient has its n-th.
      deadline: by ``time.perf_counter``; None for none.
    """

    problem: Problem
    guide: Any
    objectives: Sequence[Objective]
    candidates: Mapping[str, Sequence[Any]]
    left_alone: frozenset[str]
    key: Any
    deadline: float | None = None
    programs: dict[Chosen, Gradients] = field(default_factory=dict)
    draws: dict[tuple[Chosen, tuple[str, ...], bool], Draws] = field(default_factory=dict)
    seconds_measuring: float = 0.0

    @property
    def present(self) -> Chosen:
        """What is chosen now."""
        return (0,) * (1 + len(self.candidates))

    @property
    def seconds_compiling(self) -> float:
        """What tracing and compiling took."""
        return sum(p.compile_seconds for p in self.programs.values())

    def in_time(self, share: float = 1.0) -> bool:
        """Whether there is time left, of a share of all."""
        if self.deadline is None:
            return True
        left = self.deadline - time.perf_counter()
        return left > (1.0 - share) * self.budget

    def __post_init__(self) -> None:
        self.budget = 0.0 if self.deadline is None else self.deadline - time.perf_counter()

    def estimators(self, chosen: Chosen) -> dict[str, Any]:
        """By site."""
        pairs = zip(self.candidates.items(), chosen[1:], strict=True)
        return {site: options[i] for (site, options), i in pairs}

    def given(self, chosen: Chosen) -> dict[str, Any]:
        """By site, those that are to be set."""
        numbers = dict(zip(self.candidates, chosen[1:], strict=True))
        alone = {n for n in self.left_alone if numbers[n] == 0}
        return {n: e for n, e in self.estimators(chosen).items() if n not in alone}

    def compile(self, chosen: Chosen) -> Gradients:
        """The gradient under a choice, compiled unless it was before.

        Raises:
          vipp.SiteError: if a site has no sound estimator as chosen.
        """
        if chosen not in self.programs:
            guide = with_estimators(self.guide, self.given(chosen))
            own = _own(guide, self.problem, self.estimators(chosen))
            self.programs[chosen] = compiled(self.problem, self.objectives[chosen[0]], guide, own)
        return self.programs[chosen]

    def measure(self, tasks: Sequence[Task], rounds: int, fresh: bool = False) -> None:
        """Draw the gradients of each task in turn, so that load hits all alike.

        After three calls, which the error of a bias takes, one is given up that is far worse than
        the present choice, or took three times as long as that does for all rounds; and one that is
        beaten by an unbiased one at the same sites, which takes no longer and leaves less variance
        of theirs, by more than two standard errors of both. What was drawn of it counts.

        Args:
          tasks: choices that are compiled, with the sites whose draws differ within a pair.
          rounds: calls of each.
          fresh: whether with other keys than before.
        """
        began, first = time.perf_counter(), 1_000 if fresh else 0
        live = list(dict.fromkeys(tasks))
        for number in range(rounds + 1):
            if number > 2 and not self.in_time():
                break
            for chosen, anew in live if number % 2 else live[::-1]:
                call = self.programs[chosen].call(self.key, first + number, anew)
                self.draws.setdefault((chosen, anew, fresh), Draws()).calls.append(call)
            if number > 1:
                live = [t for t in live if not self._over(t, rounds, fresh)]
                beaten = self._beaten(live, fresh)
                live = [t for t in live if t not in beaten]
        self.seconds_measuring += time.perf_counter() - began

    def _over(self, task: Task, rounds: int, fresh: bool) -> bool:
        """Whether a task has had its share."""
        if task[0] == self.present:
            return False
        (now, *_) = [d for (c, *_), d in self.draws.items() if c == self.present]
        mine = self.draws[*task, fresh]
        took = sum(c.seconds for c in mine.calls[1:])
        each = now.each
        low = max(mine.variance.value - 2 * mine.variance.error, 0.0)
        hopeless = low * took / (len(mine.calls) - 1) > FAR_WORSE * now.variance.value * each
        return hopeless or took > FAR_SLOWER * rounds * each

    def _beaten(self, tasks: Sequence[Task], fresh: bool) -> set[Task]:
        """Those that an unbiased one beats, in variance by far and not slower, at their sites."""
        drawn = [(t, self.draws[*t, fresh]) for t in tasks if t[1] and t[0] != self.present]
        known = [(t, d.within, d.each) for t, d in drawn]
        bounds = [(t, *v.between(BEATEN_BY), s) for t, v, s in known]
        return {
            task
            for task, low, _, seconds in bounds
            for other, _, high, least in bounds
            if other[1] == task[1] and high < low and least <= seconds
            if not any(e.traits.biased for e in self.estimators(other[0]).values())
        }

    def seconds(self, chosen: Chosen, fresh: bool = False) -> Estimate:
        """Of one gradient: the median, by ratios to the present choice within a round."""
        ours, base = self._times(chosen, fresh), self._times(self.present, fresh)
        both = sorted(ours.keys() & base.keys())
        every = [t for n in base for t in base[n]]
        if chosen == self.present:
            return _median(np.array(every))
        ratios = [np.mean(ours[n]) / np.mean(base[n]) for n in both]
        return times(Estimate(float(np.median(every)), 0.0), _median(np.array(ratios)))

    def _times(self, chosen: Chosen, fresh: bool) -> dict[int, list[float]]:
        found: dict[int, list[float]] = {}
        for (other, _, when), draws in self.draws.items():
            if other == chosen and when == fresh:
                for number, call in enumerate(draws.calls[1:]):
                    found.setdefault(number, []).append(call.seconds)
        return found


def _median(x: np.ndarray) -> Estimate:
    spread = 1.4826 * np.median(np.abs(x - np.median(x)))
    return Estimate(float(np.median(x)), float(1.2533 * spread / len(x) ** 0.5))


def _own(guide: Any, problem: Problem, estimators: Mapping[str, Any]) -> dict[str, Any]:
    """The first parameters and state of estimators that have some, unless they were given."""
    if not any(e.learning is not None or scheduled(e) for e in estimators.values()):
        return {}
    params = {n: problem.transforms[n](x) for n, x in problem.moving.items()}
    given = {**problem.constants, **params}
    with trace() as met, seed(rng_seed=0), substitute(data=given):
        guide(*problem.args, **problem.kwargs)
    kinds = ("param", "mutable")
    return {n: s["value"] for n, s in met.items() if s["type"] in kinds and n not in given}
