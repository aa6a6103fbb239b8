"""What is not finite where training stopped: the failing step once more, looked at from inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState

from vipp.diagnostics.parameters import by_name
from vipp.programs.composed import Binding
from vipp.programs.program import AbstractProgram, Program
from vipp.programs.scores import NotFinite, noting_not_finite
from vipp.training.metrics import loss_at


class Blame(NamedTuple):
    """What is not finite.

    Attributes:
      sites: names, in the order in which the programs come to them.
      parameters: names.
      text: all that was found.
    """

    sites: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    text: str = ""


def blame(svi: SVI, state: SVIState, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Blame:
    """Take a step that gave no finite number once more, uncompiled, and see where it comes from.

    Args:
      svi: initialised.
      state: the one before the step, whose key draws what it drew.
      args: of the programs.
      kwargs: of the programs.
    """
    try:
        return _look(svi, state, args, kwargs)
    except Exception as error:  # what is known already must reach the user, whatever this meets
        said = (str(error).splitlines() or [""])[0][:200]
        return Blame(text=f"where it arises could not be seen ({type(error).__name__}: {said})")


def _look(svi: SVI, state: SVIState, args: Any, kwargs: Any) -> Blame:
    raw = svi.optim.get_params(state.optim_state)
    _, key = jax.random.split(state.rng_key)  # as SVI.update does
    watched = noting_not_finite()
    with watched:
        loss, slopes = jax.value_and_grad(loss_at(svi, args, kwargs, state))(raw, key)
    roles = _roles(svi.model, svi.guide)
    found = watched.found
    told = [_told(bad, roles.get(id(bad.program), "a proposal")) for bad in found]
    values = svi.constrain_fn(raw)  # pyright: ignore[reportOptionalCall]
    names = _not_finite(values)
    told += [f"parameter '{n}' is not finite" for n in names]
    of_gradient = [n for n in _not_finite(slopes) if n not in names]
    if of_gradient:
        told.append(f"the gradient is not finite for {_listed(of_gradient)}")
    names += of_gradient
    if not told:
        after = svi.optim.update(slopes, state.optim_state, value=loss)
        names = _not_finite(svi.optim.get_params(after))
        told += [f"the optimiser's step for {_listed(names)} is not finite"] if names else []
    sites = tuple(dict.fromkeys(bad.site for bad in found))
    return Blame(sites, tuple(names), "; ".join(told) or "it did not arise again, uncompiled")


def _told(bad: NotFinite, role: str) -> str:
    where = f" at index {bad.index}" if bad.index else ""
    return f"the log density of site '{bad.site}' under {role} is {bad.value}{where}"


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{n}'" for n in names)


def _not_finite(params: Mapping[str, Any]) -> list[str]:
    bad = lambda x: jnp.issubdtype(x.dtype, jnp.inexact) and not jnp.isfinite(x).all()
    return [name for name, x in by_name(params).items() if bad(jnp.asarray(x))]


def _roles(model: Callable[..., Any], guide: Callable[..., Any]) -> dict[int, str]:
    """Which NumPyro programs the two are made of."""
    roles: dict[int, str] = {}
    for program, role in ((model, "the model"), (guide, "the guide")):

        def note(inside: AbstractProgram, role: str = role) -> AbstractProgram:
            if isinstance(inside, Program):
                roles.setdefault(id(inside.fn), role)
            return inside

        Binding({}).program(program).rebuilt(note)
    return roles
