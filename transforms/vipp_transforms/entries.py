"""A choice's potentials at the entries of a term, and the entries that count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms.lane import MIXED, Lane, UpTo, place
from vipp_transforms.lifting import Lifted


def counted(value: jax.Array, log_weight: jax.Array) -> jax.Array:
    """``value``, or nothing where it is not finite and has probability 0.

    Whoever clips probabilities clips them to the smallest normal number.
    """
    return jnp.where(_impossible(log_weight) & ~jnp.isfinite(value), 0.0, value)


def possible(values: jax.Array, log_weight: jax.Array) -> jax.Array:
    """The values, and instead of each that has probability 0 the most probable one.

    Args:
      values: ``(size, *lanes, *event)``.
      log_weight: of each, ``(size, *lanes)``.
    """
    events = tuple(range(log_weight.ndim, values.ndim))
    log_weight = jnp.expand_dims(jax.lax.stop_gradient(log_weight), events)
    best = jnp.argmax(log_weight, axis=0, keepdims=True)
    values = jnp.broadcast_to(values, jnp.broadcast_shapes(values.shape, log_weight.shape))
    return jnp.where(_impossible(log_weight), jnp.take_along_axis(values, best, 0), values)


def _impossible(log_weight: jax.Array) -> jax.Array:
    return log_weight < math.log(2 * jnp.finfo(log_weight.dtype).tiny)


def at_entries(potential: Lifted, lanes: Sequence[Lane], ndim: int) -> Lifted:
    """A potential of a choice at the entries of a term that depends on these lanes."""
    places = map(place, lanes)
    axes = [p if isinstance(p, int) else None for p in places]
    kept = [a for a in axes if a is not None]
    x, named = potential.array, len(potential.axes)
    for j, a in enumerate(lanes):
        # the multiplier of step t is that of all steps before it: a cumulative sum of
        # logs (docs/engine.md, reward-to-go)
        if isinstance(a, UpTo):
            x = jax.lax.cumsum(x, axis=named + j, reverse=a.reverse)
    # a term that mixes lanes has the joint density's multiplier: logs add up
    summed = tuple(named + j for j, a in enumerate(axes) if a is None)
    order = sorted(range(len(kept)), key=kept.__getitem__)
    x = permute(jnp.sum(x, axis=summed) if summed else x, named, order)
    gaps = tuple(named + a for a in range(ndim) if a not in kept)
    return potential._replace(array=jnp.expand_dims(x, gaps) if gaps else x)


def at_units(potential: Lifted, mixed: Sequence[bool], lanes: Sequence[Lane]) -> Lifted:
    """Of the k-th of the lanes that terms mix, for the k-th of so many unit vectors.

    Args:
      potential: of each lane.
      mixed: along which of its axes some term mixes lanes.
      lanes: of the choice, in this term.

    Returns:
      The potential of every vector at each lane, or one for all lanes that the term mixes.
    """
    x, named = potential.array, len(potential.axes)
    changed = [j for j, m in enumerate(mixed) if m]
    sizes = [x.shape[named + j] for j in changed]
    if all(n == 1 or lanes[j] == MIXED for j, n in zip(changed, sizes, strict=True)):
        # the sum over the lanes has one summand
        front = range(named, named + len(changed))
        moved = jnp.moveaxis(x, [named + j for j in changed], front)
        flat = moved.reshape(*x.shape[:named], -1, *moved.shape[named + len(changed) :])
        return potential._replace(array=jnp.expand_dims(flat, [named + 1 + j for j in changed]))
    shape = [n if m else 1 for n, m in zip(x.shape[named:], mixed, strict=True)]
    chosen = jnp.eye(math.prod(shape), dtype=x.dtype).reshape(-1, *shape)
    return potential._replace(array=jnp.expand_dims(x, named) * chosen)


def permute(x: Any, named: int, order: list[int]) -> Any:
    """Order the axes behind the first ``named``."""
    if order == sorted(order):
        return x
    return jnp.transpose(x, (*range(named), *(named + a for a in order)))
