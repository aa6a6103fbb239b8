"""Importance weights of a guide's draws, shared by the objectives that average them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

import vipp_transforms as vt
from vipp.language.replicate import replicate
from vipp.programs.densities import SiteDensity, first_order, joint_per_plate
from vipp.programs.fixed_values import check_still
from vipp.programs.program import AbstractProgram, PerPlate
from vipp.programs.weights import Weighed, weigh_sites


class ImportanceWeights(NamedTuple):
    """Log densities of a guide's draws, of shape ``(num_particles, *plates)``.

    Attributes:
      log_p: of the model.
      log_q: of the guide.
      scale: what a sum over the plates is to be multiplied by for subsampling.
      score: of the draws by the guide's random sites, whatever scales and masks count of them: that
        of which the gradient is the score.
    """

    log_p: jax.Array
    log_q: jax.Array
    scale: float
    score: jax.Array

    @property
    def log_w(self) -> jax.Array:
        """The log importance weights."""
        return self.log_p - self.log_q

    def total(self, bound: jax.Array) -> jax.Array:
        """The sum over the plates."""
        return bound.sum() if self.scale == 1 else self.scale * bound.sum()


def weigh(
    p: AbstractProgram,
    q: AbstractProgram,
    num_particles: int,
    per_plate: PerPlate = "auto",
    *,
    normalised: str = "",
) -> ImportanceWeights:
    r"""Draw particles, one set per element of the plates that enclose the whole model.

    .. math:: \log w_k = \log p(x, z_k) - \log q(z_k), \quad z_k \sim q

    Args:
      p: the model.
      q: the guide.
      num_particles: the number of draws.
      per_plate: ``"auto"`` for all plates that enclose every site of both programs, their names,
        or None for one set of weights.
      normalised: the objective that follows the guide's density itself, to be named where the guide
        has factors or observed sites; the model gets the draws as constants.

    Returns:
      The densities.

    Raises:
      ValueError: naming a site outside a named plate, or subsampled in a plate that is not one of
        them; or, where ``normalised`` is given, one that the guide observes, or a deterministic one
        that moves with its parameters.
    """
    if normalised:
        check_still(normalised, q)

    def particle() -> tuple[Weighed, jax.Array]:
        z, of_q = q.simulate_sites()
        if normalised:
            check_normalised(normalised, of_q)
            z = jax.lax.stop_gradient(z)
        weighed = weigh_sites(p.log_density_sites(z), of_q, per_plate)
        drawn = [s.as_drawn() for s in of_q if s.random]
        score = joint_per_plate(drawn, weighed.names)
        return weighed, jnp.broadcast_to(score, weighed.log_q.shape)

    weighed, score = replicate(particle, num_particles)
    return ImportanceWeights(weighed.log_p, weighed.log_q, weighed.scale, score)


def gradient_only(x: jax.Array) -> jax.Array:
    r"""Zero, with the gradient of :math:`E[x]`."""
    return x - vt.constant(x)


def once(what: str, score: jax.Array, *terms: jax.Array) -> list[jax.Array]:
    """The terms of an objective whose gradient is of the first order alone.

    Args:
      what: the objective, for the error.
      score: of the draws, per element of the plates.
      terms: likewise.

    Raises:
      SiteError: when differentiated twice, once or both times in what the score depends on.
    """
    witness = sum(terms, start=score)
    return [first_order(x, score, what, witness) for x in terms]


def check_normalised(what: str, of_q: list[SiteDensity]) -> None:
    """Raise if the guide has factors or observed sites: its density is not that of its draws."""
    for site in of_q:
        if site.observed:
            raise ValueError(
                f"{what}: the guide observes site '{site.name}', or has a factor of that name; "
                "expected sites that it draws, as its density itself is followed. Fix: leave the "
                "site out, or use ELBO or IWAE."
            )
