"""Saying that a gradient is biased, to whoever trains along it."""

from __future__ import annotations

import warnings
from typing import Any

from numpyro.primitives import Messenger

import vipp_transforms as vt


class BiasedEstimatorWarning(UserWarning):
    """Training follows a biased gradient, as an estimator that was asked for is biased."""


class noting_biased(Messenger):  # noqa: N801 (a NumPyro handler, named like NumPyro's)
    """Notes the latent sites of the programs beneath it that name a biased estimator."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[tuple[str, str], None] = {}

    def process_message(self, msg: Any) -> None:
        """Note the site."""
        if msg["type"] == "sample" and not msg["is_observed"]:
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
            "choose one, such as vipp.Rebar() or vipp.LocalExpectation(), or accept it with "
            "warnings.simplefilter('ignore', vipp.BiasedEstimatorWarning).",
            BiasedEstimatorWarning,
            stacklevel=stacklevel + 1,
        )
