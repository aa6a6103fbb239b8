"""Exact enumeration of a finite random choice."""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms.errors import SiteError
from vipp_transforms.estimators.base import (
    Axis,
    Estimator,
    Expansion,
    Lot,
    Source,
    Term,
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
      >>> import vipp_transforms as vt
      >>> vt.Enumerate()
      Enumerate(max_evaluations=65536)

    References:
      Obermeyer et al., *Tensor variable elimination for plated factor graphs*, 2019.
    """

    max_evaluations: int = 65536
    draws: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.max_evaluations, int) or self.max_evaluations < 1:
            raise ValueError(
                f"Enumerate: max_evaluations must be a positive int, got {self.max_evaluations!r}."
            )

    def validate(self, lot: Lot) -> None:
        """A finite support whose joint size over mixed lanes stays within ``max_evaluations``."""
        if lot.support is None:
            raise SiteError(
                f"Site '{lot.name}': Enumerate needs a finite support that is known before "
                f"compilation, got {lot.kind}. Fix: use ScoreFunction(num_samples=2, "
                "baseline='leave_one_out'), or a distribution with enumerate_support (a "
                "total_count or bound must be one Python int, equal for all lanes)."
            )
        size = joint_size(lot)
        if size > self.max_evaluations:
            lanes = math.prod(n for n, m in zip(lot.lane_shape, lot.mixed, strict=True) if m)
            count = f"{lot.support.shape[0]}**{lanes}" + (f" = {size}" if size < 10**9 else "")
            raise SiteError(
                f"Site '{lot.name}': a term depends on {lanes} of its lanes together, so "
                f"enumerating them takes {count} evaluations; "
                f"expected at most {self.max_evaluations}. Fix: use ScoreFunction(num_samples=2, "
                "baseline='leave_one_out'), keep the lanes apart in the objective, or raise "
                "Enumerate(max_evaluations=)."
            )

    def axis(self, lot: Lot) -> Axis | None:
        """An axis of its own with one entry per joint assignment of the mixed lanes."""
        return Axis(f"site:{lot.name}", joint_size(lot))

    def expand(self, lot: Lot, source: Source) -> Expansion:
        """Every joint assignment of the mixed lanes; the other lanes all take the same value."""
        joint = jnp.asarray(joint_support(lot))
        full = (joint.shape[0], *lot.lane_shape, *lot.event_shape)
        return Expansion(jnp.broadcast_to(joint, full))

    def contract(self, term: Term) -> jax.Array:
        """The sum over the axis, weighted by probability; impossible values count for nothing."""
        assert term.lot.support is not None
        weight = jnp.exp(term.log_prob)
        impossible = (weight == 0) & ~jnp.isfinite(term.value)
        total = (weight * jnp.where(impossible, 0.0, term.value)).sum(0)
        # a term that mixes fewer lanes than were enumerated jointly meets each assignment often
        repeats = joint_size(term.lot) // term.lot.support.shape[0] ** term.lanes
        return total if repeats == 1 else total / repeats


def joint_size(lot: Lot) -> int:
    """The number of joint assignments of the mixed lanes."""
    assert lot.support is not None
    lanes = math.prod(n for n, m in zip(lot.lane_shape, lot.mixed, strict=True) if m)
    return lot.support.shape[0] ** lanes


def joint_support(lot: Lot) -> np.ndarray:
    """All joint assignments, shape ``(size, *lane_shape, *event_shape)`` with lanes apart as 1."""
    assert lot.support is not None
    values = lot.support.shape[0]
    shape = tuple(n if m else 1 for n, m in zip(lot.lane_shape, lot.mixed, strict=True))
    lanes = math.prod(shape)
    index = np.arange(values**lanes)[:, None] // values ** np.arange(lanes) % values
    return lot.support[index].reshape((-1, *shape, *lot.event_shape))
