"""Implicit reparameterisation: draws that move with the parameters through the CDF."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from vipp.distributions.cdf import cdf, has_cdf, moving_cdf
from vipp.distributions.laws import has_law_of, has_law_of_any
from vipp.distributions.wrappers import WRAPPERS, factor
from vipp_transforms.constant import detached

_MIXTURES = (dist.MixtureSameFamily, dist.MixtureGeneral)


def implicit(fn: Any) -> bool:
    """Whether ``fn``, behind its wrappers, is drawn by :func:`differentiable_sampler`."""
    if has_law_of_any(fn, WRAPPERS):
        return implicit(fn.base_dist)
    if has_law_of_any(fn, _MIXTURES):
        return _has_conditionals(_components(fn))
    return has_law_of(fn, dist.VonMises)


def circular(fn: Any) -> bool:
    """Whether an implicit draw moves on the circle, where what is not continuous at pi misleads."""
    return circular(fn.base_dist) if isinstance(fn, WRAPPERS) else isinstance(fn, dist.VonMises)


def differentiable_sampler(fn: Any) -> Any:
    r"""``fn`` with a sampler that carries the gradient of every parameter.

    The values are the distribution's own draws :math:`x`. Their derivative keeps the probability
    below them, :math:`F_\theta(x)`, where it was:

    .. math:: \partial_\theta x = - \partial_\theta F_\theta(x) / p_\theta(x)

    and, in several dimensions, the probability of each coordinate given those before it. It is
    right to every order, as the derivative is itself a function of the moving :math:`x`.

    An angle moves on the circle: a function of it must be continuous there, at :math:`\pm\pi` too.

    Args:
      fn: a distribution that :func:`implicit` is true of.

    Returns:
      A distribution to draw from; ``fn`` itself if nothing in it is implicit.

    References:
      Figurnov, Mohamed and Mnih, *Implicit Reparameterization Gradients*, 2018;
      Graves, *Stochastic Backpropagation through Mixture Density Distributions*, 2016.
    """
    if not implicit(fn):
        return fn
    if isinstance(fn, WRAPPERS):
        moved = copy.copy(fn)
        moved.base_dist = differentiable_sampler(fn.base_dist)
        return moved
    return Implicit(fn)


class Implicit(dist.Distribution):
    """The draws of a distribution, with their derivative."""

    pytree_data_fields = ("fn",)
    has_rsample = True  # pyright: ignore[reportAssignmentType]

    def __init__(self, fn: Any):
        self.fn = fn
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """The distribution's own draws, moving with its parameters."""
        return _transport(self.fn, detached(self.fn.sample(key, sample_shape)))

    def log_prob(self, value: Any) -> jax.Array:
        """The distribution's own."""
        return self.fn.log_prob(value)

    @property
    def mean(self) -> jax.Array:
        """The distribution's own."""
        return self.fn.mean


def _transport(fn: Any, x: jax.Array) -> jax.Array:
    """``x``, moving with the parameters of ``fn``."""
    leaves, treedef = jax.tree_util.tree_flatten(fn)
    moves = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves]

    @jax.custom_jvp
    def moved(x: jax.Array, leaves: list[Any]) -> jax.Array:
        return x

    @moved.defjvp
    def moved_jvp(primals: Any, tangents: Any) -> Any:
        (x, leaves), (dx, dleaves) = primals, tangents
        y = moved(x, leaves)  # the velocity moves with it, which makes higher derivatives right

        def terms(*floats: Any) -> _Terms:
            given = iter(floats)
            merged = [next(given) if m else leaf for m, leaf in zip(moves, leaves, strict=True)]
            return _terms(jax.tree_util.tree_unflatten(treedef, merged), y)

        floats = [leaf for m, leaf in zip(moves, leaves, strict=True) if m]
        dfloats = [leaf for m, leaf in zip(moves, dleaves, strict=True) if m]
        now, change = jax.jvp(terms, floats, dfloats)
        return y, dx + _velocity(now, change).reshape(y.shape)

    return moved(x, [jnp.asarray(leaf) for leaf in leaves])


class _Terms(NamedTuple):
    """What the motion of a draw depends on, by component and coordinate: ``(..., K, D)``.

    Attributes:
      log_weight: of the components, ``(..., K)``.
      below: the probability below each coordinate.
      crossed: the same up to a constant; its change is the mass that crosses the coordinate.
      log_prob: of each coordinate.
      slope: the derivative of ``log_prob`` in the coordinate.
      rows: how far each coordinate's distribution shifts, negatively, with those before it,
        ``(..., K, D, D)``; None where the coordinates are independent.
    """

    log_weight: jax.Array
    below: jax.Array
    crossed: jax.Array
    log_prob: jax.Array
    slope: jax.Array
    rows: jax.Array | None = None


def _terms(fn: Any, x: jax.Array) -> _Terms:
    if not isinstance(fn, _MIXTURES):
        one = jnp.zeros((*x.shape, 1))
        return _Terms(one, *(t[..., None, None] for t in _independent(fn, x, x.shape)))
    event = tuple(fn.event_shape)
    batch = x.shape[: x.ndim - len(event)]
    flat = (*batch, fn.mixture_size, math.prod(event))
    logits: Any = fn.mixing_distribution.logits
    log_weight = jnp.broadcast_to(jax.nn.log_softmax(logits), flat[:-1])
    if isinstance(fn, dist.MixtureSameFamily):
        shape = (*batch, fn.mixture_size, *event)
        parts = _component(fn.component_distribution, jnp.expand_dims(x, len(batch)), shape)
    else:
        each = [_component(c, x, x.shape) for c in fn.component_distributions]
        parts = [jnp.stack(p, len(batch)) for p in zip(*each, strict=True)]
    rows = [p.reshape((*flat, flat[-1])) for p in parts[4:]]
    return _Terms(log_weight, *(p.reshape(flat) for p in parts[:4]), *rows)


