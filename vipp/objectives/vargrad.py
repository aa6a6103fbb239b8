"""The log-variance objective."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vipp.objectives.importance import gradient_only, once, weigh
from vipp.objectives.objective import objective
from vipp.programs.program import AbstractProgram, PerPlate


def _check(config: dict[str, Any]) -> None:
    if config["num_particles"] < 2 and config["log_evidence"] is None:
        raise ValueError(
            "VarGrad: num_particles must be at least 2, got 1: a variance needs two draws. Fix: "
            "raise it, or learn the log evidence (log_evidence='name')."
        )


@objective(check=_check)
def VarGrad(  # noqa: N802
    p: AbstractProgram,
    q: AbstractProgram,
    *,
    num_particles: int,
    log_evidence: str | None = None,
    per_plate: PerPlate = "auto",
) -> jax.Array:
    r"""The guide follows the log-variance loss, the model the evidence lower bound.

    .. math:: \nabla_\phi = -\tfrac12 \nabla_\phi \operatorname{Var}_{z \sim r}
        [\log p(x, z) - \log q_\phi(z)] \big|_{r = q_\phi}

    which is the gradient of the ELBO in expectation: that of the score function with a
    leave-one-out baseline. The value is the ELBO's. All sites are drawn as constants, whatever
    their estimators.

    Args:
      num_particles: draws that the variance is over, at least 2.
      log_evidence: the name of a parameter of the guide that learns the log evidence; the loss is
        then that of *trajectory balance*,
        :math:`\tfrac12 (\log Z - \log p(x, z) + \log q(z))^2`, of which the log-variance is the one
        with the best ``log Z`` for each batch.
      per_plate: as in :class:`vipp.IWAE`; with ``log_evidence`` there is one loss over everything.

    Raises:
      ValueError: if ``num_particles`` is not an int of at least 2 (1 with ``log_evidence``); when
        traced, if the guide has no such parameter.

    Example:
      >>> import vipp
      >>> vipp.VarGrad(num_particles=4)
      VarGrad(num_particles=4)

    References:
      Richter, Boustati, Nusken, Ruiz and Akyildiz, *VarGrad: a low-variance gradient estimator for
      variational inference*, 2020.
      Malkin, Jain, Bengio, Sun and Bengio, *Trajectory balance*, 2022, equation 14.
    """
    plates = None if log_evidence else per_plate
    weights = weigh(p, q.constant().held("VarGrad"), num_particles, plates)
    # the guide's parameters in what is no density of a draw, factors such as, are the ELBO's own
    unnormalised = gradient_only(weights.log_q - weights.score)
    elbo = (weights.log_p - jax.lax.stop_gradient(weights.log_q) - unnormalised).mean(0)
    log_w = jax.lax.stop_gradient(weights.log_w) - gradient_only(weights.score)
    if log_evidence is None:
        loss = 0.5 * log_w.var(0, ddof=1)
    else:
        loss = 0.5 * jnp.square(_parameter(q, log_evidence) - log_w).mean(0)
    elbo, loss = once("VarGrad", weights.score.mean(0), elbo, loss)
    return weights.total(elbo - gradient_only(loss))


def _parameter(q: AbstractProgram, name: str) -> jax.Array:
    params = getattr(q, "params", {})
    if name not in params:
        raise ValueError(
            f"VarGrad(log_evidence={name!r}): no such parameter, got {sorted(params)}. Fix: "
            f"declare numpyro.param({name!r}, 0.0) in the guide."
        )
    return params[name]
