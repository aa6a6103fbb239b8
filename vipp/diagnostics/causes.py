"""What an error of NumPyro or JAX comes from, where it has no site in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints
from numpyro.infer.autoguide import AutoGuide
from numpyro.util import not_jax_tracer

from vipp.diagnostics.free_parameters import rerun
from vipp.diagnostics.records import Site
from vipp.distributions.answers import kind
from vipp.distributions.wrappers import factor
from vipp.language.mistake import CheckError


def check_valued(sites: Mapping[str, Site]) -> None:
    """Every parameter has a value."""
    for name, site in sites.items():
        if site["type"] == "param" and site["value"] is None:
            raise CheckError(
                name,
                "a parameter without a value",
                "one to start at",
                f"numpyro.param('{name}', start), or init_params={{'{name}': start}}",
            )


def check_started(start: Any, given: Any, name: str) -> None:
    """A value in ``init_params`` is made like the parameter's own start."""
    got, wanted = _shapes(given), _shapes(start)
    if got == wanted:
        return
    shape = lambda found, path: "nothing" if path not in found else f"shape {found[path]}"
    path = next(p for p in [*wanted, *got] if got.get(p) != wanted.get(p))
    raise CheckError(
        name,
        f"{shape(got, path)} in init_params" + (f" at {path}" if path else ""),
        f"{shape(wanted, path)}, as the program declares it",
        "give a value of that shape, such as result.params of the same programs",
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): jnp.shape(x) for path, x in leaves}


def check_runs(
    model: Any,
    guide: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    given: Mapping[str, Any],
) -> None:
    """Both programs, run with their own starts: what is impossible there.

    Args:
      model: a NumPyro program.
      guide: a NumPyro program.
      args: arguments of both.
      kwargs: keyword arguments of both.
      given: ``init_params``.

    Raises:
      CheckError: naming a site with an impossible argument of its distribution, or a parameter
        that ``init_params`` has another kind of value for.
    """
    values: dict[str, Any] = {}
    for program in [model] if isinstance(guide, AutoGuide) else [guide, model]:
        try:
            sites = rerun(program, values, args, kwargs)
        except Exception:  # the error that there is says more
            return
        for name, site in sites.items():
            if site["type"] == "param" and name in given:
                check_started(site["value"], given[name], name)
            if site["type"] == "sample":
                _check_arguments(site)
                values[name] = site["value"]


def _check_arguments(site: Site) -> None:
    for argument, value, constraint in _constrained(site):
        inside = constraint(jnp.asarray(value))
        if not not_jax_tracer(inside) or np.asarray(inside).all():
            continue
        at = tuple(int(i) for i in np.argwhere(~np.asarray(inside))[0])
        shown = np.asarray(value)[at] if at else np.asarray(value)
        raise CheckError(
            site["name"],
            f"a {kind(factor(site['fn']))} whose {argument} is {shown}"
            + (f" at index {at}" if at else ""),
            f"one that satisfies {constraint}",
            "correct what it is made of, or transform it (exp, softplus, sigmoid, softmax)",
        )


def _constrained(site: Site) -> Iterator[tuple[str, Any, Any]]:
    fn = factor(site["fn"])
    for name, constraint in getattr(fn, "arg_constraints", {}).items():
        value = vars(fn).get(name)
        if constraints.is_dependent(constraint) or not isinstance(
            value, jax.Array | np.ndarray | int | float
        ):
            continue
        if not_jax_tracer(value):
            yield name, value, constraint
