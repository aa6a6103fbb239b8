"""The bound of a Bernoulli autoencoder by hand: each estimator as a user of JAX would write it.

``surrogate(params, key, x)`` has the bound's value, summed over rows, and its estimated gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from _common import apply

Surrogate = Callable[[Any, jax.Array, jax.Array], jax.Array]
stop = jax.lax.stop_gradient


def log_bernoulli(logits: Any, value: Any) -> jax.Array:
    return (value * logits - jax.nn.softplus(logits)).sum(-1)


def divergence(logits: Any) -> jax.Array:
    """KL from fair coins, exact."""
    p = jax.nn.sigmoid(logits)
    entropy = jax.nn.softplus(logits) - p * logits
    return (jnp.log(2.0) - entropy).sum(-1)


def value_at(params: Any, x: Any, z: Any, logits: Any, exact: bool) -> jax.Array:
    """What is averaged over draws: without the divergence, if that is exact."""
    reached = log_bernoulli(apply(params["decoder"], z), x)
    if exact:
        return reached
    return reached - z.shape[-1] * jnp.log(2.0) - log_bernoulli(stop(logits), z)


def leave_one_out(n: int, exact: bool = False) -> Surrogate:
    def surrogate(params: Any, key: Any, x: Any) -> jax.Array:
        logits = apply(params["encoder"], x)
        z = jax.random.bernoulli(key, jax.nn.sigmoid(logits), (n, *logits.shape)).astype(x.dtype)
        f = value_at(params, x, z, logits, exact)
        away = stop(f - f.mean(0)) / (n - 1)
        score = log_bernoulli(logits, z)
        total = f.mean(0) + (away * (score - stop(score))).sum(0)
        return (total - divergence(logits) * exact).sum()

    return surrogate


def double_control_variates(n: int, exact: bool = False) -> Surrogate:
    """Titsias and Shi (2022): the slopes at the draws from a backward pass of their own."""

    def surrogate(params: Any, key: Any, x: Any) -> jax.Array:
        logits = apply(params["encoder"], x)
        p = jax.nn.sigmoid(logits)
        z = jax.random.bernoulli(key, stop(p), (n, *logits.shape)).astype(x.dtype)
        score = log_bernoulli(logits, z)
        score = score - stop(score)
        centred, away = score - score.mean(0), z - stop(p)
        # what the slope of sample j is multiplied by: all other samples' part in it
        part = centred[..., None] * away * (n / (n - 1))
        shift = (p - stop(p)) - (part.sum(0) - part) / (n - 1)
        f = value_at(params, x, z + shift, logits, exact)
        total = f.mean(0) + (stop(f - f.mean(0)) / (n - 1) * score).sum(0)
        return (total - divergence(logits) * exact).sum()

    return surrogate


def coefficients(features: Any, f: Any, scale: Any) -> jax.Array:
    """For each draw, the least-squares coefficients of all others, shared by rows.

    ``features`` are ``(n, number, rows)``, ``f`` is ``(n, rows)``; centred over the others' draws.
    A feature whose squares are far below ``scale``, which depends on no draw, counts as none: where
    all others are equal, what rounding leaves would depend on the draw that is left out.
    """
    n = len(features)
    rest = n / (n - 1)  # what one draw less takes of a sum of squares about the mean
    away, left = features - features.mean(0), f - f.mean(0)
    squares = jnp.einsum("kar,kbr->kab", away, away)
    products = jnp.einsum("kar,kr->ka", away, left)
    squares, products = squares.sum(0) - rest * squares, products.sum(0) - rest * products
    return jnp.linalg.solve(squares + 1e-4 * jnp.diag(scale), products[..., None])[..., 0]


def fitted(z: Any, mean: Any, score: Any, f: Any, slopes: Sequence[Any]) -> jax.Array:
    """Leave-one-out less linear functions of the draw, by coefficients fitted to other draws.

    ``z`` is ``(n, rows, numbers)``, of mean ``mean``; ``slopes`` are constants like ``mean``.
    """
    away, n = z - stop(mean), len(z)
    features = jnp.stack([(slope * away).sum(-1) for slope in slopes], 1)
    scale = jnp.stack([(slope**2).sum() for slope in slopes])
    weights = stop(coefficients(features, f, scale))
    left = stop(f - jnp.einsum("ka,kar->kr", weights, features))
    slope = sum(w * a for w, a in zip(weights.mean(0), slopes, strict=True))
    known = (slope * (mean - stop(mean))).sum(-1)
    scored = ((left - left.mean(0)) / (n - 1) * (score - stop(score))).sum(0)
    return f.mean(0) + scored + known


def taylor_and_divergence(n: int, first: bool = False) -> Surrogate:
    """The slope at the mean, and the divergence of a draw; the divergence's mean is exact.

    ``first``: the decoder is differentiated at the first draw alone.
    """

    def surrogate(params: Any, key: Any, x: Any) -> jax.Array:
        logits = apply(params["encoder"], x)
        p = jax.nn.sigmoid(logits)
        z = jax.random.bernoulli(key, stop(p), (n, *logits.shape)).astype(x.dtype)
        reached = lambda params, z: log_bernoulli(apply(params["decoder"], z), x)
        slope = jax.grad(lambda z: reached(stop(params), z).sum())(stop(p))
        score, f = log_bernoulli(logits, z), reached(stop(params) if first else params, z)
        # log p - log q of a draw is linear in its bits
        total = fitted(z, p, score, f, (slope, -stop(logits)))
        if first:
            one = reached(params, z[0])
            total = total + one - stop(one)
        return (total - divergence(logits)).sum()

    return surrogate


def arms(n: int, exact: bool = False) -> Surrogate:
    """Dimitriev and Zhou (2021), with the Dirichlet copula."""

    def surrogate(params: Any, key: Any, x: Any) -> jax.Array:
        logits = apply(params["encoder"], x)
        fixed = stop(logits)
        rare = jax.nn.sigmoid(-jnp.abs(fixed))
        parts = jax.random.exponential(key, (n, *logits.shape))
        parts = parts / parts.sum(0)
        kept = rare ** (1.0 / (n - 1))
        is_rare = 1.0 - parts < kept
        z = jnp.where(fixed > 0, ~is_rare, is_rare).astype(x.dtype)
        both = jnp.maximum(2.0 * kept - 1.0, 0.0) ** (n - 1)
        factor = (1.0 - rare) / (1.0 - both / rare)
        f = value_at(params, x, z, logits, exact)
        away = stop(f - f.mean(0))[..., None] * (z - z.mean(0))
        slope = (away.sum(0) * factor / (n - 1) * (logits - fixed)).sum(-1)
        return (f.mean(0) + slope - divergence(logits) * exact).sum()

    return surrogate


def stratified(n: int, exact: bool = False) -> Surrogate:
    """One uniform number in each n-th part, bit by bit in its own order.

    As even as n draws can be: one more or less than n p of them are ones. As of every exchangeable
    coupling, what differences show of the score is divided by their covariance.
    """

    def surrogate(params: Any, key: Any, x: Any) -> jax.Array:
        logits = apply(params["encoder"], x)
        p = jax.nn.sigmoid(stop(logits))
        keys = jax.random.split(key)
        sure, chance = jnp.floor(n * p), n * p - jnp.floor(n * p)
        ones = sure + jax.random.bernoulli(keys[0], chance)
        order = jax.random.uniform(keys[1], (n, *logits.shape))
        place = (order[:, None] > order[None]).sum(1)
        z = (place < ones).astype(x.dtype)
        pairs = (1.0 - chance) * sure * (n - sure) + chance * (sure + 1.0) * (n - sure - 1.0)
        factor = n * (n - 1) * p * (1.0 - p) / jnp.maximum(pairs, 1e-30)
        f = value_at(params, x, z, logits, exact)
        away = stop(f - f.mean(0))[..., None] * (z - z.mean(0))
        slope = (away.sum(0) * factor / (n - 1) * (logits - stop(logits))).sum(-1)
        return (f.mean(0) + slope - divergence(logits) * exact).sum()

    return surrogate
