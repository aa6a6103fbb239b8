"""What a Kumaraswamy distribution has no closed form for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def mean_log_rest(a: Any, b: Any) -> jax.Array:
    r"""The expectation of :math:`\log(1 - x)`, to the last digits, of a Kumaraswamy variable.

    The integral of :math:`\log(1 - (1 - v^{1/b})^{1/a})` over the unit interval, whose ends a
    double exponential substitution moves to infinity (Takahasi and Mori, 1974).
    """
    t = np.linspace(-3.2, 3.2, 81)
    s = np.pi / 2 * np.sinh(t)
    weight = (t[1] - t[0]) * np.pi / 4 * np.cosh(t) / np.square(np.cosh(s))
    log_v = jnp.asarray(-np.log1p(np.exp(-2 * s)), jnp.result_type(a, b))
    a, b = jnp.expand_dims(a, -1), jnp.expand_dims(b, -1)
    # where v^(1/b) is too small a number, x is one less it over a
    small = log_v / b - jnp.log(a) < -15
    log_w = jnp.where(small, -1.0, log_v / b)
    log_x = jnp.log(-jnp.expm1(log_w)) / a
    log_rest = jnp.where(small, log_v / b - jnp.log(a), jnp.log(-jnp.expm1(log_x)))
    return (log_rest * jnp.asarray(weight, log_v.dtype)).sum(-1)
