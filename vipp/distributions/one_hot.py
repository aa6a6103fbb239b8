"""A categorical choice as a unit vector, which can be relaxed to a point of the simplex."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints

from vipp_transforms.elementwise import Elementwise


@Elementwise
def _weighed(value: jax.Array, log_probs: jax.Array) -> jax.Array:
    """``value * log_probs``, where an impossible category that is not chosen counts for nothing."""
    impossible = jnp.isneginf(log_probs)
    possible = jnp.where(impossible, 0.0, log_probs)
    return value * possible + jnp.where(impossible & (value > 0), -jnp.inf, 0.0)


_weighed.defjvps(
    # that of a possible category at zero, too, for the estimators that go straight through
    lambda dx, value, log_probs: jnp.where(jnp.isneginf(log_probs), 0.0, log_probs) * dx,
    lambda dx, value, log_probs: value * jnp.where(jnp.isneginf(log_probs), 0.0, dx),
)


class OneHotCategorical(dist.Distribution):
    r"""A choice among ``K`` as a unit vector.

    .. math::
        P(x = e_k) = \mathrm{softmax}(\mathrm{logits})_k, \qquad \log p(x) = \sum_k x_k \log p_k

    Estimators that relax a choice to real numbers (``GumbelSoftmax``, ``StraightThrough``,
    ``ReinMax``, ``REBAR``) need it in place of ``numpyro.distributions.Categorical``, whose index
    can't be relaxed. Its log density is defined, and differentiable, on the whole simplex.

    Args:
      probs: probabilities, shape ``(*batch, K)``; give these or ``logits``.
      logits: unnormalised log probabilities, shape ``(*batch, K)``.
      validate_args: as in NumPyro.

    Raises:
      ValueError: unless exactly one of ``probs`` and ``logits`` is given.

    Example:
      >>> import jax, jax.numpy as jnp, vipp
      >>> d = vipp.OneHotCategorical(probs=jnp.array([0.0, 1.0, 0.0]))
      >>> d.sample(jax.random.key(0)).tolist()
      [0.0, 1.0, 0.0]
    """

    arg_constraints = {"logits": constraints.real_vector}
    has_enumerate_support = True

    def __init__(
        self, probs: Any = None, logits: Any = None, *, validate_args: bool | None = None
    ) -> None:
        if (probs is None) == (logits is None):
            raise ValueError("OneHotCategorical: give exactly one of probs and logits.")
        self.logits = jnp.log(probs) if logits is None else logits
        shape = jnp.shape(self.logits)
        if not shape:
            raise ValueError("OneHotCategorical: probs or logits need a last axis of categories.")
        super().__init__(
            shape[:-1], shape[-1:], validate_args=validate_args if probs is None else False
        )

    @property
    def support(self) -> Any:
        """Unit vectors."""
        return constraints.multinomial(1)

    @property
    def probs(self) -> jax.Array:
        """Probabilities, shape ``(*batch, K)``."""
        return jax.nn.softmax(self.logits)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Unit vectors, floats of shape ``(*sample_shape, *batch, K)``."""
        index = jax.random.categorical(key, self.logits, shape=(*sample_shape, *self.batch_shape))
        return jax.nn.one_hot(index, self.event_shape[0])

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        """The log probability, or its linear extension to the simplex."""
        return _weighed(value, jax.nn.log_softmax(self.logits)).sum(-1)

    def enumerate_support(self, expand: bool = True) -> jax.Array:
        """All unit vectors, shape ``(K, *batch, K)``, or with batch axes of one."""
        size = self.event_shape[0]
        values = jnp.eye(size).reshape((size,) + (1,) * len(self.batch_shape) + (size,))
        return jnp.broadcast_to(values, (size, *self.batch_shape, size)) if expand else values

    @property
    def mean(self) -> jax.Array:
        """The probabilities."""
        return self.probs

    @property
    def variance(self) -> jax.Array:
        """The variance of each coordinate."""
        return self.probs * (1 - self.probs)
