"""Densities of values that stay where they are: what deterministic sites make of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.handlers import block

from vipp.language.keys import seeded
from vipp.programs.densities import SiteDensity
from vipp.programs.program import AbstractProgram, Program
from vipp_transforms import _jax


def check_still(what: str, program: AbstractProgram) -> None:
    r"""Raise if a draw's deterministic sites move with the parameters.

    Where the gradient of :math:`\log q_\phi(z)` at a fixed ``z`` is wanted, a site ``z`` that is a
    function of random ones ``u`` must not depend on :math:`\phi` but through ``u``: what the
    program scores is then the density of a value that stays. Else ``u`` would have to move so that
    ``z`` stays, which the program does not say how to do.

    Args:
      what: the objective that wants it.
      program: a guide.

    Raises:
      ValueError: naming such a site.
    """
    found: list[Program] = []

    def note(inside: AbstractProgram) -> AbstractProgram:
        found.extend([inside] if isinstance(inside, Program) else [])
        return inside

    program.rebuilt(note)
    for inside in found:
        for name in _moving(inside):
            raise ValueError(
                f"{what}: the guide's site '{name}' is deterministic and moves with the parameters "
                "while what is drawn stays, expected sites drawn at random, as the guide's density "
                f"at fixed values is followed. Fix: draw '{name}' from a distribution of its own "
                "(a flow as a TransformedDistribution), or use ELBO or IWAE."
            )


def _moving(program: Program) -> list[str]:
    """The deterministic sites that have a derivative in the parameters, the draws being held."""
    moved = {n: x for n, x in program.params.items() if _is_real(x)}
    names: list[str] = []

    def deterministic(params: Any) -> Any:
        own = replace(program, params={**program.params, **params}, mutable=dict(program.mutable))
        with block(), seeded(rng_seed=jax.random.key(0)):
            _, sites = replace(own, differentiable=False, held_for="").simulate_sites()
        fixed = [s for s in sites if s.deterministic and not s.observed and _is_real(s.value)]
        names[:] = [s.name for s in fixed]
        return [(s.value, s.log_prob) for s in fixed]

    slope = lambda tangent: jax.jvp(deterministic, (moved,), (tangent,))[1]
    closed, shape = _jax.trace(slope, moved)
    places = jax.tree.unflatten(jax.tree.structure(shape), _jax.depends(closed))
    return [n for n, depends in zip(names, places, strict=True) if any(depends)]


def _is_real(tree: Any) -> bool:
    return all(jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in jax.tree.leaves(tree))


def check_anywhere(
    what: str, of_q: list[SiteDensity], of_p: list[SiteDensity] | None = None
) -> None:
    """Raise if a program has no density but at the values that it draws itself.

    Args:
      what: to call it in errors.
      of_q: its densities, at values from elsewhere.
      of_p: those of the program that the values are from, where a site may be deterministic, too.
    """
    random = None if of_p is None else {s.name for s in of_p if s.random}
    for site in of_q:
        if site.deterministic and not site.observed and (random is None or site.name in random):
            raise ValueError(
                f"{what} has site '{site.name}' as a deterministic one, which has no density at "
                "values from elsewhere, expected one drawn at random. Fix: draw it from a "
                "distribution of its own (a flow as a TransformedDistribution)."
            )
