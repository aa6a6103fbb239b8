"""Whether what is made of parameters that may be any number leaves what a distribution takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.handlers import block, seed, substitute, trace
from numpyro.infer.autoguide import AutoGuide
from numpyro.util import not_jax_tracer

from vipp.diagnostics.parameters import constrained_arguments, is_free
from vipp.diagnostics.records import Site
from vipp.language.keys import subsampling
from vipp.language.mistake import CheckError

_FAR = 3.0  # beyond a parameter's start
_ROUNDING = 1e-4
_LIMITS = {"positive": (0.0, np.inf), "unit_interval": (0.0, 1.0), "simplex": (0.0, np.inf)}


class _Outside(NamedTuple):
    site: str
    argument: str
    constraint: str
    value: float


def check_made_of_free(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    params: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    drawn: Mapping[str, Site],
    scored: Mapping[str, Site],
) -> None:
    """Both programs are run with parameters of either sign, and the choices that they made before.

    Args:
      model: a NumPyro program.
      guide: a NumPyro program; the parameters of an autoguide are in order.
      params: where training starts, constrained.
      args: arguments of both.
      kwargs: keyword arguments of both.
      drawn: the sites of a run of the guide before.
      scored: those of a run of the model on what it drew.

    Raises:
      CheckError: naming a parameter, and the site whose scale or probability it makes impossible.
    """
    guides, at_start = ([], []) if isinstance(guide, AutoGuide) else ([guide], [*drawn.values()])
    sites = at_start + [*scored.values()]
    free = {
        s["name"]: params.get(s["name"], s["value"])
        for s in sites
        if s["type"] == "param" and is_free(s)
    }
    concrete = all(map(not_jax_tracer, jax.tree.leaves([s["value"] for s in sites])))
    if not free or not concrete or any(s["type"] == "mutable" for s in sites):
        return
    values = {n: s["value"] for n, s in drawn.items() if s["type"] == "sample"}

    def run(moved: Mapping[str, Any]) -> list[Site]:
        given = {**params, **values, **moved}
        programs = [*guides, model]
        return [s for p in programs for s in rerun(p, given, args, kwargs).values()]

    before = {(o.site, o.argument) for o in _outside(sites)}
    found = lambda moved: [o for o in _outside(run(moved)) if (o.site, o.argument) not in before]
    for sign in (-1.0, 1.0):
        far = lambda x, sign=sign: sign * (jnp.abs(x) + _FAR)
        moved = {n: jax.tree.map(far, value) for n, value in free.items()}
        if outside := found(moved):
            alone = (n for n in free if found({n: moved[n]}))
            raise _error(next(alone, next(iter(free))), outside[0])


def rerun(program: Any, values: Any, args: Any, kwargs: Any) -> Mapping[str, Site]:
    """The sites of a run with these values, whatever NumPyro would say of them."""
    with numpyro.validation_enabled(False), warnings.catch_warnings(), block(), subsampling():
        warnings.simplefilter("ignore")  # NumPyro's, of what this looks for
        with trace() as record, substitute(data=values), seed(rng_seed=0):
            program(*args, **kwargs)
    return record


def _outside(sites: list[Site]) -> Iterator[_Outside]:
    """The arguments of distributions that are outside of what they may be."""
    for site in sites:
        for argument, value, constraint in constrained_arguments(site):
            low, high = _LIMITS.get(constraint, (-np.inf, np.inf))
            numbers = np.asarray(value)
            bad = numbers[(numbers < low - _ROUNDING) | (numbers > high + _ROUNDING)]
            if bad.size:
                yield _Outside(site["name"], argument, constraint, float(bad[0]))


def _error(name: str, found: _Outside) -> CheckError:
    return CheckError(
        name,
        f"an unconstrained parameter, of which the {found.argument} of site '{found.site}' is made "
        f"(it may become {found.value:.3g})",
        "a positive one" if found.constraint == "positive" else f"one of {found.constraint}",
        f"numpyro.param('{name}', ..., constraint=dist.constraints.{found.constraint}), or make it "
        "of the parameter's softplus, exp, sigmoid or softmax",
    )
