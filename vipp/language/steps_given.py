"""Values for the steps of a loop that has another number of steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

import vipp_transforms as vt
from vipp.language.control_flow import Inside, Scan


class Steps(NamedTuple):
    """A site of a loop with the number of its values, and that of the loop's steps."""

    name: str
    given: int
    expected: int


def other_number(scan: Scan, inside: Inside, values: Mapping[str, Any]) -> Steps | None:
    """The first site of a loop that ``values`` have another number of steps for.

    NumPyro draws the steps that a shorter series lacks: for forecasts, and no part of a density.
    """
    for name in sorted(values.keys() & inside.latent.keys() - {*inside.nested}):
        got, expected = jnp.shape(values[name]), (scan.length, *inside.shapes[name])
        if len(got) == len(expected) and got[0] != expected[0]:
            return Steps(name, got[0], expected[0])
    return None


def check_steps(scan: Scan | None, inside: Inside, values: Mapping[str, Any]) -> None:
    """Raise where values are those of another number of steps."""
    found = None if scan is None else other_number(scan, inside, values)
    if found is not None:
        raise vt.SiteError(
            f"Site '{found.name}' has values for {found.given} steps, expected {found.expected}, "
            "those of the scan that it is in. Fix: scan over the same sequence in model and guide."
        )
