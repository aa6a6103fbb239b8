"""Gradients of one choice of estimators, drawn many at a time: how they scatter, what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vipp.diagnostics.redraw import under_numbers
from vipp.objectives.objective import Objective

_LARGEST = 2**25  # numbers kept of the gradients of one call
_MOST_AT_ONCE = 16
_SMALL, _MOST_IF_SMALL = 4096, 24  # a call itself takes time, which is not the gradient's


@dataclass(frozen=True, eq=False)
class Problem:
    """Programs at given parameters.

    Attributes:
      model: a NumPyro program.
      moving: what the gradient is taken in, unconstrained, by name.
      constants: what else the programs need, by name.
      transforms: from the unconstrained values, by name.
      args: arguments of both programs.
      kwargs: keyword arguments of both programs.
      sites: the names of the sites that can be drawn anew.
    """

    model: Any
    moving: Mapping[str, Any]
    constants: Mapping[str, Any]
    transforms: Mapping[str, Callable[[Any], Any]]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    sites: tuple[str, ...]

    @property
    def together(self) -> int:
        """How many gradients are drawn in one call, an even number."""
        size = sum(x.size for x in jax.tree.leaves(dict(self.moving)))
        most = _MOST_IF_SMALL if size < _SMALL else _MOST_AT_ONCE
        return 2 * min(max(_LARGEST // (2 * max(size, 1)), 2), most // 2)


class Call(NamedTuple):
    """What one call drew.

    Attributes:
      mean: of the gradients, ``(coordinates,)``.
      scatter: for each pair half the squared distances to the means of first and second gradients,
        summed over coordinates and scaled so that its expectation is the trace of the covariance.
      within: for each pair half the squared distance between the two.
      seconds: of one gradient.
    """

    mean: np.ndarray
    scatter: np.ndarray
    within: np.ndarray
    seconds: float


@dataclass(eq=False)
class Gradients:
    """The compiled gradient of one objective with one choice of estimators.

    Attributes:
      run: compiled.
      compile_seconds: what tracing and compiling took.
    """

    problem: Problem
    run: Any
    compile_seconds: float
    _inputs: Any = field(repr=False)

    def call(self, key: Any, number: int, anew: Sequence[str] = ()) -> Call:
        """Draw pairs of gradients, each pair with a key of its own.

        Args:
          key: a PRNG key.
          number: of the call; others have other keys, made in the compiled program.
          anew: the two of a pair are independent at these sites and equal at all others; if there
            are none, the two are independent altogether.
        """
        size, sites = self.problem.together, self.problem.sites
        here = np.array([site in anew for site in sites], bool)
        started = time.perf_counter()
        out = jax.block_until_ready(self.run(*self._inputs, key, np.uint32(number), here))
        seconds = (time.perf_counter() - started) / size
        mean, scatter, within = map(np.asarray, out)
        return Call(mean, scatter, within, seconds)


def compiled(problem: Problem, objective: Objective, guide: Any, own: Any) -> Gradients:
    """Compile the gradient of an objective.

    Args:
      problem: the programs.
      objective: whose gradient is drawn.
      guide: the problem's guide with estimators.
      own: parameters and state of the estimators' own, which no gradient is taken in.

    Returns:
      The gradient, to be drawn.
    """
    leaves, structure = jax.tree.flatten((problem.args, dict(problem.kwargs)))
    array = [isinstance(x, jax.Array | np.ndarray) for x in leaves]

    def flat(moving: Any, constants: Any, arrays: Any, key: Any, numbers: Any) -> jax.Array:
        given = iter(arrays)
        args, kwargs = jax.tree.unflatten(
            structure, [next(given) if a else x for a, x in zip(array, leaves, strict=True)]
        )
        by_site = {site: numbers[i] for i, site in enumerate(problem.sites)}
        drawn = under_numbers(guide, by_site)

        def bound(moving: Any) -> jax.Array:
            params = {n: problem.transforms[n](x) for n, x in moving.items()}
            every = {**constants, **params}
            return objective.bound_and_state(key, every, problem.model, drawn, args, kwargs)[0]

        gradient = jax.grad(bound)(moving)
        return jnp.concatenate([jnp.ravel(g) for g in jax.tree.leaves(gradient)])

    def many(
        moving: Any, constants: Any, arrays: Any, key: Any, number: Any, anew: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        one = lambda _, x: (None, flat(moving, constants, arrays, *x))
        pairs = _pairs(jax.random.fold_in(key, number), anew, problem.together)
        _, gradients = jax.lax.scan(one, None, pairs)
        return _moments(gradients)

    arrays = [x for a, x in zip(array, leaves, strict=True) if a]
    inputs = (dict(problem.moving), {**problem.constants, **own}, arrays)
    started = time.perf_counter()
    none = np.zeros(len(problem.sites), bool)
    run = jax.jit(many).lower(*inputs, jax.random.key(0), np.uint32(0), none).compile()
    return Gradients(problem, run, time.perf_counter() - started, inputs)


def _pairs(key: Any, anew: Any, count: int) -> tuple[Any, jax.Array]:
    """A key for each gradient, and a number for each of its sites.

    Equal within a pair but for the numbers of the sites that are drawn anew, if there are any.
    """
    place = jnp.arange(count)
    place = jnp.where(anew.any(), place - place % 2, place)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, place)
    return keys, (jnp.arange(count) % 2)[:, None] * anew


def _moments(gradients: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of pairs, one after the other: the mean, each pair's scatter, and that within it."""
    pairs = gradients.reshape(len(gradients) // 2, 2, -1)
    count = len(pairs)
    square = lambda x: jnp.square(x).sum(-1)
    within = 0.5 * square(pairs[:, 0] - pairs[:, 1])
    around = square(pairs - pairs.mean(0)).mean(1) * count / (count - 1)
    return gradients.mean(0), around, within
