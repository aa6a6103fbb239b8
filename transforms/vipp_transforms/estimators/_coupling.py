"""Samples that share their noise: values as functions of uniform numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms.distributions import Described
from vipp_transforms.errors import SiteError
from vipp_transforms.estimators.base import SiteInfo


def quantile(distribution: Described, u: jax.Array, support: np.ndarray | None) -> jax.Array:
    r"""The value :math:`F^{-1}(u)`: a draw if ``u`` is uniform, differentiable if continuous.

    Args:
      distribution: one that knows its quantiles, or with a finite ``support``.
      u: uniform numbers, ``(*batch_shape, *event_shape)``.
      support: all values of one lane, ``(size, *event_shape)``, or None.

    Returns:
      Values, ``(*batch_shape, *event_shape)``.
    """
    return distribution.quantile(u) if support is None else _of_finite(distribution, u, support)


def require_quantile(site: SiteInfo) -> None:
    """Raise unless the site's values are known as functions of uniform numbers."""
    if site.support is None and not site.has_quantile:
        raise SiteError(
            f"Site '{site.name}': antithetic and quasi-random samples need a quantile function, "
            f"got {site.kind}, which answers with none. Fix: leave antithetic and quasi out, or "
            "draw with vipp.sample from a distribution that transforms a Normal or a Uniform."
        )


def _of_finite(distribution: Described, u: jax.Array, support: np.ndarray) -> jax.Array:
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
