"""A combination of the evidence lower bound and the importance weighted one."""

from __future__ import annotations

from typing import Any

import jax

from vipp.objectives.importance import weigh
from vipp.objectives.objective import objective
from vipp.programs.program import AbstractProgram, PerPlate
from vipp.programs.weights import log_mean_exp


def _check(config: dict[str, Any]) -> None:
    if not 0 <= config["beta"] <= 1:
        raise ValueError(f"CIWAE: beta must be within [0, 1], got {config['beta']!r}.")


@objective(check=_check)
def CIWAE(  # noqa: N802
    p: AbstractProgram,
    q: AbstractProgram,
    *,
    num_particles: int,
    beta: float,
    per_plate: PerPlate = "auto",
) -> jax.Array:
    r"""A convex combination of the evidence lower bound and the importance weighted one.

    .. math:: \beta \, \mathrm{ELBO} + (1 - \beta) \, \mathrm{IWAE}(K)

    Args:
      num_particles: ``K``, at least 1; both bounds use the same draws.
      beta: within [0, 1]: 1 for the ELBO, 0 for IWAE; a number or a schedule of the step.
      per_plate: as in :class:`vipp.IWAE`.

    Raises:
      ValueError: if ``num_particles`` is not a positive int, or ``beta`` outside [0, 1].

    Example:
      >>> import vipp
      >>> vipp.CIWAE(num_particles=8, beta=0.5)
      CIWAE(num_particles=8, beta=0.5)

    References:
      Rainforth et al., *Tighter variational bounds are not necessarily better*, 2018, equation 13.
    """
    weights = weigh(p, q, num_particles, per_plate)
    bound = beta * weights.log_w.mean(0) + (1 - beta) * log_mean_exp(weights.log_w)
    return weights.total(bound)
