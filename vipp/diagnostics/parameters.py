"""Whether the parameters make sense: their start, and what they are used for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints
from numpyro.util import not_jax_tracer

from vipp.diagnostics.records import Site
from vipp.distributions.support import each_number
from vipp.distributions.wrappers import factor
from vipp.language.mistake import CheckError

_CONSTRAINED = {
    "positive": (constraints.positive, constraints.softplus_positive, constraints.nonnegative),
    "unit_interval": (constraints.unit_interval,),
    "simplex": (constraints.simplex,),
    "lower_cholesky": (constraints.lower_cholesky,),
    "corr_cholesky": (constraints.corr_cholesky,),
    "positive_definite": (constraints.positive_definite,),
}


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


def check_constraint(site: Site) -> None:
    """The constraint of a parameter is one."""
    constraint = _constraint(site)
    if not isinstance(constraint, constraints.Constraint):
        raise CheckError(
            site["name"],
            f"the constraint {constraint!r}",
            "one of numpyro.distributions.constraints",
            f"numpyro.param('{site['name']}', ..., constraint=dist.constraints.positive)",
        )


def check_scales(sites: Iterable[Site]) -> None:
    """A parameter that may be any number is not used as it is where not every number may be."""
    sites = list(sites)
    free = {id(s["value"]): s["name"] for s in sites if s["type"] == "param" and is_free(s)}
    for site in sites:
        for argument, value, constraint in constrained_arguments(site):
            if id(value) in free:
                name = free[id(value)]
                raise CheckError(
                    name,
                    f"an unconstrained parameter as the {argument} of site '{site['name']}'",
                    "a positive one" if constraint == "positive" else f"one of {constraint}",
                    f"numpyro.param('{name}', ..., constraint=dist.constraints.{constraint})",
                )


def is_free(site: Site) -> bool:
    """Whether a parameter may be any number."""
    return _constraint(site) is constraints.real


def constrained_arguments(site: Site) -> Iterator[tuple[str, Any, str]]:
    """Name and value of what may not be any number, and the name of its constraint."""
    if site["type"] != "sample":
        return
    fn = factor(site["fn"])
    for name, constraint in getattr(fn, "arg_constraints", {}).items():
        if name in vars(fn) and not constraints.is_dependent(constraint):
            of_each = each_number(constraint) or constraint
            for word, same in _CONSTRAINED.items():
                if of_each in same:
                    yield name, vars(fn)[name], word


def check_same(msg: Site, sites: Mapping[str, Site], where: str) -> None:
    """A parameter that was declared before is declared alike: it has one value."""
    earlier = sites.get(msg["name"])
    if earlier is None or earlier["type"] != "param":
        return
    ours, theirs = _declared(msg), _declared(earlier)
    if ours[1] != theirs[1] or None not in (ours[0], theirs[0]) and ours[0] != theirs[0]:
        raise CheckError(
            msg["name"],
            f"a parameter of shape {ours[0]} and constraint {ours[1]}",
            f"shape {theirs[0]} and constraint {theirs[1]}, as before in {where}",
            "declare it alike wherever it is used, or give the two names of their own",
        )


def _declared(site: Site) -> tuple[tuple[int, ...] | None, Any]:
    """Shape, where it is known, and constraint."""
    start = site["args"][0] if site["args"] else None
    known = isinstance(start, jax.Array | np.ndarray | int | float)
    return jnp.shape(start) if known else None, _constraint(site)


def _constraint(site: Mapping[str, Any]) -> Any:
    return site["kwargs"].get("constraint", constraints.real)


def by_name(params: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of parameters, those of a module by their place in it: ``net$params['w']``."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(params))
    return {path[0].key + jax.tree_util.keystr(path[1:]): x for path, x in leaves}
