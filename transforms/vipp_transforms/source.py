"""Where an estimator gets its randomness and the distribution from, under every ``vmap``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from vipp_transforms.estimators.base import Local
from vipp_transforms.sites import Lanes, Template, draw, over_lanes

# what a site's key is folded with besides for its draws: no number of a sample, as the keys that
# JAX splits a key into are those that it is folded into with their numbers
OWN, UNIFORM, COMMON, AT_MEANS = (0x73_6F_75_00 + n for n in range(4))


class LaneSource:
    """The :class:`~vipp_transforms.estimators.base.Source` of one site.

    Args:
      template: the site's.
      lanes: the enclosing ``vmap`` axes.
      key: of this sample, an array of keys with one for each of ``lanes``.
      leaves: of the distribution, then of the estimator.
      drawn: the draw (and the uniform numbers), for a test that forces them; None to make one.
      common: the key of all samples; None if it is this one's.
      index: which of them this one is.
      step: zero, along which the estimate may be differentiated.
      axis: the name of the ``vmap`` over samples, if that is shared.
    """

    def __init__(
        self,
        template: Template,
        lanes: tuple[Lanes, ...],
        key: Any,
        leaves: Any,
        drawn: jax.Array | None = None,
        common: Any = None,
        index: Any = 0,
        step: Any = 0.0,
        axis: str | None = None,
    ):
        self._template, self._lanes = template, lanes
        self._key, self._leaves, self._drawn = key, leaves, drawn
        self._forced = drawn
        self._common = key if common is None else common
        self.index, self.step, self._axis = index, step, axis

    def draw(self) -> jax.Array:
        """One independent draw per lane."""
        if self._drawn is None:
            self._drawn = draw(self._template, self._lanes, self._key, self._leaves)
        return self._drawn

    def uniform(self) -> jax.Array:
        """Uniform numbers, independent between lanes."""
        if self._forced is not None:
            return self._forced
        shape = (*self._template.batch_shape, *self._template.event_shape)
        return self._map(lambda here: jax.random.uniform(here.key, shape), UNIFORM)

    def common(self, make: Callable[[Any, tuple[int, ...]], jax.Array]) -> jax.Array:
        """``make(key, event)`` at every lane, the samples' axis in front."""
        shape = (*self._template.batch_shape, *self._template.event_shape)

        def one(key: Any) -> jax.Array:
            return make(jax.random.fold_in(key, COMMON), shape)

        # nothing here varies with the sample: vmap over the samples leaves it outside
        for _ in self._lanes:
            one = jax.vmap(one, out_axes=1)
        return one(self._common)

    def total(self, x: jax.Array) -> jax.Array:
        """The sum over the samples along the shared axis."""
        return x if self._axis is None else jax.lax.psum(x, self._axis)

    def map(self, fn: Callable[..., Any], *arrays: jax.Array, salt: int = OWN) -> Any:
        """``fn(here, *arrays)`` under every enclosing ``vmap``, with the key for ``salt``."""
        return self._map(fn, salt, *arrays)

    def _map(self, fn: Callable[..., Any], salt: int, *arrays: jax.Array) -> Any:
        count = len(arrays)

        def one(key: Any, *rest: Any) -> Any:
            parts = self._template.parts(rest[count:])
            return fn(Local(jax.random.fold_in(key, salt), *parts), *rest[:count])

        mapped = over_lanes(one, self._lanes, True, *(True for _ in arrays))
        return mapped(self._key, *arrays, *self._leaves)
