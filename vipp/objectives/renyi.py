"""The variational Renyi bound."""

from __future__ import annotations

import math
from typing import Any

import jax
from numpyro.util import not_jax_tracer

from vipp.objectives.importance import weigh
from vipp.objectives.objective import objective
from vipp.programs.program import AbstractProgram, PerPlate
from vipp.programs.weights import log_power_mean


def _check(config: dict[str, Any]) -> None:
    alpha = config["alpha"]
    if math.isnan(alpha) or alpha == math.inf:
        raise ValueError(f"Renyi: alpha must be a number or -inf, got {alpha!r}.")


def _biased(config: dict[str, Any]) -> str | None:
    alpha = config["alpha"]
    if callable(alpha) or not not_jax_tracer(alpha) or alpha >= 0:
        return None
    return (
        "for alpha below 0 the logarithm of an average over particles stays below the upper bound, "
        "by an amount of order 1 / num_particles"
    )


@objective(check=_check, biased=_biased)
def Renyi(  # noqa: N802
    p: AbstractProgram,
    q: AbstractProgram,
    *,
    alpha: float,
    num_particles: int,
    per_plate: PerPlate = "auto",
) -> jax.Array:
    r"""The variational Renyi bound.

    .. math:: \frac{1}{1 - \alpha} E\Big[\log \frac1K \sum_{k=1}^K w_k^{1 - \alpha}\Big]

    Args:
      alpha: 0 for IWAE, 1 for the ELBO (its limit), ``-inf`` for the largest weight alone (VR-max);
        a number or a schedule of the step. From 0 on it is a lower bound of the evidence with any
        ``K``; below 0 its gradient is biased for that of an upper one, by ``1 / K`` as they grow.
      num_particles: ``K``, at least 1.
      per_plate: as in :class:`vipp.IWAE`.

    Raises:
      ValueError: if ``num_particles`` is not a positive int, or ``alpha`` is ``inf`` or ``nan``.

    Example:
      >>> import vipp
      >>> vipp.Renyi(alpha=0.5, num_particles=8)
      Renyi(alpha=0.5, num_particles=8)

    References:
      Li and Turner, *Renyi divergence variational inference*, 2016, equation 14.
    """
    weights = weigh(p, q, num_particles, per_plate)
    return weights.total(log_power_mean(weights.log_w, 1 - alpha))
