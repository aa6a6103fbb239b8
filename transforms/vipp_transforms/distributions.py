"""What the engine asks of a distribution: to draw, to score, and what else it can say of itself."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from vipp_transforms.uncompiled import at_once


class Distribution(Protocol):
    """What every distribution must do: a pytree of its parameters with these members.

    The batch axes are independent; ``log_prob`` has one entry per batch element. The draw reads
    every parameter that the density reads: :func:`vipp_transforms.sample` checks it.

    These members are asked for where a distribution has them, and mean what they mean in NumPyro:
    ``has_enumerate_support`` and ``enumerate_support(expand=False)``, the values of one lane;
    ``rsample`` or ``has_rsample``, whether a draw carries the gradient of every parameter;
    ``is_discrete``; ``mean``. What goes beyond is asked of :class:`Described`.
    """

    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]

    def sample(self, key: Any) -> Any:
        """One draw, ``(*batch_shape, *event_shape)``."""
        ...

    def log_prob(self, value: Any) -> Any:
        """Log density, ``batch_shape``."""
        ...


class Weak(NamedTuple):
    r"""One parameter's weak derivative: ``slope`` times the difference of two densities.

    .. math:: \partial_\theta q_\theta = c_\theta\,(q^+ - q^-)

    Attributes:
      slope: :math:`c_\theta` times the parameter, zero in value, one entry per number drawn.
      positive: a draw from the first density.
      negative: a draw from the second, coupled to the first.
    """

    slope: jax.Array
    positive: jax.Array
    negative: jax.Array


class Described(abc.ABC):
    """A distribution that says more of itself than how to draw and score; a pytree of it.

    Each answer has a default: that it is not known.

    Args:
      fn: a :class:`Distribution`.
    """

    def __init__(self, fn: Any):
        self.fn = fn

    @property
    @abc.abstractmethod
    def kind(self) -> str:
        """What errors and tables call the distribution."""

    @property
    @abc.abstractmethod
    def pathwise(self) -> bool:
        """Whether a draw carries the gradient of every parameter."""

    @property
    def masked(self) -> bool:
        """Whether the log density leaves out lanes that are drawn."""
        return False

    @property
    def has_quantile(self) -> bool:
        """Whether :meth:`quantile` has an answer."""
        return False

    def quantile(self, u: jax.Array) -> jax.Array:
        """A draw if ``u`` is uniform, entry by entry, ``(*batch_shape, *event_shape)``."""
        raise NotImplementedError(f"{self.kind} has no quantile function")

    @property
    def num_weak_derivatives(self) -> int | None:
        """How many parameters :meth:`weak_derivatives` decomposes, or None."""
        return None

    def weak_derivatives(self, key: Any, value: jax.Array) -> tuple[list[Weak], jax.Array]:
        """Weak derivatives around the draw ``value``, and the score of all other parameters."""
        raise NotImplementedError(f"{self.kind} has no weak derivative")

    @abc.abstractmethod
    def log_prob(self, value: Any) -> jax.Array:
        """The log density, ``batch_shape``.

        It may refuse to be differentiated in a parameter that moves the support: the expectation's
        derivative then has a boundary term, which no log density knows.
        """

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The sizes of the independent axes."""
        return tuple(self.fn.batch_shape)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one draw."""
        return tuple(self.fn.event_shape)

    @property
    def support(self) -> np.ndarray | None:
        """All values of one lane, ``(size, *event_shape)``, or None if there is no finite list."""
        return enumerated(self.fn)

    @property
    def mean(self) -> jax.Array | None:
        """The mean, ``(*batch_shape, *event_shape)``, or None."""
        try:
            return getattr(self.fn, "mean", None)
        except NotImplementedError:
            return None

    def moments(self) -> tuple[jax.Array, jax.Array] | None:
        r"""The mean :math:`m`, and a root :math:`L` of the covariance :math:`L L^\top`.

        Of shape ``(*batch_shape, *event_shape)`` and that with the numbers of an event behind it;
        None if they are not known.
        """
        return None

    def sample(self, key: Any) -> jax.Array:
        """One draw, ``(*batch_shape, *event_shape)``."""
        return self.fn.sample(key)


def ask(distribution: Any) -> Described:
    """The distribution as one that answers, whether or not it does so itself."""
    return distribution if isinstance(distribution, Described) else Plain(distribution)


@jax.tree_util.register_pytree_node_class
class Plain(Described):
    """A distribution that keeps to the :class:`Distribution` protocol."""

    def tree_flatten(self) -> tuple[tuple[Any], None]:
        """The distribution."""
        return (self.fn,), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> Plain:
        """With whatever JAX puts in the distribution's place."""
        return cls(*children)

    @property
    def kind(self) -> str:
        """The name of its class."""
        return type(self.fn).__name__

    def log_prob(self, value: Any) -> jax.Array:
        """The distribution's own."""
        return self.fn.log_prob(value)

    @property
    def pathwise(self) -> bool:
        """As declared; of a continuous distribution that declares nothing, yes."""
        declared = getattr(self.fn, "has_rsample", hasattr(self.fn, "rsample"))
        return bool(declared or not getattr(self.fn, "is_discrete", True))


def enumerated(fn: Any) -> np.ndarray | None:
    """The values of ``fn.enumerate_support``, if it has one and these depend on no parameter."""
    if not getattr(fn, "has_enumerate_support", False):
        return None
    try:
        with at_once():
            values = np.asarray(fn.enumerate_support(expand=False))
    except (NotImplementedError, ValueError, TypeError, jax.errors.JAXTypeError):
        return None  # or if they differ from lane to lane
    return values.reshape((values.shape[0], *fn.event_shape))
