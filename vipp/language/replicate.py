"""Independent repetitions of a random computation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpyro
from numpyro.handlers import seed
from numpyro.primitives import Messenger

from vipp.language.state import SUFFIX
from vipp_transforms.checks import positive_int


def replicate(fn: Callable[[], Any], n: int) -> Any:
    """``fn()`` run ``n`` times with fresh randomness, vectorised.

    Args:
      fn: a function of nothing that draws values.
      n: how often, at least 1.

    Returns:
      What ``fn`` returns, every array with a new leading axis of size ``n``.

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
        with seed(rng_seed=key):
            return jax.tree.map(lambda x: jax.numpy.expand_dims(x, 0), fn())

    def one(k: jax.Array) -> Any:
        with _no_mutation(), seed(rng_seed=k):
            return fn()

    return jax.vmap(one)(jax.random.split(key, n))


def random_key(what: str) -> Any:
    """A fresh key from the enclosing ``seed`` handler; raise if there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPyro warns where this raises
        key = numpyro.prng_key()
    if key is None:
        raise ValueError(
            f"{what} was run without a random key. Fix: use it inside vipp.expectation(fn), an "
            "objective, or numpyro.handlers.seed."
        )
    return key


class _no_mutation(Messenger):  # noqa: N801 (a NumPyro handler, named like NumPyro's)
    def process_message(self, msg: Any) -> None:
        if msg["type"] == "mutable" and not msg["name"].endswith(SUFFIX):
            raise ValueError(
                f"Mutable state '{msg['name']}' inside several particles has no single next value. "
                "Expected num_particles=1. Fix: use one particle, or a "
                "module without mutable state."
            )
