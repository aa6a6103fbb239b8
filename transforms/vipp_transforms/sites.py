"""A random choice as a JAX primitive, so that program transformations can see it.

``sample`` draws from a distribution and records, in the staged program, which distribution it was,
how its gradient is to be estimated, and along which leading axes the draws are independent
(*lanes*: one per enclosing ``vmap``, then one per batch axis of the distribution).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms._jax import define_primitive, is_tracer, shaped, shaped_array, trace
from vipp_transforms.distributions import Described, ask
from vipp_transforms.errors import SiteError
from vipp_transforms.estimators.base import Estimator, Policy, SiteInfo
from vipp_transforms.settings import require_numbers
from vipp_transforms.skeleton import Skeleton, shapes
from vipp_transforms.skipped import Skipped, told


class Template:
    """A random choice without its array leaves: of the distribution, and of the estimator.

    Attributes:
      drawing: one draw as a jaxpr of ``(key, *leaves)``.
      conditional: whether the first of its leaves says if the choice is made at all.
    """

    conditional = False

    def __init__(self, distribution: Described, name: str, estimator: Estimator | Policy, key: Any):
        self.skeleton = Skeleton((distribution, estimator))
        self.num_parameters = len(Skeleton(distribution).leaves(distribution))
        self._settings = Skeleton(estimator)
        self.name = name
        self.estimator = shapes(estimator)
        self.kind = distribution.kind
        self.batch_shape = distribution.batch_shape
        self.event_shape = distribution.event_shape
        self.support = distribution.support
        self.num_weak_derivatives = distribution.num_weak_derivatives
        self.has_quantile = distribution.has_quantile
        inputs = (key, *self.skeleton.leaves((distribution, estimator)))
        self._trace_draw([jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs])

    def _trace_draw(self, shaped: list[Any]) -> None:
        self.drawing, _ = trace(lambda k, *xs: self.build(xs).sample(k), *shaped)

    @functools.cached_property
    def in_branch(self) -> Template:
        """The same choice in a branch, with one leaf more, the first: whether that is taken."""
        other = copy.copy(self)
        other.conditional = True
        other.num_parameters = self.num_parameters + 1
        key, *leaves = map(shaped, self.drawing.in_avals)
        other._trace_draw([key, jax.ShapeDtypeStruct((), jnp.bool_), *leaves])
        return other

    def site(self) -> SiteInfo:
        """The site on its own, as far as it is known before the program is."""
        apart = (False,) * len(self.batch_shape)
        return self.placed(self.name, self.batch_shape, apart)

    def placed(self, name: str, lanes: tuple[int, ...], mixed: tuple[bool, ...]) -> SiteInfo:
        """The site with all its lanes, and which of them some term mixes."""
        return SiteInfo(
            name, self.kind, self.support, lanes, self.event_shape, mixed,
            self.num_weak_derivatives, self.has_quantile,
        )  # fmt: skip

    def build(self, leaves: Any) -> Any:
        """The distribution with these array leaves (and the estimator's behind them)."""
        return self.parts(leaves)[0]

    def parts(self, leaves: Any) -> tuple[Any, Any]:
        """The distribution and the estimator with these array leaves."""
        if not self.conditional:
            return self.skeleton.build(leaves)
        taken, *others = leaves
        distribution, estimator = self.skeleton.build([told(taken, x) for x in others])
        return Skipped(distribution, taken, self.support), estimator

    def build_estimator(self, settings: Any) -> Any:
        """The estimator with these array leaves."""
        return self._settings.build(settings)

    def settings_of(self, estimator: Any) -> list[Any]:
        """The array leaves of the estimator, or of one like it."""
        return self._settings.leaves(estimator)


class Lanes(NamedTuple):
    """One ``vmap`` around a site: which of its leaves vary along it."""

    size: int
    varies: tuple[bool, ...]


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


def split_keys(key: Any, num: int) -> Any:
    """``num`` keys for each key in an array of keys, along a new leading axis."""

    def split(k: Any) -> Any:
        return jax.random.split(k, num)

    for _ in range(key.ndim):
        split = jax.vmap(split, out_axes=1)
    return split(key)


def _sample_impl(key: Any, *leaves: Any, template: Template, lanes: tuple[Lanes, ...]) -> Any:
    value = draw(template, lanes, key, leaves)
    return value.astype(jnp.result_type(float)) if template.estimator.traits.relaxed else value


def _sample_abstract(key: Any, *leaves: Any, template: Template, lanes: tuple[Lanes, ...]) -> Any:
    (one,) = template.drawing.out_avals
    dtype = jnp.result_type(float) if template.estimator.traits.relaxed else one.dtype
    return shaped_array((*(lane.size for lane in lanes), *one.shape), dtype)


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


def _key_batch(operands: Any, dims: Any, *, name: str) -> tuple[Any, Any]:
    if _MODE.lifting:
        return operands[0], dims[0]
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    key, *leaves = (_to_front(x, d) for x, d in zip(operands, dims, strict=True))
    key = key if dims[0] is not None else split_keys(key, size)
    # bound again: a vmap further out may map the leaves alone
    return lane_key_p.bind(key, *leaves, name=name), 0


lane_key_p = define_primitive(
    "vipp_lane_key",
    lambda key, *_, name: key,
    lambda key, *_, name: key,
    _key_batch,
)


def lane_key(key: Any, distribution: Any, name: str = "") -> Any:
    """``key``, made independent per lane where ``vmap`` maps the distribution's parameters.

    Without it a reparameterised draw under ``vmap`` would share its noise between lanes while a
    draw with any other estimator would not: changing the estimator must not change the program.
    With the ``name`` of the choice it is refused where all steps of a loop have that key.
    """
    leaves = jax.tree_util.tree_leaves(distribution)
    traced = [jax.lax.stop_gradient(x) for x in leaves if is_tracer(x)]
    return lane_key_p.bind(_typed(key), *traced, name=name) if traced or name else key


def _typed(key: Any) -> Any:
    if _jax.is_key(key):
        return key
    return jax.random.wrap_key_data(key)


def sample(key: Any, distribution: Any, estimator: Estimator | Policy, *, name: str) -> jax.Array:
    """Draw a value whose gradient :func:`vipp_transforms.surrogate` estimates.

    Args:
      key: a PRNG key.
      distribution: see :class:`~vipp_transforms.distributions.Distribution`; its batch axes are
        independent lanes.
      estimator: how the gradient with respect to the distribution's parameters is estimated, or a
        policy that chooses how.
      name: what errors and tables call this choice.

    Returns:
      A draw, shape ``(*batch_shape, *event_shape)``.

    Raises:
      SiteError: for a pathwise choice without a differentiable sampler, a masked distribution, or
        one whose parameters are not the leaves of its pytree.
    """
    described, traits = ask(distribution), estimator.traits
    if traits.pathwise and not described.pathwise:
        raise SiteError(
            f"Site '{name}': {type(estimator).__name__} needs a distribution with a differentiable "
            f"sampler, got {described.kind}. Fix: use Enumerate() for a small finite support, or "
            "ScoreFunction(num_samples=2, baseline='leave_one_out')."
        )
    if traits.direct:
        return distribution.sample(lane_key(key, distribution, name))
    if described.masked:
        raise SiteError(
            f"Site '{name}' is drawn from a masked distribution, expected one whose log density "
            "has every draw. Fix: draw from the distribution without its mask, and mask the terms."
        )
    key = _typed(key)
    template = _template(described, name, estimator, key)
    if isinstance(template.estimator, Estimator):
        require_numbers(name, template.estimator)
        if traits.relaxed:  # a density that takes indices alone would fail first, and say less
            template.estimator.validate(template.site())
    leaves = template.skeleton.leaves((described, estimator))
    return sample_p.bind(key, *leaves, template=template, lanes=())


def _template(described: Described, name: str, estimator: Estimator | Policy, key: Any) -> Template:
    """The choice without its array leaves, if these are all that it is drawn with."""
    try:
        template = Template(described, name, estimator, key)
    except Exception as error:
        _check_rebuilt(described, name, key, error)
        raise
    if any(map(is_tracer, template.drawing.consts)):
        raise _no_pytree(described, name)
    return template


def _check_rebuilt(described: Described, name: str, key: Any, error: Exception) -> None:
    """Raise if it is the distribution put together from its leaves that fails, and not itself."""
    try:
        leaves, treedef = jax.tree_util.tree_flatten(described)
        jax.eval_shape(jax.tree_util.tree_unflatten(treedef, leaves).sample, key)
    except Exception:
        jax.eval_shape(described.sample, key)
        raise _no_pytree(described, name) from error


def _no_pytree(described: Described, name: str) -> SiteError:
    return SiteError(
        f"Site '{name}': {described.kind} is no pytree of its parameters, expected one that can be "
        "taken apart into its arrays and put together again, as every estimator but Pathwise() "
        "needs. Fix: list its parameters (in NumPyro's distributions, pytree_data_fields), or use "
        "Pathwise() if its sampler is differentiable."
    )
