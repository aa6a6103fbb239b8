"""Minibatches without replacement, at a cost that depends on their size alone."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


@partial(jax.jit, static_argnums=(1, 2))
def subsample(rng_key: Any, size: int, subsample_size: int) -> jax.Array:
    """Distinct indices in random order, all such sequences equally probable.

    The first distinct ones of a few more independent draws, made anew in the rare case that there
    are too few. By symmetry every sequence of distinct indices is as probable as every other,
    however many draws it took.

    Args:
      rng_key: a PRNG key.
      size: the number of indices, from 0 on.
      subsample_size: how many to draw, at most ``size``.

    Returns:
      Indices, shape ``(subsample_size,)``.
    """
    count = _enough(size, subsample_size)
    if count is None:
        return jax.random.permutation(rng_key, size)[:subsample_size]

    def draw(state: Any) -> Any:
        key, _, _ = state
        key, now = jax.random.split(key)
        drawn = jax.random.randint(now, (count,), 0, size)
        fresh = _first_occurrences(drawn)
        order = jnp.argsort(~fresh, stable=True)  # those that are new, in the order of their draw
        return key, drawn[order[:subsample_size]], fresh.sum() >= subsample_size

    start = rng_key, jnp.zeros(subsample_size, int), jnp.array(False)
    return jax.lax.while_loop(lambda state: ~state[2], draw, start)[1]


def _first_occurrences(drawn: jax.Array) -> jax.Array:
    """Whether each entry is the first of its value."""
    order = jnp.argsort(drawn, stable=True)
    ordered = drawn[order]
    first = jnp.concatenate([jnp.array([True]), ordered[1:] != ordered[:-1]])
    return jnp.zeros(len(drawn), bool).at[order].set(first)


def _enough(size: int, subsample_size: int) -> int | None:
    """So many draws that fewer than ``subsample_size`` distinct ones are rare (about 1e-6).

    None if that is more than half of ``size``: a permutation costs no more.
    """
    for count in range(subsample_size, size // 2, max(1, subsample_size // 64)):
        repeated = count + size * math.expm1(-count / size)  # their number is about Poisson
        if count - repeated - 5 * math.sqrt(repeated) - 5 >= subsample_size:
            return count
    return None
