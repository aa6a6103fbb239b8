"""Straight-through estimators: the choice forward, something smooth backward."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from vipp_transforms.estimators._linear import FIRST_ORDER
from vipp_transforms.estimators._relaxation import relax, require_relaxable, require_temperature
from vipp_transforms.estimators.base import (
    Axis,
    Estimator,
    Expansion,
    Here,
    Lot,
    Source,
    Term,
    estimator,
)


@estimator
class StraightThrough(Estimator):
    r"""The choice forward, its probabilities backward. Biased, except for linear terms.

    .. math:: y = b + \pi - \mathrm{sg}[\pi]

    Example:
      >>> import vipp_transforms as vt
      >>> vt.StraightThrough()
      StraightThrough()

    References:
      Bengio, Léonard and Courville, *Estimating or propagating gradients through stochastic
      neurons for conditional computation*, 2013.
    """

    biased: ClassVar[bool] = True
    relaxed: ClassVar[bool] = True
    orders: ClassVar[int | None] = FIRST_ORDER

    def validate(self, lot: Lot) -> None:
        """A Bernoulli or a one-hot choice."""
        require_relaxable(lot, "StraightThrough")

    def axis(self, lot: Lot) -> Axis | None:
        """One value."""
        return None

    def expand(self, lot: Lot, source: Source) -> Expansion:
        """The draw with the gradient of its probabilities."""

        def value(here: Here, logits: jax.Array, drawn: jax.Array) -> jax.Array:
            soft = jax.nn.softmax(logits)
            return drawn + soft - jax.lax.stop_gradient(soft)

        return Expansion(relax(lot, source, value))

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
      >>> import vipp_transforms as vt
      >>> vt.ReinMax()
      ReinMax(temperature=1.0)

    References:
      Liu, Dong, Liu, Yu and Gao, *Bridging discrete and backpropagation: straight-through and
      beyond*, 2023, algorithm 2.
    """

    temperature: float = 1.0
    biased: ClassVar[bool] = True
    relaxed: ClassVar[bool] = True
    orders: ClassVar[int | None] = FIRST_ORDER

    def __post_init__(self) -> None:
        require_temperature("ReinMax", self.temperature)

    def validate(self, lot: Lot) -> None:
        """A Bernoulli or a one-hot choice."""
        require_relaxable(lot, "ReinMax")

    def axis(self, lot: Lot) -> Axis | None:
        """One value."""
        return None

    def expand(self, lot: Lot, source: Source) -> Expansion:
        """The draw with Heun's gradient."""

        def value(here: Here, logits: jax.Array, drawn: jax.Array) -> jax.Array:
            middle = (drawn + jax.nn.softmax(logits / here.estimator.temperature)) / 2
            shift = jax.lax.stop_gradient(jnp.log(middle) - logits)
            soft = 2 * jax.nn.softmax(shift + logits) - 0.5 * jax.nn.softmax(logits)
            return drawn + soft - jax.lax.stop_gradient(soft)

        return Expansion(relax(lot, source, value))

    def contract(self, term: Term) -> jax.Array:
        """The term: its gradient flows through the value."""
        return term.value
