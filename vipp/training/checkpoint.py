"""Checkpoints of a training run: written whole or not at all, read back bit by bit."""

from __future__ import annotations

import fcntl
import hashlib
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_KEPT = 2


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or is not one to go on from."""


class Saved(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      step: the number of steps done.
      arrays: a pytree.
      series: one number for each step.
      notes: of numbers, strings, lists and dicts.
    """

    step: int
    arrays: Any
    series: np.ndarray
    notes: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in a folder of its own, the last two of them.

    Orbax writes one beside its place and renames it. So a run that is killed leaves the earlier
    one as it was. A digest of all bytes tells one that was damaged.

    Args:
      folder: made if it is not there.
      identity: what a run must have in common with the checkpoint to go on from it, by name.

    Raises:
      ImportError: if Orbax is not installed.
      CheckpointError: if the folder can't be written to, or another run is at work in it.
    """

    def __init__(self, folder: str, identity: Mapping[str, str]):
        self._folder = pathlib.Path(folder).absolute()
        self._identity = dict(identity)
        self._checkpointer = _orbax().StandardCheckpointer()

    def __enter__(self) -> Checkpoints:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self._folder / ".lock").open("w")
        except OSError as error:
            raise CheckpointError(
                f"fit: checkpoint: the folder {self._folder} can't be written to ({error}). Fix: "
                "give one that can."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise CheckpointError(
                f"fit: checkpoint: another run is at work in {self._folder}. Fix: give each run a "
                "folder of its own."
            ) from error
        return self

    def __exit__(self, *error: object) -> None:
        self._checkpointer.close()
        self._lock.close()

    def save(self, step: int, arrays: Any, series: np.ndarray, notes: Mapping[str, Any]) -> None:
        """Write a checkpoint, and delete those before the last two.

        Raises:
          CheckpointError: if it can't be written; those before it are still there.
        """
        leaves = [series, *(np.asarray(_raw(x)) for x in jax.tree.leaves(arrays))]
        text = json.dumps({"identity": self._identity, "digest": _digest(leaves), **notes})
        whole = {f"leaf {i}": x for i, x in enumerate(leaves)}
        whole["notes"] = np.frombuffer(text.encode(), np.uint8)
        try:
            self._checkpointer.save(self._folder / str(step), whole, force=True)
            self._checkpointer.wait_until_finished()
            for old in self._steps()[:-_KEPT]:
                shutil.rmtree(self._folder / str(old))
        except Exception as error:  # of the file system, however Orbax wraps it
            raise CheckpointError(
                f"fit: checkpoint: step {step} can't be written to {self._folder} ({error}). The "
                "checkpoints before it are still there. Fix: make room, and run again to go on."
            ) from error

    def latest(self, like: Any) -> Saved | None:
        """The last checkpoint, or None if there is none.

        Args:
          like: a pytree as it was saved; its values are not used.

        Raises:
          CheckpointError: if it is damaged, or of another run.
        """
        steps = self._steps()
        return self._read(steps[-1], like) if steps else None

    def _steps(self) -> list[int]:
        return sorted(int(p.name) for p in self._folder.iterdir() if p.name.isdigit())

    def _read(self, step: int, like: Any) -> Saved:
        path = self._folder / str(step)
        try:
            whole = self._checkpointer.restore(path)
            notes = json.loads(bytes(np.asarray(whole.pop("notes"))))
            leaves = [np.asarray(whole[f"leaf {i}"]) for i in range(len(whole))]
            intact = notes.pop("digest") == _digest(leaves)
        except Exception as error:  # whatever reading a damaged file may raise
            raise _damaged(path, error) from error
        if not intact:
            raise _damaged(path, "its bytes are not those that were written")
        self._check_identity(path, notes.pop("identity"))
        series, *leaves = leaves
        wanted, treedef = jax.tree.flatten(like)
        shapes = [(np.shape(_raw(x)), np.asarray(_raw(x)).dtype) for x in wanted]
        if [(x.shape, x.dtype) for x in leaves] != shapes:
            raise _foreign(path, "parameters or an optimiser of other shapes")
        made = [_like(x, w) for x, w in zip(leaves, wanted, strict=True)]
        return Saved(step, jax.tree.unflatten(treedef, made), series, notes)

    def _check_identity(self, path: pathlib.Path, found: Mapping[str, str]) -> None:
        for name, value in self._identity.items():
            if found.get(name) != value:
                raise _foreign(path, f"another {name} ({found.get(name)}, now {value})")


def _orbax() -> Any:
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise ImportError(
            "fit: checkpoint needs Orbax, which is not installed. Fix: pip install "
            "'vipp[checkpoint]'."
        ) from error
    return orbax.checkpoint


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _raw(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x


def _like(value: np.ndarray, wanted: Any) -> jax.Array:
    if _is_key(wanted):
        return jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(wanted))
    return jnp.asarray(value)


def _digest(leaves: list[np.ndarray]) -> str:
    found = hashlib.sha256()
    for x in leaves:
        found.update(f"{x.shape} {x.dtype}".encode() + np.ascontiguousarray(x).tobytes())
    return found.hexdigest()


def _damaged(path: pathlib.Path, why: Any) -> CheckpointError:
    said = (str(why).splitlines() or [type(why).__name__])[0][:200]
    return CheckpointError(
        f"fit: checkpoint: {path} is damaged ({said}). Fix: delete it to go on from the one before "
        "it, if there is one, or from the start."
    )


def _foreign(path: pathlib.Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"fit: checkpoint: {path} is of a run with {what}. Fix: give this run a folder of its own."
    )
