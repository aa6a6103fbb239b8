"""Where the empirical distribution of ranks stays if they are uniform, everywhere at once."""

from __future__ import annotations

import numpy as np

_SIMULATIONS = 2_000


def ecdf(ranks: np.ndarray, num_samples: int) -> np.ndarray:
    """The share of ranks up to each of ``0, ..., num_samples - 1``.

    Args:
      ranks: ints from 0 to ``num_samples``, shape ``(n,)``.
      num_samples: of how many draws.
    """
    counts = np.bincount(ranks, minlength=num_samples + 1)
    return np.cumsum(counts)[:-1] / len(ranks)


def simultaneous_band(
    number: int, num_samples: int, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    r"""Bounds that the whole :func:`ecdf` of uniform ranks keeps with a probability.

    At each place the count is binomial, and the bounds are its quantiles
    :math:`\gamma / 2, 1 - \gamma / 2`; :math:`\gamma` is such that of simulated sets of ranks the
    share ``level`` keeps all of them.

    Args:
      number: of ranks.
      num_samples: of how many draws.
      level: the probability.

    Returns:
      The lower and the upper one, each of shape ``(num_samples,)``.

    References:
      Säilynoja, Bürkner and Vehtari, *Graphical test for discrete uniformity and its applications
      in goodness-of-fit evaluation and multiple sample comparison*, 2022.
    """
    from scipy.stats import binom  # takes a second, which `import vipp` should not

    places = np.arange(1, num_samples + 1) / (num_samples + 1)
    draw = np.random.default_rng(0)
    ranks = draw.integers(0, num_samples + 1, (_SIMULATIONS, number))
    counts = np.stack([number * ecdf(row, num_samples) for row in ranks]).round()
    tail = np.minimum(binom.cdf(counts, number, places), 1 - binom.cdf(counts - 1, number, places))
    gamma = 2 * np.quantile(tail.min(1), 1 - level)
    lower = binom.ppf(gamma / 2, number, places) / number
    return lower, binom.ppf(1 - gamma / 2, number, places) / number
