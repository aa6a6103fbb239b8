"""The rectified straight-through estimator."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vipp_transforms import checks
from vipp_transforms.estimators._linear import require_binary
from vipp_transforms.estimators._relaxation import gumbel_behind, relax
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
      >>> import vipp
      >>> vipp.ReSTE(power=3.0)
      ReSTE(power=3.0, limit=10.0)

    References:
      Wu, Zheng, Cai, Li and Wang, *Estimator meets equilibrium perspective: a rectified straight
      through estimator for binary neural networks training*, 2023, equations 8 to 11.
    """

    power: Any = 1.5
    limit: float = 10.0
    traits: ClassVar[Traits] = Traits(biased=True, relaxed=True, orders=1)

    def __post_init__(self) -> None:
        checks.number("ReSTE: power", self.power, "at least 1", lambda x: x >= 1)
        checks.number("ReSTE: limit", self.limit, "positive", lambda x: x > 0)

    def validate(self, site: SiteInfo) -> None:
        """A Bernoulli."""
        require_binary(site, "ReSTE")

    def axis(self, site: SiteInfo) -> Axis | None:
        """One value."""
        return None

    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """The draw, with the power's gradient."""

        def value(here: Local, logits: jax.Array, drawn: jax.Array) -> jax.Array:
            perturbed = gumbel_behind(here.key, logits, drawn)
            z = perturbed[..., 1:] - perturbed[..., :1]
            o, size = here.estimator.power, jnp.abs(jax.lax.stop_gradient(z))
            power = jnp.maximum(size, jnp.finfo(size.dtype).tiny) ** (1.0 / o - 1.0)
            slope = 0.5 * jnp.minimum(power / o, here.estimator.limit)
            # only the last category is the value of a Bernoulli
            return drawn + slope * (z - jax.lax.stop_gradient(z))

        return Expansion(relax(site, source, value))

    def contract(self, term: Term) -> jax.Array:
        """The term: its gradient flows through the value."""
        return term.value
