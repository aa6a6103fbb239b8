"""Drawing some random choices anew while all others stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpyro

from vipp.language.control_flow import sites


class redrawn(sites):  # noqa: N801 (a NumPyro handler, named like NumPyro's)
    """Gives each site of the program beneath it a key that also depends on a number of its own.

    Two runs with one key, in which some numbers differ, are independent at those sites' draws and
    equal at all others.

    Args:
      numbers: by site name; may be traced.
    """

    def __init__(self, numbers: Mapping[str, Any]):
        super().__init__()
        self.numbers = numbers

    def visit(self, msg: Any) -> None:
        """Give a site its key, where it is to be drawn."""
        name = msg["name"]
        if name not in self.numbers or msg["is_observed"] or msg["value"] is not None:
            return
        key = msg["kwargs"]["rng_key"]
        # none yet outside of a loop: the stream that the objective draws from has one
        key = numpyro.prng_key() if key is None else key
        if key is not None:
            msg["kwargs"]["rng_key"] = jax.random.fold_in(key, self.numbers[name])


def under_numbers(program: Callable[..., Any], numbers: Mapping[str, Any]) -> Callable[..., Any]:
    """The program with its sites :class:`redrawn`."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with redrawn(numbers):
            return program(*args, **kwargs)

    return run
