"""The score function with two control variates made of the program's own slopes."""

from __future__ import annotations

from typing import ClassVar

import jax

from vipp_transforms.checks import positive_int
from vipp_transforms.estimators._linear import direction, mean_of, require_support
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
class DoubleControlVariates(Estimator):
    r"""Leave-one-out, less what the other samples' slopes say of each, whose mean is known.

    .. math::
        \frac1n \sum_k \Big[f(x_k) - c_k - \frac{1}{n-1} \sum_{j \ne k} (f(x_j) - c_j)\Big]
        \nabla \log q(x_k) + a_k^\top \nabla \mu, \qquad c_k = a_k^\top (x_k - \mu), \quad
        a_k = \frac{1}{n-1} \sum_{j \ne k} f'(x_j)

    with :math:`\mu = E[x]`. Unbiased whatever :math:`f'` is, as :math:`a_k` does not depend on
    :math:`x_k` and :math:`E[(x - \mu)\,\nabla \log q(x)] = \nabla \mu`; without variance where
    :math:`f` is linear. The slopes come from the backward pass that is taken anyway: one evaluation
    per sample, however many lanes. Where the program uses a choice as an index or compares it, its
    slope is zero there, and what is left is leave-one-out.

    The value of the choice is that of any other estimator, integers included: what is
    differentiated is the float that the program makes of it. Slopes are those of the terms that mix
    lanes (the fewest, if they differ). A term of one lane, such as its part of a divergence, is
    summed over the lane's values if these are at most twice as many as the samples, and left to
    leave-one-out otherwise.

    Args:
      num_samples: :math:`n`, at least 2. Sites with as many samples, those of
        :class:`ScoreFunction` included, are drawn as joint trajectories.

    Raises:
      ValueError: if ``num_samples`` is not an int of at least 2.

    Example:
      >>> import vipp
      >>> vipp.DoubleControlVariates(num_samples=4)
      DoubleControlVariates(num_samples=4)

    References:
      Titsias and Shi, *Double control variates for gradient estimation in discrete latent variable
      models*, 2022, equations 8 and 14.
    """

    num_samples: int = 8
    traits: ClassVar[Traits] = Traits(orders=1, sloped=True)

    def __post_init__(self) -> None:
        positive_int("DoubleControlVariates: num_samples", self.num_samples)
        if self.num_samples < 2:
            raise ValueError(
                f"DoubleControlVariates: num_samples must be at least 2, got {self.num_samples}."
            )

    def validate(self, site: SiteInfo) -> None:
        """A finite support, whose mean is known."""
        require_support(site, "DoubleControlVariates")

    def sums_single(self, site: SiteInfo) -> bool:
        """Where a lane has no more values than are drawn, or not many more."""
        return site.support is not None and len(site.support) <= 2 * self.num_samples

    def axis(self, site: SiteInfo) -> Axis | None:
        """Joint trajectories, shared by all sites with as many samples."""
        return Axis(f"samples:{self.num_samples}", self.num_samples, shared=True)

    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """A draw, and what its slope is to be multiplied by."""
        n, value = self.num_samples, source.draw()

        def facts(here: Local, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            mean = mean_of(here.distribution, site.support, x.dtype)
            return here.distribution.log_prob(x), mean

        log_prob, mean = source.map(facts, value)
        together = tuple(a for a, m in enumerate(site.grouped) if m)
        score = direction(log_prob.sum(together, keepdims=True))
        # docs/engine.md, slopes: each sample's part in what the others' slopes are multiplied by
        centred = (score - source.total(score) / n) * (n / (n - 1))
        centred = centred.reshape(centred.shape + (1,) * len(site.event_shape))
        part = direction(mean) - jax.lax.stop_gradient(value - mean) * centred
        slope = (source.total(part) - part) / (n - 1)
        return Expansion(value, (direction(log_prob),), slope=slope)

    def contract(self, term: Term) -> jax.Array:
        """Leave-one-out: the slopes are in the value."""
        fixed = jax.lax.stop_gradient(term.value)
        away = (fixed - fixed.mean(0, keepdims=True)) * (self.num_samples / (self.num_samples - 1))
        return term.value + away * term.potentials[0]
