"""What is measured of a training run now and then: the bound, and how noisy its gradient is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState

from vipp.diagnostics.parameters import by_name

NUM_DRAWS = 16


def evaluate(svi: SVI, args: Any, kwargs: Any) -> Callable[..., Any]:
    """A function ``(state, key) -> bound``, the mean of 16 estimates."""

    def bound(state: SVIState, key: Any) -> jax.Array:
        estimate = loss_at(svi, args, kwargs, state)
        raw = svi.optim.get_params(state.optim_state)
        return -jax.vmap(estimate, (None, 0))(raw, jax.random.split(key, NUM_DRAWS)).mean()

    return bound


def measure(svi: SVI, args: Any, kwargs: Any) -> Callable[..., Any]:
    r"""A function ``(state, key) -> metrics`` that estimates bound and gradient 16 times.

    With :math:`g_1, \dots, g_n` the gradients for the unconstrained values of one parameter, or of
    one array of a module, the
    signal-to-noise ratio is :math:`\lVert \bar g \rVert / \sqrt{\sum_j \mathrm{var}(g_j)}`.
    """

    def metrics(state: SVIState, key: Any) -> dict[str, jax.Array]:
        estimate = loss_at(svi, args, kwargs, state)
        raw = svi.optim.get_params(state.optim_state)
        keys = jax.random.split(key, NUM_DRAWS)
        losses, slopes = jax.vmap(jax.value_and_grad(estimate), (None, 0))(raw, keys)
        found = {"bound": -losses.mean(), "bound_error": losses.std(ddof=1) / NUM_DRAWS**0.5}
        slopes = by_name(slopes)
        means = {n: jnp.linalg.norm(g.mean(0)) for n, g in slopes.items()}
        noises = {n: jnp.sqrt(g.var(0, ddof=1).sum()) for n, g in slopes.items()}
        found["gradient_norm"] = jnp.sqrt(sum(m**2 for m in means.values()))
        return found | {f"signal_to_noise/{n}": means[n] / noises[n] for n in means}

    return metrics


def loss_at(svi: SVI, args: Any, kwargs: Any, state: SVIState) -> Callable[..., Any]:
    """A function ``(raw, key) -> loss`` of unconstrained parameter values."""
    mutable = state.mutable_state or {}

    def estimate(raw: Any, key: Any) -> jax.Array:
        params = {**svi.constrain_fn(raw), **mutable}  # pyright: ignore[reportOptionalCall]
        return svi.loss.loss(key, params, svi.model, svi.guide, *args, **kwargs)

    return estimate
