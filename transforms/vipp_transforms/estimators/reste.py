"""The rectified straight-through estimator."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vipp_transforms.estimators._linear import FIRST_ORDER, require_binary
from vipp_transforms.estimators._relaxation import gumbel_behind, relax
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
class ReSTE(Estimator):
    r"""The choice forward, a power of the perturbed logit backward. Biased.

    .. math::
        b = \tfrac12 (1 + \mathrm{sign}(z)), \qquad
        \partial_z b \approx \tfrac12\, \min\big(\tfrac1o |z|^{\frac1o - 1},\ m\big)

    with :math:`z` the logit plus logistic noise. The derivative is that of
    :math:`\mathrm{sign}(z)|z|^{1/o}`, which is the identity for :math:`o = 1`, as in the
    straight-through estimator, and tends to the sign itself as :math:`o` grows: for terms linear in
    the choice the bias then vanishes (if ``limit`` is large), while the variance grows.

    Args:
      power: :math:`o`, at least 1.
      limit: :math:`m`, the largest derivative, positive.

    Raises:
      ValueError: if ``power`` is below 1, or ``limit`` not positive.

    Example:
      >>> import vipp_transforms as vt
      >>> vt.ReSTE(power=3.0)
      ReSTE(power=3.0, limit=10.0)

    References:
      Wu, Zheng, Cai, Li and Wang, *Estimator meets equilibrium perspective: a rectified straight
      through estimator for binary neural networks training*, 2023, equations 8 to 11.
    """

    power: Any = 1.5
    limit: float = 10.0
    biased: ClassVar[bool] = True
    relaxed: ClassVar[bool] = True
    orders: ClassVar[int | None] = FIRST_ORDER

    def __post_init__(self) -> None:
        if not isinstance(self.power, jax.Array) and not callable(self.power):
            if isinstance(self.power, bool) or not float(self.power) >= 1:
                raise ValueError(f"ReSTE: power must be at least 1, got {self.power!r}.")
        if isinstance(self.limit, bool) or not float(self.limit) > 0:
            raise ValueError(f"ReSTE: limit must be positive, got {self.limit!r}.")

    def validate(self, lot: Lot) -> None:
        """A Bernoulli."""
        require_binary(lot, "ReSTE")

    def axis(self, lot: Lot) -> Axis | None:
        """One value."""
        return None

    def expand(self, lot: Lot, source: Source) -> Expansion:
        """The draw, with the power's gradient."""

        def value(here: Here, logits: jax.Array, drawn: jax.Array) -> jax.Array:
            perturbed = gumbel_behind(here.key, logits, drawn)
            z = perturbed[..., 1:] - perturbed[..., :1]
            o, size = here.estimator.power, jnp.abs(jax.lax.stop_gradient(z))
            power = jnp.maximum(size, jnp.finfo(size.dtype).tiny) ** (1.0 / o - 1.0)
            slope = 0.5 * jnp.minimum(power / o, self.limit)
            # only the last category is the value of a Bernoulli
            return drawn + slope * (z - jax.lax.stop_gradient(z))

        return Expansion(relax(lot, source, value))

    def contract(self, term: Term) -> jax.Array:
        """The term: its gradient flows through the value."""
        return term.value
