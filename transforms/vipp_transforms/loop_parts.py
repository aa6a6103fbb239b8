"""The equations of a loop's step, by what they depend on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from vipp_transforms import _jax
from vipp_transforms.sites import sample_p
from vipp_transforms.staging import live
from vipp_transforms.windows import Windows


class Parts(NamedTuple):
    """The equations of a step.

    Attributes:
      fixed: the same in each step.
      changing: others that depend on no choice.
      chosen: those that depend on choices.
      alike: the variables that change and depend on no choice, and are needed of all steps.
      read: the variables that these or the results need.
      results: the variables that the loop returns for each step, or adds to totals.
    """

    fixed: list[Any]
    changing: list[Any]
    chosen: list[Any]
    alike: list[Any]
    read: set[Any]
    results: list[Any]

    @classmethod
    def of(cls, windows: Windows) -> Parts:
        """Part the equations of a loop's step."""
        steps, depends = windows.steps, windows.depends
        sites = {s.var for s in windows.sites}
        moving = {*(c.var for c in steps.carried), *(s.var for s in steps.scanned)}
        fixed, changing, chosen = [], [], []
        for eqn in steps.eqns:
            inputs = eqn.invars[1:] if eqn.outvars[0] in sites else eqn.invars
            if eqn.outvars[0] in sites or any(depends[v] for v in eqn.outvars):
                chosen.append(eqn)
            elif any(v in moving for v in inputs if not isinstance(v, _jax.Literal)):
                moving.update(eqn.outvars)
                changing.append(eqn)
            else:
                fixed.append(eqn)
        atoms = [s.result for s in steps.stacked] + windows.parts
        results = list(dict.fromkeys(v for v in atoms if not isinstance(v, _jax.Literal)))
        read = set(results)
        for eqn in chosen:
            inputs = eqn.invars[1:] if eqn.outvars[0] in sites else eqn.invars
            read |= {v for v in inputs if not isinstance(v, _jax.Literal)}
        alike = [v for v in read if v in moving and not depends[v]]
        order = {v: i for i, v in enumerate(made(changing))}
        alike.sort(key=lambda v: order.get(v, -1))
        return cls(fixed, changing, chosen, alike, read, results)

    def ahead(self, needed: Sequence[Any]) -> list[Any]:
        """The equations that are evaluated in the loop."""
        bare = [e.replace(invars=[]) if e.primitive is sample_p else e for e in self.chosen]
        return live([*self.changing, *bare], list(needed))


def made(eqns: Iterable[Any]) -> list[Any]:
    """The variables that equations make."""
    return [v for e in eqns for v in e.outvars if not _jax.is_dropped(v)]
