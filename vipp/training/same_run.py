"""Whether a run is the one that a checkpoint is of: the same programs, optimiser and data."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_AHEAD = 2  # steps: the second loss is that of a step of the optimiser
_SAME_LOSSES = 1e-4, 1e-6  # relative and absolute: of another kind of device at most
_SAME_MOVE = 1e-3
_ROUNDING = 8.0  # units in the last place of the parameters that move


class Ahead(NamedTuple):
    """What the next steps from some state would be, taken on one batch.

    Attributes:
      losses: of these steps.
      moved: the norm of the way of each unconstrained parameter.
      size: the norms of the parameters.
    """

    losses: np.ndarray
    moved: np.ndarray
    size: np.ndarray


def ahead_of(losses: np.ndarray, before: Any, after: Any) -> Ahead:
    """What is kept of steps from some parameters to others.

    Args:
      losses: of the steps.
      before: a pytree of unconstrained parameters.
      after: the same.
    """
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    arrays = [(np.asarray(a, float), np.asarray(b, float)) for a, b in pairs]
    moved = np.array([np.linalg.norm(b - a) for a, b in arrays])
    return Ahead(losses, moved, np.array([np.linalg.norm(a) for a, _ in arrays]))


def noted(run: Any, batch: tuple[Any, ...]) -> list[Any]:
    """The steps to come, for the notes of a checkpoint.

    Args:
      run: under way.
      batch: the first of the run, not the next: it is at hand when the run goes on.
    """
    return [x.tolist() for x in run.ahead(_AHEAD, batch)[:2]]


def difference(run: Any, noted: Sequence[Any], batch: tuple[Any, ...]) -> str | None:
    """What the next steps of a run have that those noted had not, or None."""
    found = run.ahead(_AHEAD, batch)
    now = found.losses.tolist(), found.moved.tolist()
    losses, moved = ([np.asarray(x), np.asarray(y)] for x, y in zip(noted, now, strict=True))
    if not same_losses(*losses):
        return f"other losses in its next steps ({noted[0]}, now {now[0]})"
    error = _ROUNDING * np.finfo(np.float32).eps * found.size
    if (abs(moved[0] - moved[1]) > error + _SAME_MOVE * moved[0]).any():
        return f"other steps ahead (parameters move by {noted[1]}, now {now[1]})"
    return None


def same_losses(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether losses are those of the same steps, on another kind of device perhaps."""
    return one.shape == other.shape and np.allclose(one, other, *_SAME_LOSSES, equal_nan=True)


def digest(arrays: Sequence[Any]) -> str:
    """Of arrays, a short string that changes with any of their values."""
    found = hashlib.sha256()
    for x in arrays:
        array = _on_host(x)
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(_bytes(array))
    return found.hexdigest()[:16]


def digest_after(before: int, batch: tuple[Any, ...]) -> int:
    """The number that stands for a row of batches, with one more at its end.

    Args:
      before: that of the row without it.
      batch: arrays, of which those that lie on an accelerator go by their shapes, and others.
    """
    for x in jax.tree.leaves(batch):
        if isinstance(x, np.ndarray) or (isinstance(x, jax.Array) and _is_near(x)):
            array = _on_host(x)
            before = zlib.crc32(f"{array.dtype}{array.shape}".encode(), before)
            before = zlib.crc32(_bytes(array), before)
        else:
            before = zlib.crc32(repr(np.shape(x)).encode(), before)
    return before


def _is_near(x: jax.Array) -> bool:
    return x.is_fully_addressable and all(d.platform == "cpu" for d in x.devices())


def _on_host(x: Any) -> np.ndarray:
    is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
