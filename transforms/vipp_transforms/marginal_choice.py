"""A choice of one of a finite list of numbers, each lane with probabilities of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms.distributions import Described


@jax.tree_util.register_pytree_node_class
class Marginal(Described):
    """The number of a value, each lane with probabilities of its own.

    Args:
      probs: one for each value along the last axis.
      name: what it is called.
    """

    def __init__(self, probs: Any, name: str):
        super().__init__(probs)
        self.name = name

    def tree_flatten(self) -> tuple[tuple[Any], str]:
        """The probabilities, and the name."""
        return (self.fn,), self.name

    @classmethod
    def tree_unflatten(cls, name: str, children: tuple[Any]) -> Marginal:
        """With whatever JAX puts in the probabilities' place."""
        (probs,) = children
        return cls(probs, name)

    @property
    def kind(self) -> str:
        """Its name."""
        return self.name

    @property
    def pathwise(self) -> bool:
        """No."""
        return False

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """All axes but the last."""
        return tuple(self.fn.shape[:-1])

    @property
    def event_shape(self) -> tuple[int, ...]:
        """A number."""
        return ()

    @property
    def support(self) -> np.ndarray:
        """The numbers of all values."""
        return np.arange(self.fn.shape[-1])

    @property
    def mean(self) -> None:
        """A number counts nothing."""
        return None

    def sample(self, key: Any) -> jax.Array:
        """The number of a value."""
        return jax.random.categorical(key, self._logs())

    def log_prob(self, value: Any) -> jax.Array:
        """The logarithm of its probability."""
        return jnp.take_along_axis(self._logs(), value[..., None], axis=-1)[..., 0]

    def _logs(self) -> jax.Array:
        # below the smallest normal number the logarithm's slope would be infinite
        possible = self.fn >= jnp.finfo(self.fn.dtype).tiny
        return jnp.where(possible, jnp.log(jnp.where(possible, self.fn, 1.0)), -jnp.inf)


def chosen(table: Any, index: Any, lanes: Mapping[int, int], lead: int) -> Any:
    """The entries of a table, each at the choice of its own lane.

    Args:
      table: ``(*lead, values, *shape)``.
      index: ``(*lead, *lanes)``.
      lanes: by axis of ``shape``, the axis of the lanes that lies along it.
      lead: the number of axes in front.

    Returns:
      ``(*lead, *shape)``.
    """
    fn: Callable[[Any, Any], Any] = lambda x, i: jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
    axes = sorted(lanes)
    index = jnp.transpose(index, (*range(lead), *(lead + lanes[a] for a in reversed(axes))))
    for axis in axes:  # the last axis is the outermost: those before it keep their places
        fn = jax.vmap(fn, in_axes=(1 + axis, 0), out_axes=axis)
    for _ in range(lead):
        fn = jax.vmap(fn)
    return fn(table, index)
