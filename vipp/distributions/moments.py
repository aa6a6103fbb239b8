"""Means and covariances, of distributions whose own are known to be right."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.distribution import Independent

from vipp.distributions.families import law_of
from vipp.distributions.laws import has_law_of
from vipp.distributions.wrappers import unexpanded


def moments(fn: Any) -> tuple[jax.Array, jax.Array] | None:
    """The mean of ``fn``, and a root of its covariance with the event's numbers behind it.

    Not NumPyro's ``mean`` and ``variance``, which of an angle are others.
    """
    base = unexpanded(fn)
    if isinstance(base, Independent):
        found = _independent(base)
    elif has_law_of(base, dist.MultivariateNormal):
        found = base.loc, base.scale_tril
    elif has_law_of(base, dist.LowRankMultivariateNormal):
        found = base.loc, jnp.linalg.cholesky(base.covariance_matrix)
    else:
        found = _of_numbers(base)
    if found is None:
        return None
    mean, root = found
    shape = (*fn.batch_shape, *fn.event_shape)
    return jnp.broadcast_to(mean, shape), jnp.broadcast_to(root, (*shape, root.shape[-1]))


def _independent(fn: Any) -> tuple[Any, Any] | None:
    """Of independent numbers: each column of the root is one of them."""
    found = moments(fn.base_dist)
    if found is None or fn.base_dist.event_shape:
        return None
    mean, root = found
    numbers = math.prod(fn.event_shape)
    return mean, root * jnp.eye(numbers).reshape((*fn.event_shape, numbers))


def _of_numbers(base: Any) -> tuple[Any, Any] | None:
    if has_law_of(base, dist.Normal):
        return base.loc, jnp.asarray(base.scale)[..., None]
    if has_law_of(base, dist.Poisson):
        return base.rate, jnp.sqrt(base.rate)[..., None]
    law = law_of(base)
    if law is None or not {"value", "square"} <= {*law.expected}:
        return None
    mean = law.expected["value"]()
    return mean, jnp.sqrt(law.expected["square"](mean))[..., None]
