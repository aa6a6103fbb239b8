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

from vipp_transforms.settings import Part


class Traits(NamedTuple):
    """What is known of an estimator before it meets a site.

    Attributes:
      biased: whether the law holds only in a limit.
      relaxed: whether its values are real numbers though the distribution is discrete.
      orders: how many derivatives are unbiased; None for all.
      causal: whether its draws can be made step by step in a loop, each credited with what comes
        after it: plain draws, the log density their only potential.
      pathwise: whether it needs a distribution with a differentiable sampler.
      direct: whether a draw is ordinary JAX, so that the engine never sees it.
      exhaustive: whether it sums over all values, so that choices may be summed out in any order.
      sloped: whether it has a use for the derivative of the program in the value drawn, though that
        is discrete (:attr:`Expansion.slope`).
      fitted: whether, after its own potential, it has for each of some functions of the draw what
        that is off its mean, zero with the derivative of its mean, and its variance.
      first: whether the program is differentiated at the first draw along its axis alone.
      polynomial: whether it asks of which degree the terms are, :attr:`SiteInfo.degree`.
      linear: whether its estimate of a term is the value at the first entry of its axis plus, of
        each entry, the value times the one potential, which is zero and has a derivative.
    """

    biased: bool = False
    relaxed: bool = False
    orders: int | None = None
    causal: bool = False
    pathwise: bool = False
    direct: bool = False
    exhaustive: bool = False
    sloped: bool = False
    fitted: bool = False
    first: bool = False
    polynomial: bool = False
    linear: bool = False


class Degree(NamedTuple):
    """Of terms, as polynomials in the values of a choice.

    Attributes:
      number: 0, 1 or 2; None if they are not known to be such.
      why: what they are instead, for an error.
    """

    number: int | None
    why: str = ""


class Axis(NamedTuple):
    """The extra axis that a site's values are evaluated along.

    Attributes:
      name: axes of equal name are one axis.
      size: the number of values.
      shared: several sites draw along it, index by index, so that index ``i`` is one joint
        trajectory of all of them; the engine then averages over it once the last is eliminated.
      drawless: the values depend on no draw, hence not on the distribution's parameters; they carry
        no axis but this one, and ``expand`` is given no source.
      tangent: the estimate adds the derivative of itself along :attr:`Source.step`.
      unit: the values are unit vectors: the k-th is one at the k-th of the lanes that some term
        mixes, zero at the others of these, and the same along all other lanes. Potentials are
        given for each lane, ``(*lanes,)``: the k-th value has those of the k-th.
    """

    name: str
    size: int
    shared: bool = False
    drawless: bool = False
    tangent: bool = False
    unit: bool = False


class SiteInfo(NamedTuple):
    """What an estimator may know of a site before it chooses values.

    Attributes:
      name: of the site.
      kind: of the distribution, as the user wrote it.
      support: the values of one lane, ``(size, *event_shape)``, or None if not a finite list.
      lane_shape: the sizes of the independent lanes.
      event_shape: of one draw.
      mixed: per lane axis, whether some term or later density depends on several of its lanes at
        once, so that they can't be treated one by one.
      grouped: the same of the term that mixes the fewest, but several, lanes; empty
        where that is not known.
      num_weak_derivatives: how many parameters have a weak derivative, or None.
      has_quantile: whether the distribution's quantiles are known.
      degree: of the terms that depend on it, of a finite choice on several of its lanes at once;
        None where nobody asked.
    """

    name: str
    kind: str
    support: np.ndarray | None
    lane_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    mixed: tuple[bool, ...]
    num_weak_derivatives: int | None = None
    has_quantile: bool = False
    degree: Degree | None = None
    grouped: tuple[bool, ...] = ()


