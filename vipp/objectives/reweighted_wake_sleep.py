"""Reweighted wake-sleep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vipp.objectives.importance import gradient_only, once, weigh
from vipp.objectives.objective import objective
from vipp.programs.densities import joint
from vipp.programs.fixed_values import check_anywhere
from vipp.programs.program import AbstractProgram, PerPlate, Program
from vipp.programs.weights import log_mean_exp


def _check(config: dict[str, Any]) -> None:
    for name in ("wake", "sleep"):
        if not config[name] >= 0:
            raise ValueError(
                f"ReweightedWakeSleep: {name} must not be negative, got {config[name]!r}."
            )


def _biased(config: dict[str, Any]) -> str | None:
    if _is_zero(config["wake"]):
        return None
    return (
        "the wake phase's weights are normalised by their own sum, of order 1 / num_particles "
        "(wake=0.0 leaves it out)"
    )


@objective(check=_check, biased=_biased)
def ReweightedWakeSleep(  # noqa: N802
    p: AbstractProgram,
    q: AbstractProgram,
    *,
    num_particles: int,
    wake: float = 1.0,
    sleep: float = 0.0,
    dreamt: Callable[..., tuple[Any, ...]] | None = None,
    per_plate: PerPlate = "auto",
) -> jax.Array:
    r"""Reweighted wake-sleep: the model follows IWAE, the guide the inclusive divergences.

    .. math:: \nabla_\phi = \alpha \sum_k \tilde w_k \nabla_\phi \log q(z_k \mid x)
        + \beta \nabla_\phi \log q(z' \mid x'), \quad
        z_k \sim q(\cdot \mid x), \quad (x', z') \sim p

    The value is that of ``IWAE(K)``. All sites are drawn as constants, whatever their estimators:
    discrete choices cost nothing. The guide's gradient in the wake phase is biased for that of
    :math:`E_{p(z \mid x)}[\log q(z \mid x)]`, by ``1 / K`` as the particles grow; the sleep phase
    and the model's gradient are not.

    Args:
      num_particles: ``K``, at least 1.
      wake: the wake phase's share in the guide's gradient, a number or a schedule of the step.
      sleep: the sleep phase's share, likewise.
      dreamt: ``dreamt(data, *args) -> args`` puts what the model dreamt (a dict by observed site)
        into the guide's arguments; None where the only argument is the data of the only
        observed site.
      per_plate: as in :class:`vipp.IWAE`.

    Raises:
      ValueError: if ``num_particles`` is not a positive int or a share is negative; when traced, if
        ``dreamt`` is needed, or naming a factor or observed site of the guide, or a deterministic
        one that moves with its parameters.

    Example:
      >>> import vipp
      >>> objective = vipp.ReweightedWakeSleep(num_particles=8, wake=0.5, sleep=0.5)

    References:
      Bornschein and Bengio, *Reweighted wake-sleep*, 2015.
      Le, Kosiorek, Siddharth, Teh and Wood, *Revisiting reweighted wake-sleep*, 2019.
    """
    what = "ReweightedWakeSleep"
    drawn_from = q.stop_gradient() if _is_zero(wake) else q.held(what)
    weights = weigh(p, drawn_from.constant(), num_particles, per_plate, normalised=what)
    constant = jax.lax.stop_gradient
    model = log_mean_exp(weights.log_p - constant(weights.log_q))
    # the posterior's expectation of log q by self-normalised weights: biased for K finite
    normalised = constant(jax.nn.softmax(weights.log_w, axis=0))
    awake = (normalised * weights.log_q).sum(0)
    dream = jnp.zeros(()) if _is_zero(sleep) else _dream(p, q, dreamt)
    model, awake = once(what, weights.log_q.sum(0) + dream, model, awake)
    (dream,) = once(what, dream, dream)
    value = weights.total(model)
    if not _is_zero(wake):
        value = value + wake * gradient_only(weights.total(awake))
    return value if _is_zero(sleep) else value + sleep * gradient_only(dream)


def _is_zero(share: Any) -> bool:
    return isinstance(share, int | float) and share == 0


def _dream(p: AbstractProgram, q: AbstractProgram, dreamt: Any) -> jax.Array:
    """The guide's log density of what the model drew, given the data that it drew."""
    if not isinstance(p, Program) or not isinstance(q, Program):
        raise ValueError(
            "ReweightedWakeSleep(sleep=) runs the model forward, which needs NumPyro programs, "
            f"got {type(p).__name__} and {type(q).__name__}. Fix: use sleep=0.0."
        )
    z, data = p.simulate_data()
    put = dreamt or _only_argument
    args = jax.lax.stop_gradient(put(data, *q.args))
    of_q = dataclasses.replace(q, args=args).log_density_sites(z)
    check_anywhere("ReweightedWakeSleep(sleep=): the guide", of_q)
    return joint(of_q)


def _only_argument(data: Mapping[str, Any], *args: Any) -> tuple[Any, ...]:
    if len(data) == 1 and len(args) == 1:
        (value,) = data.values()
        if jnp.shape(value) == jnp.shape(args[0]):
            return (value.astype(jnp.result_type(args[0])),)
    raise ValueError(
        f"ReweightedWakeSleep(sleep=): which of the {len(args)} arguments hold the data of the "
        f"observed sites {sorted(data)} is not clear. Fix: give dreamt=lambda data, *args: ..., "
        "which returns the guide's arguments for what was dreamt."
    )
