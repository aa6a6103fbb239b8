"""What happens to a program while it is traced, noted for whoever asks."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple


class Noting:
    """A list that grows as long as somebody holds it.

    Args:
      what: is noted.
    """

    def __init__(self, what: str):
        self._held: contextvars.ContextVar[list[Any] | None] = contextvars.ContextVar(
            what, default=None
        )

    @contextlib.contextmanager
    def held(self) -> Iterator[list[Any]]:
        """What is noted within it."""
        found: list[Any] = []
        token = self._held.set(found)
        try:
            yield found
        finally:
            self._held.reset(token)

    def note(self, items: Iterable[Any]) -> None:
        """Note these, if somebody asks."""
        found = self._held.get()
        if found is not None:
            found.extend(items)


class Distributed(NamedTuple):
    """The operations of one step of a loop that is distributed.

    Attributes:
      steps: how many the loop has.
      before: those evaluated for all steps at once before it.
      inside: those left in it.
      after: those evaluated for all steps at once behind it.
    """

    steps: int
    before: int
    inside: int
    after: int


SUMS = Noting("sums")  # the names of the sites that are summed out
LOOPS = Noting("loops")  # loops distributed, each a Distributed
