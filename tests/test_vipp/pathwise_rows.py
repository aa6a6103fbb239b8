"""Rows of the table of pathwise gradients: a distribution and an exact expectation under it."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Row(NamedTuple):
    """``make(*params)`` is the distribution, ``exact(*params)`` the expectation of ``f`` under it.

    ``lanes``: draw under ``vmap``, for parameters that take no batch axis.
    ``bias``: that would be caught, relative to the largest entry of the gradient.
    """

    make: Any
    params: tuple
    f: Any
    exact: Any
    lanes: bool = False
    bias: float = 0.05


def curve(x):
    return 1 + jnp.tanh(x - 0.3) + 1 / (1 + x**2)


def turn(x):
    """Continuous on the circle."""
    return 1.5 + jnp.cos(x - 1.8) + 0.3 * jnp.cos(2 * x + 1)


def wave(x):
    """Of several coordinates; its Gaussian expectation is known."""
    x = x.reshape((x.shape[0], -1))
    return 1 + jnp.sin(x @ weights(x.shape[-1]) + 0.9)


def one_wave(x):
    return wave(x[None])[0]


def weights(size):
    return jnp.linspace(0.7, -0.4, size) + 0.15 * (-1.0) ** jnp.arange(size)


# Quadrature of f(x) p(x) over x = place(u, *params): the trapezoidal rule in u


def real(u, *params):
    return jnp.sinh(u)


def positive(u, *params):
    return jnp.exp(u)


def unit(u, *params):
    return jax.nn.sigmoid(u)


def above(low):
    return lambda u, *params: low(*params) + jnp.exp(u)


def below(high):
    return lambda u, *params: high(*params) - jnp.exp(u)


def between(low, high):
    def place(u, *params):
        start, end = low(*params), high(*params)
        return start + (end - start) * jax.nn.sigmoid(u)

    return place


def line(make, params, place, f=curve, density=None, width=None):
    width = width or (14.0 if place in (real, unit) else 24.0)

    def exact(*params):
        u = jnp.linspace(-width, width, 6000)  # no node at 0, where a density may jump
        x, slope = jax.jvp(lambda u: place(u, *params), (u,), (jnp.ones_like(u),))
        p = jnp.exp((density or make)(*params).log_prob(x))
        return (f(x) * p * abs(slope)).sum() * (u[1] - u[0])

    return Row(make, params, f, exact)


def angle(make, params):
    return line(make, params, lambda u, *params: u, turn, width=math.pi)


def plane(make, params, place=real, width=4.0, f=wave):
    """Quadrature over two coordinates."""

    def exact(*params):
        u = jnp.linspace(-width, width, 201)
        x, slope = jax.jvp(place, (u,), (jnp.ones_like(u),))
        pairs = jnp.stack(jnp.meshgrid(x, x, indexing="ij"), -1).reshape((-1, 2))
        area = (slope[:, None] * slope).reshape(-1) * (u[1] - u[0]) ** 2
        return (f(pairs) * jnp.exp(make(*params).log_prob(pairs)) * area).sum()

    return Row(make, params, f, exact)


def gaussian(make, params, moments, lanes=False):
    def exact(*params):
        mean, cov = moments(*params)
        w = weights(cov.shape[-1])
        return 1 + jnp.sin(w @ mean + 0.9) * jnp.exp(-w @ cov @ w / 2)

    return Row(make, params, one_wave if lanes else wave, exact, lanes)


def spd(scale):
    """A covariance from an unconstrained matrix, so that every entry is free."""
    return scale @ jnp.swapaxes(scale, -1, -2) + 0.3 * jnp.eye(scale.shape[-1])


def lower(scale):
    return jnp.tril(scale, -1) + jnp.exp(scale * jnp.eye(scale.shape[-1])) * jnp.eye(
        scale.shape[-1]
    )


RAW = jnp.array([[-0.3, 0.0], [0.5, -0.4]])


def gram(x):
    return x @ jnp.swapaxes(x, -1, -2)


def a(*values):
    return tuple(jnp.asarray(v, float) for v in values)
