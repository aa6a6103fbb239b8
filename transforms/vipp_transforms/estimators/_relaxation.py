"""What the continuous relaxations of discrete choices share.

They treat a Bernoulli choice, and a one-hot choice among several, as one thing: logits with a last
axis of categories, and a value that is the probability-like weight of each category.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms import checks
from vipp_transforms.errors import SiteError
from vipp_transforms.estimators._linear import IMPOSSIBLE, is_binary, logit
from vipp_transforms.estimators.base import Local, SiteInfo, Source


def is_one_hot(site: SiteInfo) -> bool:
    """Whether a draw is one of the unit vectors."""
    return (
        site.support is not None
        and len(site.event_shape) == 1
        and site.support.shape == (site.event_shape[0],) * 2
        and np.array_equal(np.sort(site.support, axis=0)[::-1], _first_row_ones(site))
        and np.array_equal(site.support.sum(1), np.ones(site.event_shape[0]))
    )


def _first_row_ones(site: SiteInfo) -> np.ndarray:
    ones = np.zeros(site.event_shape * 2)
    ones[0] = 1
    return ones


def require_relaxable(site: SiteInfo, estimator: str) -> None:
    """Raise unless the site is a Bernoulli or a one-hot choice."""
    if not (is_binary(site) or is_one_hot(site)):
        raise SiteError(
            f"Site '{site.name}': {estimator} relaxes a Bernoulli or a one-hot choice to real "
            f"numbers, got {site.kind}. Fix: use vipp.OneHotCategorical in place of Categorical, "
            "or an estimator that keeps the values: LocalExpectation(), or "
            "ScoreFunction(num_samples=2, baseline='leave_one_out')."
        )


def require_temperature(estimator: str, temperature: Any) -> None:
    """Raise unless a temperature is positive (or traced, or a schedule)."""
    checks.number(f"{estimator}: temperature", temperature, "positive", lambda x: x > 0)


def relax(
    site: SiteInfo, source: Source, fn: Callable[[Local, jax.Array, jax.Array], jax.Array]
) -> Any:
    """The site's value ``fn(here, logits, one_hot_draw)``, all with a last axis of categories."""
    binary = is_binary(site)

    def one(here: Local, drawn: jax.Array) -> jax.Array:
        drawn = drawn.astype(jnp.result_type(float))
        if binary:
            log_odds = logit(here.distribution)
            logits = jnp.stack([jnp.zeros_like(log_odds), log_odds], -1)
            return fn(here, logits, jnp.stack([1 - drawn, drawn], -1))[..., 1]
        return fn(here, _log_probabilities(site, here.distribution), drawn)

    return source.map(one, source.draw())


def _log_probabilities(site: SiteInfo, distribution: Any) -> jax.Array:
    """The log probability of each unit vector, in the order of its position."""
    size = site.event_shape[0]
    shape = (size, *distribution.batch_shape, size)
    vectors = jnp.eye(size).reshape((size,) + (1,) * len(distribution.batch_shape) + (size,))
    log_probs = jax.vmap(distribution.log_prob)(jnp.broadcast_to(vectors, shape))
    return jnp.maximum(jnp.moveaxis(log_probs, 0, -1), IMPOSSIBLE)


def gumbel_given(key: Any, logits: jax.Array, one_hot: jax.Array) -> jax.Array:
    """Perturbed normalised logits given that their largest is where ``one_hot`` says.

    Differentiable in the logits with the noise fixed: the largest is a standard Gumbel number
    whatever they are, the others are truncated at it.

    References:
      Maddison, Tarlow and Minka, *A* sampling*, 2014; Tucker et al., *REBAR*, 2017, appendix C.
    """
    log_probs = jax.nn.log_softmax(logits)
    noise = jax.random.gumbel(key, logits.shape)  # never infinite, as -log(exponential) may be
    top = (one_hot * noise).sum(-1, keepdims=True)
    others = -jnp.logaddexp(-(log_probs + noise), -top)
    return jnp.where(one_hot > 0.5, top, others)


def gumbel_behind(key: Any, logits: jax.Array, one_hot: jax.Array) -> jax.Array:
    """Perturbed logits whose largest *is* the draw, differentiable with the Gumbel noise fixed.

    Gumbel noise given the draw, together with the draw, is distributed as noise that makes it.
    """
    log_probs = jax.nn.log_softmax(logits)
    perturbed = gumbel_given(key, jax.lax.stop_gradient(logits), one_hot)
    return log_probs + jax.lax.stop_gradient(perturbed - log_probs)
