"""Straight-through estimators: the choice forward, something smooth backward."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from vipp_transforms.estimators._relaxation import relax, require_relaxable, require_temperature
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
class StraightThrough(Estimator):
    r"""The choice forward, its probabilities backward. Biased, except for linear terms.

    .. math:: y = b + \pi - \mathrm{sg}[\pi]

    Example:
      >>> import vipp
      >>> vipp.StraightThrough()
      StraightThrough()

    References:
      Bengio, Léonard and Courville, *Estimating or propagating gradients through stochastic
      neurons for conditional computation*, 2013.
    """

    traits: ClassVar[Traits] = Traits(biased=True, relaxed=True, orders=1)

    def validate(self, site: SiteInfo) -> None:
        """A Bernoulli or a one-hot choice."""
        require_relaxable(site, "StraightThrough")

    def axis(self, site: SiteInfo) -> Axis | None:
        """One value."""
        return None

    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """The draw with the gradient of its probabilities."""

        def value(here: Local, logits: jax.Array, drawn: jax.Array) -> jax.Array:
            soft = jax.nn.softmax(logits)
            return drawn + soft - jax.lax.stop_gradient(soft)

        return Expansion(relax(site, source, value))

    def contract(self, term: Term) -> jax.Array:
        """The term: its gradient flows through the value."""
        return term.value


@estimator
class ReinMax(Estimator):
    r"""Straight-through of second order (Heun's method). Biased; exact for quadratic terms.

    .. math::
        \pi_1 = \tfrac12 (b + \mathrm{softmax}(\alpha / \tau)),\quad
        y = b + (2 \pi_1 - \tfrac12 \pi_0) - \mathrm{sg}[2 \pi_1 - \tfrac12 \pi_0]

    where :math:`\pi_1` is differentiated as a softmax of logits that agree with it.

    Args:
      temperature: :math:`\tau`, positive; the paper's theory is for 1.

    Raises:
      ValueError: if ``temperature`` is not positive.

    Example:
      >>> import vipp
      >>> vipp.ReinMax()
      ReinMax(temperature=1.0)

    References:
      Liu, Dong, Liu, Yu and Gao, *Bridging discrete and backpropagation: straight-through and
      beyond*, 2023, algorithm 2.
    """

    temperature: float = 1.0
    traits: ClassVar[Traits] = Traits(biased=True, relaxed=True, orders=1)

    def __post_init__(self) -> None:
        require_temperature("ReinMax", self.temperature)

    def validate(self, site: SiteInfo) -> None:
        """A Bernoulli or a one-hot choice."""
        require_relaxable(site, "ReinMax")

    def axis(self, site: SiteInfo) -> Axis | None:
        """One value."""
        return None

    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """The draw with Heun's gradient."""

        def value(here: Local, logits: jax.Array, drawn: jax.Array) -> jax.Array:
            middle = (drawn + jax.nn.softmax(logits / here.estimator.temperature)) / 2
            shift = jax.lax.stop_gradient(jnp.log(middle) - logits)
            soft = 2 * jax.nn.softmax(shift + logits) - 0.5 * jax.nn.softmax(logits)
            return drawn + soft - jax.lax.stop_gradient(soft)

        return Expansion(relax(site, source, value))

    def contract(self, term: Term) -> jax.Array:
        """The term: its gradient flows through the value."""
        return term.value
