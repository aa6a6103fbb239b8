"""Which loops of a gradient are distributed: little of a step may have to wait for the last one."""

from __future__ import annotations

import jax

from vipp.diagnostics.evaluated import Evaluated
from vipp_transforms.noting import LOOPS, Distributed


class LoopReport(Distributed):
    """How many of the operations of a loop's step stay in the loop."""

    def __str__(self) -> str:
        once = self.before + self.after
        stays = f"{self.inside} operations step by step" if self.inside else "no loop is left"
        return f"loop of {self.steps:,} steps: {stays}, {once} operations for all steps at once"


def distributed(of: Evaluated) -> tuple[LoopReport, ...]:
    """The loops that are distributed where value and gradient are evaluated, each once."""
    if not any(eqn.primitive.name == "scan" for eqn in of.plan.program.eqns):
        return ()
    with LOOPS.held() as loops:
        jax.eval_shape(jax.value_and_grad(of.value), of.real)
    return tuple(LoopReport(*each) for each in dict.fromkeys(loops))
