"""Resampling: which particles go on, and with what weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

import vipp_transforms as vt
from vipp_transforms.choices import single_draw

WAYS = ("multinomial", "systematic", "soft", "none")


def ancestors(
    key: Any, log_w: jax.Array, way: str, with_gradient: bool, softness: float
) -> tuple[jax.Array | None, jax.Array]:
    """The ancestors, and the log weights of the particles drawn from them.

    Args:
      key: a random key.
      log_w: normalised, particles along the first axis; those at each place of the others are
        resampled by themselves.
      way: one of :data:`WAYS`.
      with_gradient: whether the choice is one of the engine's.
      softness: the uniform distribution's share in ``"soft"``.

    Returns:
      Indices like ``log_w``, or None for all as they are, and log weights.
    """
    count, even = len(log_w), jnp.full(log_w.shape, -math.log(len(log_w)))
    if way == "none":
        return None, log_w
    if way == "systematic":
        cumulative = jnp.cumsum(jnp.exp(log_w), axis=0)
        numbers = jnp.arange(count).reshape(-1, *(1 for _ in log_w.shape[1:]))
        points = (numbers + jax.random.uniform(key, log_w.shape[1:])) / count
        search = jnp.searchsorted
        for _ in log_w.shape[1:]:
            search = jax.vmap(search, in_axes=-1, out_axes=-1)
        return jnp.minimum(search(cumulative, points), count - 1), even
    log_proposal = log_w
    if way == "soft":
        uniform = jnp.log(softness) - math.log(count)
        log_proposal = jnp.logaddexp(jnp.log1p(-softness) + log_w, uniform)
    if with_gradient:
        logits = jnp.moveaxis(log_proposal, 0, -1)
        drawn = dist.Categorical(logits=jnp.broadcast_to(logits, (count, *logits.shape)))
        index = vt.sample(key, drawn, single_draw(), name="filtering$ancestors")
    else:
        index = jax.random.categorical(key, log_proposal, axis=0, shape=log_w.shape)
    if way == "soft":
        left = descended(log_w - log_proposal, index, range(log_w.ndim - 1))
        return index, left - math.log(count)
    return index, even


def descended(x: jax.Array, index: jax.Array, axes: Sequence[int | None] | None) -> jax.Array:
    """An array of the ancestors.

    Args:
      x: of the particles, which are along its first axis.
      index: of the ancestors, an axis for each plate behind the first.
      axes: where these are in the array of one particle; None for a plate of size one, or in the
        place of all if ``x`` is the same for all particles.
    """
    if axes is None:
        return x
    index = index.squeeze(tuple(1 + i for i, axis in enumerate(axes) if axis is None))
    places = [1 + axis for axis in axes if axis is not None]
    take = lambda x, index: x[index]
    for _ in places:
        take = jax.vmap(take, in_axes=1, out_axes=1)
    front = range(1, 1 + len(places))
    return jnp.moveaxis(take(jnp.moveaxis(x, places, front), index), front, places)
