"""Several antithetic samples of binary choices: ARMS."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from vipp_transforms.checks import positive_int
from vipp_transforms.estimators._linear import combine, direction, logit, require_binary
from vipp_transforms.estimators.base import (
    Axis,
    Estimator,
    Expansion,
    Local,
    SiteInfo,
    Source,
    Term,
    Traits,
    estimator,
)


@estimator
class ARMS(Estimator):
    r"""Antithetic REINFORCE of several samples, drawn with a Dirichlet copula.

    .. math::
        \nabla_{\alpha_i} E[f(b)] = E\Big[\frac{1}{n - 1} \sum_{s=1}^n \big(f(b^s) - \bar f\big)
        \frac{b^s_i - \bar b_i}{1 - \rho_i}\Big]

    with :math:`\rho_i` the correlation of any two samples of one lane: the leave-one-out score
    function for :math:`\rho_i = 0`, and :class:`DisARM` for :math:`n = 2`. One evaluation per
    sample, however many lanes.

    Args:
      num_samples: :math:`n`, at least 2.

    Raises:
      ValueError: if ``num_samples`` is not an int of at least 2.

    Example:
      >>> import vipp
      >>> vipp.ARMS(num_samples=4)
      ARMS(num_samples=4)

    References:
      Dimitriev and Zhou, *ARMS: antithetic-REINFORCE-multi-sample gradient for binary variables*,
      2021, with the Dirichlet copula.
    """

    num_samples: int = 4
    traits: ClassVar[Traits] = Traits(orders=1)

    def __post_init__(self) -> None:
        positive_int("ARMS: num_samples", self.num_samples)
        if self.num_samples < 2:
            raise ValueError(f"ARMS: num_samples must be at least 2, got {self.num_samples}.")

    def validate(self, site: SiteInfo) -> None:
        """A Bernoulli."""
        require_binary(site, "ARMS")

    def axis(self, site: SiteInfo) -> Axis | None:
        """The samples."""
        return Axis(f"site:{site.name}", self.num_samples)

    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """The samples, and the coefficient of each one's value."""
        drawn = source.map(self._samples)
        samples = jnp.stack([b for b, _ in drawn])
        slopes = jnp.stack([slope for _, slope in drawn])
        return Expansion(samples.astype(jnp.result_type(int)), (slopes,))

    def _samples(self, here: Local) -> list[tuple[jax.Array, jax.Array]]:
        """``num_samples`` dependent draws, each with its slope."""
        n, log_odds = self.num_samples, logit(here.distribution)[None]
        fixed = jax.lax.stop_gradient(log_odds)
        rare = jax.nn.sigmoid(-jnp.abs(fixed))  # the probability of the rarer value
        # Dirichlet: a part is above d with probability (1 - d)^(n-1)
        parts = jax.random.exponential(here.key, (n, *log_odds.shape[1:]))
        parts = parts / parts.sum(0, keepdims=True)
        kept = rare ** (1.0 / (n - 1))
        is_rare = 1.0 - parts < kept
        # two parts are above d together with probability (1 - 2 d)^(n-1), if that is positive
        both = jnp.maximum(2.0 * kept - 1.0, 0.0) ** (n - 1)
        independence = 1.0 - both / jnp.maximum(rare, jnp.finfo(rare.dtype).tiny)
        # E[b' | b] = p + rho (b - p): a difference shows 1 - rho of the score, of which this is
        # the inverse
        factor = (1.0 - rare) / independence
        samples = jnp.where(fixed > 0, ~is_rare, is_rare).astype(log_odds.dtype)
        away = samples - samples.mean(0, keepdims=True)
        slopes = away * (factor / (n - 1) * direction(log_odds))
        return list(zip(samples, slopes, strict=True))

    def contract(self, term: Term) -> jax.Array:
        """The mean of the samples, sloped by their differences."""
        return combine(term.value, [1.0 / self.num_samples] * self.num_samples, term.potentials[0])
