"""What a program says is an unbiased estimate, and its minibatch, so that their use is checked."""

from __future__ import annotations

from typing import Any

import jax

from vipp_transforms import _jax


def estimate(x: jax.Array, name: str, plate: str) -> jax.Array:
    """``x``, an unbiased estimate: programs that are not linear in it are refused.

    Args:
      x: floats.
      name: of the site that it is the log density of.
      plate: by which that is subsampled.

    Returns:
      ``x``.
    """
    return estimate_p.bind(x, name=name, plate=plate)


def subsampled(indices: jax.Array, plate: str) -> jax.Array:
    """``indices``, those of a subsampled plate: what depends on them goes with its estimates.

    Args:
      indices: ints.
      plate: its name.

    Returns:
      ``indices``.
    """
    return estimate_p.bind(indices, name="", plate=plate)


def is_estimate(eqn: Any) -> bool:
    """Whether an equation is that of :func:`estimate` or :func:`subsampled`."""
    return eqn.primitive is estimate_p


def _batch(operands: Any, dims: Any, **params: Any) -> tuple[Any, Any]:
    return estimate_p.bind(operands[0], **params), dims[0]


def _jvp(primals: Any, tangents: Any, **params: Any) -> tuple[Any, Any]:
    # the derivative of an estimate is an estimate of the derivative
    primal, tangent = estimate_p.bind(primals[0], **params), tangents[0]
    return primal, tangent if _jax.is_zero(tangent) else estimate_p.bind(tangent, **params)


estimate_p = _jax.define_linear("vipp_estimate", lambda x, **params: x, _batch, _jvp)
