"""What a chain's steps say of their choices, of all steps at once.

The densities of a step that depend on its number, but on nothing that the sum over later steps
computes, are evaluated side by side before that sum: in its loop nothing but the sum is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax

from vipp_transforms import _jax
from vipp_transforms.chains import Chain
from vipp_transforms.contraction import Factor
from vipp_transforms.factor_graph import Member
from vipp_transforms.factor_values import FactorValues, atoms_of
from vipp_transforms.staging import live

ROOM = 4  # entries of a step's factor, for each of a message


class Named(NamedTuple):
    """What a factor is called: the names of its axes, and what it was computed from."""

    dims: tuple[str, ...]
    origin: tuple[str, ...]

    def factor(self, array: Any) -> Factor:
        """The factor."""
        return Factor(array, *self)


def tables(
    factors: Callable[..., list[Factor]], *inputs: Any
) -> tuple[list[Any], tuple[Named, ...]]:
    """Evaluate factors of all steps side by side.

    Args:
      factors: of a step, given its inputs.
      inputs: of all steps, along their first axes.

    Returns:
      The factors' arrays, the steps along their first axes, and what they are called.
    """
    names: list[Named] = []

    def one(inputs: tuple[Any, ...]) -> list[Any]:
        found = factors(*inputs)
        names[:] = [Named(f.dims, f.origin) for f in found]
        return [f.array for f in found]

    arrays = jax.checkpoint(jax.vmap(one))(inputs)
    return arrays, tuple(names)


def fitting(
    members: Sequence[Member], chain: Chain, values: FactorValues, message: int
) -> list[Member]:
    """The factors of which, with all that they are computed from, all steps fit into memory.

    Args:
      members: the factors.
      chain: the steps.
      values: of what does not change from step to step.
      message: the entries of what a sum over later steps is about.
    """
    made = {v for e in chain.eqns for v in e.outvars}
    found = []
    for member in members:
        atoms = [a for a in atoms_of(member) if not isinstance(a, _jax.Literal) and a in made]
        eqns = live(list(chain.eqns), atoms)
        sizes = [_entries(values, values.names(v), v.aval.shape) for e in eqns for v in e.outvars]
        names = [values.sites[r].name for r in member.depends if r in values.sites]
        if max([*sizes, _entries(values, names, member.shape)]) <= ROOM * message:
            found.append(member)
    return found


def _entries(values: FactorValues, names: Iterable[str], shape: Sequence[int]) -> int:
    return math.prod(values.axes.sizes[n] for n in names) * math.prod(shape)
