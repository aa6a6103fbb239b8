"""A random choice as a JAX primitive, so that program transformations can see it.

``sample`` draws from a distribution and records, in the staged program, which distribution it was,
how its gradient is to be estimated, and along which leading axes the draws are independent
(*lanes*: one per enclosing ``vmap``, then one per batch axis of the distribution).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms._jax import define_primitive, is_tracer, shaped_array
from vipp_transforms.errors import SiteError
from vipp_transforms.estimators.base import Estimator, Here, Lot
from vipp_transforms.estimators.pathwise import Pathwise
from vipp_transforms.skeleton import Skeleton, shapes


class Distribution(Protocol):
    """What the engine needs of a distribution: a pytree with these members.

    The batch axes are independent; ``log_prob`` has one entry per batch element.
    """

    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]

    def sample(self, key: Any) -> Any:
        """One draw, ``(*batch_shape, *event_shape)``."""
        ...

    def log_prob(self, value: Any) -> Any:
        """Log density, ``batch_shape``."""
        ...


class Template:
    """A random choice without its array leaves: of the distribution, and of the estimator."""

    def __init__(self, distribution: Any, name: str, estimator: Estimator):
        self.skeleton = Skeleton((distribution, estimator))
        self.num_parameters = len(Skeleton(distribution).leaves(distribution))
        self.name = name
        self.estimator = shapes(estimator)
        self.kind = _kind(distribution)
        self.batch_shape = tuple(distribution.batch_shape)
        self.event_shape = tuple(distribution.event_shape)
        self.support = finite_support(distribution)

    def lot(self) -> Lot:
        """The site on its own, as far as it is known before the program is."""
        apart = (False,) * len(self.batch_shape)
        return Lot(self.name, self.kind, self.support, self.batch_shape, self.event_shape, apart)

    def build(self, leaves: Any) -> Any:
        """The distribution with these array leaves (and the estimator's behind them)."""
        return self.skeleton.build(leaves)[0]


class Lanes(NamedTuple):
    """One ``vmap`` around a site: which of its leaves vary along it."""

    size: int
    varies: tuple[bool, ...]


def _kind(distribution: Any) -> str:
    """The name of the distribution that a user wrote, behind expansion and the like."""
    while hasattr(distribution, "base_dist") and type(distribution).__name__ in (
        "ExpandedDistribution",
        "Independent",
        "MaskedDistribution",
    ):
        distribution = distribution.base_dist
    return type(distribution).__name__.lstrip("_")


def _refuse_mask(distribution: Any, name: str) -> None:
    """A mask leaves lanes out of the log density that are drawn all the same."""
    while hasattr(distribution, "base_dist"):
        if type(distribution).__name__ == "MaskedDistribution":
            raise SiteError(
                f"Site '{name}' is drawn from a masked distribution, expected one whose log "
                "density has every draw. Fix: draw from the distribution without its mask, and "
                "mask the terms."
            )
        distribution = distribution.base_dist


def finite_support(distribution: Any) -> np.ndarray | None:
    """All values of one lane, ``(size, *event_shape)``, or None if there is no finite list."""
    if not getattr(distribution, "has_enumerate_support", False):
        return None
    try:
        with jax.ensure_compile_time_eval():
            values = np.asarray(distribution.enumerate_support(expand=False))
    except (NotImplementedError, ValueError, TypeError, jax.errors.JAXTypeError):
        return None  # the support depends on a traced or a per-lane parameter
    return values.reshape((values.shape[0], *distribution.event_shape))


def over_lanes(
    fn: Callable[..., Any], lanes: tuple[Lanes, ...], *extra: bool
) -> Callable[..., Any]:
    """Map ``fn(*extra, *leaves)`` over a site's ``vmap`` lanes, outermost first."""
    for lane in reversed(lanes):
        axes = tuple(0 if varies else None for varies in (*extra, *lane.varies))
        fn = jax.vmap(fn, in_axes=axes, axis_size=lane.size)
    return fn


def draw(template: Template, lanes: tuple[Lanes, ...], key: Any, leaves: Any) -> jax.Array:
    """One independent draw per lane, shape ``(*lanes, *batch_shape, *event_shape)``."""
    one = over_lanes(lambda k, *xs: template.build(xs).sample(k), lanes, True)
    return jax.lax.stop_gradient(one(key, *leaves))


def lane_log_prob(
    template: Template, lanes: tuple[Lanes, ...], value: Any, leaves: Any
) -> jax.Array:
    """The log density of each lane's draw, shape ``(*lanes, *batch_shape)``."""
    one = over_lanes(lambda v, *xs: template.build(xs).log_prob(v), lanes, True)
    return one(value, *leaves)


class LaneSource:
    """The :class:`~vipp_transforms.estimators.base.Source` of one site."""

    def __init__(
        self,
        template: Template,
        lanes: tuple[Lanes, ...],
        key: Any,
        leaves: Any,
        drawn: jax.Array | None = None,
        noise: jax.Array | None = None,
        step: Any = 0.0,
    ):
        self._template, self._lanes = template, lanes
        self._key, self._leaves, self._drawn = key, leaves, drawn
        self._noise = drawn if noise is None else noise  # a test that forces draws forces it, too
        self.step = step

    def draw(self) -> jax.Array:
        """One independent draw per lane."""
        if self._drawn is None:
            self._drawn = draw(self._template, self._lanes, self._key, self._leaves)
        return self._drawn

    def uniform(self) -> jax.Array:
        """Uniform numbers, independent between lanes."""
        if self._noise is not None:
            return self._noise
        shape = (*self._template.batch_shape, *self._template.event_shape)
        return self._map(lambda here: jax.random.uniform(here.key, shape), 2)

    def map(self, fn: Callable[..., Any], *arrays: jax.Array) -> Any:
        """``fn(here, *arrays)`` under every enclosing ``vmap``."""
        return self._map(fn, 1, *arrays)

    def _map(self, fn: Callable[..., Any], salt: int, *arrays: jax.Array) -> Any:
        count = len(arrays)

        def one(key: Any, *rest: Any) -> Any:
            parts = self._template.skeleton.build(rest[count:])
            return fn(Here(jax.random.fold_in(key, salt), *parts), *rest[:count])

        mapped = over_lanes(one, self._lanes, True, *(True for _ in arrays))
        return mapped(self._key, *arrays, *self._leaves)


def coupled_noise(template: Template, lanes: tuple[Lanes, ...], key: Any) -> jax.Array:
    """What a coupled estimator's samples share: ``(num_samples, *lanes, *batch, *event)``."""
    shape = (*template.batch_shape, *template.event_shape)

    def one(k: Any) -> jax.Array:
        return template.estimator.noise(jax.random.fold_in(k, 3), shape)

    for _ in lanes:  # the samples' axis stays in front
        one = jax.vmap(one, out_axes=1)
    return one(key)


def split_keys(key: Any, num: int) -> Any:
    """``num`` keys for each key in an array of keys, along a new leading axis."""

    def split(k: Any) -> Any:
        return jax.random.split(k, num)

    for _ in range(key.ndim):
        split = jax.vmap(split, out_axes=1)
    return split(key)


def _sample_impl(key: Any, *leaves: Any, template: Template, lanes: tuple[Lanes, ...]) -> Any:
    value = draw(template, lanes, key, leaves)
    return value.astype(jnp.result_type(float)) if template.estimator.relaxed else value


def _sample_abstract(key: Any, *leaves: Any, template: Template, lanes: tuple[Lanes, ...]) -> Any:
    def one(k: Any, *xs: Any) -> Any:
        return draw(template, lanes, k, xs)

    shaped = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (key, *leaves)]
    out = jax.eval_shape(one, *shaped)
    dtype = jnp.result_type(float) if template.estimator.relaxed else out.dtype
    return shaped_array(out.shape, dtype)


