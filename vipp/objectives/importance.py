"""Importance weights of a guide's draws, shared by the objectives that average them."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax

import vipp_transforms as vt
from vipp.language.replicate import replicate
from vipp.programs.densities import joint_per_plate
from vipp.programs.program import AbstractProgram, PerPlate
from vipp.programs.weights import Weighed, weigh_sites


class Weights(NamedTuple):
    """Log densities of a guide's draws, of shape ``(num_particles, *plates)``.

    Attributes:
      log_p: of the model.
      log_q: of the guide.
      scale: what a sum over the plates is to be multiplied by for subsampling.
      score: the guide's, without scales: that of which the gradient is the score.
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
) -> Weights:
    r"""Draw particles, one set per element of the plates that enclose the whole model.

    .. math:: \log w_k = \log p(x, z_k) - \log q(z_k), \quad z_k \sim q

    Args:
      p: the model.
      q: the guide.
      num_particles: the number of draws.
      per_plate: ``"auto"`` for all plates that enclose every site of both programs, their names,
        or None for one set of weights.

    Returns:
      The densities.

    Raises:
      ValueError: naming a site outside a named plate, or subsampled in a plate that is not one of
        them.
    """

    def particle() -> tuple[Weighed, jax.Array]:
        z, of_q = q.simulate_sites()
        weighed = weigh_sites(p.log_density_sites(z), of_q, per_plate)
        score = joint_per_plate([replace(s, scale=None) for s in of_q], weighed.names)
        return weighed, score

    weighed, score = replicate(particle, num_particles)
    return Weights(weighed.log_p, weighed.log_q, weighed.scale, score)


def gradient_only(x: jax.Array) -> jax.Array:
    r"""Zero, with the gradient of :math:`E[x]`."""
    return x - vt.constant(x)
