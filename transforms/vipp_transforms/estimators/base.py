"""The contract of a gradient estimator: two pure functions and one law.

``expand`` says at which values the rest of the program is evaluated instead of at one draw;
``contract`` combines a term's values at those points. The law: *for every term, ``contract`` of the
term at ``expand``'s values is an unbiased estimate of the term's expectation over the site given
everything drawn before it, in value and in every derivative.* By the tower property any mix of
estimators in one program is then unbiased.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, dataclass_transform

import jax
import numpy as np


class Axis(NamedTuple):
    """The extra axis that a site's values are evaluated along.

    Attributes:
      name: axes of equal name are one axis.
      size: the number of values.
      shared: several sites draw along it, index by index, so that index ``i`` is one joint
        trajectory of all of them; the engine then averages over it once the last is eliminated.
    """

    name: str
    size: int
    shared: bool = False


class Lot(NamedTuple):
    """What an estimator may know of a site before it chooses values.

    Attributes:
      name: of the site.
      kind: of the distribution, as the user wrote it.
      support: the values of one lane, ``(size, *event_shape)``, or None if not a finite list.
      lane_shape: the sizes of the independent lanes.
      event_shape: of one draw.
      mixed: per lane axis, whether some term or later density depends on several of its lanes at
        once, so that they can't be treated one by one.
      num_weak_derivatives: how many parameters have a weak derivative, or None.
      has_quantile: whether the distribution's quantiles are known.
    """

    name: str
    kind: str
    support: np.ndarray | None
    lane_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    mixed: tuple[bool, ...]
    num_weak_derivatives: int | None = None
    has_quantile: bool = False


class Here(NamedTuple):
    """What an estimator sees of a site inside every enclosing ``vmap``.

    Attributes:
      key: a PRNG key, independent of :meth:`Source.draw`'s and :meth:`Source.uniform`'s.
      distribution: a :class:`~vipp_transforms.distributions.Described`; only its own batch axes are
        left.
      estimator: with its array parameters.
    """

    key: Any
    distribution: Any
    estimator: Any


class Source(Protocol):
    """Where an estimator gets its randomness and the distribution from.

    Attributes:
      step: zero, along which an estimator with a ``tangent`` is differentiated.
    """

    step: Any

    def draw(self) -> jax.Array:
        """One independent draw per lane, ``(*lanes, *event)``, without gradient."""
        ...

    def uniform(self) -> jax.Array:
        """Uniform numbers in (0, 1), ``(*lanes, *event)``, independent between lanes.

        For an estimator that is ``coupled``, this sample's part of its :meth:`Estimator.noise`.
        """
        ...

    def map(self, fn: Callable[..., Any], *arrays: jax.Array) -> Any:
        """``fn(here, *arrays)`` under every enclosing ``vmap``; ``here`` is a :class:`Here`.

        ``arrays`` and the results have all lanes in front; inside ``fn`` only the distribution's
        own batch axes are left.
        """
        ...


class Expansion(NamedTuple):
    """The values at which the program is evaluated, and what ``contract`` needs to know of them.

    Attributes:
      value: a draw ``(*lanes, *event)`` or, along an own axis, ``(size, *lanes, *event)``.
      potentials: arrays with one entry per lane, ``(*lanes,)`` or ``(size, *lanes)``, through which
        the parameters enter; a term is given their sums over the lanes that it mixes. None for the
        log density of the values.
    """

    value: jax.Array
    potentials: tuple[jax.Array, ...] | None = None


class Term(NamedTuple):
    """One term of the program's value, to be contracted over one site.

    Attributes:
      value: ``(size, *axes)`` along the estimator's axis; ``axes`` alone if it has none.
      potentials: those of the expansion, summed over the lanes that the term mixes and
        broadcastable to ``value``: of everything that one entry of the term saw.
      lanes: the number of lanes that one entry saw.
      lot: the site.
      mixed: per lane axis of the site, whether one entry saw all its lanes.
      finest: whether, of all terms of the site, this one keeps the most lanes apart: what an
        estimator adds once per site, such as a baseline, it adds here.
    """

    value: jax.Array
    potentials: tuple[jax.Array, ...]
    lanes: int
    lot: Lot
    mixed: tuple[bool, ...] = ()
    finest: bool = True

    @property
    def log_prob(self) -> jax.Array:
        """The log probability of what one entry saw, for an expansion without own potentials."""
        (log_prob,) = self.potentials
        return log_prob


class Estimator(abc.ABC):
    """How the gradient with respect to the parameters of one random choice is estimated.

    A subclass is final and made by :func:`estimator`.

    Attributes:
      biased: whether the law holds only in a limit.
      draws: whether ``expand`` depends on a draw, hence on the distribution's parameters; if not,
        its values carry no axis but the estimator's own.
      relaxed: whether its values are real numbers though the distribution is discrete.
      causal: whether its draws can be made step by step in a loop, each credited with what comes
        after it: plain draws, the log density their only potential.
      orders: how many derivatives are unbiased; None for all.
    """

    biased: ClassVar[bool] = False
    causal: ClassVar[bool] | Any = False
    draws: ClassVar[bool] = True
    relaxed: ClassVar[bool] = False
    orders: ClassVar[int | None] = None

    @property
    def coupled(self) -> bool:
        """Whether the samples along its axis share the numbers that :meth:`noise` makes."""
        return False

    @property
    def num_potentials(self) -> int:
        """How many potentials an expansion has; one if it has none of its own."""
        return 1

    @property
    def tangent(self) -> bool:
        """Whether the estimate adds the derivative of itself along :attr:`Source.step`."""
        return False

    @property
    def learns(self) -> bool:
        """Whether its array parameters are trained: on the baseline's error, else on variance."""
        return False

    @property
    def adaptive(self) -> bool:
        """Whether it asks for the moments of the estimators that it mixes."""
        return False

    @property
    def baseline_of(self) -> Any:
        """A value for each lane that predicts what the lane contributes, or None."""
        return None

    def validate(self, lot: Lot) -> None:  # noqa: B027 (every site fits where nothing is said)
        """Raise :class:`vipp_transforms.SiteError` where the site doesn't fit."""

    @abc.abstractmethod
    def axis(self, lot: Lot) -> Axis | None:
        """The axis along which the site's values are expanded, None for a single draw."""

    def noise(self, key: Any, shape: tuple[int, ...]) -> jax.Array:
        """Uniform numbers ``(num_samples, *shape)`` for all samples of one lane together."""
        raise NotImplementedError(f"{type(self).__name__} is not coupled")

    @abc.abstractmethod
    def expand(self, lot: Lot, source: Source) -> Expansion:
        """The site's values."""

    @abc.abstractmethod
    def contract(self, term: Term) -> jax.Array:
        """Estimate the term's expectation without bias; a shared axis stays, an own one goes."""


def positive_int(what: str, value: Any) -> None:
    """Raise unless ``value`` is an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{what} must be an int, got {value!r}.")
    if value < 1:
        raise ValueError(f"{what} must be positive, got {value}.")


T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def estimator(cls: type[T]) -> type[T]:
    """A frozen dataclass that is a pytree of its fields, so that they may be traced arrays."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]

    def flatten(self: Any) -> tuple[list[Any], None]:
        return [getattr(self, name) for name in names], None

    def unflatten(_: None, values: Any) -> Any:
        self = object.__new__(cls)  # not validated again: the values may be tracers or shapes
        for name, value in zip(names, values, strict=True):
            object.__setattr__(self, name, value)
        return self

    jax.tree_util.register_pytree_node(cls, flatten, unflatten)
    return cls
