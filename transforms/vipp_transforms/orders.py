"""Derivatives beyond those that an estimator has are refused when they are taken.

An estimate that is right up to its first derivative has a second one all the same, and that is
silently wrong. What a contraction returns therefore passes through a primitive that does nothing
but count how often it is differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms._jax import define_linear, is_zero, zero_like
from vipp_transforms.elementwise import Elementwise
from vipp_transforms.errors import SiteError

_OF_A_CHOICE = (
    "Expected no derivative of a derivative in the parameters of this choice. Fix: use "
    "Enumerate(), or ScoreFunction(num_samples=2, baseline='leave_one_out'), whose derivatives "
    "are right to all orders."
)


def limited(
    result: jax.Array,
    potentials: Sequence[jax.Array],
    limit: int,
    what: str,
    *,
    witness: jax.Array | None = None,
    advice: str = _OF_A_CHOICE,
) -> jax.Array:
    """``result``, whose derivatives beyond the ``limit``-th raise.

    Only where the parameters of the choice are among what is differentiated: those in which the
    term alone depends are right to all orders.

    Args:
      result: of the contraction.
      potentials: through which the choice's parameters enter it.
      limit: how many derivatives are right.
      what: whose they are, for the error.
      witness: that of which the derivatives are counted, of the shape of ``result``; itself, if
        None. It is another where ``result`` hides what it should depend on.
      advice: what the error says was expected, and how to mend it.

    Raises:
      SiteError: when differentiated once more.
    """
    x = result if witness is None else witness
    counted = {"limit": limit, "taken": 0, "credited": False, "what": what, "advice": advice}
    return _order_p.bind(result, x, *potentials, **counted)


@Elementwise
def held(x: jax.Array) -> jax.Array:
    """``x`` without its derivative, which :func:`limited` counts all the same."""
    return x


held.defjvps(lambda dx, x: jnp.zeros_like(x))


def _jvp(
    primals: Any,
    tangents: Any,
    *,
    limit: int,
    taken: int,
    credited: bool,
    what: str,
    advice: str,
) -> Any:
    # y is x itself, or what x stands for, or a (co)tangent of it. The count goes by x, which stays
    # beside its tangents as the witness of what they are tangents at: so a derivative that was
    # compiled before, and has lost all else of x, is still refused when it is differentiated again.
    y, x, *potentials = primals
    of_y, of_x, *of_potentials = tangents
    if not is_zero(of_x):
        taken = taken + 1
        credited = credited or not all(map(is_zero, of_potentials))
        if credited and taken > limit:
            raise SiteError(
                f"{what} estimates derivatives up to order {limit} without bias, got one of order "
                f"{taken}. {advice}"
            )
    params = {"limit": limit, "what": what, "advice": advice, "taken": taken, "credited": credited}
    primal = _order_p.bind(y, x, *potentials, **params)
    if is_zero(of_y):
        return primal, zero_like(primal)
    return primal, _order_p.bind(of_y, x, *potentials, **params)


def _batch(operands: Any, dims: Any, **params: Any) -> Any:
    return _order_p.bind(*operands, **params), dims[0]


_order_p = define_linear("vipp_order", lambda y, *_, **params: y, _batch, _jvp)
