"""A NumPyro program whose scan is taken apart into steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vipp.language.control_flow import Scan
from vipp.language.keys import seeded
from vipp.programs.densities import SiteDensity
from vipp.programs.program import AbstractProgram, Program
from vipp.programs.trace import Trace


@dataclass(frozen=True)
class Sequence:
    """One run of a program up to its scan, and the scan's steps.

    Attributes:
      program: whose parameters the steps use.
      drawn: the latent values before the scan.
      sites: the densities before the scan.
      scan: its step ``(carry, x) -> (carry, y)`` with sites inside, the first carry, and the rest.
    """

    program: Program
    drawn: Trace
    sites: list[SiteDensity]
    scan: Scan

    def advance(
        self, key: Any, carry: Any, x: Any, given: Trace | None = None
    ) -> tuple[Any, Trace, list[SiteDensity]]:
        """One step: the next carry, the latent values (``given``, or drawn), their densities."""
        step = Program(
            self.scan.step, self.program.params, (carry, x), mutable=self.program.mutable
        )
        with seeded(rng_seed=key):
            drawn, sites, (new, _) = step.run(given)
        return new, drawn, sites


def take_apart(program: AbstractProgram, what: str, given: Trace | None = None) -> Sequence:
    """Run ``program`` up to its scan.

    Args:
      program: a NumPyro program with one ``scan``, and no site after it.
      what: to call it in errors.
      given: values for its latent sites; None to draw those before the scan.

    Raises:
      ValueError: if it has no scan, or one in reverse, or sites after it, or if its density is
        estimated.
    """
    if not isinstance(program, Program):
        raise ValueError(
            f"FilteringBound needs a {what} that is a NumPyro program written with scan, got "
            f"{type(program).__name__}. Fix: use ELBO or IWAE with this program."
        )
    drawn, sites, scan, after = program.before_scan(given)
    if scan is None:
        raise ValueError(
            f"FilteringBound: the {what} has no numpyro.contrib.control_flow.scan, got sites "
            f"{sorted(s.name for s in sites)}. Fix: write its steps with scan, or use IWAE."
        )
    if scan.reverse:
        raise ValueError(
            f"FilteringBound: the scan of the {what} runs in reverse, expected forward. Fix: "
            "reverse what it scans over."
        )
    if after:
        raise ValueError(
            f"FilteringBound: site '{after[0]}' of the {what} comes after its scan, expected none. "
            "Fix: draw it before the scan or in its last step."
        )
    return Sequence(program, drawn, sites, scan)
