"""Whether the parameters make sense: their start, and what they are used for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints
from numpyro.util import not_jax_tracer

from vipp.diagnostics.mistake import CheckError
from vipp.diagnostics.records import Site
from vipp.distributions.wrappers import factor

_POSITIVE = (constraints.positive, constraints.softplus_positive)


def check_start(site: Site) -> None:
    """The initial value of a parameter is of floats, and satisfies its constraint."""
    constraint, value = _constraint(site), site["value"]
    for dtype in {jnp.result_type(x) for x in jax.tree.leaves(value)}:
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise CheckError(
                site["name"],
                f"a parameter of {dtype}",
                "floats, which can be trained",
                "start it with a float, or pass what is not trained as an argument",
            )
    if not isinstance(value, jax.Array | np.ndarray) or not not_jax_tracer(value):
        return
    inside = np.asarray(constraint(jnp.asarray(value)))
    if not inside.all():
        shown = np.asarray(value) if np.size(value) <= 8 else np.asarray(value)[~inside][:4]
        raise CheckError(
            site["name"],
            f"an initial value outside of the parameter's constraint ({shown})",
            f"one that satisfies {constraint}",
            "start it inside, or change the constraint",
        )


def check_scales(sites: Iterable[Site]) -> None:
    """A parameter that may become negative is not used as it is where a positive one must be."""
    sites = list(sites)
    free = {
        id(s["value"]): s["name"]
        for s in sites
        if s["type"] == "param" and _constraint(s) is constraints.real
    }
    for site in sites:
        for argument, value in _positive_arguments(site):
            if id(value) in free:
                name = free[id(value)]
                raise CheckError(
                    name,
                    f"an unconstrained parameter as the {argument} of site '{site['name']}'",
                    "a positive one",
                    f"numpyro.param('{name}', ..., constraint=dist.constraints.positive)",
                )


def _positive_arguments(site: Site) -> Iterator[tuple[str, Any]]:
    if site["type"] != "sample":
        return
    fn = factor(site["fn"])
    for name, constraint in getattr(fn, "arg_constraints", {}).items():
        if constraint in _POSITIVE and name in vars(fn):
            yield name, vars(fn)[name]


def _constraint(site: Mapping[str, Any]) -> Any:
    return site["kwargs"].get("constraint", constraints.real)


def by_name(params: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of parameters, those of a module by their place in it: ``net$params['w']``."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(params))
    return {path[0].key + jax.tree_util.keystr(path[1:]): x for path, x in leaves}
