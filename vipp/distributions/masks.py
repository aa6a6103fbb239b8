"""The masks of a NumPyro distribution: which of its independent coordinates count."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from numpyro.distributions.distribution import ExpandedDistribution, Independent, MaskedDistribution

from vipp.distributions.lanes import lane_distribution


def lane_mask(fn: Any) -> Any:
    """Which lanes of ``lane_distribution(fn)`` count: True, False, or bools to broadcast to them.

    Masks change what is counted and not what is drawn; they may lie within ``to_event`` and
    ``expand``, one in another.
    """
    if isinstance(fn, Independent | ExpandedDistribution):
        return lane_mask(fn.base_dist)  # its axes are the last ones
    if not isinstance(fn, MaskedDistribution):
        return True
    inner, mask = lane_mask(fn.base_dist), fn._mask
    if mask is True or inner is False:
        return inner
    if mask is False:
        return False
    events = len(lane_distribution(fn).batch_shape) - len(fn.batch_shape)
    mask = jnp.asarray(mask, bool)
    mask = mask.reshape(mask.shape + (1,) * events)
    return mask if inner is True else mask & inner
