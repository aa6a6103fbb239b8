"""Data that a fitted model predicts at other arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from vipp.language.arrays import as_jax
from vipp.language.keys import seeded
from vipp.language.names import close
from vipp.programs.calls import check_call
from vipp.programs.densities import SiteDensity
from vipp.programs.program import Program
from vipp.programs.trace import Trace


def at(program: Program, arguments: tuple[Any, ...] | Mapping[str, Any]) -> Program:
    """A program at other arguments.

    Args:
      program: at those of training.
      arguments: a tuple of positional ones, beside the keyword ones of training; or those that
        are others, by name.

    Raises:
      TypeError: if these are neither.
      ValueError: for a name that no argument has, or as many arguments as the model does not take.
    """
    if isinstance(arguments, tuple):
        check_call("model, for predictions=,", program.fn, arguments, program.kwargs)
        return replace(program, args=as_jax(arguments))
    if not isinstance(arguments, Mapping):
        raise TypeError(
            f"to_arviz: predictions must be a tuple of arguments or a dict of them by name, got "
            f"{type(arguments).__name__}. Fix: predictions=(x,)."
        )
    signature = inspect.signature(program.fn)
    given = signature.bind(*program.args, **program.kwargs)
    for name in arguments:
        if name not in signature.parameters:
            raise ValueError(
                f"to_arviz: predictions has '{name}', which is no argument of the model, got "
                f"{list(signature.parameters)}{close(name, signature.parameters)}. Fix: use one of "
                "these names."
            )
    given.arguments |= as_jax(dict(arguments))
    return replace(program, args=given.args, kwargs=given.kwargs)


def predicted(
    keys: Any,
    program: Program,
    sites: Sequence[SiteDensity],
    latent: Mapping[str, Any],
    names: Sequence[str],
) -> dict[str, jax.Array]:
    """Values of the model's data and deterministic sites at other arguments, for each draw.

    A latent site of plates that are of other sizes there is drawn anew, given those that are not.

    Args:
      keys: one for each draw.
      program: at these arguments.
      sites: what it has there.
      latent: draws by site.
      names: of the sites that were data in training.

    Raises:
      ValueError: naming a latent site that is of another shape though in no plate, or a site that
        was data in training and is not there.
    """
    there = {s.name: s for s in sites}
    for name in names:
        if name not in there:
            raise ValueError(
                f"to_arviz: at predictions= the model has no site '{name}', which was data in "
                f"training, got {sorted(there)}. Fix: let the model draw it where its data are "
                "None."
            )
    kept = {n: x for n, x in latent.items() if n in there and _fits(there[n], x)}
    fn = jax.vmap(lambda key, values: _one(program, key, values, names))
    return jax.jit(fn)(keys, kept)


def _fits(site: SiteDensity, draws: Any) -> bool:
    wanted, got = jnp.shape(site.value), draws.shape[1:]
    if wanted != got and not site.plates:
        raise ValueError(
            f"to_arviz: latent site '{site.name}' is of shape {wanted} at predictions=, and of "
            f"{got} in the posterior. Fix: give arguments with which it has the same, such as as "
            "many columns; or put what there are more or fewer of into a plate."
        )
    return wanted == got


def _one(program: Program, key: Any, values: Any, names: Sequence[str]) -> dict[str, jax.Array]:
    with seeded(rng_seed=key):
        return program.predict(Trace(values), names)
