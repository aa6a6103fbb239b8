"""Finite sites summed out exactly, by the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from numpyro.primitives import apply_stack

import vipp_transforms as vt
from vipp.language.keys import random_key
from vipp.programs.densities import SiteDensity
from vipp.programs.kept import check_exists, check_given, only
from vipp.programs.program import AbstractProgram, Change, Program
from vipp.programs.staged import staged
from vipp.programs.trace import Trace
from vipp.programs.weights import at_plates


@dataclass(frozen=True)
class ExactMarginalProgram(AbstractProgram):
    """A program with the finite sites that are not kept summed out; see :func:`vipp.marginal`."""

    base: AbstractProgram
    keep: tuple[str, ...]
    parallel: bool | None = None

    def rebuilt(self, change: Change) -> AbstractProgram:
        """The same of the program, changed."""
        return replace(self, base=change(self.base))

    def __call__(self) -> Any:
        """Run it for its return value."""
        return self.base()

    def simulate_sites(self) -> tuple[Trace, list[SiteDensity]]:
        """Draw all sites, and score those kept."""
        drawn, _ = self.base.simulate_sites()
        check_exists(self._name, self.keep, drawn)
        kept = only(drawn, [n for n in drawn if n in self.keep])
        return kept, self.log_density_sites(kept)

    def log_density_sites(self, trace: Trace) -> list[SiteDensity]:
        """The density of the kept values, the other sites summed out."""
        run, sites, summed = self._complete(trace)
        groups = vt.sum_out(run, parallel=self.parallel)
        _tell(groups)
        members = {name for group in groups for name in group.members}
        apart = [s for s in sites if s.name not in members and s.name not in summed]
        return [*apart, *(self._one_density(g, sites) for g in groups)]

    def densities(self, trace: Trace) -> Callable[[], list[vt.Density]]:
        """The program's run for the engine, which sums over what ``trace`` has no value for."""
        return self._complete(trace)[0]

    def subsamples(self, trace: Trace) -> dict[str, Any]:
        """The indices of the program's subsampled plates, given values of sites."""
        return replace(self._base, differentiable=False).complete(trace)[0].subsamples

    @property
    def _base(self) -> Program:
        if isinstance(self.base, Program):
            return self.base
        raise ValueError(
            f"{self._name}: sites of a NumPyro program can be summed out exactly, got "
            f"{type(self.base).__name__}. Fix: apply exact=True to the program inside."
        )

    def _complete(
        self, trace: Trace
    ) -> tuple[Callable[[], list[vt.Density]], list[SiteDensity], tuple[str, ...]]:
        """That run, all densities at one value of what is summed out, and its names."""
        base = self._base
        check_given(self._name, self.keep, trace, "summed out")
        drawn, sites, summed = replace(base, differentiable=False).complete(trace)
        check_exists(self._name, self.keep, drawn)
        key = random_key("marginal")
        kept = {n: x for n, x in drawn.values.items() if n not in summed}
        data = {**base.params, **base.mutable, **drawn.subsamples}
        run = partial(staged, base.keyed(), base.args, base.kwargs, key, data, kept, summed)
        return run, sites, summed

    def _one_density(self, group: vt.LogSum, sites: list[SiteDensity]) -> SiteDensity:
        """The density of a group's sites together."""
        members = [s for s in sites if s.name in group.members]
        for site in members:
            for plate, ratio in site.subsampling.items():
                if ratio != 1 and plate not in group.plates:
                    raise _subsampled_apart(self._name, site.name, plate, group)
        dims = {n: members[0].plates[n] for n in group.plates}
        ratios = {n: members[0].subsampling[n] for n in group.plates}
        observed = all(s.observed or s.name in group.summed for s in members)
        value = at_plates(group.value, members[0], group.plates) if dims else group.value
        held_for = self._base.held_for
        for site in members if held_for else ():
            value = site.hold(value, held_for)
        return SiteDensity(self._name, value, group.scale, dims, ratios, observed=observed)

    @property
    def _name(self) -> str:
        return f"marginal({', '.join(self.keep)}, exact=True)"


def _tell(groups: Sequence[vt.LogSum]) -> None:
    """Let handlers further out know what was summed out, and in which order."""
    for group in groups:
        apply_stack(
            {"type": "summed_out", "group": group, "fn": lambda: True, "args": (), "kwargs": {},
             "value": None, "stop": False}
        )  # fmt: skip


def _subsampled_apart(name: str, site: str, plate: str, group: vt.LogSum) -> ValueError:
    together = ", ".join(f"'{s}'" for s in group.members)
    return ValueError(
        f"{name}: site '{site}' is subsampled by plate '{plate}', of which a minibatch is summed "
        f"over together with what is outside it ({together}): expected all of these in the plate, "
        "each element on its own. Fix: move them into the plate, keep the site that connects them, "
        "or drop subsample_size."
    )
