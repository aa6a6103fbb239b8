"""What vipp needs of a NumPyro distribution beyond its own methods."""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import gammaln
from numpyro.distributions.distribution import ExpandedDistribution, Independent, MaskedDistribution
from numpyro.distributions.util import clamp_probs

from vipp.distributions.implicit import WRAPPERS, implicit


@jax.custom_jvp
def _softplus(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@_softplus.defjvp
def _softplus_jvp(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    return _softplus(x), jax.nn.sigmoid(x) * dx


class _BernoulliLogits(dist.BernoulliLogits):
    """A Bernoulli whose log probability has the right gradient at logits of exactly zero.

    NumPyro's (0.22) differentiates ``max(x, 0)`` and ``abs(x)`` separately there, and a
    zero-initialised logit would train wrongly.
    """

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        logits = _finite(self.logits)
        return value * logits - _softplus(logits)


@jax.custom_jvp
def _x_log_y(x: jax.Array, y: jax.Array) -> jax.Array:
    return x * jnp.log(y)


@_x_log_y.defjvp
def _x_log_y_jvp(primals: Any, tangents: Any) -> Any:
    # x / y first: with the cotangent first, y near the smallest number gives inf * 0
    (x, y), (dx, dy) = primals, tangents
    return _x_log_y(x, y), jnp.log(y) * dx + jnp.where(x == 0, 0.0, x / y) * dy


class _BernoulliProbs(dist.BernoulliProbs):
    """A Bernoulli whose log probability is also defined between zero and one, linear in the value.

    Estimators that relax a choice score the model there, where NumPyro's validation says ``-inf``.
    And its gradient is a number where the probability is zero or one.
    """

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        probs = clamp_probs(self.probs)
        value = jnp.asarray(value, probs.dtype)
        linear = _x_log_y(value, probs) + _x_log_y(1 - value, 1 - probs)
        # what goes straight through is zero or one but for rounding
        return jnp.where(jnp.abs(value - 0.5) <= 0.501, linear, -jnp.inf)


class _BinomialLogits(dist.BinomialLogits):
    """A Binomial whose log probability has the right gradient at logits of exactly zero."""

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        n = jnp.asarray(self.total_count, jnp.result_type(float))
        logits = _finite(self.logits, 1 + n)
        ways = gammaln(n + 1) - gammaln(value + 1) - gammaln(n - value + 1)
        return ways + value * logits - n * _softplus(logits)


def _finite(logits: Any, times: Any = 1) -> jax.Array:
    """Infinite logits are certain outcomes, not ``0 * inf``; finite even this many ``times``."""
    limit = jnp.finfo(jnp.result_type(logits, float)).max / times
    return jnp.clip(logits, -limit, limit)


def exact(fn: Any) -> Any:
    """``fn``, a Bernoulli or Binomial replaced by one that is right at all logits and values."""
    if type(fn) is dist.BernoulliLogits:
        return _BernoulliLogits(fn.logits, validate_args=False)
    if type(fn) is dist.BernoulliProbs:
        return _BernoulliProbs(fn.probs, validate_args=False)
    if type(fn) is dist.BinomialLogits:
        return _BinomialLogits(fn.logits, fn.total_count, validate_args=False)
    if isinstance(fn, ExpandedDistribution | Independent | MaskedDistribution):
        base = exact(fn.base_dist)
        if base is not fn.base_dist:
            fn = copy.copy(fn)
            fn.base_dist = base
    return fn


def lane_distribution(fn: Any) -> Any:
    """The distribution that ``fn`` draws from, with every independent coordinate a batch element.

    ``to_event`` dimensions become batch axes again, and a mask, which changes what is counted but
    not what is drawn, is taken off.
    """
    if isinstance(fn, MaskedDistribution | Independent):
        return lane_distribution(fn.base_dist)
    if isinstance(fn, ExpandedDistribution):
        base = fn.base_dist
        stripped = lane_distribution(base)
        events = tuple(stripped.batch_shape[len(base.batch_shape) :])
        return stripped.expand((*fn.batch_shape, *events))
    return exact(fn)


def reparameterised(fn: Any) -> bool:
    """Whether a draw of ``fn`` has a gradient in every parameter, explicit or implicit."""
    return implicit(fn) or explicit(fn)


# NumPyro declares no reparameterised parameters for these, but their samplers reach them all
_DECLARED_NONE = (
    dist.EulerMaruyama,
    dist.IntervalCensoredDistribution,
    dist.InverseWishartCholesky,
    dist.LeftCensoredDistribution,
    dist.Levy,
    dist.RightCensoredDistribution,
    dist.WishartCholesky,
)
# drawn through the quantiles of what they are built from
_BY_QUANTILE = (
    dist.GaussianCopula,
    dist.LeftTruncatedDistribution,
    dist.RightTruncatedDistribution,
    dist.TwoSidedTruncatedDistribution,
)
# whose quantiles NumPyro writes out; those of Beta, Gamma and StudentT need another package
_QUANTILE = (
    dist.AsymmetricLaplace,
    dist.Cauchy,
    dist.Dagum,
    dist.Exponential,
    dist.Gompertz,
    dist.Gumbel,
    dist.HalfCauchy,
    dist.HalfNormal,
    dist.Laplace,
    dist.Levy,
    dist.LogNormal,
    dist.Logistic,
    dist.LowerTruncatedPowerLaw,
    dist.Normal,
    dist.Pareto,
    dist.SoftLaplace,
    dist.Uniform,
)


def explicit(fn: Any) -> bool:
    """Whether gradients flow through ``fn``'s own sampler to all its parameters.

    NumPyro's ``has_rsample`` compares the names of parameters: it says yes of a distribution that
    declares none, and does not ask what a distribution is built from.
    """
    if isinstance(fn, WRAPPERS):
        return explicit(fn.base_dist)
    if isinstance(fn, _BY_QUANTILE):
        base = fn.marginal_dist if isinstance(fn, dist.GaussianCopula) else fn.base_dist
        return isinstance(base, _QUANTILE)
    if isinstance(fn, _DECLARED_NONE):
        return all(map(explicit, _parts(fn)))
    declared = fn.arg_constraints or type(fn).has_rsample is not dist.Distribution.has_rsample
    if not declared and not isinstance(fn, dist.TruncatedPolyaGamma):  # that has no parameters
        return False
    return bool(fn.has_rsample) and all(map(explicit, _parts(fn)))


def _parts(fn: Any) -> list[Any]:
    """The distributions that ``fn`` is built from."""
    held = jax.tree_util.tree_leaves(
        list(vars(fn).values()), is_leaf=lambda x: isinstance(x, dist.Distribution)
    )
    return [x for x in held if isinstance(x, dist.Distribution)]
