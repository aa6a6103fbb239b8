"""Saying that a gradient is biased, to whoever trains along it."""

from __future__ import annotations

import warnings
from typing import Any

import vipp_transforms as vt
from vipp.language.control_flow import sites


class BiasedEstimatorWarning(UserWarning):
    """Training follows a biased gradient, as an estimator that was asked for is biased."""


class BiasedObjectiveWarning(UserWarning):
    """Training follows a gradient that is biased for what the objective is to optimise."""


class noting_biased(sites):  # noqa: N801 (a NumPyro handler, named like NumPyro's)
    """Notes the latent sites of the programs beneath it that name a biased estimator."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[tuple[str, str], None] = {}

    def visit(self, msg: Any) -> None:
        """Note the site."""
        if not msg["is_observed"]:
            estimator = msg["infer"].get("estimator")
            if isinstance(estimator, vt.Estimator) and estimator.traits.biased:
                self.found[msg["name"], type(estimator).__name__] = None

    def warn(self, what: str, stacklevel: int) -> None:
        """One warning for all of them, if there are any."""
        if not self.found:
            return
        sites = ", ".join(f"'{name}' ({estimator})" for name, estimator in self.found)
        warnings.warn(
            f"{what}: the gradient is biased through {sites}. Expected unbiased estimators. Fix: "
            "choose one, such as vipp.REBAR() or vipp.LocalExpectation(), or accept it with "
            "warnings.simplefilter('ignore', vipp.BiasedEstimatorWarning).",
            BiasedEstimatorWarning,
            stacklevel=stacklevel + 1,
        )


def warn_of_biased_objective(what: str, objective: str, reason: str, stacklevel: int) -> None:
    """One warning that an objective's gradient is biased, and why."""
    warnings.warn(
        f"{what}: the gradient of {objective} is biased: {reason}. Expected an unbiased one. Fix: "
        "choose another objective (`Objective.biased` says of each), or accept it with "
        "warnings.simplefilter('ignore', vipp.BiasedObjectiveWarning).",
        BiasedObjectiveWarning,
        stacklevel=stacklevel + 1,
    )
