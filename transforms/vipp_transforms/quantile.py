"""Values of a distribution as functions of uniform numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms.errors import SiteError


def quantile(distribution: Any, u: jax.Array, support: np.ndarray | None, name: str) -> jax.Array:
    r"""The value :math:`F^{-1}(u)`: a draw if ``u`` is uniform, differentiable if continuous.

    Args:
      distribution: one with ``icdf``, a transformation or rearrangement of one, a multivariate
        Normal, or one with a finite ``support``.
      u: uniform numbers, ``(*batch_shape, *event_shape)``.
      support: all values of one lane, ``(size, *event_shape)``, or None.
      name: of the site, for the error.

    Returns:
      Values, ``(*batch_shape, *event_shape)``.

    Raises:
      SiteError: for a distribution without a quantile function.
    """
    if support is not None:
        return _of_finite(distribution, u, support)
    if hasattr(distribution, "scale_tril") and hasattr(distribution, "loc"):
        noise = jax.scipy.special.ndtri(u)
        return distribution.loc + (distribution.scale_tril @ noise[..., None])[..., 0]
    if hasattr(distribution, "transforms") and hasattr(distribution, "base_dist"):
        value = quantile(distribution.base_dist, u, None, name)
        for transform in distribution.transforms:
            value = transform(value)
        return value
    try:
        return distribution.icdf(u)
    except (NotImplementedError, AttributeError, ImportError):
        pass  # some of NumPyro's need TensorFlow Probability
    if hasattr(distribution, "base_dist"):
        return quantile(distribution.base_dist, u, None, name)
    raise SiteError(
        f"Site '{name}': antithetic and quasi-random samples need a quantile function (icdf), got "
        f"{type(distribution).__name__}. Fix: leave antithetic and quasi out, or use a "
        "distribution that transforms a Normal or a Uniform."
    )


def _of_finite(distribution: Any, u: jax.Array, support: np.ndarray) -> jax.Array:
    """The first value whose cumulative probability reaches ``u``."""
    batch, event = distribution.batch_shape, support.shape[1:]
    values = jnp.asarray(support)
    # one uniform number per lane is enough
    u = u.reshape((*batch, -1))[..., 0] if event else u
    full = jnp.broadcast_to(
        values.reshape((-1, *(1,) * len(batch), *event)), (len(support), *batch, *event)
    )
    probabilities = jnp.exp(jax.vmap(distribution.log_prob)(full))
    below = (jnp.cumsum(probabilities, axis=0) < u[None]).sum(0)
    return values[jnp.minimum(below, len(support) - 1)]


def antithetic(u: jax.Array) -> jax.Array:
    """``u`` and ``1 - u`` along the leading axis, the pairs half its length apart."""
    return jnp.concatenate([u, 1.0 - u])


def uniform(key: Any, shape: tuple[int, ...]) -> jax.Array:
    """Uniform numbers strictly between 0 and 1."""
    tiny = jnp.finfo(jnp.result_type(float)).eps / 2
    return jax.random.uniform(key, shape, minval=tiny, maxval=1.0 - tiny)
