"""Which loops of a gradient are distributed: little of a step may have to wait for the last one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

import vipp_transforms as vt
from vipp.objectives.objective import Objective, is_real
from vipp_transforms.noting import LOOPS


@dataclass(frozen=True)
class LoopReport:
    """How many of the operations of a loop's step stay in the loop.

    Attributes:
      steps: of the loop.
      before: operations evaluated for all steps at once before it.
      inside: operations of the recurrence, which go step by step.
      after: operations evaluated for all steps at once behind it.
    """

    steps: int
    before: int
    inside: int
    after: int

    def __str__(self) -> str:
        once = self.before + self.after
        stays = f"{self.inside} operations step by step" if self.inside else "no loop is left"
        return f"loop of {self.steps:,} steps: {stays}, {once} operations for all steps at once"


def distributed(
    objective: Objective, plan: vt.Plan, key: Any, params: Mapping[str, Any], programs: Any
) -> tuple[LoopReport, ...]:
    """The loops that are distributed where value and gradient are evaluated, each once.

    Args:
      objective: whose value.
      plan: of it.
      key: a PRNG key.
      params: parameter values and state by name.
      programs: model, guide, their arguments and keyword arguments.
    """
    if not any(eqn.primitive.name == "scan" for eqn in plan.program.eqns):
        return ()
    real = {n: x for n, x in params.items() if is_real(x)}

    def value(real: Any) -> jax.Array:
        return objective.bound_and_state(key, {**params, **real}, *programs)[0]

    with LOOPS.held() as loops:
        jax.eval_shape(jax.value_and_grad(value), real)
    return tuple(LoopReport(*each) for each in dict.fromkeys(loops))
