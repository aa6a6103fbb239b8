"""A choice whose every value is tried, each along an axis of its own."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from vipp_transforms.estimators.base import SiteInfo
from vipp_transforms.estimators.enumerate import joint_support, lane_numbers
from vipp_transforms.lifting import Env, Lifted, Node
from vipp_transforms.support_numbers import Numbers


def every_value(info: SiteInfo, name: str, dtype: Any) -> Node:
    """The node of a choice for all joint values of its mixed lanes.

    Args:
      info: the choice.
      name: of the axis.
      dtype: of its values.
    """

    def make(env: Env) -> Lifted:
        joint = jnp.asarray(joint_support(info)).astype(dtype)
        full = (joint.shape[0], *info.lane_shape, *info.event_shape)
        return Lifted(jnp.broadcast_to(joint, full), (name,))

    table = lane_numbers(info, dtype)
    return Node(frozenset({name}), make, None if table is None else Numbers(table, (name,)))
