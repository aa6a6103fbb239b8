"""Filtering bounds: particle filters as objectives."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

import vipp_transforms as vt
from vipp.language.keys import random_key, seeded
from vipp.objectives.objective import objective
from vipp.programs.densities import SiteDensity
from vipp.programs.particles import Particles, begin, joined, part
from vipp.programs.program import AbstractProgram
from vipp.programs.steps import Sequence, take_apart
from vipp.programs.support import check_same_support
from vipp.programs.weights import weigh_sites
from vipp_transforms.choices import single_draw

_WAYS = ("multinomial", "systematic", "soft", "none")


def _check(config: dict[str, Any]) -> None:
    if config["resample"] not in _WAYS:
        raise ValueError(
            f"FilteringBound: resample must be one of {_WAYS}, got {config['resample']!r}."
        )
    if config["resampling_gradient"] and config["resample"] in ("systematic", "none"):
        raise ValueError(
            f"FilteringBound: resample={config['resample']!r} has no resampling gradient. Fix: use "
            "resample='multinomial' or 'soft', or resampling_gradient=False."
        )
    if not 0 < config["softness"] <= 1:
        raise ValueError(
            f"FilteringBound: softness must be within (0, 1], got {config['softness']!r}."
        )


def _biased(config: dict[str, Any]) -> str | None:
    chosen = config["resample"] != "none" and config["num_particles"] > 1
    if config["resampling_gradient"] or not chosen:
        return None
    return (
        "the choice of ancestors gets no gradient (resampling_gradient=True adds it, with much "
        "noise; resample='none' needs none)"
    )


@objective(check=_check, biased=_biased)
def FilteringBound(  # noqa: N802
    p: AbstractProgram,
    q: AbstractProgram,
    *,
    num_particles: int,
    resample: str = "multinomial",
    resampling_gradient: bool = False,
    softness: float = 0.5,
) -> jax.Array:
    r"""A particle filter's estimate of the log likelihood (FIVO, AESMC, VSMC).

    .. math:: E\Big[\sum_{t=1}^T \log \sum_{k=1}^K W_{t-1}^k \,
        \frac{p(x_t, z_t^k \mid z_{<t}^k)}{q(z_t^k \mid z_{<t}^k, x)}\Big] \le \log p(x)

    for a model and a guide that are each written with one ``numpyro.contrib.control_flow.scan``:
    the guide's step proposes, the model's step weighs, and between steps the particles are
    resampled, latent values drawn before the scan (unknown dynamics, say) with them. It needs ``K``
    of the order of ``T``, where IWAE needs it exponential in ``T``.

    Args:
      num_particles: ``K``, at least 1.
      resample: ``"multinomial"``; ``"systematic"``, with less noise; ``"soft"``, from a mixture of
        the weights and the uniform distribution, so that the weights keep a gradient; ``"none"``
        for the bound IWAE(K).
      resampling_gradient: whether the choice of ancestors gets its score-function gradient. Without
        it, as is usual, the gradient is biased and much less noisy.
      softness: the uniform distribution's share in ``"soft"``, within (0, 1]; a number or a
        schedule of the step.

    Raises:
      ValueError: if ``num_particles`` is not a positive int, or for an unknown way to resample;
        when traced, if a program has no scan, a site after it, or another number of steps.

    Example:
      >>> import vipp
      >>> vipp.FilteringBound(num_particles=16)
      FilteringBound(num_particles=16)

    References:
      Maddison et al., *Filtering variational objectives*, 2017.
      Le, Igl, Rainforth, Jin and Wood, *Auto-encoding sequential Monte Carlo*, 2018.
      Naesseth, Linderman, Ranganath and Blei, *Variational sequential Monte Carlo*, 2018.
      Karkus, Hsu and Lee, *Particle filter networks*, 2018 (soft resampling).
    """
    first, chain, ancestors = jax.random.split(random_key("FilteringBound"), 3)
    particles, own = begin(partial(_begin, p, q), jax.random.split(first, num_particles))
    closed_over, shared = part(particles.closed_over, own.closed_over)
    own_xs, shared_xs = part(particles.xs, own.xs)

    def step(carry: Any, given: Any) -> Any:
        (state, closed_over, own_xs), log_w = carry
        t, key, chosen, shared_x = given

        def move(key: Any, state: Any, closed_over: Any, own_xs: Any) -> Any:
            x = joined(own.xs, [x[t] for x in own_xs], shared_x)
            return particles.move(key, state, x, joined(own.closed_over, closed_over, shared))

        keys = jax.random.split(key, num_particles)
        state, gained = jax.vmap(move)(keys, state, closed_over, own_xs)
        log_w = log_w + gained
        total = jax.nn.logsumexp(log_w)
        index, log_w = _resample(chosen, log_w - total, resample, resampling_gradient, softness)
        kept = (state, closed_over, own_xs)
        if index is not None:
            kept = jax.tree.map(lambda x: x[index], kept)
        return (kept, log_w), total

    length = particles.steps
    keys = jax.random.split(chain, length), jax.random.split(ancestors, length)
    carry = (particles.state, closed_over, own_xs), particles.value - math.log(num_particles)
    given = (jnp.arange(length), *keys, shared_xs)
    _, totals = jax.lax.scan(step, carry, given, length=length)
    return totals.sum()


def _begin(p: AbstractProgram, q: AbstractProgram, key: Any) -> Particles:
    """A particle: both programs up to their scans, and both steps as one."""
    keys = jax.random.split(key)
    with seeded(rng_seed=keys[0]):
        guide = take_apart(q, "guide")
    with seeded(rng_seed=keys[1]):
        model = take_apart(p, "model", guide.drawn)
    _check_lengths(guide, model)

    def move(key: Any, carries: Any, xs: Any) -> Any:
        keys = jax.random.split(key)
        next_q, z, of_q = guide.advance(keys[0], carries[0], xs[0])
        next_p, _, of_p = model.advance(keys[1], carries[1], xs[1], z)
        return (next_q, next_p), _log_weight(of_p, of_q)

    carries, xs = (guide.scan.carry, model.scan.carry), (guide.scan.xs, model.scan.xs)
    log_w = _log_weight(model.sites, guide.sites)
    return Particles.of(move, key, carries, xs, log_w, guide.scan.length)


def _log_weight(of_p: list[SiteDensity], of_q: list[SiteDensity]) -> jax.Array:
    check_same_support("FilteringBound", of_p, of_q)
    weighed = weigh_sites(of_p, of_q, None)  # refuses subsampled plates
    return weighed.log_p - weighed.log_q


def _resample(
    key: Any, log_w: jax.Array, way: str, with_gradient: bool, softness: float
) -> tuple[jax.Array | None, jax.Array]:
    """The ancestors, and the log weights of the particles drawn from them."""
    count = len(log_w)
    if way == "none":
        return None, log_w
    if way == "systematic":
        cumulative = jnp.cumsum(jnp.exp(log_w))
        points = (jnp.arange(count) + jax.random.uniform(key)) / count
        index = jnp.minimum(jnp.searchsorted(cumulative, points), count - 1)
        return index, jnp.full(count, -math.log(count))
    log_proposal = log_w
    if way == "soft":
        uniform = jnp.log(softness) - math.log(count)
        log_proposal = jnp.logaddexp(jnp.log1p(-softness) + log_w, uniform)
    if with_gradient:
        drawn = dist.Categorical(logits=jnp.broadcast_to(log_proposal, (count, count)))
        index = vt.sample(key, drawn, single_draw(), name="filtering$ancestors")
    else:
        index = jax.random.categorical(key, log_proposal, shape=(count,))
    if way == "soft":
        return index, (log_w - log_proposal)[index] - math.log(count)
    return index, jnp.full(count, -math.log(count))


def _check_lengths(guide: Sequence, model: Sequence) -> None:
    if guide.scan.length != model.scan.length:
        raise ValueError(
            f"FilteringBound: the guide's scan has {guide.scan.length} steps, the model's "
            f"{model.scan.length}, expected as many. Fix: scan over the same sequence."
        )
