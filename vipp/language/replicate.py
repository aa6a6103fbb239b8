"""Independent repetitions of a random computation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from numpyro.primitives import Messenger

from vipp.language.keys import minibatch, random_key, seeded
from vipp.language.state import SUFFIX
from vipp_transforms.checks import positive_int

_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)

_PLATES = 0x70_6C_61_74  # no number of a site


def replicate(fn: Callable[[], Any], n: int, *, own_minibatch: bool = False) -> Any:
    """``fn()`` run ``n`` times with fresh randomness, vectorised.

    Args:
      fn: a function of nothing that draws values.
      n: how often, at least 1.
      own_minibatch: whether programs run by ``fn`` draw a minibatch for each repetition, to be
        averaged over; otherwise all see the same one, and can be weighed against each other.

    Returns:
      What ``fn`` returns, every array with a new leading axis of size ``n``; what is no array, such
      as a name, as it is.

    Raises:
      ValueError: if ``n`` is not a positive int, or if no random key is at hand.

    Example:
      >>> import jax, numpyro, numpyro.distributions as dist, vipp
      >>> with numpyro.handlers.seed(rng_seed=0):
      ...     draws = vipp.replicate(lambda: numpyro.sample("z", dist.Normal()), 3)
      >>> draws.shape
      (3,)
    """
    positive_int("replicate: n", n)
    key = random_key("replicate")
    if n == 1:
        with seeded(rng_seed=key):
            parted = _Parted.of(fn())
        return jax.tree.map(lambda x: jax.numpy.expand_dims(x, 0), parted).joined()

    def one(k: jax.Array) -> _Parted:
        # the stream itself stays as it is: with or without plates the same key draws the same
        own = minibatch(jax.random.fold_in(k, _PLATES)) if own_minibatch else nullcontext()
        with _no_mutation(), own, seeded(rng_seed=k):
            return _Parted.of(fn())

    return jax.vmap(one)(jax.random.split(key, n)).joined()


@partial(jax.tree_util.register_dataclass, data_fields=("arrays",), meta_fields=("treedef", "rest"))
@dataclass(frozen=True, eq=False)
class _Parted:
    """A result, its arrays apart from what a transformation hands on as it is."""

    arrays: list[Any]
    treedef: Any
    rest: list[Any]

    @staticmethod
    def of(tree: Any) -> _Parted:
        leaves, treedef = jax.tree.flatten(tree)
        arrays = [x for x in leaves if isinstance(x, _ARRAYS)]
        rest = [None if isinstance(x, _ARRAYS) else (x,) for x in leaves]
        return _Parted(arrays, treedef, rest)

    def joined(self) -> Any:
        arrays = iter(self.arrays)
        leaves = [next(arrays) if kept is None else kept[0] for kept in self.rest]
        return jax.tree.unflatten(self.treedef, leaves)


class _no_mutation(Messenger):  # noqa: N801 (a NumPyro handler, named like NumPyro's)
    def process_message(self, msg: Any) -> None:
        if msg["type"] == "mutable" and not msg["name"].endswith(SUFFIX):
            raise ValueError(
                f"Mutable state '{msg['name']}' inside several particles has no single next value. "
                "Expected num_particles=1. Fix: use one particle, or a "
                "module without mutable state."
            )
