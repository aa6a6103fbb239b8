"""Divergences in closed form, site by site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import kl_divergence

from vipp.distributions.densities import exact
from vipp.programs.densities import SiteDensity, scaled


def analytic_kl(
    of_p: list[SiteDensity], of_q: list[SiteDensity], sites: str | Sequence[str]
) -> dict[str, jax.Array]:
    r"""The divergence of the guide's from the model's distribution at sites that have a formula.

    .. math:: E_{q(z_i \mid \cdot)}[\log q(z_i \mid \cdot) - \log p(z_i \mid \cdot)]

    given the values drawn before. That is right where the model's distribution of the site does
    not depend on values that the guide draws after it.

    Args:
      of_p: of the model, in its order.
      of_q: of the guide, in its order.
      sites: ``"analytic"`` for those where this is possible, or names of sites where it must be.

    Returns:
      By name of the site, a scalar.

    Raises:
      ValueError: naming a site asked for where it is not possible.
    """
    model = {s.name: s for s in of_p if not s.observed}
    latent = [s for s in of_q if not s.observed]
    asked = None if sites == "analytic" else ([sites] if isinstance(sites, str) else list(sites))
    for name in asked or ():
        if name not in [s.name for s in latent]:
            raise ValueError(
                f"ELBO(kl=): no latent site '{name}' in the guide, got "
                f"{sorted(s.name for s in latent)}. Fix: use one of these."
            )
    found = {}
    for i, site in enumerate(latent):
        if site.name not in model or (asked is not None and site.name not in asked):
            continue
        value, why = _divergence(site, model[site.name]), "has no closed form"
        before = list(model)[: list(model).index(site.name)]
        late = [s.name for s in latent[i + 1 :] if s.name in before]
        if late:
            value, why = (
                None,
                f"may depend in the model on '{late[0]}', which the guide draws later",
            )
        if value is not None:
            found[site.name] = value
        elif asked is not None:
            kinds = f"{type(site.fn).__name__} from {type(model[site.name].fn).__name__}"
            raise ValueError(
                f"ELBO(kl=): the divergence at site '{site.name}' ({kinds}) {why}. Fix: leave the "
                "site out."
            )
    return found


def _divergence(q: SiteDensity, p: SiteDensity) -> jax.Array | None:
    if q.fn.has_enumerate_support and p.fn.has_enumerate_support:
        value = _sum_over_support(q.fn, p.fn)
    else:
        try:
            value = kl_divergence(q.fn, p.fn)
        except NotImplementedError:
            return None
    # one entry per batch element, as the log densities have
    shape = jnp.broadcast_shapes(q.log_prob.shape, p.log_prob.shape)
    return scaled(jnp.broadcast_to(value, shape), q.scale).sum()


def _sum_over_support(q: Any, p: Any) -> jax.Array:
    q, p = exact(q), exact(p)
    support = q.enumerate_support()
    log_q = q.log_prob(support)
    terms = jnp.exp(log_q) * (log_q - p.log_prob(support))
    return jnp.where(log_q == -jnp.inf, 0.0, terms).sum(0)
