"""Loops of finite choices that are summed out: where a program has them, and whether it may.

A term's expectation takes how probable the choices are that it depends on. Of one loop a choice of
each step is left, its window's, and their probabilities are known step by step and not together: so
a term may depend on one step alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.callbacks import check_callbacks
from vipp_transforms.choices import Choice
from vipp_transforms.control_flow import is_summed
from vipp_transforms.elimination import Elimination
from vipp_transforms.estimators.enumerate import ALL_VALUES
from vipp_transforms.expected_loop import ExpectedLoop, SummedInLoop
from vipp_transforms.lane import MIXED
from vipp_transforms.loop_fusion import (
    fuse_followers,
    needed_of,
    open_steps,
    with_totals,
)
from vipp_transforms.loop_start import starts
from vipp_transforms.staging import Inliner, Program
from vipp_transforms.stopped import check_stopped
from vipp_transforms.unrolling import NotSummed
from vipp_transforms.windows import Windows, windows


def sum_loops(
    eqns: list[Any], out: Any, drawn: set[Any], env: dict[Any, Any]
) -> list[Any] | NotSummed:
    """Equations with their loops of finite choices replaced by loops without choices.

    Args:
      eqns: of a program, what is needed of it.
      out: the variable whose expectation is wanted.
      drawn: the choices of the loops that stay loops.
      env: the values of constants; new ones are added.

    Returns:
      The equations, or which loop is no chain.
    """
    number = 0
    while (at := next((i for i, e in enumerate(eqns) if is_summed(e)), None)) is not None:
        may = lambda e: not any(v in drawn for v in e.outvars)
        steps, before, after = fuse_followers(open_steps(eqns[at]), eqns[at + 1 :], may)
        wanted = {v for e in after for v in e.invars if not isinstance(v, _jax.Literal)} | {out}
        found = windows(needed_of(with_totals(needed_of(steps, wanted)), wanted))
        if isinstance(found, NotSummed):
            return found
        _check(found)
        each = starts(found.steps, [*eqns[:at], *before], after, env)
        loop = next(x for s in each if (x := ExpectedLoop(found, number, s)).forward.can_start)
        if loop.refusal is not None:
            return loop.refusal
        eqns = [*eqns[:at], *before, *_replaced(loop, env), *after]
        number += 1
    return eqns


def _check(found: Windows) -> None:
    """What is refused in the open is refused in a loop."""
    check_stopped(found.program, found.noted())
    choices = {i: Choice(ALL_VALUES, info, "") for i, info in enumerate(found.infos)}
    check_callbacks(found.noted(), choices)


def _replaced(loop: ExpectedLoop, env: dict[Any, Any]) -> list[Any]:
    """The equations that compute what the loop computed."""
    operands = [*loop.steps.operands, *loop.forward.start.leaves]
    results = loop.steps.results
    shaped = [_jax.shaped(v.aval) for v in operands]
    closed, _ = _jax.trace(loop.run, *shaped)
    inliner = Inliner(env, loops=None)
    made = inliner.splice(closed, operands, (), {})
    copy, _ = _jax.trace(lambda x: [jnp.copy(x)], jnp.zeros(()))
    for atom, outvar in zip(made, results, strict=True):
        inliner.eqns.append(_copied(copy, atom, outvar))
    return inliner.eqns


def _copied(copy: Any, atom: Any, outvar: Any) -> Any:
    (eqn,) = _jax.open_jaxpr(copy)[0].eqns
    return eqn.replace(invars=[atom], outvars=[outvar])


def with_start(elimination: Elimination, program: Program) -> NotSummed | None:
    """The choice that a loop starts from on which a term depends together with the loop, if any."""
    name_of = {s.index: s.template.name for s in program.sites.values()}
    for step in elimination.steps:
        tag = step.site.template.estimator
        if isinstance(tag, SummedInLoop):
            names = {name_of[r] for r in step.form.depends}
            if not names.isdisjoint(tag.start):
                return NotSummed(tag.start[:1], "a term depends on it and on the loop it starts")
    return None


def several_steps(elimination: Elimination) -> NotSummed | None:
    """The loop that is summed out of which a term depends on several steps together, if any."""
    tags = {
        s.site.index: tag
        for s in elimination.steps if isinstance(tag := s.site.template.estimator, SummedInLoop)
    }  # fmt: skip
    for step in elimination.steps:
        here = {r: lanes for r, lanes in step.form.depends.items() if r in tags}
        for loop in {tags[r].loop for r in here}:
            own = {r: lanes for r, lanes in here.items() if tags[r].loop == loop}
            sizes = {s.site.index: s.site.lane_shape for s in elimination.steps}
            if not _of_one_step(own, tags, sizes):
                names = tags[next(iter(own))].names
                return NotSummed(names, "what is to be averaged depends on several steps")
    return None


def _of_one_step(
    depends: Mapping[int, Sequence[Any]],
    tags: Mapping[int, SummedInLoop],
    sizes: Mapping[int, tuple[int, ...]],
) -> bool:
    """Whether each entry of a term depends on what one step of a loop sees."""
    ended = {r for r in depends if tags[r].ended}
    if ended:
        mixes = any(
            lane == MIXED and n > 1
            for r in ended for lane, n in zip(depends[r], sizes[r], strict=True)
        )  # fmt: skip
        return not mixes and len(ended) == len(depends)
    steps = {lanes[0] for lanes in depends.values()}
    # of what was chosen before it is known how probable each lane's is, not several together
    before = [
        lane
        for r, lanes in depends.items() if tags[r].before
        for lane, n in zip(lanes[1:], sizes[r][1:], strict=True) if n > 1
    ]  # fmt: skip
    return len(steps) == 1 and MIXED not in steps and MIXED not in before
