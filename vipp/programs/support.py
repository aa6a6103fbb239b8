"""Whether two distributions have the same support, as far as that can be told."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpyro.util import not_jax_tracer

from vipp.programs.densities import SiteDensity

# between the boundaries that supports usually have: on a boundary they may differ
_POINTS = np.array([-1e6, -2.5, -0.5, 0.25, 0.75, 1.5, 2.5, 1e6])
_INTEGERS = np.array([-2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 100, 100_000])


def same_support(a: Any, b: Any) -> bool:
    """Whether ``a`` and ``b`` may have the same support; False only if they certainly don't."""
    one, other = a.support, b.support
    if one is None or other is None or one is other:
        return True
    if one.is_discrete != other.is_discrete or one.event_dim != other.event_dim:
        return False
    if one.event_dim:
        return type(one) is type(other) or _independent(one) or _independent(other)
    points = _INTEGERS if one.is_discrete else _POINTS
    columns = points.reshape((-1,) + (1,) * max(len(a.batch_shape), len(b.batch_shape)))
    inside = [c(columns) for c in (one, other)]
    if not all(map(not_jax_tracer, inside)):
        return True  # bounds that are not known yet
    return bool(np.all(np.equal(*map(np.asarray, inside))))


def _independent(constraint: Any) -> bool:
    """Whether a constraint on vectors is one of several that describe the same set."""
    return "independent" in type(constraint).__name__.lower()


def check_same_support(where: str, of_p: list[SiteDensity], of_q: list[SiteDensity]) -> None:
    """Raise if a site has another support in one program than in the other."""
    expected = {s.name: s.fn for s in of_p if s.fn is not None and not s.observed}
    for site in of_q:
        fn = expected.get(site.name)
        if fn is None or site.fn is None or same_support(site.fn, fn):
            continue
        raise ValueError(
            f"{where}: site '{site.name}' has the support of {type(site.fn).__name__} "
            f"({site.fn.support}), expected that of {type(fn).__name__} ({fn.support}). Fix: draw "
            "it from a distribution with that support."
        )
