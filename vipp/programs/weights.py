"""Importance weights: per element of the plates that enclose all that is weighed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vipp.programs.densities import SiteDensity, common_plates, joint_per_plate, subsampling


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


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("log_p", "log_q"),
    meta_fields=("names", "scale"),
)
@dataclass(frozen=True, eq=False)
class Weighed:
    """Log densities of one draw, per element of the plates that enclose every site.

    Attributes:
      log_p: of the model.
      log_q: of the guide or proposal.
      names: the plates.
      scale: what a sum over them is to be multiplied by for subsampling.
    """

    log_p: jax.Array
    log_q: jax.Array
    names: tuple[str, ...]
    scale: float


def weigh_sites(
    of_p: list[SiteDensity],
    of_q: list[SiteDensity],
    per_plate: Any = "auto",
    *,
    drawn: bool = True,
) -> Weighed:
    """The densities under two programs of values, ``drawn`` from the second of them or not."""
    both = [*of_p, *of_q]
    names = enclosing_plates(per_plate, both)
    if drawn:
        of_p, of_q = of_possible_draws(of_p, of_q)
    log_p, log_q = joint_per_plate(of_p, names), joint_per_plate(of_q, names)
    shape = jnp.broadcast_shapes(log_p.shape, log_q.shape)  # a program may have no sites
    log_p, log_q = jnp.broadcast_to(log_p, shape), jnp.broadcast_to(log_q, shape)
    return Weighed(log_p, log_q, names, subsampling(both, names))


def at_plates(x: jax.Array, site: SiteDensity, names: tuple[str, ...]) -> jax.Array:
    """``x``, one axis per plate in ``names``, with these axes where ``site``'s batch has them."""
    dims = [site.plates[n] for n in names]
    gaps = [d for d in range(min(dims, default=0), 0) if d not in dims]
    return jnp.expand_dims(x, gaps) if gaps else x


def at_values(x: jax.Array, site: SiteDensity, names: tuple[str, ...]) -> jax.Array:
    """``x``, one axis per plate in ``names``, to be broadcast with the values of ``site``."""
    if not names:
        return x
    return jnp.expand_dims(at_plates(x, site, names), [-1 - i for i in range(site.event_dim)])


def apart_from(
    sites: list[SiteDensity], auxiliary: tuple[str, ...]
) -> tuple[list[SiteDensity], list[SiteDensity]]:
    """The sites before the first auxiliary one, which cannot depend on it, and the rest."""
    random = [s.fn is None or s.name in auxiliary for s in sites]
    start = random.index(True) if any(random) else len(sites)
    return sites[:start], sites[start:]


def of_possible_draws(
    of_p: list[SiteDensity], of_q: list[SiteDensity]
) -> tuple[list[SiteDensity], list[SiteDensity]]:
    """The densities, without those of a choice that the guide makes with probability 0.

    Only an estimator that tries all values makes it, and gives it no weight. But minus infinity
    less minus infinity is no number, and no number times no weight has no derivative backwards.
    """
    cannot = {
        s.name: s.log_prob == -jnp.inf for s in of_q if s.random and s.fn is not None and _finite(s)
    }

    def possible(site: SiteDensity) -> SiteDensity:
        here = cannot.get(site.name)
        if site.observed or here is None or here.shape != site.log_prob.shape:
            return site
        return replace(site, log_prob=jnp.where(here, 0.0, site.log_prob))

    return [possible(s) for s in of_p], [possible(s) for s in of_q]


def _finite(site: SiteDensity) -> bool:
    return site.fn.support is not None and site.fn.support.is_discrete


def log_sum_exp(log_w: jax.Array) -> jax.Array:
    """The logarithm of the sum of ``exp(log_w)`` along the first axis.

    Where all of them are minus infinity, so is it, and is a constant.
    """
    none = jnp.all(log_w == -jnp.inf, axis=0)
    return jnp.where(none, -jnp.inf, jax.nn.logsumexp(jnp.where(none, 0.0, log_w), axis=0))


def log_mean_exp(log_w: jax.Array) -> jax.Array:
    """The logarithm of the mean of ``exp(log_w)`` along the first axis."""
    return log_w[0] if len(log_w) == 1 else log_sum_exp(log_w) - math.log(len(log_w))


def log_power_mean(log_w: jax.Array, power: Any) -> jax.Array:
    r"""The logarithm of a power mean, :math:`\frac1n \log \frac1K \sum_k w_k^n`.

    At ``power`` 0 it is the mean of the logarithms, at infinity the largest of them.
    """
    if isinstance(power, int | float):
        if power == 0:
            return log_w.mean(0)
        if power == math.inf:
            return log_w.max(0)
        near = abs(power) < _NEAR_ZERO
        return _mean_near_zero(log_w, power) if near else log_mean_exp(power * log_w) / power
    divisor = jnp.where(power == 0, 1.0, power)
    far = log_mean_exp(power * log_w) / divisor
    return jnp.where(jnp.abs(power) < _NEAR_ZERO, _mean_near_zero(log_w, power), far)


_NEAR_ZERO = 0.02


def _mean_near_zero(log_w: jax.Array, power: Any) -> jax.Array:
    """About 0, where the sum of powers is ``K`` but for rounding: by what they fall short of 1."""
    largest = jnp.where(power < 0, log_w.min(0), log_w.max(0))
    divisor = jnp.where(power == 0, 1.0, power)
    shortfall = jnp.expm1(power * (log_w - largest)).mean(0)
    return jnp.where(power == 0, log_w.mean(0), largest + jnp.log1p(shortfall) / divisor)


def one_density(
    name: str,
    log_density: jax.Array,
    names: tuple[str, ...],
    sites: list[SiteDensity],
    *,
    estimated: bool = True,
) -> SiteDensity:
    """The density of all of ``sites`` together, one entry per element of the plates ``names``.

    Args:
      name: to be known by.
      log_density: one axis per plate in ``names``.
      names: plates that enclose every site, outermost first.
      sites: in these plates.
      estimated: whether it is an estimate.

    Returns:
      It, as of one site, scaled by the plates' subsampling.
    """
    dims = {n: sites[0].plates[n] for n in names}
    taken = subsampling(sites, names)
    ratios = {n: r for s in sites for n, r in s.subsampling.items() if n in names}
    log_prob = at_plates(log_density, sites[0], names) if names else log_density
    scale, seen = None if taken == 1 else taken, any(s.observed for s in sites)
    return SiteDensity(name, log_prob, scale, dims, ratios, observed=seen, estimated=estimated)
