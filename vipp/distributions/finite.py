"""Finite supports that NumPyro does not list: totals that differ, and multinomials."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpyro.distributions as dist
from numpyro.distributions.discrete import (
    BinomialLogits,
    BinomialProbs,
    MultinomialLogits,
    MultinomialProbs,
)
from numpyro.util import not_jax_tracer

from vipp.distributions.laws import has_values_of
from vipp.distributions.wrappers import factor

_COUNTS = (BinomialLogits, BinomialProbs)
_SPLITS = (MultinomialLogits, MultinomialProbs)
MAX_SUPPORT = 2**12  # splits of a total that are listed


def finite_support(fn: dist.Distribution) -> np.ndarray | None:
    """All values that some lane may have, ``(size, *event_shape)``, or None if there is no list.

    A value that a lane cannot have is of probability zero there.
    """
    base = factor(fn)
    counts, splits = (any(has_values_of(base, k) for k in kinds) for kinds in (_COUNTS, _SPLITS))
    if counts and not_jax_tracer(base.total_count):
        return np.arange(np.asarray(base.total_count).max() + 1)
    if splits and not_jax_tracer(base.total_count):
        return _splits(np.unique(np.asarray(base.total_count)), base.event_shape[0])
    return None


def _splits(totals: np.ndarray, parts: int) -> np.ndarray | None:
    """All ways to split a total; None if totals differ, as the density does not rule others out."""
    if len(totals) != 1 or math.comb(int(totals[0]) + parts - 1, parts - 1) > MAX_SUPPORT:
        return None
    total = int(totals[0])
    bars = itertools.combinations(range(total + parts - 1), parts - 1)
    rows = [np.diff([-1, *row, total + parts - 1]) - 1 for row in bars]
    return np.array(rows).reshape(len(rows), parts)
