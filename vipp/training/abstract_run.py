"""What a program's sites are, found without computing any value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from numpyro.handlers import block, seed, substitute, trace


class Facts(NamedTuple):
    """What is known of a site before anything is drawn.

    Attributes:
      kind: NumPyro's type of its message.
      args: of a plate, its size and subsample size.
      observed: whether its value is data.
    """

    kind: str
    args: Any
    observed: bool


def facts_of(program: Callable[..., Any], data: Any, args: Any, kwargs: Any) -> dict[str, Facts]:
    """The sites of a program by name, parameters and values given."""
    found: dict[str, Facts] = {}

    def run(key: Any) -> None:
        with block(), trace() as record, seed(rng_seed=key), substitute(data=data):
            program(*args, **kwargs)
        for name, site in record.items():
            size = site["args"] if site["type"] == "plate" else None
            found[name] = Facts(site["type"], size, site.get("is_observed", False))

    jax.eval_shape(run, jax.random.key(0))
    return found
