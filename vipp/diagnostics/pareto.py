"""Pareto smoothed importance sampling of a vector of log weights."""

from __future__ import annotations

import math

import numpy as np

_REGULAR = 10, 0.5  # as if so many tail weights more had come from a shape of a half
_FEWEST = 5


def smoothed(log_w: np.ndarray) -> tuple[float, np.ndarray]:
    r"""The shape of the tail of importance weights, and the weights with that tail smoothed.

    The largest :math:`\min(S/5, 3\sqrt S)` of :math:`S` weights are those of a generalised Pareto
    distribution, fitted by its posterior mean.

    Args:
      log_w: of shape ``(num_samples,)``.

    Returns:
      The shape, minus infinity where all large weights are equal and infinity where there are too
      few; and the log weights, normalised.

    References:
      Vehtari, Simpson, Gelman, Yao and Gabry, *Pareto smoothed importance sampling*, 2024.
    """
    log_w = np.asarray(log_w, float) - np.max(log_w)
    count = math.ceil(min(len(log_w) / 5, 3 * len(log_w) ** 0.5))
    order = np.argsort(log_w, kind="stable")
    tail = order[-count:]
    cut = np.exp(log_w[order[-count - 1]]) if count < len(log_w) else 0.0
    excess = np.exp(log_w[tail]) - cut
    if count < _FEWEST:
        return math.inf, _normalised(log_w)
    if excess[0] == excess[-1]:
        return -math.inf, _normalised(log_w)
    shape, scale = fitted(excess)
    ranks = (np.arange(count) + 0.5) / count
    quantiles = scale * np.expm1(-shape * np.log1p(-ranks)) / shape if shape else -np.log1p(-ranks)
    log_w[tail] = np.minimum(np.log(cut + quantiles), 0.0)
    return shape, _normalised(log_w)


def fitted(excess: np.ndarray) -> tuple[float, float]:
    """Shape and scale of the generalised Pareto distribution of sorted positive numbers.

    References:
      Zhang and Stephens, *A new and efficient estimation method for the generalized Pareto
      distribution*, 2009.
    """
    n = len(excess)
    grid = 30 + int(n**0.5)
    quartile = excess[max(int(n / 4 + 0.5) - 1, 0)] or excess[excess > 0][0]
    theta = 1 / excess[-1] + (1 - np.sqrt(grid / (np.arange(grid) + 0.5))) / (3 * quartile)
    shapes = np.log1p(-theta[:, None] * excess).mean(1)
    profile = n * (np.log(-theta / shapes) - shapes - 1)
    weight = np.exp(profile - profile.max())
    mean = (theta * weight).sum() / weight.sum()
    shape = np.log1p(-mean * excess).mean()
    more, prior = _REGULAR
    return float((n * shape + more * prior) / (n + more)), float(-shape / mean)


def _normalised(log_w: np.ndarray) -> np.ndarray:
    return log_w - np.log(np.exp(log_w).sum())
