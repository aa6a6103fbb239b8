"""A random choice in a branch, which is evaluated whether or not the branch is taken.

Where it is not, nothing that is made there counts, and any distribution would do. But its
parameters may be no numbers, and so would be its density, by which terms are multiplied.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms.constant import detached
from vipp_transforms.distributions import Described, Weak


class Skipped(Described):
    """A distribution where a choice is made, and one without parameters where it is not.

    The latter has equal probabilities, of which the sum is one, or a density of one.

    Args:
      made: the distribution.
      taken: whether the choice is made, a boolean of shape ``()``.
      support: all values of one lane, or None.
    """

    def __init__(self, made: Described, taken: Any, support: np.ndarray | None):
        super().__init__(made.fn)
        self._made, self._taken = made, taken
        self._log_prob = 0.0 if support is None else -math.log(len(support))

    @property
    def kind(self) -> str:
        """That of the distribution."""
        return self._made.kind

    @property
    def pathwise(self) -> bool:
        """As the distribution."""
        return self._made.pathwise

    @property
    def has_quantile(self) -> bool:
        """As the distribution."""
        return self._made.has_quantile

    @property
    def num_weak_derivatives(self) -> int | None:
        """As the distribution."""
        return self._made.num_weak_derivatives

    @property
    def mean(self) -> jax.Array | None:
        """Of the distribution, or nought."""
        mean = self._made.mean
        return None if mean is None else self._or_nought(jnp.asarray(mean))

    def sample(self, key: Any) -> jax.Array:
        """A draw, or nought."""
        return self._or_nought(self._made.sample(key))

    def quantile(self, u: jax.Array) -> jax.Array:
        """Of the distribution, or nought."""
        return self._or_nought(self._made.quantile(u))

    def weak_derivatives(self, key: Any, value: jax.Array) -> tuple[list[Weak], jax.Array]:
        """Of the distribution, or nought."""
        weak, score = self._made.weak_derivatives(key, value)
        return jax.tree.map(self._or_nought, (weak, score))

    def log_prob(self, value: Any) -> jax.Array:
        """The log density."""
        return jnp.where(self._taken, self._made.log_prob(value), self._log_prob)

    def _or_nought(self, x: jax.Array) -> jax.Array:
        return jnp.where(self._taken, x, jnp.zeros_like(x))


def told(taken: Any, leaf: jax.Array) -> jax.Array:
    """``leaf`` where a branch is taken; elsewhere it has no derivative, and is a number."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    fixed = detached(leaf)
    number = jnp.where(jnp.isfinite(fixed), fixed, jnp.ones_like(fixed))
    return jax.lax.select_n(jnp.broadcast_to(taken, leaf.shape), number, leaf)