class Local(NamedTuple):
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
      index: which of the samples along a shared axis this one is.
      step: zero, along which an estimate whose axis is a ``tangent`` is differentiated.
    """

    index: Any
    step: Any

    def draw(self) -> jax.Array:
        """One independent draw per lane, ``(*lanes, *event)``, without gradient."""
        ...

    def uniform(self) -> jax.Array:
        """Uniform numbers in (0, 1), ``(*lanes, *event)``, independent between lanes."""
        ...

    def common(self, make: Callable[[Any, tuple[int, ...]], jax.Array]) -> jax.Array:
        """``make(key, event)`` at every lane, ``(n, *lanes, *event)``: equal for all samples.

        The key is common to the samples along a shared axis: sample ``index`` takes its own entry
        of the ``n``, which may so depend on each other. They are made once for all samples.
        """
        ...

    def total(self, x: jax.Array) -> jax.Array:
        """The sum of ``x`` over the samples along a shared axis."""
        ...

    def map(self, fn: Callable[..., Any], *arrays: jax.Array) -> Any:
        """``fn(local, *arrays)`` under every enclosing ``vmap``; it is given a :class:`Local`.

        ``arrays`` and the results have all lanes in front; inside ``fn`` only the distribution's
        own batch axes are left.
        """
        ...


class Expansion(NamedTuple):
    """The values at which the program is evaluated, and what ``contract`` needs to know of them.

    Attributes:
      value: a draw ``(*lanes, *event)`` or, along an own axis, ``(size, *lanes, *event)``; the
        program is given it in the dtype of its draws.
      potentials: a pytree of arrays with one entry per lane, ``(*lanes,)`` or ``(size, *lanes)``,
        through which the parameters enter; a term is given their sums over the lanes that it mixes.
        None for the log density of the values.
      log_weight: of values that were chosen rather than drawn, the log probability of each lane's,
        shaped like a potential (0 for a lane that was drawn): where what one entry of a term sees
        has probability 0, it counts nothing even if it is not finite. None where all were drawn; an
        axis that is drawless has the log density.
      slope: zero, shaped like the value, and added to it wherever the program makes a float of it:
        the program's derivative in the value is multiplied by the derivative of this. None for an
        estimator that is not sloped.
    """

    value: jax.Array
    potentials: Any = None
    log_weight: jax.Array | None = None
    slope: jax.Array | None = None


class Term(NamedTuple):
    """One term of the program's value, to be contracted over one site.

    Attributes:
      value: ``(size, *axes)`` along the estimator's axis; ``axes`` alone if it has none.
      potentials: those of the expansion, summed over the lanes that the term mixes and
        broadcastable to ``value``: of everything that one entry of the term saw.
      lanes: the number of lanes that one entry saw.
      site: of which it is a term.
      mixed: per lane axis of the site, whether one entry saw all its lanes.
      finest: whether, of all terms of the site, this one keeps the most lanes apart: what an
        estimator adds once per site, such as a baseline, it adds here.
    """

    value: jax.Array
    potentials: Any
    lanes: int
    site: SiteInfo
    mixed: tuple[bool, ...] = ()
    finest: bool = True

    @property
    def log_prob(self) -> jax.Array:
        """The log probability of what one entry saw, for an expansion without own potentials."""
        (log_prob,) = self.potentials
        return log_prob


class Probe(Protocol):
    """What an estimator that learns may look at after a step.

    Attributes:
      estimator: with its array parameters, as functions of the program's.
    """

    @property
    def estimator(self) -> Any: ...  # noqa: D102

    @property
    def costs(self) -> jax.Array | None:
        """What each lane contributed to the value, ``(*lanes,)``, or None if nothing did."""
        ...

    def gradient(self, estimator: Any) -> list[jax.Array]:
        """The estimate's gradient in the distribution's parameters, these alone, if so estimated.

        Args:
          estimator: this one, with array parameters of the same shapes.
        """
        ...

    def error(self, predict: Callable[[Local], Any]) -> jax.Array:
        """Half the squared error of ``predict(local)``, a value per lane, against ``costs``."""
        ...


class Seen(NamedTuple):
    """What an estimator that learns saw in one step.

    Attributes:
      news: arrays for :attr:`Learning.update`, or None.
      loss: what its array parameters are to make small, or None; it moves nothing else.
    """

    news: Any = None
    loss: jax.Array | None = None


class Learning(NamedTuple):
    """What an estimator keeps from step to step, in optax's shape: ``init`` and ``update``.

    Attributes:
      observe: from a :class:`Probe`, what was seen in a step.
      init: ``(key, site) -> kept``, a pytree of arrays; None if there is nothing (more) to keep.
      fill: ``kept -> estimator``: the one that works with it.
      update: ``(news, kept) -> kept`` for the next step; None where ``kept`` are parameters, to be
        trained on the loss together with all others.
    """

    observe: Callable[[Probe], Seen] = lambda probe: Seen()
    init: Callable[[Any, SiteInfo], Any] | None = None
    fill: Callable[[Any], Any] | None = None
    update: Callable[[Any, Any], Any] | None = None


class Estimator(Part, abc.ABC):
    """How the gradient with respect to the parameters of one random choice is estimated.

    A subclass is final and made by :func:`estimator`.

    Attributes:
      traits: what is known of it before it meets a site.
    """

    traits: ClassVar[Traits] = Traits()

    @property
    def learning(self) -> Learning | None:
        """What it learns from step to step, or None."""
        return None

    def validate(self, site: SiteInfo) -> None:
        """Raise :class:`vipp_transforms.SiteError` where the site doesn't fit."""

    def sums_single(self, site: SiteInfo) -> bool:
        """Whether terms of single lanes are apart from those of several, and all lanes at once.

        A finite choice's are summed over a lane's values. Of others this estimator is given them,
        and told that no term mixes lanes.
        """
        return False

    @abc.abstractmethod
    def axis(self, site: SiteInfo) -> Axis | None:
        """The axis along which the site's values are expanded, None for a single draw."""

    @abc.abstractmethod
    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """The site's values."""

    @abc.abstractmethod
    def contract(self, term: Term) -> jax.Array:
        """Estimate the term's expectation without bias; a shared axis stays, an own one goes."""


class Policy(abc.ABC):
    """Chooses the estimator of a site, once the whole program is known.

    Attributes:
      traits: true of whatever it may choose for a site.
    """

    traits: ClassVar[Traits] = Traits()

    @abc.abstractmethod
    def choose(self, site: SiteInfo, looped: bool) -> tuple[Estimator, str]:
        """An estimator for a site, and why; ``looped`` says whether it is one for each step."""


T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
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
