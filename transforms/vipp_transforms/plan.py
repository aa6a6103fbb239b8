"""Everything that is derived for a program before any of it is evaluated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vipp_transforms.agreement import check_agreement
from vipp_transforms.callbacks import check_callbacks
from vipp_transforms.centred import centred
from vipp_transforms.choices import Choice, choose
from vipp_transforms.dependence import Dependences
from vipp_transforms.elimination import Elimination, eliminate
from vipp_transforms.estimators.base import Degree, Estimator, SiteInfo
from vipp_transforms.estimators.enumerate import ALL_VALUES
from vipp_transforms.linearity import check_estimates
from vipp_transforms.loop_sums import several_steps, sum_loops, with_start
from vipp_transforms.own_keys import check_keys
from vipp_transforms.polynomials import degrees
from vipp_transforms.relaxed import check_relaxed
from vipp_transforms.seen_slopes import slopes_of
from vipp_transforms.single_lanes import Summed, summed_lanes
from vipp_transforms.slopes import Slope
from vipp_transforms.staging import Program, Site, Traced, inline, trace
from vipp_transforms.stopped import check_stopped
from vipp_transforms.terms import Split, split
from vipp_transforms.unrolling import NotSummed, unrolling


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that was derived for one program, before any of it is evaluated.

    Attributes:
      program: staged.
      depends: which sites each of its values depends on.
      split: its value as a sum of terms.
      elimination: the contractions, in order.
      choices: per site index, its estimator.
    """

    program: Program
    depends: Dependences
    split: Split
    elimination: Elimination
    choices: dict[int, Choice]

    @property
    def enumerates(self) -> bool:
        """Whether some choice is summed over."""
        return any(c.estimator.traits.exhaustive for c in self.choices.values())

    @functools.cached_property
    def summed(self) -> tuple[Summed, ...]:
        """What is summed over the values of single lanes beside those of a choice."""

        def wanted(site: Site) -> tuple[Estimator, SiteInfo] | None:
            choice = self.choices[site.index]
            if not choice.estimator.sums_single(choice.site):
                return None
            alone = choice.site._replace(mixed=(False,) * len(choice.site.mixed))
            return (choice.estimator if alone.support is None else ALL_VALUES), alone

        return summed_lanes(self.program, self.depends, self.split, self.elimination, wanted)

    def slopes(self) -> dict[Any, Slope]:
        """By the variable of each draw whose estimator is sloped."""
        return slopes_of(
            self.program,
            self.depends,
            self.split,
            self.elimination,
            lambda site: self.choices[site.index].estimator.traits.sloped,
        )


def plan(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Plan:
    """Derive the estimator of ``E[fn(*args, **kwargs)[0]]`` without evaluating it.

    Args:
      fn: returns ``(value, aux)``; draws with :func:`vipp_transforms.sample`.
      *args: its arguments.
      **kwargs: its keyword arguments.

    Returns:
      The plan.

    Raises:
      SiteError: where no sound estimator exists for a site as asked.
      ValueError: where the value is not a real scalar.
    """
    traced, planned = derive(fn, args, kwargs)
    if planned is None:
        planned = _derived(traced)
    assert isinstance(planned, Plan)  # without a draw there is no loop to take apart
    return planned


def derive(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Traced, Plan | None]:
    """The traced program and its plan, None if it draws nothing that is to be estimated.

    A loop whose choices turn out not to be summed out in it is taken apart, and the program is
    traced again.
    """
    why: dict[str, str] = {}
    while True:
        with unrolling(why):
            traced = trace(fn, args, kwargs)
            check_estimates(traced.closed)
            if not traced.draws():
                return traced, None
            planned = _derived(traced)
            if isinstance(planned, Plan):
                return traced, planned
            why |= dict.fromkeys(planned.names, planned.why)


def _is_centred(site: Site, asked: Mapping[int, Degree]) -> bool:
    """Whether the program is to be written in what a choice is off its mean."""
    known = asked.get(site.index)
    return site.template.support is None and known is not None and known.number is not None


def _derived(traced: Traced) -> Plan | NotSummed:
    check_keys(traced.closed)
    program = inline(traced, sum_loops)
    if isinstance(program, NotSummed):
        return program
    check_agreement(program)
    depends = Dependences(program)
    check_stopped(program, depends.noted)
    parts = split(program, depends)
    asked = degrees(program, depends, parts)
    off = [s for s in program.sites.values() if _is_centred(s, asked)]
    if off:
        program = centred(program, off)
        depends = Dependences(program)
        parts = split(program, depends)
    elimination = eliminate(program, depends, parts)
    joint = with_start(elimination, program) or several_steps(elimination)
    if joint is not None:
        return joint
    choices = choose(program, depends, parts, elimination, asked)
    check_relaxed(program, choices)
    check_callbacks(depends.noted, choices)
    planned = Plan(program, depends, parts, elimination, choices)
    for each in planned.summed:
        choice = choices[each.site.index]
        reason = f"{choice.reason}; terms of one lane are summed"
        choices[each.site.index] = choice._replace(reason=reason)
    return planned
