"""Divergences of one distribution from another in closed form, batch element by batch element."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import xlogy
from numpyro.distributions import kl_divergence
from numpyro.distributions.constraints import Constraint
from numpyro.distributions.distribution import (
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    TransformedDistribution,
)
from numpyro.distributions.transforms import (
    AbsTransform,
    ComposeTransform,
    IndependentTransform,
    Transform,
)
from numpyro.util import not_jax_tracer

from vipp.distributions.families import law_of
from vipp.distributions.laws import has_law_of, has_law_of_any
from vipp.distributions.wrappers import WRAPPERS, factor, unexpanded


def closed_kl(q: Any, p: Any) -> jax.Array | None:
    r"""The divergence of ``q`` from ``p``, given a formula for it.

    .. math:: \mathrm{KL}(q \,\|\, p) = E_q[\log q(x) - \log p(x)]

    One entry per batch element of both, infinite where ``q`` has values that ``p`` cannot have.
    Tried in order: NumPyro's own formulas, and those that a user registered there; base
    distributions under the same transform; a pair of one family; Gaussians; and distributions of
    one number, the one's entropy and what it expects of the other's log density.

    Args:
      q: without a mask.
      p: without a mask.

    Returns:
      The divergence, or None where there is no formula or only that of a base with another law.
    """
    for formula in (_registered, _inside, _same_transform, _pair, _gaussian, _by_statistics):
        found = formula(q, p)
        if found is not None:
            return jnp.broadcast_to(found, jnp.broadcast_shapes(q.batch_shape, p.batch_shape))
    return None


def attempt(formula: Callable[..., jax.Array], *args: Any) -> jax.Array | None:
    """What a formula gives, or None where NumPyro has none."""
    try:
        return formula(*args)
    except NotImplementedError:
        return None


# -- NumPyro's -------------------------------------------------------------------------------------


def _registered(q: Any, p: Any) -> jax.Array | None:
    """NumPyro's formula, or None where it has none or has that of a base with another law."""
    kumaraswamy = isinstance(factor(q), dist.Kumaraswamy)  # NumPyro has the first terms of a series
    return attempt(kl_divergence, q, p) if _is_meant(q, p) and not kumaraswamy else None


def _is_meant(q: Any, p: Any) -> bool:
    """Whether the formula that NumPyro finds by class is for what is drawn and scored."""
    kinds = (type(q), type(p))
    formula = kl_divergence.dispatch(*kinds)
    found = [k for k, f in kl_divergence.funcs.items() if f is formula and _fit(kinds, k)]
    if not found:
        return True  # it has none
    meant = all(_keeps(fn, kind) for fn, kind in zip((q, p), found[0], strict=True))
    inner = q.base_dist if isinstance(q, WRAPPERS) else q
    other = p.base_dist if isinstance(p, WRAPPERS) else p
    return meant and ((inner is q and other is p) or _is_meant(inner, other))


def _fit(kinds: tuple[type, ...], signature: tuple[type, ...]) -> bool:
    return all(map(issubclass, kinds, signature))


def _keeps(fn: Any, kind: type) -> bool:
    """Whether a formula for ``kind`` holds of ``fn``; one for any distribution asks it itself."""
    return kind is Distribution or has_law_of(fn, kind)


# -- of what a distribution is built from ----------------------------------------------------------


def elementwise(fn: Any) -> Any:
    """``fn``, independent coordinates that are each transformed written as such.

    What is made by transforming a vector number by number is independent if the vector is.
    """
    if isinstance(fn, ExpandedDistribution | Independent | MaskedDistribution):
        base = elementwise(fn.base_dist)
        if base is not fn.base_dist:
            fn = copy.copy(fn)
            fn.base_dist = base
        return fn
    if not has_law_of(fn, TransformedDistribution) or not isinstance(fn.base_dist, Independent):
        return fn
    numbers = [_of_numbers(t) for t in fn.transforms]
    if not all(t.domain.event_dim == t.codomain.event_dim == 0 for t in numbers):
        return fn
    base, events = fn.base_dist.base_dist, fn.base_dist.reinterpreted_batch_ndims
    return elementwise(TransformedDistribution(base, numbers)).to_event(events)


def _of_numbers(transform: Any) -> Any:
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return transform


def _inside(q: Any, p: Any) -> jax.Array | None:
    """Expanded ones by what is expanded, independent coordinates one by one."""
    if isinstance(q, ExpandedDistribution) or isinstance(p, ExpandedDistribution):
        return closed_kl(*(unexpanded(x) for x in (q, p)))
    if not (isinstance(q, Independent) and isinstance(p, Independent)):
        return None
    events = q.reinterpreted_batch_ndims
    if q.event_shape != p.event_shape or events != p.reinterpreted_batch_ndims:
        return None
    found = closed_kl(q.base_dist, p.base_dist)
    return None if found is None else found.sum([-1 - i for i in range(events)])


def _same_transform(q: Any, p: Any) -> jax.Array | None:
    """The divergence of what is transformed, which a one-to-one change of variables keeps."""
    if not all(has_law_of(x, TransformedDistribution) for x in (q, p)):
        return None
    if len(q.transforms) != len(p.transforms) or not all(map(_equal, q.transforms, p.transforms)):
        return None
    if any(map(_folds, q.transforms)):
        return None
    return closed_kl(q.base_dist, p.base_dist)


def _folds(transform: Any) -> bool:
    """Whether several values are transformed into one."""
    parts = transform.parts if isinstance(transform, ComposeTransform) else [_of_numbers(transform)]
    return any(isinstance(t, AbsTransform) or (t is not transform and _folds(t)) for t in parts)


