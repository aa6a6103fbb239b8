"""The mid-point estimator of SparseMixer."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from vipp_transforms.estimators._relaxation import relax, require_relaxable
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
class SparseMixer(Estimator):
    r"""The score function with :math:`f(b) - f(0)` by the mid-point rule. Biased.

    .. math::
        \nabla E[f(b)] = E[(f(b) - f(0))\,\nabla \log q(b)]
        \approx E\big[f'(\tfrac12 b)^\top b\ \nabla \log q(b)\big]

    Exact for terms quadratic in one choice. Three evaluations: at the choice, and twice at half of
    it, so that no other gradient is touched.

    Example:
      >>> import vipp
      >>> vipp.SparseMixer()
      SparseMixer()

    References:
      Liu, Gao and Chen, *Sparse backpropagation for MoE training*, 2023, section 3.2 (mid-point
      method).
    """

    traits: ClassVar[Traits] = Traits(biased=True, relaxed=True, orders=1)

    def validate(self, site: SiteInfo) -> None:
        """A one-hot choice, or a Bernoulli (a choice between nothing and one)."""
        require_relaxable(site, "SparseMixer")

    def axis(self, site: SiteInfo) -> Axis | None:
        """The choice; half of it, differentiable and not."""
        return Axis(f"site:{site.name}", 3)

    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """The choice and its halves."""

        def value(here: Local, logits: jax.Array, drawn: jax.Array) -> jax.Array:
            log_prob = (jax.nn.log_softmax(logits) * drawn).sum(-1, keepdims=True)
            return drawn * (0.5 + log_prob - jax.lax.stop_gradient(log_prob))

        drawn = source.draw().astype(jnp.result_type(float))
        middle = relax(site, source, value)
        return Expansion(jnp.stack([drawn, middle, jax.lax.stop_gradient(middle)]))

    def contract(self, term: Term) -> jax.Array:
        """The term at the choice, with the mid-point's derivative."""
        hard, middle, fixed = term.value
        return hard + middle - fixed
