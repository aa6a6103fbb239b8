"""The average of several importance weighted bounds."""

from __future__ import annotations

import jax

from vipp.objectives.importance import weigh
from vipp.objectives.objective import objective
from vipp.programs.program import AbstractProgram, PerPlate
from vipp.programs.weights import log_mean_exp


@objective
def MIWAE(  # noqa: N802
    p: AbstractProgram,
    q: AbstractProgram,
    *,
    num_bounds: int,
    num_particles: int,
    per_plate: PerPlate = "auto",
) -> jax.Array:
    r"""The average of several importance weighted bounds.

    .. math:: E\Big[\frac1M \sum_{m=1}^M \log \frac1K \sum_{k=1}^K w_{mk}\Big]

    It is the bound ``IWAE(K)``; averaging keeps the guide's gradient above its noise, where a
    single bound with as many particles drowns it.

    Args:
      num_bounds: ``M``, at least 1.
      num_particles: ``K``, those of each bound.
      per_plate: as in :class:`vipp.IWAE`.

    Raises:
      ValueError: if ``num_bounds`` or ``num_particles`` is not a positive int.

    Example:
      >>> import vipp
      >>> vipp.MIWAE(num_bounds=4, num_particles=16)
      MIWAE(num_bounds=4, num_particles=16)

    References:
      Rainforth et al., *Tighter variational bounds are not necessarily better*, 2018, equation 12.
    """
    weights = weigh(p, q, num_bounds * num_particles, per_plate)
    return weights.total(bounds(weights.log_w, num_bounds).mean(0))


def bounds(log_w: jax.Array, num_bounds: int) -> jax.Array:
    """The importance weighted bounds of ``num_bounds`` groups of particles, stacked in front."""
    return jax.vmap(log_mean_exp)(log_w.reshape(num_bounds, -1, *log_w.shape[1:]))