def _equal(a: Any, b: Any) -> bool:
    """Whether two transforms, or two values, are known to be equal."""
    if a is b:
        return True
    if isinstance(a, Transform):
        numpyros = type(a) is type(b) and type(a).__module__ == Transform.__module__
        return numpyros and all(_equal(vars(a)[k], vars(b).get(k)) for k in vars(a) if k != "_inv")
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, Constraint):
        return True  # of what the transform is given, which decides nothing
    if not (not_jax_tracer(a) and not_jax_tracer(b)) or a is None or b is None:
        return False
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


# -- pairs -----------------------------------------------------------------------------------------


def _pair(q: Any, p: Any) -> jax.Array | None:
    """Of two of one family, where the parts of it are not known."""
    for kinds, formula in _PAIRS.items():
        if has_law_of_any(q, kinds) and has_law_of_any(p, kinds):
            return formula(q, p)
    return None


def _cauchy(q: Any, p: Any) -> jax.Array:
    away, scales = jnp.square(q.loc - p.loc), jnp.square(q.scale + p.scale)
    return jnp.log((scales + away) / (4 * q.scale * p.scale))


def _half_cauchy(q: Any, p: Any) -> jax.Array:
    return jnp.log(jnp.square(q.scale + p.scale) / (4 * q.scale * p.scale))


def _poisson(q: Any, p: Any) -> jax.Array:
    return xlogy(q.rate, q.rate / p.rate) - q.rate + p.rate


def _binomial(q: Any, p: Any) -> jax.Array | None:
    if not _equal(q.total_count, p.total_count):
        return None
    bits = [jnp.stack([1 - x.probs, x.probs], -1) for x in (q, p)]
    return q.total_count * kl_divergence(*map(dist.CategoricalProbs, bits))


def _multinomial(q: Any, p: Any) -> jax.Array | None:
    if not _equal(q.total_count, p.total_count):
        return None
    of_one = [dist.CategoricalProbs(x.probs) for x in (q, p)]
    return q.total_count * kl_divergence(*of_one)


def _gamma_poisson(q: Any, p: Any) -> jax.Array | None:
    if not _equal(q.concentration, p.concentration):
        return None
    more = jnp.log1p(p.rate) - jnp.log1p(q.rate)
    return q.concentration * (more / q.rate + jnp.log(q.rate / p.rate) + more)


def _random_walk(q: Any, p: Any) -> jax.Array | None:
    steps = q.num_steps
    one = kl_divergence(dist.Normal(0.0, q.scale), dist.Normal(0.0, p.scale))
    return steps * one if steps == p.num_steps else None


_PAIRS: dict[tuple[type, ...], Callable[[Any, Any], jax.Array | None]] = {
    (dist.Cauchy,): _cauchy,
    (dist.HalfCauchy,): _half_cauchy,
    (dist.Poisson,): _poisson,
    (dist.GammaPoisson,): _gamma_poisson,
    (dist.GaussianRandomWalk,): _random_walk,
    (dist.BinomialProbs, dist.BinomialLogits): _binomial,
    (dist.MultinomialProbs, dist.MultinomialLogits): _multinomial,
}


# -- Gaussians -------------------------------------------------------------------------------------


def _gaussian(q: Any, p: Any) -> jax.Array | None:
    r"""Of Gaussian vectors, whatever their covariance is built from.

    .. math:: \log q(m_q) - \log p(m_q) + \tfrac12\, \mathrm{tr}(\Sigma_p^{-1} \Sigma_q) - \tfrac d2
    """
    if q.event_shape != p.event_shape or not (_is_gaussian(q) and _is_gaussian(p)):
        return None
    at_mean = q.log_prob(q.mean) - p.log_prob(q.mean)
    return at_mean + (_whitened(q, p) - q.event_shape[0]) / 2


def _is_gaussian(fn: Any) -> bool:
    if isinstance(fn, Independent):
        return fn.event_dim == 1 and has_law_of(unexpanded(fn.base_dist), dist.Normal)
    return has_law_of_any(fn, (dist.MultivariateNormal, dist.LowRankMultivariateNormal))


def _whitened(q: Any, p: Any) -> jax.Array:
    """The trace of the one's covariance times the other's precision."""
    if isinstance(p, Independent):
        return (q.variance / p.variance).sum(-1)
    precision = _precision(p)
    if isinstance(q, Independent):
        return (jnp.diagonal(precision, axis1=-2, axis2=-1) * q.variance).sum(-1)
    return (precision * q.covariance_matrix).sum((-2, -1))


def _precision(fn: Any) -> jax.Array:
    if has_law_of(fn, dist.MultivariateNormal):
        return fn.precision_matrix
    # Woodbury's identity; NumPyro's takes the factor for square
    factor, diagonal = fn.cov_factor, fn.cov_diag
    scaled = factor / diagonal[..., None]
    inner = jnp.eye(factor.shape[-1]) + factor.mT @ scaled
    return jnp.eye(diagonal.shape[-1]) / diagonal[..., None] - scaled @ jnp.linalg.solve(
        inner, scaled.mT
    )


# -- by what one expects of the other's density ----------------------------------------------------


def _by_statistics(q: Any, p: Any) -> jax.Array | None:
    of_q, of_p = law_of(q), law_of(p)
    if of_q is None or of_p is None or of_p.density is None or q.is_discrete != p.is_discrete:
        return None
    density = of_p.density
    if any(name not in of_q.expected for name, *_ in density.parts):
        return None
    log_p = density.constant
    for name, arguments, coefficient in density.parts:
        log_p = log_p + coefficient * of_q.expected[name](*arguments)
    outside = (of_q.low < density.low) | (of_q.high > density.high)
    return jnp.where(outside, jnp.inf, -of_q.entropy - log_p)
