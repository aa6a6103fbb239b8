"""Means over stretches of a training run, and what they say of its convergence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_MOST = 16
_BATCHES = 4
_FARTHEST = 25.0  # an extrapolation, in units of the points' distances


class Window(NamedTuple):
    """A stretch of steps.

    Attributes:
      mean: of the parameters, a vector.
      slope: the mean gradient, a vector.
      loss: the mean.
      variance: of the losses.
      steps: their number.
    """

    mean: np.ndarray
    slope: np.ndarray
    loss: float
    variance: float
    steps: int


class Windows:
    """The stretches of a run, at most 16: when there are so many, each two become one."""

    def __init__(self) -> None:
        self.all: list[Window] = []

    def add(self, mean: np.ndarray, slope: np.ndarray, losses: np.ndarray) -> bool:
        """Add one; whether the next are to be twice as long."""
        losses = losses.astype(float)
        self.all.append(Window(mean, slope, losses.mean(), losses.var(), len(losses)))
        if len(self.all) < _MOST:
            return False
        self.all = [joined(self.all[i : i + 2]) for i in range(0, _MOST, 2)]
        return True

    def improving(self) -> bool:
        """Whether the loss of the last quarter is below that of the one before, beyond noise."""
        quarter = max(1, len(self.all) // 4)
        before, now = self.all[-2 * quarter : -quarter], self.all[-quarter:]
        return not before or standard_errors(joined(before), joined(now)) > 1.0

    def latter_half(self) -> list[Window]:
        """Windows of the latter half, as many as make four equal batches."""
        return self.all[-_BATCHES * max(1, len(self.all) // (2 * _BATCHES)) :]


def joined(windows: Sequence[Window]) -> Window:
    """Several as one."""
    steps = sum(w.steps for w in windows)
    share = [w.steps / steps for w in windows]
    mean = sum((s * w.mean for s, w in zip(share, windows, strict=True)), np.zeros(()))
    slope = sum((s * w.slope for s, w in zip(share, windows, strict=True)), np.zeros(()))
    loss = sum(s * w.loss for s, w in zip(share, windows, strict=True))
    square = sum(
        s * (w.variance + (w.loss - loss) ** 2) for s, w in zip(share, windows, strict=True)
    )
    return Window(mean, slope, loss, square, steps)


def standard_errors(before: Window, now: Window) -> float:
    """By how many standard errors the loss has become lower."""
    error = before.variance / before.steps + now.variance / now.steps
    return (before.loss - now.loss) / max(error, 1e-300) ** 0.5


def batches(windows: Sequence[Window]) -> list[np.ndarray]:
    """The means of four batches of consecutive windows."""
    size = len(windows) // _BATCHES
    return [joined(windows[i * size : (i + 1) * size]).mean for i in range(_BATCHES)]


def spread(points: Sequence[np.ndarray], slopes: Sequence[np.ndarray]) -> float:
    r"""By how much the objective at the mean of batch means is short of its largest, in nats.

    With ``H`` minus its Hessian the batches' variance is
    :math:`\sum_j (a_j - \bar a)^T H (a_j - \bar a) / (J - 1)`, and the mean has a ``J``-th of it.
    """
    a, g = np.stack(points), np.stack(slopes)
    count = len(a)
    return float(((a - a.mean(0)) * (g - g.mean(0))).sum() / (2 * count * (count - 1)))


def symmetrised(a: np.ndarray, b: np.ndarray, slope_a: np.ndarray, slope_b: np.ndarray) -> float:
    r"""Half of the symmetrised divergence between two points, in nats.

    .. math:: \langle a - b, \nabla L(a) - \nabla L(b) \rangle / 2
    """
    return float(((a - b) * (slope_a - slope_b)).sum() / 2)


def extrapolated(
    points: Sequence[np.ndarray], slopes: Sequence[np.ndarray], slope: np.ndarray
) -> tuple[np.ndarray, float]:
    """The way from the mean of four points to the lowest point of the plane, and the decrease.

    Args:
      points: four vectors, and others that are in the plane, too.
      slopes: the gradients there.
      slope: the gradient at the mean of the four.
    """
    a, g = np.stack(points), np.stack(slopes)
    a, g = a - a[:_BATCHES].mean(0), g - g[:_BATCHES].mean(0)
    curvature = (a @ g.T + g @ a.T) / 2
    values, vectors = np.linalg.eigh(curvature)
    along = vectors.T @ (a @ slope)
    curved = values > 1e-6 * max(values[-1], 0.0)
    far = np.where(curved, -along / np.where(curved, values, 1.0), 0.0)
    far = np.clip(far, -_FARTHEST, _FARTHEST)
    decrease = -(far * along + 0.5 * far**2 * values).sum()
    return (vectors @ far) @ a, float(decrease)


def still_to_go(changes: Sequence[float], spreads: Sequence[float]) -> float:
    """How far from the optimum the middle of the iterates is, in nats, if half as far as before.

    A change has the noise of both averages, which is taken off: what is left is how far the middle
    moved. The first is from where the search ended, which is none: of that nothing is taken off.

    Args:
      changes: half of the symmetrised divergences of averages from those before; the first is NaN.
      spreads: of the averages.
    """
    if len(changes) < 2:
        return math.inf
    noise = spreads[-1] + (spreads[-2] if len(changes) > 2 else 0.0)
    return max(changes[-1] - noise, 0.0)
