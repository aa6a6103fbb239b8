"""What does not go with a run that finds its step sizes by itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vipp.objectives.objective import Objective


def check_goes_without_optimiser(
    objective: Objective, num_restarts: int, batches: Iterable[Any] | None
) -> None:
    """Raise for what needs an optimiser.

    Raises:
      ValueError: naming it.
    """
    if objective.schedules:
        raise ValueError(
            f"fit: got an objective that changes with the step ({sorted(objective.schedules)} of "
            f"{objective!r}) without an optimiser (optim=None), which has to see it converge. Fix: "
            "a constant, or an optimiser such as optax.adam(1e-3)."
        )
    if num_restarts > 1 and batches is not None and iter(batches) is batches:
        raise ValueError(
            f"fit: got batches={batches!r}, which can be gone through once, with num_restarts="
            f"{num_restarts} without an optimiser (optim=None), whose starts are trained one after "
            "another. Fix: give a list, or a loader whose __iter__ begins anew."
        )
