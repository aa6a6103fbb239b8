"""Baselines of the score function that come from outside the samples themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax

from vipp_transforms import checks
from vipp_transforms.estimators import _running
from vipp_transforms.estimators.base import Learning, Local, Probe, Seen, estimator
from vipp_transforms.settings import ELEMENTS, Part


@estimator
class Baseline(Part):
    """What each lane is predicted to contribute to the objective.

    Args:
      values: broadcastable to the distribution's ``batch_shape``; must not depend on the choice
        itself.
      coefficient: what the values are multiplied by; ``"optimal"`` for the least-squares
        coefficient on the other samples.
      learned: whether the values are functions of parameters to be fitted to the contributions.
    """

    values: Any = dataclasses.field(metadata=ELEMENTS)
    coefficient: float | Literal["optimal"] = 1.0
    learned: bool = False


@estimator
class MovingAverage(Part):
    r"""A baseline: the exponentially weighted mean of what the site's lanes contributed before.

    .. math:: b_t = \frac{1 - \rho}{1 - \rho^t} \sum_{s < t} \rho^{t - 1 - s}\, \bar f_s

    One number per site, carried from step to step in NumPyro's mutable state, so that
    ``numpyro.infer.SVI`` and ``vipp.fit`` keep it. Use it through ``vipp.sample`` or
    ``vipp.with_estimators``.

    Args:
      decay: :math:`\rho`, from 0 to below 1.
      mean: :math:`b_t`; None where vipp is to keep it.

    Raises:
      ValueError: if ``decay`` is outside of [0, 1).

    Example:
      >>> import vipp
      >>> vipp.ScoreFunction(baseline=vipp.MovingAverage(0.9)).baseline
      MovingAverage(decay=0.9)

    References:
      Mnih and Gregor, *Neural variational inference and learning in belief networks*, 2014.
    """

    decay: float = 0.99
    mean: Any = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        require_decay("MovingAverage", self.decay)

    def learning(self, fill: Callable[[MovingAverage], Any]) -> Learning:
        """Of the estimator that ``fill`` gives this baseline."""

        def filled(kept: Any) -> Any:
            mean = _running.ratio(kept["sum"], kept["weight"], 0.0)
            return fill(dataclasses.replace(self, mean=mean))

        def observe(probe: Probe) -> Seen:
            if probe.costs is None:
                return Seen()
            return Seen(_running.news(probe.costs.mean(), probe.estimator.baseline.decay))

        init = None if self.mean is not None else lambda key, site: _running.start()
        return Learning(observe, init, filled, _running.update)


@estimator
class Learned(Part):
    r"""A baseline with parameters of its own, fitted to what the site's lanes contribute.

    .. math:: \min_\psi E\Big[\sum_j (f_j - b_\psi(x)_j)^2\Big]

    by the same optimiser as everything else: the term has no influence on the objective's value or
    on any other gradient. Its parameters are ordinary ``numpyro.param`` sites or modules.

    Args:
      network: the values, broadcastable to the site's ``batch_shape``, as an array made inside the
        program; or a function of the program's arguments that makes it, for
        ``vipp.with_estimators``.

    Example:
      >>> import jax.numpy as jnp, vipp
      >>> vipp.Learned(jnp.zeros(3)).network.shape
      (3,)

    References:
      Mnih and Gregor, *Neural variational inference and learning in belief networks*, 2014,
      section 2.3.
    """

    network: jax.Array | Callable[..., Any] = dataclasses.field(metadata=ELEMENTS)


def require_decay(owner: str, decay: Any) -> None:
    """Raise unless ``decay`` is from 0 to below 1."""
    checks.number(f"{owner}: decay", decay, "in [0, 1)", lambda x: (x >= 0) & (x < 1))


def fit_to_costs(probe: Probe) -> Seen:
    """The squared error of a baseline's values, where something was contributed."""

    def predict(here: Local) -> Any:
        return here.estimator.values.values

    return Seen(loss=None if probe.costs is None else probe.error(predict))


def as_values(baseline: Any, coefficient: Any) -> Baseline | None:
    """``baseline`` as values, if it is given as some."""
    if isinstance(baseline, Baseline) or baseline is None or isinstance(baseline, str):
        return baseline if isinstance(baseline, Baseline) else None
    if isinstance(baseline, Learned):
        values = baseline.network
        return None if callable(values) else Baseline(values, coefficient, learned=True)
    if isinstance(baseline, MovingAverage):
        return None if baseline.mean is None else Baseline(baseline.mean, coefficient)
    return None if callable(baseline) else Baseline(baseline, coefficient)
