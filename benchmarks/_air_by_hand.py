"""The gradient of AIR's bound in plain JAX, by leave-one-out of two: what vipp is timed against."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _air import NOISE, Setting, covered, picture, read, recur, write
from _common import apply

HALF_LOG_2PI = 0.5 * float(np.log(2.0 * np.pi))


def _log_normal(x: jax.Array, loc: Any, scale: Any) -> jax.Array:
    return -0.5 * ((x - loc) / scale) ** 2 - jnp.log(scale) - HALF_LOG_2PI


def _log_flag(flag: jax.Array, logits: Any) -> jax.Array:
    return flag * logits - jax.nn.softplus(logits)


def loss(params: Any, key: jax.Array, x: jax.Array, setting: Setting) -> jax.Array:
    """Minus the bound, whose gradient is unbiased: two draws of the flags, of all else one."""
    place, spread = setting.place
    side, count, samples = setting.window, len(x), 2
    state, known, left = jnp.zeros((count, setting.hidden)), jnp.zeros((count, setting.code + 3)), x
    canvas, log_q = jnp.zeros((samples, *x.shape)), jnp.zeros((samples, count))
    total, present = jnp.zeros((samples, count)), jnp.ones((samples, count))
    prior = jnp.log(setting.present) - jnp.log1p(-setting.present)
    for of_step in jax.random.split(key, setting.objects):
        of_flag, of_where, of_what = jax.random.split(of_step, 3)
        seen = apply(params["look"], left.reshape(count, -1))
        gates = params["gates"]
        state = recur(gates, seen @ gates["seen"] + known @ gates["known"], state)
        out = apply(params["locate"], state)
        logits = out[:, 0] + 2.0
        flag = jax.random.bernoulli(of_flag, jax.nn.sigmoid(logits), (samples, count)).astype(float)
        log_flag = present * _log_flag(flag, logits)
        log_q = log_q + log_flag
        total = total + present * _log_flag(flag, prior) - log_flag
        present = present * flag
        loc, scale = place + spread * out[:, 1:4], spread * jax.nn.softplus(out[:, 4:])
        where = loc + scale * jax.random.normal(of_where, loc.shape)
        glimpse = read(where, x, side).reshape(count, -1)
        mean, width = jnp.split(apply(params["encoder"], glimpse), 2, axis=-1)
        width = jax.nn.softplus(width)
        what = mean + width * jax.random.normal(of_what, mean.shape)
        total = total + present * (
            (_log_normal(where, place, spread) - _log_normal(where, loc, scale)).sum(-1)
            + (_log_normal(what, 0.0, 1.0) - _log_normal(what, mean, width)).sum(-1)
        )
        drawn = write(where, picture(params["decoder"], what), setting.canvas)
        canvas = canvas + present[..., None, None] * drawn
        known = jnp.concatenate([where, what], axis=-1)
        left = left * (1.0 - covered(where, setting.canvas))
    total = total + _log_normal(x, canvas, NOISE).sum((-2, -1))
    other = jax.lax.stop_gradient(total[::-1])
    score = log_q * jax.lax.stop_gradient(total - other)
    return -(total + score - jax.lax.stop_gradient(score)).mean(0).sum()


def updating(setting: Setting, optim: optax.GradientTransformation) -> Any:
    """One step: ``(parameters, optimiser's state, key), canvases`` to the next and the loss."""

    def step(carry: Any, x: jax.Array) -> Any:
        params, state, key = carry
        key, this = jax.random.split(key)
        value, grads = jax.value_and_grad(loss)(params, this, x, setting)
        updates, state = optim.update(grads, state, params)
        return (optax.apply_updates(params, updates), state, key), value

    return step
