"""What a program's sites are, found without computing any value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.handlers import block, seed, substitute, trace


class Facts(NamedTuple):
    """What is known of a site before anything is drawn.

    Attributes:
      kind: NumPyro's type of its message.
      args: of a plate, its size and subsample size.
      observed: whether its value is data.
      shape: of a deterministic site's value.
      plates: name, dimension and size of each plate that a deterministic site is in.
    """

    kind: str
    args: Any
    observed: bool
    shape: tuple[int, ...] = ()
    plates: tuple[tuple[str, int, int], ...] = ()


def facts_of(program: Callable[..., Any], data: Any, args: Any, kwargs: Any) -> dict[str, Facts]:
    """The sites of a program by name, parameters and values given."""
    found: dict[str, Facts] = {}

    def run(key: Any) -> None:
        with block(), trace() as record, seed(rng_seed=key), substitute(data=data):
            program(*args, **kwargs)
        for name, site in record.items():
            size = site["args"] if site["type"] == "plate" else None
            facts = Facts(site["type"], size, site.get("is_observed", False))
            if site["type"] == "deterministic":
                plates = tuple((f.name, f.dim, f.size) for f in site["cond_indep_stack"])
                facts = facts._replace(shape=jnp.shape(site["value"]), plates=plates)
            found[name] = facts

    jax.eval_shape(run, jax.random.key(0))
    return found
