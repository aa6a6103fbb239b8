"""Distribution functions of scalar distributions, differentiable in every parameter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints, transforms

from vipp.distributions.laws import has_law_of, has_law_of_any
from vipp_transforms.constant import detached

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)

# NumPyro's own distribution function of these has the right derivative in every parameter
_CLOSED = (
    dist.AsymmetricLaplace,
    dist.AsymmetricLaplaceQuantile,
    dist.Cauchy,
    dist.Dagum,
    dist.Exponential,
    dist.Gamma,
    dist.Gompertz,
    dist.Gumbel,
    dist.HalfCauchy,
    dist.HalfNormal,
    dist.Laplace,
    dist.Logistic,
    dist.Normal,
    dist.SoftLaplace,
    dist.Weibull,
)
_MONOTONE = (
    transforms.AffineTransform,
    transforms.ExpTransform,
    transforms.PowerTransform,
    transforms.SigmoidTransform,
)


def has_cdf(fn: Any) -> bool:
    """Whether :func:`cdf` treats the scalar distribution ``fn``.

    Its support must not depend on parameters: a mixture of supports that move apart has no
    differentiable quantile.
    """
    if has_law_of(fn, dist.TransformedDistribution):
        support = fn.base_dist.support
        for transform in fn.transforms:
            if not isinstance(transform, _MONOTONE) or transform.domain != support:
                return False
            support = transform.codomain
        return _has_base(fn.base_dist) and not _is_angle(fn.base_dist)
    return _has_base(fn)


def _has_base(fn: Any) -> bool:
    if isinstance(fn, dist.ExpandedDistribution):
        return _has_base(fn.base_dist)
    fixed = isinstance(fn.support, constraints.ParameterFreeConstraint)
    return fixed and has_law_of_any(fn, (*_CLOSED, *_OWN))


def _is_angle(fn: Any) -> bool:
    return fn.support is constraints.circular


def cdf(fn: Any, x: jax.Array) -> jax.Array:
    """The probability of a value of at most ``x``; of an angle, counted from ``-pi``."""
    if isinstance(fn, dist.VonMises):
        # each term is 0 at its own antimode; the modulus makes the difference 0 at -pi
        return (moving_cdf(fn, x) - moving_cdf(fn, jnp.asarray(-math.pi, x.dtype))) % 1
    return moving_cdf(fn, x)


def moving_cdf(fn: Any, x: Any) -> jax.Array:
    """Up to a constant :func:`cdf`, but of an angle counted from the antimode.

    Its derivative in the parameters is the mass that crosses ``x``. Counted from a fixed angle,
    the mass of a turning circular distribution would have to go round the other way.
    """
    if isinstance(fn, dist.ExpandedDistribution):
        return moving_cdf(fn.base_dist, x)
    if isinstance(fn, dist.TransformedDistribution):
        sign: Any = 1
        for transform in reversed(fn.transforms):
            sign, x = sign * transform.sign, transform.inv(x)
        base = moving_cdf(fn.base_dist, x)
        return jnp.where(sign < 0, 1 - base, base)
    for kind, below in _OWN.items():
        if isinstance(fn, kind):
            return below(fn, x)
    return jnp.asarray(fn.cdf(x))


def _integral(fn: Callable[[Any], Any], low: Any, high: Any) -> jax.Array:
    """Gauss-Legendre quadrature of an analytic function, elementwise in the limits."""
    half, middle = (high - low) / 2, (high + low) / 2
    dtype = jnp.result_type(half)
    nodes = jnp.asarray(_NODES, dtype).reshape((-1,) + (1,) * jnp.ndim(half))
    weights = jnp.asarray(_WEIGHTS, dtype).reshape(nodes.shape)
    return half * (weights * fn(middle + half * nodes)).sum(0)


def _depth(x: Any) -> float:
    """How far below its start, in logarithms, a tail no longer counts."""
    return -math.log(float(jnp.finfo(jnp.result_type(x, float)).eps)) + 4


def _von_mises(fn: Any, x: jax.Array) -> jax.Array:
    r"""The integral of the density from the antimode.

    The smaller side is integrated, to where :math:`\kappa \cos` has fallen by :func:`_depth`, so
    that its error is relative to the density at ``x``, at every concentration.
    """
    kappa = fn.concentration
    z = (x - fn.loc + math.pi) % (2 * math.pi) - math.pi
    z, kappa = jnp.broadcast_arrays(z, kappa)
    start = jnp.where(z < 0, -z, z)
    fixed, concentration = detached((start, kappa))
    tail = jnp.sin(fixed / 2) ** 2 + _depth(x) / (2 * concentration)
    end = 2 * jnp.arcsin(jnp.sqrt(jnp.minimum(tail, 1)))

    def density(t: Any) -> Any:
        return jnp.exp(-2 * kappa * jnp.sin(t / 2) ** 2)

    upper = _integral(density, start, end) / (2 * math.pi * jax.scipy.special.i0e(kappa))
    return jnp.where(z < 0, upper, 1 - upper)


def _student(fn: Any, x: jax.Array) -> jax.Array:
    """From the median out, over ``asinh`` of the value, where both kinds of tail are smooth."""
    standard = dist.StudentT(fn.df)
    z, _ = jnp.broadcast_arrays((x - fn.loc) / fn.scale, fn.df)
    start = jnp.zeros_like(z)

    def density(s: Any) -> Any:
        return jnp.exp(standard.log_prob(jnp.sinh(s))) * jnp.cosh(s)

    return 0.5 + _integral(density, start, jnp.arcsinh(z))


def _beta(fn: Any, x: jax.Array) -> jax.Array:
    """The smaller tail, over the logit of the value, where the density is log-concave."""
    a, b = fn.concentration1, fn.concentration0
    tiny = jnp.finfo(x.dtype).tiny
    y = jnp.log(jnp.maximum(x, tiny)) - jnp.log(jnp.maximum(1 - x, tiny))
    y, a, b = jnp.broadcast_arrays(y, a, b)
    fixed, alpha, beta = detached((y, a, b))
    lower = fixed < jnp.log(alpha) - jnp.log(beta)
    depth = _depth(x)
    spread = jnp.sqrt(2 * depth * (1 / alpha + 1 / beta))
    length = depth / jnp.where(lower, alpha, beta) + spread
    log_norm = jax.scipy.special.betaln(a, b)

    def density(t: Any) -> Any:
        return jnp.exp(a * t - (a + b) * jnp.logaddexp(t, 0.0) - log_norm)

    tail = _integral(density, y, y + jnp.where(lower, -length, length))
    return jnp.where(lower, -tail, 1 - tail)


def _kumaraswamy(fn: Any, x: jax.Array) -> jax.Array:
    return -jnp.expm1(fn.concentration0 * jnp.log1p(-(x**fn.concentration1)))


_OWN: dict[type, Callable[[Any, Any], Any]] = {
    dist.Beta: _beta,
    dist.Kumaraswamy: _kumaraswamy,
    dist.StudentT: _student,
    dist.VonMises: _von_mises,
}