def _to_front(operand: Any, dim: Any) -> Any:
    return operand if dim is None else jnp.moveaxis(operand, dim, 0)


def _sample_batch(
    operands: Any, dims: Any, *, template: Template, lanes: tuple[Lanes, ...]
) -> tuple[Any, int]:
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    key, *leaves = (_to_front(x, d) for x, d in zip(operands, dims, strict=True))
    if dims[0] is None:  # lanes are independent whatever the key was
        key = split_keys(key, size)
    lane = Lanes(size, tuple(d is not None for d in dims[1:]))
    return sample_p.bind(key, *leaves, template=template, lanes=(lane, *lanes)), 0


def _sample_jvp(primals: Any, tangents: Any, *, template: Template, lanes: Any) -> Any:
    raise SiteError(
        f"Site '{template.name}' is differentiated inside the program that draws it. "
        "Expected jax.grad around the whole estimate. Fix: differentiate vipp.expectation(fn), "
        "or give the inner function's draws estimator=vipp.Pathwise()."
    )


sample_p = define_primitive(
    "vipp_sample", _sample_impl, _sample_abstract, _sample_batch, _sample_jvp
)


class _Mode(threading.local):
    lifting = False


_MODE = _Mode()


@contextlib.contextmanager
def lifting() -> Iterator[None]:
    """While a program is mapped over expanded values, which are no lanes and share their noise."""
    before, _MODE.lifting = _MODE.lifting, True
    try:
        yield
    finally:
        _MODE.lifting = before


