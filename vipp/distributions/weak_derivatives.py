"""Weak derivatives of NumPyro's scalar distributions: differences of two densities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from vipp.distributions.wrappers import factor
from vipp_transforms.distributions import Weak

Decomposition = tuple[list[Weak], jax.Array]


def num_weak_derivatives(fn: Any) -> int | None:
    """How many parameters of ``fn``, behind its wrappers, :func:`weak_derivatives` decomposes."""
    found = _DECOMPOSITIONS.get(type(factor(fn)))
    return None if found is None else found[0]


def weak_derivatives(fn: Any, key: Any, value: jax.Array) -> Decomposition:
    """The weak derivative of each parameter around the draw ``value``, the others' score.

    References:
      Mohamed, Rosca, Figurnov and Mnih, *Monte Carlo gradient estimation in machine learning*,
      2020, section 6 and table 1.
    """
    base = factor(fn)
    _, decompose = _DECOMPOSITIONS[type(base)]
    return decompose(key, lambda name: jnp.broadcast_to(getattr(base, name), value.shape), value)


_Of = Callable[[str], jax.Array]  # a parameter's values, one for each number drawn


def _direction(parameter: jax.Array) -> jax.Array:
    """Zero, with the derivative of ``parameter``."""
    return parameter - jax.lax.stop_gradient(parameter)


def _normal(key: Any, of: _Of, base: jax.Array) -> Decomposition:
    loc, scale = of("loc"), of("scale")
    m, s = jax.lax.stop_gradient((loc, scale))
    rayleigh, maxwell, sign, uniform = jax.random.split(key, 4)
    w = jnp.sqrt(-2.0 * jnp.log1p(-jax.random.uniform(rayleigh, m.shape)))
    mean = Weak(_direction(loc) / (s * math.sqrt(2 * math.pi)), m + s * w, m - s * w)
    # a double-sided Maxwell number times a uniform one is a standard Normal one
    length = jnp.linalg.norm(jax.random.normal(maxwell, (*m.shape, 3)), axis=-1)
    wide = length * jax.random.rademacher(sign, m.shape)
    narrow = wide * jax.random.uniform(uniform, m.shape)
    spread = Weak(_direction(scale) / s, m + s * wide, m + s * narrow)
    return [mean, spread], jnp.zeros(m.shape)


def _poisson(key: Any, of: _Of, base: jax.Array) -> Decomposition:
    rate = of("rate")
    return [Weak(_direction(rate), base + 1, base)], jnp.zeros(rate.shape)


def _exponential(key: Any, of: _Of, base: jax.Array) -> Decomposition:
    rate = of("rate")
    r = jax.lax.stop_gradient(rate)
    longer = base + jax.random.exponential(key, r.shape) / r
    return [Weak(_direction(rate) / r, base, longer)], jnp.zeros(r.shape)


def _gamma(key: Any, of: _Of, base: jax.Array) -> Decomposition:
    shape, rate = of("concentration"), of("rate")
    a, r = jax.lax.stop_gradient((shape, rate))
    longer = base + jax.random.exponential(key, r.shape) / r
    log_density = shape * jnp.log(r * base) - jax.scipy.special.gammaln(shape)
    return [Weak(_direction(rate) * a / r, base, longer)], _direction(log_density)


def _weibull(key: Any, of: _Of, base: jax.Array) -> Decomposition:
    scale, shape = of("scale"), of("concentration")
    s, k = jax.lax.stop_gradient((scale, shape))
    power = (base / s) ** k  # a standard exponential number
    longer = s * (power + jax.random.exponential(key, s.shape)) ** (1 / k)
    ratio = base / s
    log_density = jnp.log(shape) + (shape - 1) * jnp.log(ratio) - ratio**shape
    return [Weak(_direction(scale) * k / s, longer, base)], _direction(log_density)


_DECOMPOSITIONS: dict[type, tuple[int, Callable[[Any, _Of, jax.Array], Decomposition]]] = {
    dist.Normal: (2, _normal),
    dist.Poisson: (1, _poisson),
    dist.Exponential: (1, _exponential),
    dist.Gamma: (1, _gamma),
    dist.Weibull: (1, _weibull),
}
