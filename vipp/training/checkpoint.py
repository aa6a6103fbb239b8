"""Checkpoints of a training run: written whole or not at all, read back bit by bit."""

from __future__ import annotations

import itertools
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from vipp.training.folder_lock import lock
from vipp.training.saved_bytes import from_bytes, to_bytes

_KEPT = 2
_NAME = "run"
_FORMAT = "2"


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
    one as it was. All is one array of bytes, with a digest that tells one that was damaged.

    Args:
      folder: made if it is not there.
      identity: what a run must have in common with the checkpoint to go on from it, by name.

    Raises:
      ImportError: if Orbax is not installed.
      CheckpointError: if the folder can't be written to, another run is at work in it, or the run
        is of several processes.
    """

    def __init__(self, folder: str | os.PathLike[str], identity: Mapping[str, str]):
        if jax.process_count() > 1:
            raise CheckpointError(
                f"fit: checkpoint: got a run of {jax.process_count()} processes, expected one. "
                "Fix: leave checkpoint out, and keep what .result() of a callback gives."
            )
        self._folder = pathlib.Path(folder).absolute()
        self._identity = {"format": _FORMAT, **identity}
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
            lock(self._lock)
        except OSError as error:
            self._lock.close()
            raise CheckpointError(
                f"fit: checkpoint: another run is at work in {self._folder}. Fix: give each run a "
                "folder of its own."
            ) from error
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._checkpointer.close()
        except Exception:  # of a save that was told of, or of Orbax's notes, which nobody reads
            pass
        finally:
            self._lock.close()

    def save(self, step: int, arrays: Any, series: np.ndarray, notes: Mapping[str, Any]) -> None:
        """Write a checkpoint, and delete those before the last two.

        Raises:
          CheckpointError: if it can't be written; those before it are still there.
        """
        leaves = [series, *(np.asarray(_raw(x)) for x in jax.tree.leaves(arrays))]
        whole = {_NAME: to_bytes(leaves, {"identity": self._identity, **notes})}
        try:
            self._checkpointer.save(self._folder / str(step), whole, force=True)
            self._checkpointer.wait_until_finished()
            for old in self._steps()[:-_KEPT]:
                shutil.rmtree(self._folder / str(old))
        except Exception as error:  # of the file system, however Orbax wraps it
            for half in self._folder.glob(f"{step}.*"):
                shutil.rmtree(half, ignore_errors=True)
            raise CheckpointError(
                f"fit: checkpoint: step {step} can't be written to {self._folder} "
                f"({_first_line(error)}). Checkpoints that are there: {self._steps()}. Fix: make "
                "room, and run again to go on from the last of them."
            ) from error

    def latest(self, like: Callable[[Mapping[str, Any]], Any]) -> Saved | None:
        """The last checkpoint, or None if there is none.

        Args:
          like: of the notes, a pytree as it was saved; its values are not used.

        Raises:
          CheckpointError: if it is damaged, or of another run.
        """
        steps = self._steps()
        return self._read(steps[-1], like) if steps else None

    def refuse(self, step: int, what: str) -> NoReturn:
        """Say that the checkpoint of a step can't be gone on from.

        Raises:
          CheckpointError: that it is of a run with ``what``.
        """
        raise _foreign(self._folder / str(step), what)

    def _steps(self) -> list[int]:
        return sorted(int(p.name) for p in self._folder.glob("*") if p.name.isdigit())

    def _read(self, step: int, like: Callable[[Mapping[str, Any]], Any]) -> Saved:
        path = self._folder / str(step)
        try:
            whole = self._checkpointer.restore(path)
        except Exception as error:  # whatever reading a damaged file may raise
            raise _damaged(path, error) from error
        if not isinstance(whole, Mapping) or list(whole) != [_NAME]:
            raise CheckpointError(
                f"fit: checkpoint: {path} was not written by vipp.fit. Fix: give this run a folder "
                "of its own."
            )
        try:
            (series, *leaves), notes = from_bytes(np.asarray(whole[_NAME]))
        except Exception as error:
            raise _damaged(path, error) from error
        for name, value in self._identity.items():
            found = notes["identity"].get(name)
            if found != value:
                self.refuse(step, f"another {name} ({found}, now {value})")
        return Saved(step, self._as(step, like(notes), leaves), series, notes)

    def _as(self, step: int, like: Any, leaves: list[np.ndarray]) -> Any:
        wanted, treedef = jax.tree.flatten(like)
        saved, now = list(map(_described, leaves)), [_described(_raw(x)) for x in wanted]
        if saved != now:
            pairs = itertools.zip_longest(saved, now, fillvalue="nothing")
            then, here = next((a, b) for a, b in pairs if a != b)
            what = "parameters or an optimiser of other shapes or dtypes"
            self.refuse(step, f"{what} ({then}, now {here})")
        return jax.tree.unflatten(treedef, map(_like, leaves, wanted))


def check_kind(folder: str | os.PathLike[str], *, in_turn: bool) -> None:
    """A folder has no checkpoints of the other kind.

    Args:
      folder: of checkpoints.
      in_turn: whether those are of several starts, each in a folder of its own.

    Raises:
      CheckpointError: if they are not.
    """
    names = [p.name for p in pathlib.Path(folder).glob("*")]
    if any(n.isdigit() if in_turn else n.startswith("start-") for n in names):
        kind = "one start, or several in one loop" if in_turn else "several starts, one by one"
        raise CheckpointError(
            f"fit: checkpoint: {folder} is of a run with {kind}, got {sorted(names)}. Fix: give "
            "this run a folder of its own."
        )


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


def _like(value: np.ndarray, wanted: Any) -> Any:
    if _is_key(wanted):
        return jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(wanted))
    if isinstance(wanted, jax.Array):
        return jnp.asarray(value)
    if isinstance(wanted, np.ndarray):
        return value
    return value[()] if isinstance(wanted, np.generic) else type(wanted)(value.item())


def _described(x: Any) -> str:
    return f"{np.asarray(x).dtype}{list(np.shape(x))}"


def _first_line(error: Any) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _damaged(path: pathlib.Path, why: Exception) -> CheckpointError:
    return CheckpointError(
        f"fit: checkpoint: {path} is damaged ({_first_line(why)}). Fix: move it away to go on from "
        "the one before it, if there is one, or from the start; if it is not of vipp.fit, give "
        "this run a folder of its own."
    )


def _foreign(path: pathlib.Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"fit: checkpoint: {path} is of a run with {what}. Fix: give this run a folder of its own."
    )
