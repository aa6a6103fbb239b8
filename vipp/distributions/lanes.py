"""The distribution of one site with every independent coordinate a lane."""

from __future__ import annotations

from typing import Any

from numpyro.distributions.distribution import ExpandedDistribution, Independent, MaskedDistribution

from vipp.distributions.densities import guarded


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
    return guarded(fn)
