"""Importance weights of a guide's draws, shared by the objectives that average them."""

from __future__ import annotations

from typing import Any

import jax

from vipp.densities import SiteDensity, common_plates, joint_per_plate, subsampling
from vipp.program import PerPlate, Program
from vipp.replicate import replicate


def log_weights(
    p: Program, q: Program, num_particles: int, per_plate: PerPlate = "auto"
) -> tuple[jax.Array, float]:
    r"""Log importance weights, one set per element of the plates that enclose the whole model.

    .. math:: \log w_k = \log p(x, z_k) - \log q(z_k), \quad z_k \sim q

    Args:
      p: the model.
      q: the guide.
      num_particles: the number of draws.
      per_plate: ``"auto"`` for all plates that enclose every site of both programs, their names,
        or None for one set of weights.

    Returns:
      The weights, shape ``(num_particles, *plates)``, and what the sum over plates is to be scaled
      by for subsampling.

    Raises:
      ValueError: naming a site outside a named plate, or subsampled in a plate that is not one of
        them.
    """
    scale: list[float] = []

    def log_weight() -> jax.Array:
        z, of_q = q.simulate_sites()
        of_p = p.log_density_sites(z)
        names = _plates(per_plate, [*of_p, *of_q])
        log_w = joint_per_plate(of_p, names) - joint_per_plate(of_q, names)
        scale.append(subsampling([*of_p, *of_q], names))
        return log_w

    log_w = replicate(log_weight, num_particles)
    return log_w, scale[0]


def _plates(per_plate: Any, sites: list[SiteDensity]) -> tuple[str, ...]:
    if per_plate is None:
        names: tuple[str, ...] = ()
    elif per_plate == "auto":
        names = common_plates(sites)
    else:
        names = (per_plate,) if isinstance(per_plate, str) else tuple(per_plate)
    for site in sites:
        for plate, ratio in site.subsampling.items():
            if ratio != 1 and plate not in names:
                raise ValueError(
                    f"Site '{site.name}' is subsampled by plate '{plate}', which does not enclose "
                    "the whole model and guide: the logarithm of an average over particles is not "
                    "a bound when its density is itself an estimate. Fix: move every site into "
                    f"'{plate}', use ELBO, or drop subsample_size."
                )
    return names
