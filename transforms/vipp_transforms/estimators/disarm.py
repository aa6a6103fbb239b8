"""Antithetic estimators for binary choices: ARM and DisARM."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from vipp_transforms.estimators._linear import (
    combine,
    direction,
    logit,
    require_binary,
)
from vipp_transforms.estimators.base import (
    Axis,
    Estimator,
    Expansion,
    SiteInfo,
    Source,
    Term,
    Traits,
    estimator,
)


@estimator
class ARM(Estimator):
    r"""Augment, REINFORCE, merge: an antithetic pair driven by one uniform number per lane.

    .. math::
        \nabla_\alpha E[f(b)] = E_u[(f(\tilde b) - f(b))\,(u - \tfrac12)],\quad
        b = 1[u < \sigma(\alpha)],\ \tilde b = 1[1 - u < \sigma(\alpha)]

    Two evaluations, however many lanes. :class:`DisARM` has never a larger variance.

    Example:
      >>> import vipp
      >>> vipp.ARM()
      ARM()

    References:
      Yin and Zhou, *ARM: augment-REINFORCE-merge gradient for stochastic binary networks*, 2019.
    """

    traits: ClassVar[Traits] = Traits(orders=1)

    def validate(self, site: SiteInfo) -> None:
        """A Bernoulli."""
        require_binary(site, "ARM")

    def axis(self, site: SiteInfo) -> Axis | None:
        """The pair."""
        return Axis(f"site:{site.name}", 2)

    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """The pair, and the coefficient of each one's value."""
        u, log_odds, pair = _antithetic(source)
        slope = (u - 0.5) * direction(log_odds)
        return Expansion(pair, (jnp.stack([-slope, slope]),))

    def contract(self, term: Term) -> jax.Array:
        """The mean of the pair, sloped by its difference."""
        return combine(term.value, [0.5, 0.5], term.potentials[0])


@estimator
class DisARM(Estimator):
    r"""The ARM estimator with its uniform numbers averaged out given the pair (also named U2G).

    .. math::
        \nabla_{\alpha_i} E[f(b)] = E\big[\tfrac12 (f(b) - f(\tilde b))\,(-1)^{\tilde b_i}\,
        1[b_i \ne \tilde b_i]\,\sigma(|\alpha_i|)\big]

    with the antithetic pair of :class:`ARM`. Two evaluations, however many lanes.

    Example:
      >>> import vipp
      >>> vipp.DisARM()
      DisARM()

    References:
      Dong, Mnih and Tucker, *DisARM: an antithetic gradient estimator for binary latent
      variables*, 2020, equation 6. Yin et al., *Probabilistic best subset selection via
      gradient-based optimization* (U2G), 2020.
    """

    traits: ClassVar[Traits] = Traits(orders=1)

    def validate(self, site: SiteInfo) -> None:
        """A Bernoulli."""
        require_binary(site, "DisARM")

    def axis(self, site: SiteInfo) -> Axis | None:
        """The pair."""
        return Axis(f"site:{site.name}", 2)

    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """The pair, and the coefficient of each one's value."""
        _, log_odds, pair = _antithetic(source)
        sign = pair[0] - pair[1]  # zero where the two agree
        size = jax.nn.sigmoid(jnp.abs(jax.lax.stop_gradient(log_odds)))
        slope = 0.5 * sign * size * direction(log_odds)
        return Expansion(pair, (jnp.stack([slope, -slope]),))

    def contract(self, term: Term) -> jax.Array:
        """The mean of the pair, sloped by its difference."""
        return combine(term.value, [0.5, 0.5], term.potentials[0])


def _antithetic(source: Source) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Uniform numbers, log odds, and the pair they give (as the draws' integers)."""
    u = source.uniform()
    log_odds = source.map(lambda here: logit(here.distribution))
    threshold = jax.nn.sigmoid(jax.lax.stop_gradient(log_odds))
    pair = jnp.stack([u < threshold, 1 - u < threshold])
    return u, log_odds, pair.astype(jnp.result_type(int))