def _key_batch(operands: Any, dims: Any) -> tuple[Any, Any]:
    if _MODE.lifting:
        return operands[0], dims[0]
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    key, *leaves = (_to_front(x, d) for x, d in zip(operands, dims, strict=True))
    key = key if dims[0] is not None else split_keys(key, size)
    # bound again: a vmap further out may map the leaves alone
    return lane_key_p.bind(key, *leaves), 0


lane_key_p = define_primitive(
    "vipp_lane_key",
    lambda key, *_: key,
    lambda key, *_: key,
    _key_batch,
)


def lane_key(key: Any, distribution: Any) -> Any:
    """``key``, made independent per lane where ``vmap`` maps the distribution's parameters.

    Without it a reparameterised draw under ``vmap`` would share its noise between lanes while a
    draw with any other estimator would not: changing the estimator must not change the program.
    """
    leaves = jax.tree_util.tree_leaves(distribution)
    traced = [jax.lax.stop_gradient(x) for x in leaves if is_tracer(x)]
    return lane_key_p.bind(_typed(key), *traced) if traced else key


def _typed(key: Any) -> Any:
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.wrap_key_data(key)


def sample(key: Any, distribution: Any, estimator: Estimator, *, name: str) -> jax.Array:
    """Draw a value whose gradient :func:`vipp_transforms.surrogate` estimates.

    Args:
      key: a PRNG key.
      distribution: see :class:`Distribution`; its batch axes are independent lanes.
      estimator: how the gradient with respect to the distribution's parameters is estimated.
      name: what errors and tables call this choice.

    Returns:
      A draw, shape ``(*batch_shape, *event_shape)``.

    Raises:
      SiteError: for a pathwise choice without a differentiable sampler, or a masked distribution.
    """
    if isinstance(estimator, Pathwise):
        declared = getattr(distribution, "has_rsample", hasattr(distribution, "rsample"))
        # some continuous distributions don't declare what their samplers can do
        if not declared and getattr(distribution, "is_discrete", True):
            raise SiteError(
                f"Site '{name}': Pathwise needs a distribution with a differentiable sampler, got "
                f"{_kind(distribution)}. Fix: use Enumerate() for a small finite support, or "
                "ScoreFunction(num_samples=2, baseline='leave_one_out')."
            )
        if estimator.plain:
            return distribution.sample(lane_key(key, distribution))
    _refuse_mask(distribution, name)
    template = Template(distribution, name, estimator)
    if estimator.relaxed:  # a density that takes indices alone would fail first, and say less
        template.estimator.validate(template.lot())
    leaves = template.skeleton.leaves((distribution, estimator))
    return sample_p.bind(_typed(key), *leaves, template=template, lanes=())
