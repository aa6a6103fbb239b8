"""Which distributions have draws that carry the gradient of every parameter."""

from __future__ import annotations

from typing import Any

import numpyro.distributions as dist

from vipp.distributions.implicit import implicit
from vipp.distributions.laws import answers
from vipp.distributions.quantiles import SCALARS
from vipp.distributions.traced import moves_with_parameters, parameters
from vipp.distributions.wrappers import WRAPPERS, parts


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


def explicit(fn: Any) -> bool:
    """Whether gradients flow through ``fn``'s own sampler to all its parameters.

    NumPyro's ``has_rsample`` compares the names of parameters: it says yes of a distribution that
    declares none, and does not ask what a distribution is built from.
    """
    if not answers(fn, "reparametrized_params") and not _declares(fn):
        return moves_with_parameters(fn)  # what the base declares is of another sampler
    if isinstance(fn, WRAPPERS):
        return explicit(fn.base_dist)
    if isinstance(fn, _BY_QUANTILE):
        base = fn.marginal_dist if isinstance(fn, dist.GaussianCopula) else fn.base_dist
        return isinstance(base, SCALARS)
    if isinstance(fn, _DECLARED_NONE):
        return all(map(explicit, parts(fn)))
    if not _is_numpyros(fn) and not fn.reparametrized_params and not _declares(fn):
        return moves_with_parameters(fn)
    declared = fn.arg_constraints or _declares(fn)
    if not declared and not isinstance(fn, dist.TruncatedPolyaGamma):  # that has no parameters
        return False
    return bool(fn.has_rsample) and all(map(explicit, parts(fn)))


def drawn_with(fn: Any, key: Any) -> Any:
    """What ``fn`` is drawn with, as a tree of arrays; another library's may not list them all."""
    return fn if _all_numpyros(fn) else parameters(fn, key)


def _all_numpyros(fn: Any) -> bool:
    return _is_numpyros(fn) and all(map(_all_numpyros, parts(fn)))


def _declares(fn: Any) -> bool:
    """Whether a class says itself what its sampler can do."""
    own = type(fn).has_rsample is not dist.Distribution.has_rsample
    return own and answers(fn, "has_rsample")


def _is_numpyros(fn: Any) -> bool:
    return type(fn).__module__.partition(".")[0] == "numpyro"
