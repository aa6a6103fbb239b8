"""Whether two distributions have the same support, as far as that can be told."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints
from numpyro.util import not_jax_tracer

# between the boundaries that supports usually have: on a boundary they may differ
_POINTS = np.array([-1e6, -2.5, -0.5, 0.25, 0.75, 1.5, 2.5, 1e6])
_INDEPENDENT = type(constraints.independent(constraints.boolean, 1))
_INTEGERS = np.array([-2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 100, 100_000])


def same_support(a: Any, b: Any) -> bool:
    """Whether ``a`` and ``b`` may have the same support; False only if they certainly don't."""
    return not reaches_outside(a, b) and not reaches_outside(b, a)


def reaches_outside(a: Any, b: Any) -> bool:
    """Whether ``a`` certainly has values that ``b`` cannot have."""
    one, other = a.support, b.support
    if one is None or other is None or one is other:
        return False
    if one.is_discrete != other.is_discrete or one.event_dim != other.event_dim:
        return True
    if one.event_dim and (each_number(one) is None or each_number(other) is None):
        return _everywhere(one) and not _everywhere(other)
    one, other = each_number(one) or one, each_number(other) or other
    points = _INTEGERS if one.is_discrete else _POINTS
    columns = points.reshape((-1,) + (1,) * max(len(a.shape()), len(b.shape())))
    with jax.ensure_compile_time_eval():
        columns = jnp.asarray(columns)  # NumPy cannot compare with what is traced
        inside = [c(columns) for c in (one, other)]
        if not all(map(not_jax_tracer, inside)):
            return False  # bounds that are not known yet
        return bool(np.any(np.asarray(inside[0]) & ~np.asarray(inside[1])))


def each_number(constraint: Any) -> Any:
    """The constraint on each number of a vector, if that is all there is; None otherwise."""
    if isinstance(constraint, _INDEPENDENT):
        return each_number(constraint.base_constraint)
    return constraint if constraint.event_dim == 0 else None


def _everywhere(constraint: Any) -> bool:
    """Whether all vectors of numbers satisfy it."""
    return each_number(constraint) is constraints.real
