"""Which loops are to be taken apart step by step though they could stay loops, and why."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple


class NotSummed(NamedTuple):
    """That the choices of a loop cannot be summed out in a loop.

    Attributes:
      names: of its choices.
      why: a clause.
    """

    names: tuple[str, ...]
    why: str


class _Reasons(threading.local):
    by_name: Mapping[str, str] = {}


_REASONS = _Reasons()


@contextlib.contextmanager
def unrolling(why: Mapping[str, str]) -> Iterator[None]:
    """In here, loops with these choices are taken apart, each for its reason."""
    before, _REASONS.by_name = _REASONS.by_name, {**_REASONS.by_name, **why}
    try:
        yield
    finally:
        _REASONS.by_name = before


def reason_to_unroll(name: str) -> str | None:
    """Why the loop of a choice is to be taken apart, or None if it is not."""
    return _REASONS.by_name.get(name)
