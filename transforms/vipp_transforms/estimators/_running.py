"""Exponentially weighted means, as the state of an estimator that learns.

With ``weight`` the sum of the weights, ``sum / weight`` is the mean without the bias towards its
starting value (as in Adam).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Kept = dict[str, jax.Array]


def start(*shape: int) -> Kept:
    """Of arrays of ``shape``, before the first."""
    return {"sum": jnp.zeros(shape), "weight": jnp.zeros(())}


def news(value: jax.Array, decay: Any) -> Kept:
    """One more ``value``, and the ``decay`` of those before."""
    return jax.lax.stop_gradient({"value": value, "decay": jnp.asarray(decay, float)})


def update(seen: Kept, kept: Kept) -> Kept:
    """The state for the next step."""
    old = seen["decay"]
    return {
        "sum": old * kept["sum"] + (1 - old) * seen["value"],
        "weight": old * kept["weight"] + (1 - old),
    }


def ratio(above: jax.Array, below: jax.Array, otherwise: float) -> jax.Array:
    """``above / below``, or a number where there was nothing yet."""
    return jnp.where(below > 0, above / jnp.where(below > 0, below, 1.0), otherwise)
