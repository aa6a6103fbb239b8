"""Local expectation gradients: exact over one lane, sampled over the others."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from vipp_transforms.checks import positive_int
from vipp_transforms.errors import SiteError
from vipp_transforms.estimators._linear import direction, num_together, selectors, swap
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
class LocalExpectation(Estimator):
    r"""Sum exactly over each lane in turn, the lanes that a term mixes it with being drawn.

    .. math::
        \nabla E[f(x)] = E_x\Big[\sum_j \sum_k \nabla q_j(k)\, f(x_{-j}, x_j = k)\Big]

    Costs ``size * lanes`` evaluations where :class:`Enumerate` costs ``size ** lanes``; lanes that
    no term mixes are summed side by side, with no variance.

    Args:
      max_evaluations: the most evaluations that are made; more raise.

    Raises:
      ValueError: if ``max_evaluations`` is not a positive int.

    Example:
      >>> import vipp
      >>> vipp.LocalExpectation()
      LocalExpectation(max_evaluations=4096)

    References:
      Titsias and Lázaro-Gredilla, *Local expectation gradients for black box variational
      inference*, 2015, equation 7.
    """

    max_evaluations: int = 4096
    traits: ClassVar[Traits] = Traits(orders=1)

    def __post_init__(self) -> None:
        positive_int("LocalExpectation: max_evaluations", self.max_evaluations)

    def validate(self, site: SiteInfo) -> None:
        """A finite support, small enough."""
        if site.support is None:
            raise SiteError(
                f"Site '{site.name}': LocalExpectation needs a finite support that is known before "
                f"compilation, got {site.kind}. Fix: use ScoreFunction(num_samples=2, "
                "baseline='leave_one_out')."
            )
        size = site.support.shape[0] * num_together(site)
        if size > self.max_evaluations:
            raise SiteError(
                f"Site '{site.name}': LocalExpectation would make {site.support.shape[0]} * "
                f"{num_together(site)} = {size} evaluations; expected at most "
                f"{self.max_evaluations}. Fix: use ScoreFunction(num_samples=2, "
                "baseline='leave_one_out') or raise LocalExpectation(max_evaluations=)."
            )

    def axis(self, site: SiteInfo) -> Axis | None:
        """Every value of every lane that is changed on its own."""
        assert site.support is not None
        return Axis(f"site:{site.name}", site.support.shape[0] * num_together(site))

    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """The draw with one lane replaced by each value, and each value's probability there."""
        assert site.support is not None
        base = source.draw()
        support = jnp.asarray(site.support, base.dtype)
        constants = [jnp.broadcast_to(value, base.shape) for value in support]
        values = jnp.concatenate([swap(site, base, constant) for constant in constants])
        chosen = selectors(site)
        log_probs = [source.map(_log_prob, constant) for constant in constants]
        probabilities = jnp.concatenate([chosen * jnp.exp(x)[None] for x in log_probs])
        log_weight = jnp.concatenate([jnp.where(chosen > 0, x[None], 0.0) for x in log_probs])
        return Expansion(values, (probabilities,), log_weight)

    def contract(self, term: Term) -> jax.Array:
        """Probability-weighted sums; the value averages those of all lanes changed."""
        (p,) = term.potentials
        slope = jax.lax.stop_gradient(term.value) * direction(p)
        return (jax.lax.stop_gradient(p) * term.value / term.lanes + slope).sum(0)


def _log_prob(here: Local, value: jax.Array) -> jax.Array:
    return here.distribution.log_prob(value)
