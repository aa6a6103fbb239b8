"""Whether a program sums choices out while it is traced."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

_TAKEN: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("taken", default=None)


@contextlib.contextmanager
def noting_sums() -> Iterator[list[str]]:
    """The names of the sites that are summed out within it, as a list that grows."""
    taken: list[str] = []
    token = _TAKEN.set(taken)
    try:
        yield taken
    finally:
        _TAKEN.reset(token)


def note_sum(names: tuple[str, ...]) -> None:
    """Note that sites are summed out."""
    taken = _TAKEN.get()
    if taken is not None:
        taken.extend(names)
