"""Exact enumeration of a finite random choice."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms.axis_sums import sum_over
from vipp_transforms.checks import positive_int
from vipp_transforms.errors import SiteError
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
class Enumerate(Estimator):
    r"""Sum over the support: no variance, in value or in gradient.

    .. math:: E[f(x)] = \sum_k q(x = k)\, f(k)

    Lanes that every term keeps apart are enumerated side by side (``size`` evaluations, however
    many lanes); lanes that some term mixes are enumerated jointly (``size ** lanes``).

    Args:
      max_evaluations: the largest joint support that is enumerated; a larger one raises.

    Raises:
      ValueError: if ``max_evaluations`` is not a positive int.

    Example:
      >>> import vipp
      >>> vipp.Enumerate()
      Enumerate(max_evaluations=65536)

    References:
      Obermeyer et al., *Tensor variable elimination for plated factor graphs*, 2019.
    """

    traits: ClassVar[Traits] = Traits(exhaustive=True)
    max_evaluations: int = 65536

    def __post_init__(self) -> None:
        positive_int("Enumerate: max_evaluations", self.max_evaluations)

    def validate(self, site: SiteInfo) -> None:
        """A finite support whose joint size over mixed lanes stays within ``max_evaluations``."""
        if site.support is None:
            raise SiteError(
                f"Site '{site.name}': Enumerate needs a finite support that is known before "
                f"compilation, got {site.kind}. Fix: use ScoreFunction(num_samples=2, "
                "baseline='leave_one_out'), or a distribution with enumerate_support (a "
                "total_count or bound must be one Python int, equal for all lanes)."
            )
        size = joint_size(site)
        if size > self.max_evaluations:
            lanes = math.prod(n for n, m in zip(site.lane_shape, site.mixed, strict=True) if m)
            count = f"{site.support.shape[0]}**{lanes}" + (f" = {size}" if size < 10**9 else "")
            raise SiteError(
                f"Site '{site.name}': a term depends on {lanes} of its lanes together, so "
                f"enumerating them takes {count} evaluations; "
                f"expected at most {self.max_evaluations}. Fix: use ScoreFunction(num_samples=2, "
                "baseline='leave_one_out'), keep the lanes apart in the objective, or raise "
                "Enumerate(max_evaluations=)."
            )

    def axis(self, site: SiteInfo) -> Axis | None:
        """An axis of its own with one entry per joint assignment of the mixed lanes."""
        return Axis(f"site:{site.name}", joint_size(site), drawless=True)

    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """Every joint assignment of the mixed lanes; the other lanes all take the same value."""
        joint = jnp.asarray(joint_support(site))
        full = (joint.shape[0], *site.lane_shape, *site.event_shape)
        return Expansion(jnp.broadcast_to(joint, full))

    def contract(self, term: Term) -> jax.Array:
        """The sum over the axis, weighted by probability."""
        assert term.site.support is not None
        total = sum_over(jnp.exp(term.log_prob) * term.value, 0)
        # a term that mixes fewer lanes than were enumerated jointly meets each assignment often
        repeats = joint_size(term.site) // term.site.support.shape[0] ** term.lanes
        return total if repeats == 1 else total / repeats


def lane_numbers(site: SiteInfo, dtype: Any) -> np.ndarray | None:
    """The values of one lane, if they are numbers that all lanes take side by side."""
    if site.support is None or site.event_shape or any(site.mixed):
        return None
    return site.support.astype(dtype)


ALL_VALUES = Enumerate()  # what is summed out in full has no gradient to estimate


def joint_size(site: SiteInfo) -> int:
    """The number of joint assignments of the mixed lanes."""
    assert site.support is not None
    lanes = math.prod(n for n, m in zip(site.lane_shape, site.mixed, strict=True) if m)
    return site.support.shape[0] ** lanes


def joint_support(site: SiteInfo) -> np.ndarray:
    """All joint assignments, shape ``(size, *lane_shape, *event_shape)`` with lanes apart as 1."""
    assert site.support is not None
    values = site.support.shape[0]
    shape = tuple(n if m else 1 for n, m in zip(site.lane_shape, site.mixed, strict=True))
    lanes = math.prod(shape)
    index = np.arange(values**lanes)[:, None] // values ** np.arange(lanes) % values
    return site.support[index].reshape((-1, *shape, *site.event_shape))
