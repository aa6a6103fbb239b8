"""How far the mean of a gradient is from that of another, with its standard error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vipp.diagnostics.gradient_draws import Call
from vipp.diagnostics.measurements import Estimate


def measured_bias(calls: Sequence[Call], reference: Sequence[Call]) -> Estimate:
    r"""The distance :math:`\lVert b \rVert` between two means.

    With :math:`\delta_r` the difference of the means of call :math:`r`, whose keys are equal,

    .. math:: \lVert b \rVert^2 \approx \frac{1}{n(n-1)} \sum_{r \ne s} \delta_r \cdot \delta_s

    without bias; its standard error is that of the jackknife.

    Args:
      calls: of the one gradient.
      reference: of the other.

    Returns:
      The distance, zero where the estimate of its square is negative.
    """
    pairs = zip(calls, reference, strict=False)
    delta = np.array([np.asarray(a.mean, float) - b.mean for a, b in pairs])
    count = len(delta)
    inner = delta @ delta.T
    off = inner.sum() - np.trace(inner)
    square = off / (count * (count - 1))
    without = off - 2 * (inner.sum(1) - np.diag(inner))
    left = without / ((count - 1) * (count - 2))
    error = float(np.sqrt((count - 1) / count * np.square(left - left.mean()).sum()))
    distance = float(max(square, 0.0) ** 0.5)
    # the square root's slope is infinite at zero: there the root of the error
    return Estimate(distance, min(error / (2 * distance), error**0.5) if distance else error**0.5)
