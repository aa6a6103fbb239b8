"""Importance weights whose gradient is the doubly reparameterised one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vipp.language.handler import estimator_of
from vipp.language.keys import random_key, seeded
from vipp.language.replicate import replicate
from vipp.objectives.importance import Weights
from vipp.programs.densities import SiteDensity, joint_per_plate
from vipp.programs.program import AbstractProgram, PerPlate
from vipp.programs.trace import Trace
from vipp.programs.weights import Weighed, at_values, weigh_sites


def weigh_doubly_reparameterised(
    p: AbstractProgram, q: AbstractProgram, num_particles: int, per_plate: PerPlate = "auto"
) -> Weights:
    r"""Like :func:`vipp.objectives.importance.weigh`, for a log mean of the weights.

    The gradient that reaches the guide through the particle :math:`z_k` is multiplied by its
    normalised weight :math:`\tilde w_k` once more, and none reaches it through its density:

    .. math:: \nabla_\phi = E\Big[\sum_k \tilde w_k^2
        \frac{\partial \log w_k}{\partial z_k} \nabla_\phi z_k\Big]

    Raises:
      ValueError: naming a latent site that is not pathwise.
    """

    def particle() -> tuple[Trace, list[SiteDensity], Weighed]:
        z, of_q = q.simulate_sites()
        _check_pathwise(of_q)
        of_p = p.log_density_sites(z)
        weighed = weigh_sites(of_p, of_q, per_plate)
        return z, [s.facts() for s in of_q], weighed

    drawn, of_q, weighed = replicate(particle, num_particles)
    sites, names = {s.name: s for s in of_q}, weighed.names
    normalised = jax.nn.softmax(jax.lax.stop_gradient(weighed.log_p - weighed.log_q), axis=0)
    constant_q = q.stop_gradient()

    def again(key: Any, z: Trace, weight: jax.Array) -> Any:
        moved = {
            n: _scale_gradient(x, at_values(weight, sites[n], names)) for n, x in z.values.items()
        }
        z = replace(z, values=moved)
        with seeded(rng_seed=key):
            log_p = joint_per_plate(p.log_density_sites(z), names)
            return log_p, joint_per_plate(constant_q.log_density_sites(z), names)

    keys = jax.random.split(random_key("IWAE"), num_particles)
    log_p, log_q = jax.vmap(again)(keys, drawn, normalised)
    return Weights(log_p, log_q, weighed.scale, jnp.zeros(()))


def _check_pathwise(of_q: Sequence[SiteDensity]) -> None:
    for site in of_q:
        if site.fn is None:
            raise ValueError(
                "IWAE(doubly_reparameterised=True) needs a guide with an exact density, got "
                f"{site.name}. Fix: use doubly_reparameterised=False."
            )
        if site.observed:
            continue
        estimator = estimator_of({"name": site.name, "fn": site.fn, "infer": site.infer})
        if not estimator.traits.pathwise:
            raise ValueError(
                f"IWAE(doubly_reparameterised=True): site '{site.name}' is drawn with "
                f"{estimator!r}, expected Pathwise(). Fix: use doubly_reparameterised=False, or "
                "vipp.VIMCO for discrete sites."
            )


@partial(jax.custom_vjp)
def _scale_gradient(x: jax.Array, factor: jax.Array) -> jax.Array:
    """``x``, its gradient multiplied by ``factor``."""
    return x


_scale_gradient.defvjp(
    lambda x, factor: (x, factor), lambda factor, g: (g * factor, jnp.zeros_like(factor))
)
