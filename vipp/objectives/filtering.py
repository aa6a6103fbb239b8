"""Filtering bounds: particle filters as objectives."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vipp.language.keys import random_key, seeded
from vipp.language.notes import note
from vipp.objectives.objective import objective
from vipp.programs.ancestors import WAYS, ancestors, descended
from vipp.programs.densities import SiteDensity
from vipp.programs.elements import Moved, elements
from vipp.programs.particles import Particles, begin, joined, part
from vipp.programs.program import AbstractProgram, PerPlate
from vipp.programs.steps import Sequence, take_apart
from vipp.programs.support import check_same_support
from vipp.programs.weights import log_sum_exp


def _check(config: dict[str, Any]) -> None:
    if config["resample"] not in WAYS:
        raise ValueError(
            f"FilteringBound: resample must be one of {WAYS}, got {config['resample']!r}."
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
    per_plate: PerPlate = "auto",
) -> jax.Array:
    r"""A particle filter's estimate of the log likelihood (FIVO, AESMC, VSMC).

    .. math:: E\Big[\sum_{t=1}^T \log \sum_{k=1}^K W_{t-1}^k \,
        \frac{p(x_t, z_t^k \mid z_{<t}^k)}{q(z_t^k \mid z_{<t}^k, x)}\Big] \le \log p(x)

    for a model and a guide that are each written with one ``numpyro.contrib.control_flow.scan``:
    the guide's step proposes, the model's step weighs, and between steps the particles are
    resampled, latent values drawn before the scan (unknown dynamics, say) with them. It needs ``K``
    of the order of ``T``, where IWAE needs it exponential in ``T``.

    Each element of the plates that enclose the whole of both programs, within the step and before
    the scan, has particles and a bound of its own, times the plates' subsampling scale. That is so
    where one element's draws say nothing of another's distributions, as the programs show. Where
    they do (a latent value outside of the plate, or a state that all elements share), the elements
    are resampled together: one bound over everything, valid and looser. ``vipp.explain`` says
    which.

    Args:
      num_particles: ``K``, at least 1.
      resample: ``"multinomial"``; ``"systematic"``, with less noise; ``"soft"``, from a mixture of
        the weights and the uniform distribution, so that the weights keep a gradient; ``"none"``
        for the bound IWAE(K).
      resampling_gradient: whether the choice of ancestors gets its score-function gradient. Without
        it, as is usual, the gradient is biased and much less noisy.
      softness: the uniform distribution's share in ``"soft"``, within (0, 1]; a number or a
        schedule of the step.
      per_plate: ``"auto"``; the name(s) of plates whose elements must be apart; or None for one
        bound over everything.

    Raises:
      ValueError: if ``num_particles`` is not a positive int, or for an unknown way to resample;
        when traced, if a program has no scan, a site after it, or another number of steps, or
        naming a site outside of a plate, or what mixes its elements.

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
    first, chain, choices = jax.random.split(random_key("FilteringBound"), 3)
    start = partial(_begin, p, q)
    particles, own, begun = begin(start, jax.random.split(first, num_particles))
    apart = elements(begun, particles, own, per_plate)
    note(str(apart))
    closed_over, shared = part(particles.closed_over, own.closed_over)
    own_xs, shared_xs = part(particles.xs, own.xs)

    def step(carry: Any, given: Any) -> Any:
        (state, closed_over, own_xs), log_w = carry
        t, key, chosen, shared_x = given

        def move(key: Any, state: Any, closed_over: Any, own_xs: Any) -> Any:
            x = joined(own.xs, [x[t] for x in own_xs], shared_x)
            known = joined(own.closed_over, closed_over, shared)
            state, moved = particles.move(key, state, x, known)
            return state, moved.log_weight(apart)

        keys = jax.random.split(key, num_particles)
        state, gained = jax.vmap(move)(keys, state, closed_over, own_xs)
        log_w = log_w + gained
        total = log_sum_exp(log_w)
        # what was gained up to here is counted in total; the particles go on with their shares,
        # equal ones where none of them is possible
        shares = jnp.where(total == -jnp.inf, -math.log(num_particles), log_w - total)
        index, log_w = ancestors(chosen, shares, resample, resampling_gradient, softness)
        kept = (state, closed_over, own_xs)
        if index is not None:
            leaves, treedef = jax.tree.flatten(kept)
            pairs = zip(leaves, apart.axes, strict=True)
            kept = jax.tree.unflatten(treedef, [descended(x, index, axes) for x, axes in pairs])
        return (kept, log_w), total

    length = particles.steps
    keys = jax.random.split(chain, length), jax.random.split(choices, length)
    weigh = jax.vmap(lambda moved: moved.log_weight(apart), axis_size=num_particles)
    log_w = weigh(particles.value)
    carry = (particles.state, closed_over, own_xs), log_w - math.log(num_particles)
    given = (jnp.arange(length), *keys, shared_xs)
    _, totals = jax.lax.scan(step, carry, given, length=length)
    return totals.sum() if apart.scale == 1 else apart.scale * totals.sum()


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
        return (next_q, next_p), _moved(of_p, of_q)

    carries, xs = (guide.scan.carry, model.scan.carry), (guide.scan.xs, model.scan.xs)
    return Particles.of(move, key, carries, xs, _moved(model.sites, guide.sites), guide.scan.length)


def _moved(of_p: list[SiteDensity], of_q: list[SiteDensity]) -> Moved:
    check_same_support("FilteringBound", of_p, of_q)
    return Moved.of(of_p, of_q)


def _check_lengths(guide: Sequence, model: Sequence) -> None:
    if guide.scan.length != model.scan.length:
        raise ValueError(
            f"FilteringBound: the guide's scan has {guide.scan.length} steps, the model's "
            f"{model.scan.length}, expected as many. Fix: scan over the same sequence."
        )
