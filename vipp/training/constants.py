"""The arrays among a program's arguments that are not its data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipp.programs.densities import SiteDensity
from vipp.programs.program import Program


def constants_of(program: Program, sites: Sequence[SiteDensity]) -> dict[str, np.ndarray]:
    """The arguments that are arrays of numbers and not the data of sites, by name.

    Those inside of another argument, such as a dict, have their path with dots.
    """
    data = {s.name: s.value for s in sites if s.observed}
    arrays = {n: x for n, x in _named(program).items() if _is_of_numbers(x)}
    return {n: np.asarray(x) for n, x in arrays.items() if not _is_data(n, x, data)}


def _named(program: Program) -> dict[str, Any]:
    signature = inspect.signature(program.fn)
    given = dict(signature.bind(*program.args, **program.kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    found: dict[str, Any] = {}
    for name, argument in given.items():
        for path, x in jax.tree_util.tree_leaves_with_path(argument):
            parts = [name, *(jax.tree_util.keystr((part,), simple=True) for part in path)]
            found[".".join(parts)] = x
    return found


def _is_of_numbers(x: Any) -> bool:
    known = isinstance(x, jax.Array | np.ndarray)
    return known and (jnp.issubdtype(x.dtype, jnp.number) or jnp.issubdtype(x.dtype, jnp.bool_))


def _is_data(name: str, x: Any, data: Mapping[str, Any]) -> bool:
    if name in data or any(x is value for value in data.values()):
        return True
    same = data.get(name.rpartition(".")[2])
    return same is not None and np.shape(x) == np.shape(same) and bool((x == same).all())