def _component(fn: Any, x: jax.Array, shape: tuple[int, ...]) -> list[jax.Array]:
    """:class:`_Terms` of a component, without its weight."""
    scalar = factor(fn)
    if isinstance(scalar, dist.MultivariateNormal):
        return _gaussian(scalar, x, shape)
    return _independent(scalar, x, shape)


def _independent(fn: Any, x: jax.Array, shape: tuple[int, ...]) -> list[jax.Array]:
    support: Any = fn.support
    # rounding may put an angle outside; it is not
    inside = x == x if isinstance(fn, dist.VonMises) else support(x)
    # outside its support a component has all its mass on one side, and its formulas mean nothing
    inner = jnp.where(inside, x, support.feasible_like(x))
    log_prob, slope = jax.jvp(fn.log_prob, (inner,), (jnp.ones_like(inner),))
    outside = jnp.where(x > 0, 1.0, 0.0)
    below = jnp.where(inside, cdf(fn, inner), outside)
    crossed = jnp.where(inside, moving_cdf(fn, inner), outside)
    log_prob = jnp.where(inside, log_prob, -jnp.inf)
    slope = jnp.where(inside, slope, 0.0)
    return [jnp.broadcast_to(t, shape) for t in (below, crossed, log_prob, slope)]


def _gaussian(fn: Any, x: jax.Array, shape: tuple[int, ...]) -> list[jax.Array]:
    """Coordinate by coordinate: whitened, each is a standard normal given those before it."""
    tril = jnp.broadcast_to(fn.scale_tril, (*shape, shape[-1]))
    centred = jnp.broadcast_to(x - fn.loc, shape)
    white = jax.scipy.linalg.solve_triangular(tril, centred[..., None], lower=True)[..., 0]
    scale = jnp.diagonal(tril, axis1=-2, axis2=-1)
    below = jax.scipy.special.ndtr(white)
    log_prob = jax.scipy.stats.norm.logpdf(white) - jnp.log(scale)
    eye = jnp.broadcast_to(jnp.eye(shape[-1], dtype=tril.dtype), tril.shape)
    inverse = jax.scipy.linalg.solve_triangular(tril, eye, lower=True)
    return [below, below, log_prob, -white / scale, jnp.tril(inverse, -1) * scale[..., None]]


def _velocity(now: _Terms, change: _Terms) -> jax.Array:
    r"""How the coordinates move, ``(..., D)``, one after the other.

    Given those before it a coordinate is a mixture with the weights
    :math:`r_k \propto w_k \prod_{j<d} p_k(x_j)`, which move with the parameters and with the
    coordinates :math:`x_j` before it:

    .. math:: \dot x_d = -\frac{\sum_k r_k \dot F_k(x_d) + \dot r_k F_k(x_d)}{\sum_k r_k p_k(x_d)}

    A Gaussian component moves its distribution of :math:`x_d` along as well.
    """

    def step(carry: Any, at: Any) -> Any:
        log_r, dlog_r, before = carry
        index, below, dcrossed, log_prob, dlog_prob, slope, *row = at
        lead = jnp.einsum("...kd,...d->...k", row[0], before) if row else 0.0
        after = log_r + log_prob
        log_norm = jax.nn.logsumexp(after, -1, keepdims=True)
        log_norm = jnp.where(jnp.isneginf(log_norm), 0, log_norm)  # a draw that underflowed stays
        mean = (jax.nn.softmax(log_r) * dlog_r).sum(-1, keepdims=True)
        # r_k / p in logarithms: both may underflow where a component is far away
        gain, share = jnp.exp(log_r - log_norm), jnp.exp(after - log_norm)
        moved = gain * (dcrossed + (dlog_r - mean) * below) + share * lead
        velocity = -moved.sum(-1)
        dlog_r = dlog_r + dlog_prob + slope * (velocity[..., None] + lead)
        return (after, dlog_r, before.at[..., index].set(velocity)), None

    rows = [] if now.rows is None else [jnp.moveaxis(now.rows, -2, 0)]
    along = (now.below, change.crossed, now.log_prob, change.log_prob, now.slope)
    start = (now.log_weight, change.log_weight, jnp.zeros_like(change.crossed[..., 0, :]))
    index = jnp.arange(now.below.shape[-1])
    steps = (index, *(jnp.moveaxis(t, -1, 0) for t in along), *rows)
    if len(index) == 1:
        return step(start, [s[0] for s in steps])[0][2]
    return jax.lax.scan(step, start, steps)[0][2]


def _components(fn: Any) -> list[Any]:
    if isinstance(fn, dist.MixtureSameFamily):
        return [fn.component_distribution]
    return list(fn.component_distributions)


def _has_conditionals(components: list[Any]) -> bool:
    """Whether the distribution function of each coordinate, given those before it, is known."""
    factors = [factor(c) for c in components]
    if all(has_law_of(f, dist.MultivariateNormal) for f in factors):
        return components[0].event_dim == 1
    return all(not f.event_shape and has_cdf(f) for f in factors)
