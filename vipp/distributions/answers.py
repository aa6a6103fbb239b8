"""What NumPyro's distributions answer when the engine asks."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from vipp.distributions.edges import hold_support
from vipp.distributions.finite import finite_support
from vipp.distributions.implicit import Implicit
from vipp.distributions.laws import answers, has_values_of
from vipp.distributions.moments import moments
from vipp.distributions.quantiles import has_quantile, quantile
from vipp.distributions.reparameterisation import reparameterised
from vipp.distributions.weak_derivatives import num_weak_derivatives, weak_derivatives
from vipp.distributions.wrappers import factor, masked, unexpanded
from vipp_transforms.distributions import Described, Weak, enumerated


@jax.tree_util.register_pytree_node_class
class Answering(Described):
    """A distribution of NumPyro's, or of its kind, that answers the engine.

    Args:
      fn: the distribution.
      name: of the site that is drawn from it, for errors.
    """

    def __init__(self, fn: Any, name: str = ""):
        super().__init__(fn)
        self.name = name

    def tree_flatten(self) -> tuple[tuple[Any], str]:
        """The distribution, and the name."""
        return (self.fn,), self.name

    @classmethod
    def tree_unflatten(cls, name: str, children: Any) -> Answering:
        """With whatever JAX puts in the distribution's place."""
        return cls(children[0], name)

    def log_prob(self, value: Any) -> jax.Array:
        """The log density, which holds still the parameters that move the support."""
        return hold_support(self.fn, self.fn.log_prob(value), self.name)

    @property
    def kind(self) -> str:
        """The class of the distribution that a user wrote."""
        return kind(self.fn)

    @property
    def support(self) -> np.ndarray | None:
        """All values of one lane, or of all lanes together where they differ."""
        if not answers(factor(self.fn), "enumerate_support", has_values_of):
            return None
        # NumPyro's expanded distributions list the values of a vector wrongly
        listed = enumerated(unexpanded(self.fn))
        return finite_support(self.fn) if listed is None else listed

    @property
    def pathwise(self) -> bool:
        """Whether its sampler, or an implicit one, carries the gradient of every parameter."""
        return reparameterised(self.fn)

    @property
    def mean(self) -> jax.Array | None:
        """The mean of what it draws, or None."""
        return super().mean if answers(factor(self.fn), "mean", has_values_of) else None

    def moments(self) -> tuple[jax.Array, jax.Array] | None:
        """The mean, and a root of the covariance."""
        return moments(self.fn)

    @property
    def masked(self) -> bool:
        """Whether there is a mask in it."""
        return masked(self.fn)

    @property
    def has_quantile(self) -> bool:
        """Whether it is drawn from independent uniform numbers."""
        return has_quantile(self.fn)

    def quantile(self, u: jax.Array) -> jax.Array:
        """A draw if ``u`` is uniform."""
        return quantile(self.fn, u)

    @property
    def num_weak_derivatives(self) -> int | None:
        """How many parameters have a weak derivative."""
        return num_weak_derivatives(self.fn)

    def weak_derivatives(self, key: Any, value: jax.Array) -> tuple[list[Weak], jax.Array]:
        """Weak derivatives around a draw."""
        return weak_derivatives(self.fn, key, value)


def kind(fn: Any) -> str:
    """What errors and tables call a distribution."""
    base = factor(fn)
    base = factor(base.fn) if isinstance(base, Implicit) else base
    return type(base).__name__.lstrip("_")
