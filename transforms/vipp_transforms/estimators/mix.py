"""A weighted combination of two estimators of the same choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from vipp_transforms.errors import SiteError
from vipp_transforms.estimators._linear import per_lane
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
class Mix(Estimator):
    r"""A weighted mean of two estimators: unbiased if both are, and biased if one is.

    .. math::
        \hat f = w \hat f_a + (1 - w) \hat f_b, \qquad
        w^* = \frac{E \langle g_b - g_a, g_b \rangle}{E \lVert g_a - g_b \rVert^2}

    With ``weight="optimal"`` the weight minimises the expected squared gradient in the parameters
    of the choice, from running moments of the steps before (carried like those of
    :class:`MovingAverage`); that of two unbiased estimators is never worse than the better one.
    It costs the evaluations of both, and for the moments two more gradients.

    Args:
      first: an estimator, :math:`\hat f_a`.
      second: another, :math:`\hat f_b`.
      weight: :math:`w`, a number, or ``"optimal"``.
      decay: of the running moments, from 0 to below 1.

    Raises:
      TypeError: if one of the two is not an estimator that takes several values.
      ValueError: if ``weight`` is not a number or ``"optimal"``, or ``decay`` not in [0, 1).

    Example:
      >>> import vipp_transforms as vt
      >>> vt.Mix(vt.DisARM(), vt.ScoreFunction(2, "leave_one_out"), weight=0.5).weight
      0.5

    References:
      Owen, *Monte Carlo theory, methods and examples*, 2013, section 8.9. Geffner and Domke, *Using
      large ensembles of control variates for variational inference*, 2018.
    """

    first: Any
    second: Any
    weight: float | Literal["optimal"] | Any = "optimal"
    decay: float = 0.99
    learning: bool = False

    def __post_init__(self) -> None:
        for part in (self.first, self.second):
            if not isinstance(part, Estimator) or part.tangent or part.learns or part.coupled:
                raise TypeError(
                    "Mix: expected two estimators without state or shared noise, got "
                    f"{part!r}. Fix: mix for instance DisARM() and ScoreFunction()."
                )
        if isinstance(self.weight, str | bool) and self.weight != "optimal":
            raise ValueError(f"Mix: weight must be a number or 'optimal', got {self.weight!r}.")
        if isinstance(self.decay, bool) or not 0 <= float(self.decay) < 1:
            raise ValueError(f"Mix: decay must be in [0, 1), got {self.decay!r}.")

    @property
    def biased(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether one of the two is."""
        return self.first.biased or self.second.biased

    @property
    def relaxed(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether one of the two is."""
        return self.first.relaxed or self.second.relaxed

    @property
    def orders(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The smaller of the two."""
        limits = [n for n in (self.first.orders, self.second.orders) if n is not None]
        return min(limits, default=None)

    @property
    def num_potentials(self) -> int:
        """Those of both, and the weight."""
        return 1 + self.first.num_potentials + self.second.num_potentials

    @property
    def weight_index(self) -> int:
        """Where the weight is among the array parameters: behind those of the two."""
        return sum(
            isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves((self.first, self.second))
        )

    @property
    def adaptive(self) -> bool:
        """Whether the weight is to be adapted."""
        return bool(self.learning)

    def validate(self, lot: Lot) -> None:
        """The site fits both, and the weight has become a number."""
        self.first.validate(lot)
        self.second.validate(lot)
        if isinstance(self.weight, str):
            raise SiteError(
                f"Site '{lot.name}': Mix(weight='optimal') has state that the program does not "
                "know of. Fix: set the estimator with vipp.sample(..., estimator=) or "
                "vipp.with_estimators, not through infer={'estimator': ...}."
            )

    def axis(self, lot: Lot) -> Axis | None:
        """The values of both."""
        return Axis(f"site:{lot.name}", _size(self.first, lot) + _size(self.second, lot))

    def expand(self, lot: Lot, source: Source) -> Expansion:
        """The values of both, one after the other, and the weight."""
        weight = per_lane(source, lambda here: here.estimator.weight)
        values, potentials = [], [weight[None]]
        for name in ("first", "second"):
            part = getattr(self, name)
            value, own = _expand(part, lot, source, name)
            values.append(value.astype(jnp.result_type(float)) if self.relaxed else value)
            potentials += own
        value = jnp.concatenate(values)
        return Expansion(value, tuple(_padded(p, len(value)) for p in potentials))

    def contract(self, term: Term) -> jax.Array:
        """The weighted mean of both contractions."""
        size, (weight, *potentials) = _size(self.first, term.lot), term.potentials
        count = self.first.num_potentials
        first = _contract(self.first, term, term.value[:size], potentials[:count])
        second = _contract(self.second, term, term.value[size:], potentials[count:])
        w = weight[0] / term.lanes
        return w * first + (1.0 - w) * second


class _Part:
    """The source of one of the two: its own parameters, and a draw of its own per sample."""

    def __init__(self, source: Source, name: str, sample: int):
        self.source, self.name, self.sample, self.step = source, name, sample, source.step

    def draw(self) -> jax.Array:
        """The draw that both share, or a further one."""
        if self.sample == 0:
            return self.source.draw()
        return jax.lax.stop_gradient(self.map(lambda here: here.distribution.sample(here.key)))

    def uniform(self) -> jax.Array:
        """Uniform numbers, those that both share."""
        return self.source.uniform()

    def map(self, fn: Callable[..., Any], *arrays: jax.Array) -> Any:
        """``fn(here, *arrays)`` with the part's own parameters."""

        def one(here: Here, *rest: jax.Array) -> Any:
            key = jax.random.fold_in(here.key, self.sample)
            own = Here(key, here.distribution, getattr(here.estimator, self.name))
            return fn(own, *rest)

        return self.source.map(one, *arrays)


def _size(part: Estimator, lot: Lot) -> int:
    axis = part.axis(lot)
    return 1 if axis is None else axis.size


def _expand(
    part: Estimator, lot: Lot, source: Source, name: str
) -> tuple[jax.Array, list[jax.Array]]:
    """All values of a part along a leading axis, and its potentials."""
    axis = part.axis(lot)
    if axis is not None and not axis.shared:
        value, potentials = part.expand(lot, _Part(source, name, 0))
        if potentials is None:
            log_prob = lambda here, x: here.distribution.log_prob(x)
            each = [source.map(log_prob, x) for x in value]
            potentials = (jnp.stack(each),)
        return value, list(potentials)
    values, rows = [], []
    for sample in range(_size(part, lot)):
        own = _Part(source, name, sample)
        value, potentials = part.expand(lot, own)
        if potentials is None:
            potentials = (own.map(lambda here, x: here.distribution.log_prob(x), value),)
        values.append(value)
        rows.append(potentials)
    return jnp.stack(values), [jnp.stack(row) for row in zip(*rows, strict=True)]


def _contract(part: Estimator, term: Term, value: Any, potentials: list[Any]) -> jax.Array:
    axis, size = part.axis(term.lot), len(value)
    own = tuple(p[:size] for p in potentials)
    if axis is None:
        value, own = value[0], tuple(p[0] for p in own)
    result = part.contract(term._replace(value=value, potentials=own))
    return result.mean(0) if axis is not None and axis.shared else result


def _padded(potential: jax.Array, size: int) -> jax.Array:
    """The same length for all, so that they lie along one axis."""
    rest = [(0, 0)] * (potential.ndim - 1)
    return jnp.pad(potential, [(0, size - len(potential)), *rest])
