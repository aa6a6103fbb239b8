"""The importance weighted bound for guides without reparameterisation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vipp.objectives.importance import gradient_only, once, weigh
from vipp.objectives.objective import objective
from vipp.programs.program import AbstractProgram, PerPlate
from vipp.programs.weights import log_mean_exp


def _check(config: dict[str, Any]) -> None:
    if config["num_particles"] < 2:
        raise ValueError(
            "VIMCO: num_particles must be at least 2, got 1: each particle's baseline is made of "
            "the others. Fix: use ELBO with ScoreFunction() for one particle."
        )


@objective(check=_check)
def VIMCO(  # noqa: N802
    p: AbstractProgram,
    q: AbstractProgram,
    *,
    num_particles: int,
    per_plate: PerPlate = "auto",
) -> jax.Array:
    r"""The bound ``IWAE(K)``, with a score function gradient and a baseline for each particle.

    .. math:: \nabla \hat L = \sum_k (\hat L - \hat L_{-k}) \nabla \log q(z_k)
        + \sum_k \tilde w_k \nabla \log w_k

    where :math:`\hat L_{-k}` has the geometric mean of the other weights in the place of
    :math:`w_k`. Each element of the plates that enclose the whole model has signals of its own. The
    estimators of the guide's sites are not used: all are drawn as constants.

    Args:
      num_particles: ``K``, at least 2.
      per_plate: as in :class:`vipp.IWAE`.

    Raises:
      ValueError: if ``num_particles`` is not an int of at least 2.

    Example:
      >>> import vipp
      >>> vipp.VIMCO(num_particles=8)
      VIMCO(num_particles=8)

    References:
      Mnih and Rezende, *Variational inference for Monte Carlo objectives*, 2016, equations 9-11.
    """
    weights = weigh(p, q.constant().held("VIMCO"), num_particles, per_plate)
    log_w = weights.log_w
    bound = log_mean_exp(log_w)
    # the second sum of the gradient comes of the bound itself, whose weights are not constants
    learning_signal = jax.lax.stop_gradient(bound - _without(log_w))
    # of the draws' scores alone: a guide's factor has no draw to be credited with
    score = (learning_signal * weights.score).sum(0)
    bound, score = once("VIMCO", weights.score.sum(0), bound, score)
    return weights.total(bound + gradient_only(score))


def _without(log_w: jax.Array) -> jax.Array:
    """The bound with each weight in turn replaced by the geometric mean of the others."""
    n = len(log_w)
    itself = jnp.eye(n, dtype=bool).reshape(n, n, *(1,) * (log_w.ndim - 1))
    others = jnp.where(itself, 0.0, log_w[None]).sum(1) / (n - 1)  # one may be minus infinity
    return jax.vmap(log_mean_exp)(jnp.where(itself, others[:, None], log_w[None]))
