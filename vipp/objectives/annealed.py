"""The differentiable annealed importance sampling bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from numpyro.distributions import biject_to

from vipp.distributions.lanes import lane_distribution
from vipp.distributions.wrappers import masked
from vipp.language.keys import random_key, seeded
from vipp.language.replicate import replicate
from vipp.objectives.objective import objective
from vipp.programs.densities import SiteDensity
from vipp.programs.program import AbstractProgram
from vipp.programs.trace import Trace
from vipp.programs.weights import log_mean_exp


def _check(config: dict[str, Any]) -> None:
    if not config["step_size"] > 0:
        raise ValueError(f"AnnealedBound: step_size must be positive, got {config['step_size']!r}.")
    if not 0 <= config["persistence"] < 1:
        raise ValueError(
            f"AnnealedBound: persistence must be in [0, 1), got {config['persistence']!r}."
        )


@objective(check=_check)
def AnnealedBound(  # noqa: N802
    p: AbstractProgram,
    q: AbstractProgram,
    *,
    num_steps: int,
    step_size: float = 0.1,
    persistence: float = 0.5,
    num_particles: int = 1,
) -> jax.Array:
    r"""The differentiable annealed importance sampling bound (DAIS).

    From a draw of the guide, ``T`` leapfrog steps lead along
    :math:`\gamma_t(z) \propto q(z)^{1 - t/T} p(x, z)^{t/T}`, with momentum partly refreshed,
    :math:`v_t = \gamma \hat v_t + \sqrt{1 - \gamma^2} \epsilon_t`, and no rejections:

    .. math:: E\Big[\log \frac{p(x, z_T)}{q(z_0)}
        \prod_{t=1}^T \frac{N(\hat v_t; 0, 1)}{N(v_{t-1}; 0, 1)}\Big] \le \log p(x)

    All latent sites must be continuous and those of the guide the model's; they move in
    unconstrained coordinates. The draws move along all of the data: a minibatch would move them
    along itself, and lift the bound above the evidence.

    Args:
      num_steps: ``T``, at least 1.
      step_size: of the leapfrog integrator, positive; a number or a schedule of the step.
      persistence: ``gamma`` in [0, 1): how much of the momentum is kept from step to step; a number
        or a schedule.
      num_particles: chains whose weights are averaged, as in IWAE, at least 1.

    Raises:
      ValueError: if a count is not a positive int, ``step_size`` not positive or ``persistence``
        outside [0, 1); when traced, naming a site that is discrete, auxiliary or deterministic,
        subsampled, or in the guide scaled or masked.

    Example:
      >>> import vipp
      >>> vipp.AnnealedBound(num_steps=4)
      AnnealedBound(num_steps=4)

    References:
      Zhang, Hsu, Li, Finn and Grosse, *Differentiable annealed importance sampling and the perils
      of gradient noise*, 2021, algorithm 1.
      Geffner and Domke, *MCMC variational inference via uncorrected Hamiltonian annealing*, 2021.
    """

    def chain() -> jax.Array:
        z, of_q = q.simulate_sites()
        of_p = p.log_density_sites(z)
        _check_movable(of_p, of_q)
        start, put = _unconstrain(z, of_p)
        size, key = start.size, random_key("AnnealedBound")

        def log_joint(u: jax.Array) -> tuple[jax.Array, jax.Array]:
            moved, log_det = put(u)
            with seeded(rng_seed=key):  # of its own, as this runs inside a loop
                return p.log_density(moved) + log_det, q.log_density(moved) + log_det

        def slope(u: jax.Array, beta: Any) -> jax.Array:
            def mixed(u: jax.Array) -> jax.Array:
                of_p, of_q = log_joint(u)
                return beta * of_p + (1 - beta) * of_q

            return jax.grad(mixed)(u)

        normal = dist.Normal(jnp.zeros(size), 1.0)
        first = numpyro.sample("annealed$momentum", normal)
        fresh = numpyro.sample("annealed$refresh", normal.expand((num_steps, size)))
        kept, new = persistence, jnp.sqrt(1 - persistence**2)

        def step(carry: Any, given: Any) -> tuple[Any, None]:
            u, v, log_w = carry
            beta, noise = given
            half = u + 0.5 * step_size * v
            moved = v + step_size * slope(half, beta)
            log_w = log_w + 0.5 * (v @ v - moved @ moved)
            return (half + 0.5 * step_size * moved, kept * moved + new * noise, log_w), None

        betas = jnp.arange(1, num_steps + 1) / num_steps
        log_w = -log_joint(start)[1]
        (end, _, log_w), _ = jax.lax.scan(step, (start, first, log_w), (betas, fresh))
        return log_w + log_joint(end)[0]

    return log_mean_exp(replicate(chain, num_particles))


def _unconstrain(
    z: Trace, of_p: list[SiteDensity]
) -> tuple[jax.Array, Callable[[jax.Array], tuple[Trace, jax.Array]]]:
    """One unconstrained vector for all values, and the way back with its log volume."""
    supports = {s.name: biject_to(s.fn.support) for s in of_p if not s.observed}
    flat, unravel = ravel_pytree({n: supports[n].inv(x) for n, x in z.values.items()})

    def put(u: jax.Array) -> tuple[Trace, jax.Array]:
        values, log_det = {}, jnp.zeros(())
        for name, x in unravel(u).items():
            values[name] = supports[name](x)
            log_det += supports[name].log_abs_det_jacobian(x, values[name]).sum()
        return replace(z, values=values), log_det

    return flat, put


def _check_movable(of_p: list[SiteDensity], of_q: list[SiteDensity]) -> None:
    """Raise unless the guide's draws are points of the model's space, with their own density."""
    model = {s.name for s in of_p if not s.observed}
    for site in (*of_p, *of_q):
        if site.fn is None:
            _refuse(site, "belongs to a program whose density is estimated", "use IWAE")
        subsampled = [n for n, ratio in site.subsampling.items() if ratio != 1]
        if subsampled:
            _refuse(site, f"is subsampled by plate '{subsampled[0]}'", "drop subsample_size")
        if not site.observed and site.fn.support.is_discrete:
            _refuse(site, "is discrete", "sum it out (vipp.marginal), or use IWAE")
    for site in of_q:
        if site.observed:
            continue
        if isinstance(lane_distribution(site.fn), dist.Delta) or site.name not in model:
            fix = "draw the model's sites themselves in the guide, or use ELBO with AutoDAIS"
            _refuse(site, "of the guide is auxiliary or deterministic", fix)
        if masked(site.fn) or not _is_one(site.scale):
            _refuse(site, "of the guide is scaled or masked", "take the handler off, or use IWAE")


def _is_one(scale: Any) -> bool:
    return scale is None or (isinstance(scale, int | float) and scale == 1)


def _refuse(site: SiteDensity, what: str, fix: str) -> NoReturn:
    raise ValueError(
        f"AnnealedBound: site '{site.name}' {what}, expected continuous sites that can be moved. "
        f"Fix: {fix}."
    )
