"""The steps of a loop that are alike, as a chain: what is carried are the choices of the last ones.

The loop's choices are summed out from the last step to the first, in a loop: the logarithm of the
sum over all that comes after a step, as a function of the choices that it carries on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vipp_transforms import _jax
from vipp_transforms.dependence import Dependences
from vipp_transforms.peeling import Peeled, Taken
from vipp_transforms.sites import sample_p


@dataclass(frozen=True, eq=False)
class Chain:
    """The steps that one step of a loop stands for.

    Attributes:
      loop: it.
      needed: the positions of the carried values that a step's factors depend on.
      varying: those of them that change from step to step by more than the choices.
      depth: how many steps it takes until the others are functions of a step's choices alone.
      eqns: the equations of the step whose results change from step to step.
    """

    loop: Peeled
    needed: tuple[int, ...]
    varying: tuple[int, ...]
    depth: int
    eqns: tuple[Any, ...]

    @property
    def step(self) -> Taken:
        """The step that stands for others."""
        return self.loop.steps[-1]

    @property
    def left(self) -> int:
        """The number of the steps."""
        return self.loop.length - self.loop.first

    def inputs(self) -> list[Any]:
        """The variables that have other values in each step."""
        return [*self.step.slices, *(self.step.carry[i] for i in self.varying)]

    def steady(self, depends: Dependences, index: Mapping[Any, int]) -> bool:
        """Whether the step carries on what was carried into it, of the choices one step later."""
        before = earlier(self.loop, index)
        first = {index[v] for v in self.loop.steps[0].sites}
        for i in self.needed:
            carried_on = depends[self.step.results[i]]
            if not first.isdisjoint(carried_on):
                return False  # the step before the first has no choices
            moved = {before.get(r, r): axes for r, axes in carried_on.items()}
            if moved != dict(depends[self.step.carry[i]]):
                return False
        return True


def earlier(loop: Peeled, index: Mapping[Any, int]) -> dict[int, int]:
    """By site in a step that was taken out, the same one in the step before."""
    found = {}
    for now, before in zip(loop.steps[1:], loop.steps, strict=False):
        for v, w in zip(now.sites, before.sites, strict=True):
            found[index[v]] = index[w]
    return found


def chain_of(loop: Peeled, factors: Sequence[Sequence[Any]]) -> Chain:
    """Find out what the last step taken out of a loop needs, given its factors' atoms."""
    step = loop.steps[-1]
    sources = {i: _sources(step, [step.results[i]]) for i in range(loop.carried)}
    needed = _carried(step, _sources(step, [a for atoms in factors for a in atoms]))
    while not needed.issuperset(more := {j for i in needed for j in _carried(step, sources[i])}):
        needed |= more
    levels = _levels(step, sources, needed)
    varying = tuple(i for i in sorted(needed) if i not in levels)
    depth = max((levels[i] for i in needed if i in levels), default=0)
    changing = {*step.slices, *(step.carry[i] for i in varying)}
    eqns = []
    for eqn in step.eqns:
        if eqn.primitive is not sample_p and any(_in(v, changing) for v in eqn.invars):
            eqns.append(eqn)
            changing.update(eqn.outvars)
    return Chain(loop, tuple(sorted(needed)), varying, depth, tuple(eqns))


def _in(atom: Any, variables: set[Any]) -> bool:
    return not isinstance(atom, _jax.Literal) and atom in variables


def _sources(step: Taken, atoms: Sequence[Any]) -> set[Any]:
    """The inputs of a step that atoms are computed from."""
    needed = {a for a in atoms if not isinstance(a, _jax.Literal)}
    for eqn in reversed(step.eqns):
        if eqn.primitive is not sample_p and any(v in needed for v in eqn.outvars):
            needed.update(v for v in eqn.invars if not isinstance(v, _jax.Literal))
    return needed & {*step.carry, *step.slices}


def _carried(step: Taken, sources: set[Any]) -> set[int]:
    return {i for i, v in enumerate(step.carry) if v in sources}


def _levels(step: Taken, sources: dict[int, set[Any]], needed: set[int]) -> dict[int, int]:
    """By carried value that is a function of the choices alone, of how many steps back they are."""
    levels = {i: 0 for i in needed if step.results[i] is step.carry[i]}
    grown = True
    while grown:
        grown = False
        for i in needed - levels.keys():
            before = _carried(step, sources[i])
            if not sources[i] & {*step.slices} and before <= levels.keys():
                levels[i] = 1 + max((levels[j] for j in before), default=0)
                grown = True
    return levels
