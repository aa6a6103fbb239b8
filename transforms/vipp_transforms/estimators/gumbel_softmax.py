"""The Gumbel-softmax (Concrete) relaxation."""

from __future__ import annotations

from typing import ClassVar

import jax

from vipp_transforms.estimators._relaxation import (
    gumbel_behind,
    relax,
    require_relaxable,
    require_temperature,
)
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
class GumbelSoftmax(Estimator):
    r"""Replace a choice by a tempered softmax of its perturbed logits. Biased.

    .. math:: y = \mathrm{softmax}((\alpha + g) / \tau), \quad g_k \sim \mathrm{Gumbel}(0, 1)

    As :math:`\tau \to 0` the value becomes the discrete choice and the bias vanishes, while the
    gradient's variance grows. With ``hard`` the program sees the choice itself and only the
    gradient is relaxed (ST Gumbel-softmax).

    Args:
      temperature: :math:`\tau`, positive.
      hard: whether the forward value is discrete.

    Raises:
      ValueError: if ``temperature`` is not positive.

    Example:
      >>> import vipp
      >>> vipp.GumbelSoftmax(temperature=0.5)
      GumbelSoftmax(temperature=0.5, hard=False)

    References:
      Jang, Gu and Poole, *Categorical reparameterization with Gumbel-softmax*, 2017. Maddison, Mnih
      and Teh, *The Concrete distribution*, 2017.
    """

    temperature: float = 1.0
    hard: bool = False
    traits: ClassVar[Traits] = Traits(biased=True, relaxed=True, orders=1)

    def __post_init__(self) -> None:
        require_temperature("GumbelSoftmax", self.temperature)

    def validate(self, site: SiteInfo) -> None:
        """A Bernoulli or a one-hot choice."""
        require_relaxable(site, "GumbelSoftmax")

    def axis(self, site: SiteInfo) -> Axis | None:
        """One value."""
        return None

    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """The relaxed value, differentiable."""

        def value(here: Local, logits: jax.Array, drawn: jax.Array) -> jax.Array:
            perturbed = gumbel_behind(here.key, logits, drawn)
            soft = jax.nn.softmax(perturbed / here.estimator.temperature)
            return drawn + soft - jax.lax.stop_gradient(soft) if self.hard else soft

        return Expansion(relax(site, source, value))

    def contract(self, term: Term) -> jax.Array:
        """The term: its gradient flows through the value."""
        return term.value
