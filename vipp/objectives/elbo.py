"""The evidence lower bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vipp.language.replicate import replicate
from vipp.objectives.divergence import analytic_kl
from vipp.objectives.objective import objective
from vipp.programs.densities import SiteDensity, joint
from vipp.programs.program import AbstractProgram


def _check(config: dict[str, Any]) -> None:
    beta, kl = config["beta"], config["kl"]
    if not beta >= 0:
        raise ValueError(f"ELBO: beta must not be negative, got {beta!r}.")
    if isinstance(kl, str) and kl not in ("monte_carlo", "analytic"):
        raise ValueError(
            f"ELBO: kl must be 'monte_carlo', 'analytic' or a list of sites, got {kl!r}."
        )
    if config["stick_the_landing"] and kl != "monte_carlo":
        raise ValueError(
            "ELBO: stick_the_landing scores each draw, which an analytic kl does not. Fix: use "
            "one of them."
        )


@objective(check=_check)
def ELBO(  # noqa: N802
    p: AbstractProgram,
    q: AbstractProgram,
    *,
    num_particles: int = 1,
    beta: float = 1.0,
    kl: str | Sequence[str] = "monte_carlo",
    stick_the_landing: bool = False,
) -> jax.Array:
    r"""The evidence lower bound.

    .. math:: E_{q(z)}[\log p(x \mid z)] - \beta \, \mathrm{KL}(q(z) \,\|\, p(z)) \le \log p(x)
        \quad (\beta = 1)

    The divergence counts every term of the guide, its factors and observed sites included, and the
    model's latent sites; scales and masks count what they say in each program.

    Args:
      num_particles: draws averaged over, at least 1.
      beta: what the divergence counts, not negative: a number, or a schedule, a function of the
        step such as optax has.
      kl: ``"monte_carlo"`` to estimate the divergence from the draws, ``"analytic"`` for the closed
        form (or a finite sum) at every site that has one, or the names of sites that must have one.
      stick_the_landing: score the draws with the guide's parameters constant: without variance
        where the guide is exact.

    Raises:
      ValueError: if ``num_particles`` is not a positive int or ``beta`` negative; when traced,
        naming a site of ``kl`` without closed form.

    Example:
      >>> import vipp
      >>> bound = vipp.ELBO(num_particles=4, kl="analytic")

    References:
      Jordan et al., *An introduction to variational methods for graphical models*, 1999.
      Higgins et al., *beta-VAE*, 2017, equation 4.
      Roeder, Wu and Duvenaud, *Sticking the landing*, 2017.
    """
    if kl == "monte_carlo" and isinstance(beta, int | float) and beta == 1:

        def log_weight() -> jax.Array:
            z, log_q = q.simulate(stick_the_landing=stick_the_landing)
            return p.log_density(z) - log_q

        return replicate(log_weight, num_particles, own_minibatch=True).mean()

    def penalised() -> jax.Array:
        z, of_q = q.simulate_sites()
        of_p = p.log_density_sites(z)
        if stick_the_landing:
            of_q = q.landed(z, of_q)
        if not (isinstance(beta, int | float) and beta == 1):
            _check_separable([*of_p, *of_q])
        closed = {} if kl == "monte_carlo" else analytic_kl(of_p, of_q, kl)
        prior = [s for s in of_p if not s.observed and s.name not in closed]
        rest = [s for s in of_q if s.name not in closed]  # its factors and observations, too
        divergence = joint(rest) - joint(prior) + sum(closed.values(), start=jnp.zeros(()))
        return joint(s for s in of_p if s.observed) - beta * divergence

    return replicate(penalised, num_particles, own_minibatch=True).mean()


def _check_separable(sites: list[SiteDensity]) -> None:
    for site in sites:
        if site.fn is None and not site.observed:
            raise ValueError(
                f"ELBO(beta=) needs the density of each site, got {site.name}, of which only "
                "all together is estimated. Fix: use ELBO() with this program."
            )
