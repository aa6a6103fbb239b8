"""A weighted combination of two estimators of the same choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from vipp_transforms.errors import SiteError
from vipp_transforms.estimators import _running
from vipp_transforms.estimators._baseline import require_decay
from vipp_transforms.estimators._linear import per_lane
from vipp_transforms.estimators.base import (
    Axis,
    Estimator,
    Expansion,
    Learning,
    Local,
    Probe,
    Seen,
    SiteInfo,
    Source,
    Term,
    Traits,
    estimator,
)
from vipp_transforms.settings import NUMBER


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
      best: :math:`w^*`; None where vipp is to keep it.

    Raises:
      TypeError: if one of the two is not an estimator that takes several values.
      ValueError: if ``weight`` is not a number or ``"optimal"``, or ``decay`` not in [0, 1).

    Example:
      >>> import vipp
      >>> vipp.Mix(vipp.DisARM(), vipp.ScoreFunction(2, "leave_one_out"), weight=0.5).weight
      0.5

    References:
      Owen, *Monte Carlo theory, methods and examples*, 2013, section 8.9. Geffner and Domke, *Using
      large ensembles of control variates for variational inference*, 2018.
    """

    first: Any
    second: Any
    weight: float | Literal["optimal"] | Any = dataclasses.field(default="optimal", metadata=NUMBER)
    decay: float = 0.99
    best: Any = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        for part in (self.first, self.second):
            stateless = isinstance(part, Estimator) and part.learning is None
            if not stateless or part.traits.sloped:
                raise TypeError(
                    "Mix: expected two estimators without state, neither of which takes the "
                    f"program's slopes, got {part!r}. Fix: mix for instance DisARM() and "
                    "ScoreFunction()."
                )
            if part.traits.polynomial:
                raise TypeError(
                    f"Mix: expected two estimators with variance, got {part!r}, which has none. "
                    f"Fix: use {part!r} alone."
                )
        if isinstance(self.weight, str | bool) and self.weight != "optimal":
            raise ValueError(f"Mix: weight must be a number or 'optimal', got {self.weight!r}.")
        require_decay("Mix", self.decay)

    @property
    def traits(self) -> Traits:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Biased or relaxed if one of the two is; as many orders as both have."""
        parts = (self.first.traits, self.second.traits)
        return Traits(
            biased=any(part.biased for part in parts),
            relaxed=any(part.relaxed for part in parts),
            orders=min((part.orders for part in parts if part.orders is not None), default=None),
            pathwise=any(part.pathwise for part in parts),
        )

    @property
    def learning(self) -> Learning | None:
        """The moments that the best weight follows from."""
        if not isinstance(self.weight, str):
            return None

        def fill(kept: Any) -> Mix:
            return dataclasses.replace(
                self, best=_running.ratio(kept["sum"][0], kept["sum"][1], 0.5)
            )

        def observe(probe: Probe) -> Seen:
            return Seen(_running.news(_moments(probe), probe.estimator.decay))

        init = None if self.best is not None else lambda key, site: _running.start(2)
        return Learning(observe, init, fill, _running.update)

    def validate(self, site: SiteInfo) -> None:
        """The site fits both, and the weight has become a number."""
        self.first.validate(site)
        self.second.validate(site)
        if isinstance(self.weight, str) and self.best is None:
            raise SiteError(
                f"Site '{site.name}': Mix(weight='optimal') has state that the program does not "
                "know of. Fix: set the estimator with vipp.sample(..., estimator=) or "
                "vipp.with_estimators, not through infer={'estimator': ...}."
            )

    def axis(self, site: SiteInfo) -> Axis | None:
        """The values of both."""
        axes = [part.axis(site) for part in (self.first, self.second)]
        size = sum(1 if axis is None else axis.size for axis in axes)
        return Axis(
            f"site:{site.name}", size, tangent=any(a is not None and a.tangent for a in axes)
        )

    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """The values of both, one after the other, and the weight."""
        weight = per_lane(source, lambda here: _weight_of(here.estimator))
        first = _expand(self.first, site, source, lambda mix: mix.first)
        second = _expand(self.second, site, source, lambda mix: mix.second)
        value = jnp.concatenate([first.value, second.value])  # numbers, if one of the two relaxes
        potentials = (weight[None], first.potentials, second.potentials)
        padded = jax.tree.map(lambda p: _padded(p, len(value)), potentials)
        return Expansion(value, padded, _log_weight(first, second, weight.shape))

    def contract(self, term: Term) -> jax.Array:
        """The weighted mean of both contractions."""
        weight, *potentials = term.potentials
        size = _size(self.first, term.site)
        first = _contract(self.first, term, term.value[:size], potentials[0])
        second = _contract(self.second, term, term.value[size:], potentials[1])
        w = weight[0] / term.lanes
        return w * first + (1.0 - w) * second


def _weight_of(mix: Mix) -> Any:
    return mix.best if isinstance(mix.weight, str) else mix.weight


def _moments(probe: Probe) -> jax.Array:
    """``(<g_b - g_a, g_b>, |g_a - g_b|^2)``, whose means give the best weight."""
    mix = probe.estimator
    at = lambda w: probe.gradient(dataclasses.replace(mix, best=jnp.full_like(mix.best, w)))
    pairs = list(zip(at(1.0), at(0.0), strict=True))
    inner = sum(jnp.sum((b - a) * b) for a, b in pairs)
    square = sum(jnp.sum(jnp.square(a - b)) for a, b in pairs)
    return jnp.stack([jnp.asarray(inner), jnp.asarray(square)])


class _Part:
    """The source of one of the two: its own parameters, and a draw of its own per sample."""

    def __init__(self, source: Source, part: Callable[[Any], Any], sample: int):
        self.source, self.part, self.index, self.step = source, part, sample, source.step

    def draw(self) -> jax.Array:
        """The draw that both share, or a further one."""
        if self.index == 0:
            return self.source.draw()
        return jax.lax.stop_gradient(self.map(lambda here: here.distribution.sample(here.key)))

    def uniform(self) -> jax.Array:
        """Uniform numbers, those that both share."""
        return self.source.uniform()

    def common(self, make: Callable[[Any, tuple[int, ...]], jax.Array]) -> jax.Array:
        """Numbers for all samples of the part."""
        return self.source.common(make)

    def total(self, x: jax.Array) -> jax.Array:
        """The sum over the samples of both."""
        return self.source.total(x)

    def map(self, fn: Callable[..., Any], *arrays: jax.Array) -> Any:
        """``fn(here, *arrays)`` with the part's own parameters."""

        def one(here: Local, *rest: jax.Array) -> Any:
            key = jax.random.fold_in(here.key, self.index)
            return fn(Local(key, here.distribution, self.part(here.estimator)), *rest)

        return self.source.map(one, *arrays)


