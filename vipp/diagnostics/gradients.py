"""Parameters that the gradient of an objective does not move."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vipp.diagnostics.parameters import by_name
from vipp_transforms import _jax, packing
from vipp_transforms.reach import reach


class NoGradientWarning(UserWarning):
    """A parameter stays at its start, as the objective has no derivative in it."""


def without_gradient(loss: Callable[[Any], jax.Array], params: Mapping[str, Any]) -> list[str]:
    r"""The parameters in which a function has no derivative, whatever their values.

    Its differential :math:`\sum_i \partial_i f \, d\theta_i` is written down as a program; those of
    which no :math:`d\theta_i` reaches the result. Nothing is evaluated, so that one whose
    derivative happens to be zero is none of them.

    Args:
      loss: a function of ``params`` to a scalar.
      params: by name; those that are no real numbers are left out.

    Returns:
      Names, in order; those of a module's arrays with their place in it.
    """
    given = by_name(params)
    arrays = {n: x for n, x in given.items() if jnp.issubdtype(jnp.result_type(x), jnp.floating)}
    structure = jax.tree.structure(dict(params))

    def of(moving: dict[str, Any]) -> jax.Array:
        return loss(jax.tree.unflatten(structure, list({**given, **moving}.values())))

    def differential(tangents: dict[str, Any]) -> jax.Array:
        return jax.jvp(of, (arrays,), (tangents,))[1]

    arrays = {n: jnp.asarray(x) for n, x in arrays.items()}
    with packing.apart():  # what is evaluated together would depend on all of them
        closed, _ = _jax.trace(differential, arrays)
    order = jax.tree.leaves({n: n for n in arrays})
    (reaching,) = reach(closed, [frozenset({n}) for n in order])
    return [n for n in arrays if n not in reaching]


def warn_without_gradient(what: str, names: Sequence[str], stacklevel: int) -> None:
    """One warning for all of them, if there are any."""
    if not names:
        return
    several = len(names) > 1
    listed = ", ".join(f"'{n}'" for n in names)
    warnings.warn(
        f"{what}: parameter{'s' * several} {listed} {'have' if several else 'has'} no gradient: "
        "nothing that is differentiable leads from there to the objective, so training leaves "
        f"{'them' if several else 'it'} as {'they are' if several else 'it is'}. Expected every "
        "parameter to count. Fix: use what numpyro.param returns in a site's distribution, without "
        "rounding or comparing it, or remove it; or accept it with "
        "warnings.simplefilter('ignore', vipp.NoGradientWarning).",
        NoGradientWarning,
        stacklevel=stacklevel + 1,
    )
