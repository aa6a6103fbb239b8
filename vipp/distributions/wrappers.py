"""What a distribution is built from."""

from __future__ import annotations

from typing import Any

import jax
import numpyro.distributions as dist
from numpyro.distributions.distribution import ExpandedDistribution, Independent, MaskedDistribution

# distributions that are drawn by drawing from ``base_dist``
WRAPPERS = (
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    dist.TransformedDistribution,
)


def factor(fn: Any) -> Any:
    """The distribution that a user wrote, behind expansion and the like; it broadcasts to all."""
    while isinstance(fn, ExpandedDistribution | Independent | MaskedDistribution):
        fn = fn.base_dist
    return fn


def unexpanded(fn: Any) -> Any:
    """The distribution of one lane, behind expansion and masks."""
    while isinstance(fn, ExpandedDistribution | MaskedDistribution):
        fn = fn.base_dist
    return fn


def parts(fn: Any) -> list[Any]:
    """The distributions that ``fn`` is built from."""
    held = jax.tree_util.tree_leaves(
        list(vars(fn).values()), is_leaf=lambda x: isinstance(x, dist.Distribution)
    )
    return [x for x in held if isinstance(x, dist.Distribution)]


def masked(fn: Any) -> bool:
    """Whether a mask anywhere in ``fn`` leaves out of its density lanes that it draws."""
    return isinstance(fn, MaskedDistribution) or any(map(masked, parts(fn)))
