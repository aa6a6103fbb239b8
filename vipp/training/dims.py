"""Names for the axes of a program's values: those of its plates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from vipp.programs.densities import SiteDensity
from vipp.programs.program import Program
from vipp.training.abstract_run import Facts, facts_of

_TAKEN = ("chain", "draw")  # ArviZ's own


def all_dims(
    program: Program, sites: Sequence[SiteDensity], constants: Mapping[str, np.ndarray]
) -> dict[str, list[str]]:
    """A name for each axis of what a program's sites and constants hold, by their names.

    Args:
      program: with its arguments.
      sites: what it draws and observes.
      constants: arrays by name.
    """
    values = {s.name: s.value for s in sites if not s.observed}
    given = {**program.params, **program.mutable, **values}
    facts = facts_of(program.fn, given, program.args, program.kwargs)
    derived = {n: _of_derived(n, f) for n, f in facts.items() if f.kind == "deterministic"}
    return _of_arrays(constants, sites) | derived | {s.name: _of_site(s) for s in sites}


def shape_of(site: SiteDensity) -> tuple[int, ...]:
    """That of a site's value, with all of its plates."""
    return (*jnp.shape(site.log_prob), *site.fn.event_shape)


def _unnamed(name: str, shape: Sequence[int]) -> list[str]:
    return [f"{name}_dim_{i}" for i in range(len(shape))]


def _of_site(site: SiteDensity) -> list[str]:
    names = _unnamed(site.name, shape_of(site))
    for plate, dim in site.plates.items():
        if plate not in _TAKEN:
            names[jnp.ndim(site.log_prob) + dim] = plate
    return names


def _of_derived(name: str, facts: Facts) -> list[str]:
    """Nobody says how many of its axes are behind those of its plates: where one number fits."""
    names = _unnamed(name, facts.shape)
    fitting = [at for behind in range(len(names)) if (at := _placed(facts, behind)) is not None]
    if len(fitting) == 1:
        for axis, plate in fitting[0].items():
            if plate not in _TAKEN:
                names[axis] = plate
    return names


def _placed(facts: Facts, behind: int) -> dict[int, str] | None:
    """The plates' axes with so many axes behind them, or None where the sizes are others."""
    found: dict[int, str] = {}
    for plate, dim, size in facts.plates:
        axis = len(facts.shape) - behind + dim
        if axis < 0 or facts.shape[axis] != size:
            return None
        found[axis] = plate
    return found


def _of_arrays(
    arrays: Mapping[str, np.ndarray], sites: Sequence[SiteDensity]
) -> dict[str, list[str]]:
    """Axes are those of the plate of their size, if there is one of that."""
    sizes: dict[int, set[str]] = {}
    for site in sites:
        for plate, dim in site.plates.items():
            if plate in _TAKEN:
                continue
            sizes.setdefault(jnp.shape(site.log_prob)[dim], set()).add(plate)
    only = {n: next(iter(plates)) for n, plates in sizes.items() if len(plates) == 1}

    def named(name: str, shape: Sequence[int]) -> list[str]:
        names = _unnamed(name, shape)
        for axis, size in enumerate(shape):
            if size in only and only[size] not in names:
                names[axis] = only[size]
        return names

    return {name: named(name, x.shape) for name, x in arrays.items()}
