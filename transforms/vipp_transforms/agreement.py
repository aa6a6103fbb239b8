"""A distribution's density is that of its draws: both read the same parameters.

Else the score of a parameter is not zero in expectation, or is zero where the draw moves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from vipp_transforms.errors import SiteError
from vipp_transforms.reach import Labels, reach, read, spread
from vipp_transforms.staging import Program, Site


def check_agreement(program: Program) -> None:
    """Raise for a site whose draw reads other parameters than its density.

    What is not a float, such as a mask, is told by itself. A float parameter may be held in two
    forms, one for the draw and one for the density: it is told by the program's inputs, and the
    choices before, that it is made from; so constants are not told.
    """
    differing = [(s, *_read(s)) for s in program.sites.values()]
    differing = [(site, drawn, scored) for site, drawn, scored in differing if drawn != scored]
    made_from = _origins(program) if differing else {}
    for site, drawn, scored in differing:
        flags = {i for i in scored - drawn if not _is_float(site.parameters[i])}
        behind_draw = _behind(site, drawn, made_from)
        behind_density = _behind(site, scored, made_from)
        if flags or behind_density - behind_draw:
            raise _disagreement(site, "log density reads", "draw", flags or scored - drawn)
        if behind_draw - behind_density:
            raise _disagreement(site, "draw reads", "log density", drawn - scored)


def _read(site: Site) -> tuple[set[int], set[int]]:
    """Which parameters the draw reads, and which the log density."""
    return _positions(site.template.drawing, site), _positions(site.log_prob, site)


def _positions(jaxpr: Any, site: Site) -> set[int]:
    """Which parameters reach the result; before them is the key or the value."""
    count, settings = len(site.parameters), len(site.settings)
    labels = [frozenset(), *(frozenset({i}) for i in range(count)), *[frozenset()] * settings]
    return set().union(*reach(jaxpr, labels))


def _is_float(atom: Any) -> bool:
    return jnp.issubdtype(atom.aval.dtype, jnp.inexact)


def _origins(program: Program) -> dict[Any, Labels]:
    """The inputs and the drawn values that each value is made from."""
    env: dict[Any, Labels] = {v: frozenset({v}) for v in program.inputs}
    for eqn in program.eqns:
        spread([eqn], env)
        env.update((v, frozenset({v})) for v in eqn.outvars if v in program.sites)
    return env


def _behind(site: Site, found: Iterable[int], made_from: dict[Any, Labels]) -> Labels:
    return frozenset().union(*(read(made_from, site.parameters[i]) for i in found))


def _disagreement(site: Site, one: str, other: str, found: Iterable[int]) -> SiteError:
    what = ", ".join(str(site.parameters[i].aval.str_short()) for i in sorted(found))
    return SiteError(
        f"Site '{site.name}': the {one} a parameter of {site.template.kind} ({what}) that its "
        f"{other} does not, expected the density of what is drawn. Fix: draw from the distribution "
        "without its mask or censoring, and mask or censor the terms; or mend its methods."
    )
