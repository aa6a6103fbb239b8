"""Importance weights whose gradient is the doubly reparameterised one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from vipp.distributions.wrappers import masked
from vipp.language.handler import estimator_of
from vipp.language.keys import random_key, seeded
from vipp.language.replicate import replicate
from vipp.objectives.importance import ImportanceWeights
from vipp.programs.densities import SiteDensity, joint_per_plate, landed
from vipp.programs.program import AbstractProgram, PerPlate, Program
from vipp.programs.trace import Trace
from vipp.programs.weights import Weighed, at_values, weigh_sites
from vipp_transforms.constant import detached

DOUBLY = "IWAE(doubly_reparameterised=True)"


def weigh_doubly_reparameterised(
    p: AbstractProgram, q: AbstractProgram, num_particles: int, per_plate: PerPlate = "auto"
) -> ImportanceWeights:
    r"""Like :func:`vipp.objectives.importance.weigh`, for a log mean of the weights.

    The gradient that reaches the guide through the particle :math:`z_k` is multiplied by its
    normalised weight :math:`\tilde w_k` once more, and none reaches it through its density:

    .. math:: \nabla_\phi = E\Big[\sum_k \tilde w_k^2
        \frac{\partial \log w_k}{\partial z_k} \nabla_\phi z_k\Big]

    That is so of what is drawn at random; factors, and the volume that deterministic sites account
    for, keep the gradient that they have.

    The score is of the draws held where they are, as the law of a score has it: it is not to be
    differentiated in what moves a support.

    Raises:
      ValueError: naming a latent site that is not pathwise, or scaled or masked: its density would
        have to be counted as often as it is drawn.
    """
    if not isinstance(q, Program):
        raise _inexact(type(q).__name__)

    def particle() -> tuple[Trace, list[SiteDensity], Weighed, jax.Array]:
        z, of_q = q.simulate_sites()
        _check_pathwise(of_q)
        of_p = p.log_density_sites(z)
        weighed = weigh_sites(of_p, of_q, per_plate)
        _check_counted_once(of_q, weighed.names)
        score = _score(q, z, of_q, weighed)
        return z, [s.facts() for s in of_q], weighed, score

    drawn, of_q, weighed, score = replicate(particle, num_particles)
    sites, names = {s.name: s for s in of_q if s.random}, weighed.names
    normalised = jax.nn.softmax(jax.lax.stop_gradient(weighed.log_p - weighed.log_q), axis=0)
    constant_q = q.stop_gradient()

    def again(key: Any, z: Trace, weight: jax.Array) -> Any:
        moved = {
            # the path has the weight w here, and w once more from the gradient of log mean exp:
            # w squared in all (Tucker et al. 2019, equation 8)
            n: _scale_gradient(z[n], at_values(weight, site, names))
            for n, site in sites.items()
        }
        with seeded(rng_seed=key):
            # deterministic sites follow, with the parameters' gradient of their own
            given = replace(z, values=moved)
            z, of_q, _ = q.complete(given)
            # where they lead to other draws' densities that is a part of these, which are constant
            of_q = landed(of_q, constant_q.complete(given)[1])
            weighed = weigh_sites(p.log_density_sites(z), of_q, names)
            return weighed.log_p, weighed.log_q

    keys = jax.random.split(random_key("IWAE"), num_particles)
    log_p, log_q = jax.vmap(again)(keys, drawn, normalised)
    return ImportanceWeights(log_p, log_q, weighed.scale, score)


def _score(q: Program, z: Trace, of_q: list[SiteDensity], weighed: Weighed) -> jax.Array:
    """The log density of the random sites, per element of the plates."""
    random = [s for s in of_q if s.random]
    if any(s.may_move for s in random):
        values = {s.name: detached(z[s.name]) for s in random}
        _, fixed, _ = q.held(DOUBLY).complete(replace(z, values=values))
        random = [s for s in fixed if s.random]
    score = joint_per_plate(random, weighed.names)
    return jnp.broadcast_to(score, weighed.log_q.shape)


def _check_pathwise(of_q: Sequence[SiteDensity]) -> None:
    for site in of_q:
        if site.fn is None:
            raise _inexact(site.name)
        if not site.random:
            continue
        estimator = estimator_of({"name": site.name, "fn": site.fn, "infer": site.infer})
        if not estimator.traits.pathwise:
            raise ValueError(
                f"{DOUBLY}: site '{site.name}' is drawn with "
                f"{estimator!r}, expected Pathwise(). Fix: use doubly_reparameterised=False, or "
                "vipp.VIMCO for discrete sites."
            )


def _inexact(name: str) -> ValueError:
    return ValueError(
        f"{DOUBLY} needs a guide with an exact density, got {name}. Fix: "
        "use doubly_reparameterised=False."
    )


def _check_counted_once(of_q: Sequence[SiteDensity], plates: tuple[str, ...]) -> None:
    for site in of_q:
        taken = math.prod(site.subsampling[n] for n in plates)
        scale = taken if site.scale is None else site.scale
        once = isinstance(scale, int | float) and math.isclose(scale, taken)
        if site.random and (masked(site.fn) or not once):
            raise ValueError(
                f"{DOUBLY}: site '{site.name}' of the guide is scaled or "
                "masked, expected one that counts as it is drawn. Fix: use "
                "doubly_reparameterised=False."
            )


@jax.custom_jvp
def _scale_gradient(x: jax.Array, factor: jax.Array) -> jax.Array:
    """``x``, its gradient multiplied by ``factor``."""
    return x


@_scale_gradient.defjvp
def _scaled(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x, factor), (dx, _) = primals, tangents
    return x, factor * dx
