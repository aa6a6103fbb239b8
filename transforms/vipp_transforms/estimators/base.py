"""The contract of a gradient estimator: two pure functions and one law.

``expand`` says at which values the rest of the program is evaluated instead of at one draw;
``contract`` combines a term's values at those points. The law: *for every term, ``contract`` of the
term at ``expand``'s values is an unbiased estimate of the term's expectation over the site given
everything drawn before it, in value and in every derivative.* By the tower property any mix of
estimators in one program is then unbiased.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

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
    """

    name: str
    kind: str
    support: np.ndarray | None
    lane_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    mixed: tuple[bool, ...]


class Source(Protocol):
    """Where an estimator gets its randomness and the distribution from."""

    def draw(self) -> jax.Array:
        """One independent draw per lane, ``(*lanes, *event)``, without gradient."""
        ...

    def uniform(self) -> jax.Array:
        """One independent uniform number in (0, 1) per lane, ``(*lanes,)``."""
        ...

    def map(self, fn: Callable[..., Any], *arrays: jax.Array) -> Any:
        """``fn(key, distribution, *arrays)`` under every enclosing ``vmap``.

        ``arrays`` and the results have all lanes in front; inside ``fn`` only the distribution's
        own batch axes are left. The key is independent of :meth:`draw`'s and :meth:`uniform`'s.
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
    """

    value: jax.Array
    potentials: tuple[jax.Array, ...]
    lanes: int
    lot: Lot

    @property
    def log_prob(self) -> jax.Array:
        """The log probability of what one entry saw, for an expansion without own potentials."""
        (log_prob,) = self.potentials
        return log_prob


@runtime_checkable
class Estimator(Protocol):
    """How the gradient with respect to the parameters of one random choice is estimated.

    Attributes:
      biased: whether the law holds only in a limit.
      draws: whether ``expand`` depends on a draw, hence on the distribution's parameters; if not,
        its values carry no axis but the estimator's own.
      relaxed: whether its values are real numbers though the distribution is discrete.
      orders: how many derivatives are unbiased; None for all.
    """

    biased: ClassVar[bool]
    draws: ClassVar[bool]
    relaxed: ClassVar[bool]
    orders: ClassVar[int | None]

    def validate(self, lot: Lot) -> None:
        """Raise :class:`vipp_transforms.SiteError` where the site doesn't fit."""
        ...

    def axis(self, lot: Lot) -> Axis | None:
        """The axis along which the site's values are expanded, None for a single draw."""
        ...

    def expand(self, lot: Lot, source: Source) -> Expansion:
        """The site's values."""
        ...

    def contract(self, term: Term) -> jax.Array:
        """Estimate the term's expectation without bias; a shared axis stays, an own one goes."""
        ...
