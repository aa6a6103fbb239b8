"""Importance weights: per element of the plates that enclose all that is weighed."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from vipp.densities import SiteDensity, common_plates, subsampling


def enclosing_plates(per_plate: Any, sites: list[SiteDensity]) -> tuple[str, ...]:
    """The plates meant by ``per_plate``, ``"auto"`` being all that enclose every site.

    Raises:
      ValueError: naming a site that is subsampled by a plate which does not enclose them all.
    """
    if per_plate is None:
        names: tuple[str, ...] = ()
    elif per_plate == "auto":
        names = common_plates(sites)
    else:
        names = (per_plate,) if isinstance(per_plate, str) else tuple(per_plate)
    for site in sites:
        for plate, ratio in site.subsampling.items():
            if ratio != 1 and plate not in names:
                raise ValueError(
                    f"Site '{site.name}' is subsampled by plate '{plate}', which does not enclose "
                    "the whole model and guide: the logarithm of an average over particles is not "
                    "a bound when its density is itself an estimate. Fix: move every site into "
                    f"'{plate}', use ELBO, or drop subsample_size."
                )
    return names


def apart_from(
    sites: list[SiteDensity], auxiliary: tuple[str, ...]
) -> tuple[list[SiteDensity], list[SiteDensity]]:
    """The sites before the first auxiliary one, which cannot depend on it, and the rest."""
    random = [s.fn is None or s.name in auxiliary for s in sites]
    start = random.index(True) if any(random) else len(sites)
    return sites[:start], sites[start:]


def log_mean_exp(log_w: jax.Array) -> jax.Array:
    """The logarithm of the mean of ``exp(log_w)`` along the first axis."""
    return log_w[0] if len(log_w) == 1 else jax.nn.logsumexp(log_w, axis=0) - math.log(len(log_w))


def one_density(
    name: str, log_density: jax.Array, names: tuple[str, ...], sites: list[SiteDensity]
) -> SiteDensity:
    """The density of all of ``sites`` together, one entry per element of the plates ``names``.

    Args:
      name: to be known by.
      log_density: one axis per plate in ``names``.
      names: plates that enclose every site, outermost first.
      sites: in these plates.

    Returns:
      It, as of one site, scaled by the plates' subsampling.
    """
    dims = {n: sites[0].plates[n] for n in names}
    gaps = [d for d in range(min(dims.values(), default=0), 0) if d not in dims.values()]
    taken = subsampling(sites, names)
    ratios = {n: r for s in sites for n, r in s.subsampling.items() if n in names}
    log_prob = jnp.expand_dims(log_density, gaps) if gaps else log_density
    return SiteDensity(name, log_prob, None if taken == 1 else taken, dims, ratios)
