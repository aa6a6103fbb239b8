"""Divergences in closed form, site by site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipp.distributions.answers import Answering
from vipp.distributions.kl import attempt, closed_kl, elementwise
from vipp.distributions.lanes import lane_distribution
from vipp.distributions.laws import answers
from vipp.distributions.masks import lane_mask
from vipp.distributions.support import reaches_outside
from vipp.distributions.wrappers import factor
from vipp.language.control_flow import REVERSED
from vipp.programs.densities import SiteDensity


def analytic_kl(
    of_p: list[SiteDensity], of_q: list[SiteDensity], sites: str | Sequence[str]
) -> dict[str, jax.Array]:
    r"""The divergence of the guide's from the model's distribution at sites that have a formula.

    .. math:: E_{q(z_i \mid \cdot)}[c_q \log q(z_i \mid \cdot) - c_p \log p(z_i \mid \cdot)]

    given the values drawn before, with what either density counts by scales and masks. That is
    right where the model's distribution of the site does not depend on values that the guide draws
    after it.

    Args:
      of_p: of the model, in its order.
      of_q: of the guide, in its order.
      sites: ``"analytic"`` for those where this is possible, or names of sites where it must be.

    Returns:
      By name of the site, a scalar.

    Raises:
      ValueError: naming a site asked for where it is not possible.
    """
    model = {s.name: s for s in of_p if not s.observed and s.fn is not None}
    latent = [s for s in of_q if not s.observed and s.fn is not None]
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
        why = _drawn_late(site, model[site.name], latent[i + 1 :], list(model))
        value = None if why else _divergence(site, model[site.name])
        if value is not None:
            found[site.name] = value
        elif asked is not None:
            kinds = f"{_kind(site.fn)} from {_kind(model[site.name].fn)}"
            if reaches_outside(site.fn, model[site.name].fn):
                why = "is infinite: the guide has values that the model cannot have"
            raise ValueError(
                f"ELBO(kl=): the divergence at site '{site.name}' ({kinds}) "
                f"{why or 'has no closed form'}. Fix: leave the site out."
            )
    return found


def _drawn_late(
    site: SiteDensity, of_p: SiteDensity, after: list[SiteDensity], model: list[str]
) -> str | None:
    """Why the model's distribution may depend on what the guide draws later; None if it doesn't."""
    before = model[: model.index(site.name)]
    late = [s.name for s in after if s.name in before]
    if late:
        return f"may depend in the model on '{late[0]}', which the guide draws later"
    if site.infer.get(REVERSED, False) != of_p.infer.get(REVERSED, False):
        return "may depend in the model on steps of the loop that the guide draws later"
    return None


def _kind(fn: Any) -> str:
    return type(lane_distribution(fn)).__name__.lstrip("_")


class _Count(NamedTuple):
    """What each lane of a site counts."""

    scale: Any
    mask: Any

    @staticmethod
    def of(site: SiteDensity) -> _Count:
        scale = 1.0 if site.scale is None else site.scale
        events = len(lane_distribution(site.fn).batch_shape) - len(site.fn.batch_shape)
        if jnp.ndim(scale):
            scale = jnp.expand_dims(scale, [-1 - i for i in range(events)])
        return _Count(scale, lane_mask(site.fn))

    def times(self, x: jax.Array) -> jax.Array:
        return self.scale * (x if self.mask is True else jnp.where(self.mask, x, 0.0))

    def same(self, other: _Count) -> bool:
        """Whether it is known to be equal."""
        numbers = isinstance(self.scale, int | float) and isinstance(other.scale, int | float)
        scale = self.scale is other.scale or (numbers and self.scale == other.scale)
        return scale and self.mask is other.mask


def _divergence(q: SiteDensity, p: SiteDensity) -> jax.Array | None:
    """Summed over the lanes; None where there is no formula."""
    q, p = (replace(s, fn=elementwise(s.fn)) for s in (q, p))
    of_q, of_p = lane_distribution(q.fn), lane_distribution(p.fn)
    counted = _Count.of(q), _Count.of(p)
    if of_q.event_shape != of_p.event_shape:
        return _as_one_event(q, p) if counted[0].same(counted[1]) else None
    lanes = jnp.broadcast_shapes(of_q.batch_shape, of_p.batch_shape)
    if lanes != of_q.batch_shape:
        return None  # a lane of the guide stands for several of the model
    values = _values(of_q, of_p)
    if values is not None:
        return _summed(of_q, of_p, values, *counted)
    divergence = closed_kl(of_q, of_p)
    if divergence is None:
        return None
    at_lanes = lambda x: jnp.broadcast_to(x, lanes)
    total = counted[1].times(at_lanes(divergence)).sum()
    if counted[0].same(counted[1]):
        return total
    entropy = attempt(of_q.entropy) if answers(of_q, "entropy") else None
    if entropy is None:
        return None
    # c_q log q - c_p log p = c_p (log q - log p) + (c_q - c_p) log q
    rest = counted[1].times(at_lanes(entropy)) - counted[0].times(at_lanes(entropy))
    return total + rest.sum()


def _values(q: Any, p: Any) -> jax.Array | None:
    """All values of one lane of a finite choice that the model can score; None if not listed."""
    if not (factor(q).is_discrete and factor(p).is_discrete):
        return None
    listed = Answering(q).support
    return None if listed is None else jnp.asarray(listed)


def _as_one_event(q: SiteDensity, p: SiteDensity) -> jax.Array | None:
    """Of distributions that only one of has independent coordinates; without masks."""
    if lane_mask(q.fn) is not True or isinstance(q.scale, jax.Array):
        return None
    if q.fn.event_shape != p.fn.event_shape:
        return None
    divergence = closed_kl(q.fn, p.fn)
    if divergence is None:
        return None
    shape = jnp.broadcast_shapes(q.log_prob.shape, p.log_prob.shape)
    return (1.0 if q.scale is None else q.scale) * jnp.broadcast_to(divergence, shape).sum()


def _summed(q: Any, p: Any, values: jax.Array, of_q: _Count, of_p: _Count) -> jax.Array:
    values = values.reshape((-1, *(1 for _ in q.batch_shape), *q.event_shape))
    at_lanes = lambda x: jnp.broadcast_to(x, (len(values), *q.batch_shape))
    log_q = at_lanes(q.log_prob(values))
    # outside of its support a density may be anything
    log_p = at_lanes(jnp.where(p.support(values), p.log_prob(values), -jnp.inf))
    possible = log_q > -jnp.inf
    log_q = jnp.where(possible, log_q, 0.0)  # no gradient of what cannot be drawn
    terms = jnp.exp(log_q) * (of_q.times(log_q) - of_p.times(log_p))
    return jnp.where(possible, terms, 0.0).sum()
