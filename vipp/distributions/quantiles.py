"""Values of NumPyro's distributions as functions of independent uniform numbers."""

from __future__ import annotations

from typing import Any

import jax
import numpyro.distributions as dist
from numpyro.distributions.distribution import ExpandedDistribution, Independent

# whose quantiles NumPyro writes out; those of Beta, Gamma and StudentT need another package
SCALARS = (
    dist.AsymmetricLaplace,
    dist.Cauchy,
    dist.Dagum,
    dist.Exponential,
    dist.Gompertz,
    dist.Gumbel,
    dist.HalfCauchy,
    dist.HalfNormal,
    dist.Laplace,
    dist.Levy,
    dist.LogNormal,
    dist.Logistic,
    dist.LowerTruncatedPowerLaw,
    dist.Normal,
    dist.Pareto,
    dist.SoftLaplace,
    dist.Uniform,
)
_BUILT = (
    dist.AsymmetricLaplaceQuantile,
    dist.DoublyTruncatedPowerLaw,
)
_TRUNCATED = (
    dist.LeftTruncatedDistribution,
    dist.RightTruncatedDistribution,
    dist.TwoSidedTruncatedDistribution,
)
_GAUSSIAN = (dist.LowRankMultivariateNormal, dist.MultivariateNormal)


def has_quantile(fn: Any) -> bool:
    """Whether :func:`quantile` draws from ``fn``: nothing is guessed from what it looks like."""
    if isinstance(fn, ExpandedDistribution | Independent):
        return has_quantile(fn.base_dist)
    if type(fn) in (*SCALARS, *_BUILT, *_GAUSSIAN):
        return True
    if type(fn) in _TRUNCATED:
        return type(fn.base_dist) in SCALARS
    # a transformation that changes the shape is drawn from another number of uniform numbers
    transforms = type(fn).sample is dist.TransformedDistribution.sample
    return transforms and fn.base_dist.shape() == fn.shape() and has_quantile(fn.base_dist)


def quantile(fn: Any, u: jax.Array) -> Any:
    r"""A draw of ``fn`` if ``u`` is uniform: :math:`F^{-1}(u)` entry by entry, then transformed."""
    if isinstance(fn, ExpandedDistribution | Independent):
        return quantile(fn.base_dist, u)
    if type(fn) in _GAUSSIAN:
        noise = jax.scipy.special.ndtri(u)
        return fn.loc + (fn.scale_tril @ noise[..., None])[..., 0]
    if type(fn) in (*SCALARS, *_BUILT, *_TRUNCATED):
        return fn.icdf(u)
    value = quantile(fn.base_dist, u)
    for transform in fn.transforms:
        value = transform(value)
    return value
