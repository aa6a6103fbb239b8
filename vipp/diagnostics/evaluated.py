"""An objective at given parameters, of which its value and gradient are looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

import vipp_transforms as vt
from vipp.objectives.objective import Objective, is_real


class Evaluated(NamedTuple):
    """What an objective is evaluated at.

    Attributes:
      objective: whose value.
      plan: of it.
      key: a PRNG key.
      params: parameter values and state by name.
      programs: model, guide, their arguments and keyword arguments.
    """

    objective: Objective
    plan: vt.Plan
    key: Any
    params: Mapping[str, Any]
    programs: Any

    @property
    def real(self) -> dict[str, Any]:
        """The parameters that it has a derivative in."""
        return {n: x for n, x in self.params.items() if is_real(x)}

    def value(self, real: Mapping[str, Any]) -> jax.Array:
        """Its value at other ones."""
        params = {**self.params, **real}
        return self.objective.bound_and_state(self.key, params, *self.programs)[0]
