"""Threefry-2x32 with its rounds written out, for a chain of keys each of which waits for the last.

JAX writes the rounds for CPUs as a loop, of which each turn launches many kernels; that keeps them
from being evaluated again by each reader, which is no danger where a loop over the chain keeps the
keys apart. The bits are JAX's.

References:
  Salmon, Moraes, Dror and Shaw, Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011).
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def splits_alike(key: Any) -> bool:
    """Whether :func:`split` gives what JAX's does: for its default keys, of its default kind."""
    default = jax.config.jax_threefry_partitionable  # pyright: ignore
    return default and is_key(key) and jnp.ndim(key) == 0


def is_key(x: Any) -> bool:
    """Whether an array, or what stands for one, is of keys whose numbers are theirs alone.

    Of other kinds (``rbg``), several that are drawn with at once give other numbers than each by
    itself.
    """
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key) and str(x.dtype) == "key<fry>"


def split(key: Any, shape: tuple[int, ...]) -> Any:
    """``jax.random.split(key, shape)``, the same bits.

    Args:
      key: one for which :func:`splits_alike`.
      shape: of the new keys.
    """
    first, second = jax.random.key_data(key)
    count = jnp.arange(math.prod(shape), dtype=jnp.uint32)
    words = hashed(first, second, jnp.zeros_like(count), count)
    data = jnp.stack(words, axis=-1).reshape(*shape, 2)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))


def hashed(first: Any, second: Any, high: Any, low: Any) -> tuple[Any, Any]:
    """Two words of a counter as two random ones, of NumPy's or of JAX's arrays."""
    keys = first, second, first ^ second ^ np.uint32(_PARITY)
    x, y = high + keys[0], low + keys[1]
    for block in range(5):
        for turn in _ROTATIONS[block % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(turn)) | (y >> np.uint32(32 - turn)))
        x = x + keys[(block + 1) % 3]
        y = y + keys[(block + 2) % 3] + np.uint32(block + 1)
    return x, y
