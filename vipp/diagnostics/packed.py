"""What of an objective's value and gradient is evaluated together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from vipp.diagnostics.evaluated import Evaluated
from vipp_transforms import packing
from vipp_transforms.noting import SUMS
from vipp_transforms.packed_gradient import WORTHWHILE

_SHOWN = 5


@dataclass(frozen=True)
class PackReport:
    """What was packed of a program: small equations of one kind are evaluated as one.

    Attributes:
      equations: how many there are, those of the gradient included if they are packed.
      after: as how many they are evaluated; as many, if nothing is packed.
      groups: of those that are several equations, the operation and how many it stands for, the
        largest first.
    """

    equations: int
    after: int
    groups: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        if not self.groups:
            limit = f"from {WORTHWHILE} on, all pathwise"
            return f"packed: nothing ({self.equations} small equations; {limit})"
        largest = ", ".join(f"{name} x {size}" for name, size in self.groups[:_SHOWN])
        return (
            f"packed: {self.equations:,} equations of value and gradient as {self.after:,} "
            f"(of {len(self.groups)} groups the largest: {largest})"
        )


def packed(of: Evaluated) -> PackReport:
    """What an objective packs, as :func:`vipp_transforms.surrogate.packed_estimate` decides."""
    count = len(of.plan.program.eqns)
    if count < WORTHWHILE or of.plan.program.sites:
        return PackReport(count, count)
    real = of.real
    with packing.apart(), SUMS.held() as sums:
        small = packing.flatten(jax.make_jaxpr(of.value)(real)).num_small
        if sums:  # tables, of which equal ones are evaluated once
            return PackReport(small, small)
        slope = jax.make_jaxpr(jax.value_and_grad(of.value))(real)
    program = packing.flatten(slope, final=True)
    if small < WORTHWHILE or not program.packable:
        return PackReport(small, small)
    with packing.around():
        whole = jax.make_jaxpr(jax.value_and_grad(of.value))(real)
    after = len(packing.groups(packing.flatten(whole, final=True)))
    alike = [(_operation(g[0]), len(g)) for g in packing.groups(program) if len(g) > 1]
    return PackReport(len(program.nodes), after, tuple(sorted(alike, key=lambda g: -g[1])))


def _operation(node: Any) -> str:
    return "sum" if node.eqn is None else node.eqn.primitive.name
