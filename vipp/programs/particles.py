"""Particles that begin apart and move step by step, closed over values of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipp_transforms import _jax


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("closed_over", "state", "xs", "value"),
    meta_fields=("jaxpr", "out", "steps"),
)
@dataclass(frozen=True, eq=False)
class Particles:
    """One particle as it begins, or many: how it moves is the same for all of them.

    Attributes:
      closed_over: what the function that moves it is closed over.
      state: what it carries from step to step.
      xs: what it is given, a leading axis for the steps.
      value: what is wanted of its beginning.
      jaxpr, out: the function ``(key, state, x) -> (state, result)``.
      steps: how often it moves.
    """

    closed_over: list[Any]
    state: Any
    xs: Any
    value: Any
    jaxpr: Any
    out: Any
    steps: int

    @staticmethod
    def of(
        move: Callable[..., Any], key: Any, state: Any, xs: Any, value: Any, steps: int
    ) -> Particles:
        """A particle moved by ``move``, whatever that is closed over."""
        state = jax.tree.map(jnp.asarray, state)
        first = jax.tree.map(lambda x: x[0], xs)
        closed, shape = _jax.trace(move, key, state, first)
        jaxpr, closed_over = _jax.open_jaxpr(closed)
        out = jax.tree.structure(shape)
        return Particles(list(closed_over), state, xs, value, jaxpr, out, steps)

    def move(self, key: Any, state: Any, x: Any, closed_over: list[Any]) -> Any:
        """One step of a particle."""
        invars = [*self.jaxpr.constvars, *self.jaxpr.invars]
        run = _jax.evaluator(self.jaxpr.eqns, invars, self.jaxpr.outvars)
        return jax.tree.unflatten(self.out, run(*closed_over, *jax.tree.leaves((key, state, x))))


class Begun(NamedTuple):
    """How one particle begins.

    Attributes:
      jaxpr: of its key.
      places: for each array of the particle, which of the results it is.
    """

    jaxpr: Any
    places: Particles


def begin(start: Callable[[Any], Particles], keys: Any) -> tuple[Particles, Particles, Begun]:
    """Many particles, one for each key.

    Returns:
      Them; in the same structure which arrays are each particle's own, on a leading axis: what does
      not depend on the key is there once; and how one begins.
    """
    closed, shape = _jax.trace(start, keys[0])
    treedef = jax.tree.structure(shape)
    own: Particles = jax.tree.unflatten(treedef, _jax.depends(closed))
    state, value = (jax.tree.map(lambda _: True, x) for x in (own.state, own.value))
    own = replace(own, state=state, value=value)
    axes = [0 if varies else None for varies in jax.tree.leaves(own)]
    leaves = jax.vmap(lambda key: _jax.evaluated(closed, [key]), out_axes=axes)(keys)
    begun = Begun(closed.jaxpr, jax.tree.unflatten(treedef, range(len(leaves))))
    return jax.tree.unflatten(treedef, leaves), own, begun


def part(tree: Any, own: Any) -> tuple[list[Any], list[Any]]:
    """The leaves that are each particle's own, and those that all share; see :func:`joined`."""
    pairs = list(zip(jax.tree.leaves(tree), jax.tree.leaves(own), strict=True))
    return [x for x, varies in pairs if varies], [x for x, varies in pairs if not varies]


def joined(own: Any, of_each: list[Any], shared: list[Any]) -> Any:
    """The tree that :func:`part` took apart."""
    leaves, treedef = jax.tree.flatten(own)
    one, other = iter(of_each), iter(shared)
    return jax.tree.unflatten(treedef, [next(one) if v else next(other) for v in leaves])
