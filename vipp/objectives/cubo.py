"""The chi upper bound."""

from __future__ import annotations

from typing import Any

import jax

from vipp.objectives.importance import weigh
from vipp.objectives.objective import objective
from vipp.programs.program import AbstractProgram, PerPlate
from vipp.programs.weights import log_power_mean


def _check(config: dict[str, Any]) -> None:
    if not config["power"] >= 1:
        raise ValueError(f"CUBO: power must be at least 1, got {config['power']!r}.")


@objective(
    check=_check,
    biased="the logarithm of an average over particles stays below the chi bound, by an amount of "
    "order 1 / num_particles",
)
def CUBO(  # noqa: N802
    p: AbstractProgram,
    q: AbstractProgram,
    *,
    num_particles: int,
    power: float = 2.0,
    per_plate: PerPlate = "auto",
) -> jax.Array:
    r"""The chi upper bound of the evidence, with its sign changed so that it is maximised.

    .. math:: -\frac1n E\Big[\log \frac1K \sum_{k=1}^K w_k^n\Big]

    Minimising the bound makes the guide cover the posterior. In log space throughout, so that no
    power of a weight overflows. The gradient is that of the expectation above, and biased for the
    chi bound :math:`\frac1n \log E[w^n]`, which ``K`` particles stay below, by ``1 / K`` as they
    grow: few of them need not bound the evidence at all. Only the guide should be trained with it:
    the model would lower its evidence.

    Args:
      num_particles: ``K``, at least 1.
      power: ``n``, at least 1; 2 for the chi-square divergence; a number or a schedule of the step.
      per_plate: as in :class:`vipp.IWAE`.

    Raises:
      ValueError: if ``num_particles`` is not a positive int, or ``power`` below 1.

    Example:
      >>> import vipp
      >>> vipp.CUBO(num_particles=64)
      CUBO(num_particles=64)

    References:
      Dieng, Tran, Ranganath, Paisley and Blei, *Variational inference via chi upper bound
      minimization*, 2017, equation 5.
    """
    weights = weigh(p, q, num_particles, per_plate)
    return -weights.total(log_power_mean(weights.log_w, power))
