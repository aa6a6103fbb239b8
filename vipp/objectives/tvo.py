"""The thermodynamic variational objective."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vipp.objectives.importance import weigh
from vipp.objectives.objective import objective
from vipp.programs.program import AbstractProgram, PerPlate


def _check(config: dict[str, Any]) -> None:
    betas = tuple(config["partition"])
    rising = all(a < b for a, b in zip(betas, (*betas[1:], 1.0), strict=True))
    if not betas or betas[0] != 0 or not rising:
        raise ValueError(f"TVO: partition must increase from 0 and stay below 1, got {betas!r}.")


@objective(check=_check)
def TVO(  # noqa: N802
    p: AbstractProgram,
    q: AbstractProgram,
    *,
    num_particles: int,
    partition: tuple[float, ...] = (0.0, 0.01, 0.03, 0.1, 0.3),
    per_plate: PerPlate = "auto",
) -> jax.Array:
    r"""The thermodynamic variational objective: a Riemann sum from the ELBO to the evidence.

    .. math:: \sum_i (\beta_{i+1} - \beta_i) \,
        E\Big[\sum_k \frac{w_k^{\beta_i}}{\sum_l w_l^{\beta_i}} \log w_k\Big],
        \quad \beta_0 = 0, \dots, \beta_n = 1

    with self-normalised weights for the expectations under the distributions between guide and
    posterior. What is optimised is the expectation of this estimate.

    Args:
      num_particles: ``K``, at least 1.
      partition: the left ends of the intervals, increasing from 0, below 1; ``(0.0,)`` alone is
        the ELBO.
      per_plate: as in :class:`vipp.IWAE`.

    Raises:
      ValueError: if ``num_particles`` is not a positive int, or the partition not increasing from
        0 to below 1.

    Example:
      >>> import vipp
      >>> vipp.TVO(num_particles=8, partition=(0.0, 0.1))
      TVO(num_particles=8, partition=(0.0, 0.1))

    References:
      Masrani, Le and Wood, *The thermodynamic variational objective*, 2019, equation 9.
    """
    weights = weigh(p, q, num_particles, per_plate)
    log_w, total = weights.log_w, jnp.zeros(())
    for beta, end in zip(partition, (*partition[1:], 1.0), strict=True):
        total = total + (end - beta) * (jax.nn.softmax(beta * log_w, axis=0) * log_w).sum(0)
    return weights.total(total)