def _size(part: Estimator, site: SiteInfo) -> int:
    axis = part.axis(site)
    return 1 if axis is None else axis.size


def _expand(
    part: Estimator, site: SiteInfo, source: Source, own: Callable[[Any], Any]
) -> Expansion:
    """All values of a part along a leading axis, and its potentials."""
    axis = part.axis(site)
    log_prob = lambda here, x: here.distribution.log_prob(x)
    if axis is not None and not axis.shared:
        value, potentials, log_weight, _ = part.expand(site, _Part(source, own, 0))
        if potentials is None:
            potentials = (jnp.stack([source.map(log_prob, x) for x in value]),)
            log_weight = potentials[0] if axis.drawless else log_weight
        return Expansion(value, potentials, log_weight)
    samples = []
    for sample in range(_size(part, site)):
        each = _Part(source, own, sample)
        value, potentials, *_ = part.expand(site, each)
        if potentials is None:
            potentials = (each.map(log_prob, value),)
        samples.append(Expansion(value, potentials))
    return jax.tree.map(lambda *x: jnp.stack(x), *samples)


def _log_weight(first: Expansion, second: Expansion, lanes: tuple[int, ...]) -> Any:
    """Of the values of both; those that were drawn can occur."""
    weights = (first.log_weight, second.log_weight)
    if all(w is None for w in weights):
        return None
    sizes = (len(first.value), len(second.value))
    drawn = [
        jnp.zeros((n, *lanes)) if w is None else w for w, n in zip(weights, sizes, strict=True)
    ]
    return jnp.concatenate(drawn)


def _contract(part: Estimator, term: Term, value: Any, potentials: Any) -> jax.Array:
    axis = part.axis(term.site)
    own = jax.tree.map(lambda p: p[: len(value)], potentials)
    if axis is None:
        value, own = value[0], jax.tree.map(lambda p: p[0], own)
    result = part.contract(term._replace(value=value, potentials=own))
    return result.mean(0) if axis is not None and axis.shared else result


def _padded(potential: jax.Array, size: int) -> jax.Array:
    """The same length for all, so that they lie along one axis."""
    rest = [(0, 0)] * (potential.ndim - 1)
    return jnp.pad(potential, [(0, size - len(potential)), *rest])
