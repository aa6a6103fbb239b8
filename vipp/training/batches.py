"""Batches from an iterable, the next ones fetched while a step runs."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from vipp.training.checkpoint import CheckpointError
from vipp.training.same_run import digest_after

_AHEAD = 2


class Batches:
    """The positional arguments of each step, taken in turn from an iterable.

    An iterable that can be gone through again is, whenever it has ended; an iterator ends once. A
    thread fetches two batches ahead and puts their arrays on the device.

    Args:
      source: of tuples of arguments; of a batch that is no tuple, the only argument.
      first: the number of the step to start at; the batches before it are passed over.
      passed: the digest that those had, or None.
      digests: whether to make a number that stands for all batches so far.

    Attributes:
      digest: that of the batches up to the last one given, if there are digests.
    """

    def __init__(
        self,
        source: Iterable[Any],
        first: int = 0,
        passed: int | None = None,
        *,
        digests: bool = False,
    ):
        self._source, self._first, self._passed, self._digests = source, first, passed, digests
        self.digest = 0 if digests else None
        self._ready: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fetch, daemon=True)

    def __enter__(self) -> Batches:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        while not self._ready.empty():  # a thread that waits to put one sees that it is over
            self._ready.get_nowait()
        self._thread.join(timeout=5.0)

    def next(self) -> tuple[Any, ...] | None:
        """The next batch, or None if there are no more.

        Raises:
          Exception: what the iterable raised.
          CheckpointError: if the batches that were passed over are others than they were.
        """
        batch, self.digest, error = self._ready.get()
        if error is not None:
            raise error
        return batch

    def _fetch(self) -> None:
        digest = self.digest
        try:
            for number, batch in enumerate(endless(self._source)):
                if number == self._first:
                    self._check_passed(digest)
                digest = None if digest is None else digest_after(digest, batch)
                if number < self._first:
                    continue
                if not self._put((jax.tree.map(_on_device, batch), digest, None)):
                    return
            self._put((None, digest, None))
        except Exception as error:  # it belongs to the thread that trains
            self._put((None, digest, error))

    def _check_passed(self, digest: int | None) -> None:
        if self._passed not in (None, digest):
            raise CheckpointError(
                f"fit: checkpoint: the {self._first} batches before it are others than those that "
                "batches= gives now: other data, or in another order or of other lengths. Fix: "
                "give the same ones, of a loader that shuffles with a seed of its own; or give "
                "this run a folder of its own."
            )

    def _put(self, item: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


def endless(source: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """The batches of an iterable as tuples, over and over if it can be gone through again.

    Raises:
      TypeError: if one is a list, which may be meant as several arguments or as one.
      ValueError: if there are none.
    """
    while True:
        through = iter(source)
        empty = True
        for batch in through:
            empty = False
            if isinstance(batch, list):
                raise TypeError(
                    f"fit: batches: got a list of {len(batch)}, expected a tuple of arguments, or "
                    "the only one. Fix: tuple(batch) if it has the arguments, (batch,) if the "
                    "model takes the list as one."
                )
            yield batch if isinstance(batch, tuple) else (batch,)
        if empty:
            raise ValueError("fit: batches has no batch, expected at least one.")
        if through is source:
            return


def check_alike(batch: tuple[Any, ...], first: tuple[Any, ...], step: int) -> None:
    """A batch is made as the first one, but for the lengths of its arrays.

    Raises:
      ValueError: if an array has more or fewer axes: it would be broadcast against others.
    """
    wanted = jax.tree.map(np.ndim, first)
    if jax.tree.map(np.ndim, batch) != wanted:
        shapes = [jax.tree.map(np.shape, x) for x in (batch, first)]
        raise ValueError(
            f"fit: batches: got arrays of shapes {shapes[0]} at step {step}, expected as many axes "
            f"as in the batch before, of shapes {shapes[1]}. Fix: let every batch be made alike."
        )


def first_of(source: Iterable[Any]) -> tuple[tuple[Any, ...], Iterable[Any]]:
    """The first batch, and the iterable that still has it.

    Raises:
      TypeError: if it is none.
    """
    if not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
        raise TypeError(
            f"fit: batches must be an iterable of tuples of arguments, got {source!r}. Fix: a list "
            "or loader; of a generator function what it returns, batches=loader()."
        )
    through = iter(source)
    if through is not source:
        return next(endless(source)), source
    batch = next(endless(through))
    return batch, itertools.chain([batch], through)


def _on_device(x: Any) -> Any:
    return jax.device_put(x) if isinstance(x, np.ndarray) else x
