"""Equations of a jaxpr that no function was traced for."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms import _jax

_EXAMPLES = {
    "broadcast_in_dim": lambda x: jax.lax.broadcast_in_dim(x, (2,), (0,)),
    "squeeze": lambda x: jax.lax.squeeze(x, (0,)),
    "stop_gradient": jax.lax.stop_gradient,
}


def spreading(operand: Any, out: Any, places: Sequence[int]) -> Any:
    """The equation that spreads an array to another one, its axes at ``places``."""
    params = {"shape": out.aval.shape, "broadcast_dimensions": tuple(places), "sharding": None}
    return _equation("broadcast_in_dim", operand, out, params)


def squeezing(operand: Any, out: Any, axes: Sequence[int]) -> Any:
    """The equation that takes axes of size one away."""
    return _equation("squeeze", operand, out, {"dimensions": tuple(axes)})


def stopping(operand: Any, out: Any) -> Any:
    """The equation that stops the gradient."""
    return _equation("stop_gradient", operand, out, {})


def homogeneous(eqn: Any) -> Any:
    """A linear equation without the constant that it adds: what a gather fills in is zero."""
    if eqn.primitive.name != "gather":
        return eqn
    return eqn.replace(params={**eqn.params, "fill_value": 0})


def _equation(name: str, operand: Any, out: Any, params: dict[str, Any]) -> Any:
    return _example(name).replace(invars=[operand], outvars=[out], params=params)


@functools.cache
def _example(name: str) -> Any:
    closed, _ = _jax.trace(_EXAMPLES[name], jnp.zeros(1))
    (eqn,) = _jax.open_jaxpr(closed)[0].eqns
    return eqn
