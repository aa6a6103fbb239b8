"""The score-function (REINFORCE) estimator and its baselines."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from vipp_transforms.checks import check_differentiate, positive_int
from vipp_transforms.errors import SiteError
from vipp_transforms.estimators._baseline import (
    Baseline,
    MovingAverage,
    as_values,
    fit_to_costs,
)
from vipp_transforms.estimators._coupling import antithetic, quantile, require_quantile, uniform
from vipp_transforms.estimators.base import (
    Axis,
    Estimator,
    Expansion,
    Learning,
    Local,
    SiteInfo,
    Source,
    Term,
    Traits,
    estimator,
)
from vipp_transforms.settings import ELEMENTS


@estimator
class ScoreFunction(Estimator):
    r"""Weigh each term by the density ratio of the lanes that it depends on.

    .. math::
        \hat f_i = f(x_i)\, m_i - b_i\,(m_i - 1), \qquad
        m_i = \exp(\log q(x_i) - \mathrm{sg}[\log q(x_i)]),

    averaged over ``num_samples`` draws, with a baseline :math:`b_i` that does not depend on
    :math:`x_i`: 0, or, leaving one out, :math:`\mathrm{sg}[\frac{1}{n-1}\sum_{j \ne i} f(x_j)]`, or
    values from elsewhere. Its value is that of ``f``; its derivatives of every order are unbiased.
    Because each term sees only its own lanes and sites, the estimator is Rao-Blackwellised by
    construction.

    Several sites with equal ``num_samples`` are drawn as joint trajectories, so a program of many
    such sites costs ``num_samples`` evaluations, not ``num_samples`` to the number of sites.

    Needs no derivative of ``f``: with Gaussian choices, ``antithetic=True`` is antithetic evolution
    strategies, the gradient of a smoothed objective that itself need not be differentiable.

    Args:
      num_samples: independent draws, at least 1; at least 2 with the leave-one-out baseline.
      baseline: None, ``"leave_one_out"``, :class:`MovingAverage`, :class:`Learned`, or values
        broadcastable to the site's ``batch_shape`` (or a function of the program's arguments that
        makes them, for ``vipp.with_estimators``).
      antithetic: whether draws come in pairs :math:`F^{-1}(u), F^{-1}(1 - u)`; ``num_samples`` is
        then even, and leaving one out leaves out its partner, too.
      coefficient: what a baseline of values is multiplied by; ``"optimal"`` estimates the best
        number, :math:`\sum_{j \ne i} f_j b_j / \sum_{j \ne i} b_j^2`, from the other samples.
      differentiate: whether the program itself, in all but the density of the choice, is
        differentiated at ``"all"`` draws or at the ``"first"``, which has the same expectation.
        With many samples of a dear program it takes about half of the time, and the noise of its
        own derivative is that of a single draw. Sites drawn as joint trajectories do so together;
        only first derivatives are unbiased then. Where a choice of another axis is drawn between
        two of this one, all draws are used.

    Raises:
      ValueError: for a count, a baseline, a coefficient or ``differentiate`` that is not one of
        these.

    Example:
      >>> import vipp
      >>> vipp.ScoreFunction(num_samples=4, baseline="leave_one_out").num_samples
      4

    References:
      Williams, *Simple statistical gradient-following algorithms*, 1992.
      Kool, van Hoof and Welling, *Buy 4 REINFORCE samples, get a baseline for free!*, 2019.
      Foerster et al., *DiCE: the infinitely differentiable Monte Carlo estimator*, 2018.
      Salimans et al., *Evolution strategies as a scalable alternative to reinforcement learning*,
      2017.
    """

    num_samples: int = 1
    baseline: Any = dataclasses.field(default=None, metadata=ELEMENTS)
    antithetic: bool = False
    coefficient: float | Literal["optimal"] = 1.0
    differentiate: Literal["all", "first"] = "all"

    def __post_init__(self) -> None:
        positive_int("ScoreFunction: num_samples", self.num_samples)
        if isinstance(self.baseline, str) and self.baseline != "leave_one_out":
            raise ValueError(
                "ScoreFunction: baseline must be None or 'leave_one_out', MovingAverage(), "
                f"Learned(...) or values, got {self.baseline!r}."
            )
        if self.antithetic and self.num_samples % 2:
            raise ValueError(
                "ScoreFunction: antithetic draws come in pairs, got num_samples="
                f"{self.num_samples}, expected an even number."
            )
        check_differentiate("ScoreFunction", self.differentiate)
        self._check_counts()

    def _check_counts(self) -> None:
        least = 4 if self.antithetic else 2
        if self._leaves_out and self.num_samples < least:
            raise ValueError(
                "ScoreFunction: baseline='leave_one_out' averages over the other samples and so "
                f"needs num_samples of at least {least}, got {self.num_samples}."
            )
        if not isinstance(self.coefficient, str):
            return
        if self.coefficient != "optimal":
            raise ValueError(
                "ScoreFunction: coefficient must be a number or 'optimal', got "
                f"{self.coefficient!r}."
            )
        if self.baseline is None or self._leaves_out:
            raise ValueError(
                "ScoreFunction: coefficient='optimal' scales a baseline of values, got baseline="
                f"{self.baseline!r}."
            )
        if self.num_samples < least:
            raise ValueError(
                "ScoreFunction: coefficient='optimal' is estimated from the other samples and so "
                f"needs num_samples of at least {least}, got {self.num_samples}."
            )

    @property
    def _leaves_out(self) -> bool:
        return isinstance(self.baseline, str)

    @property
    def traits(self) -> Traits:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Causal where draws are plain, without a baseline for each lane."""
        first = self.differentiate == "first" and self.num_samples > 1
        causal = not self.antithetic and self.values is None and not first
        return Traits(causal=causal, first=first, orders=1 if first else None)

    @property
    def learning(self) -> Learning | None:
        """What a moving average keeps, and what a baseline with parameters is fitted to."""
        if isinstance(self.baseline, MovingAverage):
            return self.baseline.learning(lambda b: dataclasses.replace(self, baseline=b))
        learned = self.values is not None and self.values.learned
        return Learning(fit_to_costs) if learned else None

    @property
    def values(self) -> Baseline | None:
        """The baseline, if it has values."""
        return as_values(self.baseline, self.coefficient)

    def validate(self, site: SiteInfo) -> None:
        """Every distribution with a density fits; a baseline must have become values."""
        if self.antithetic:
            require_quantile(site)
        if self.baseline is not None and not self._leaves_out and self.values is None:
            raise SiteError(
                f"Site '{site.name}': the baseline {self.baseline!r} has parameters or state that "
                "the program does not know of. Fix: set the estimator with vipp.sample(..., "
                "estimator=) or vipp.with_estimators, not through infer={'estimator': ...}."
            )

    def axis(self, site: SiteInfo) -> Axis | None:
        """Joint trajectories, shared by all sites with as many samples."""
        if self.num_samples == 1:
            return None
        return Axis(f"samples:{self.num_samples}", self.num_samples, shared=True)

    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """One draw (per trajectory)."""
        if self.antithetic:
            pairs = lambda key, shape: antithetic(uniform(key, (self.num_samples // 2, *shape)))
            draw = lambda here, u: quantile(here.distribution, u, site.support)
            u = source.common(pairs)[source.index]
            value = jax.lax.stop_gradient(source.map(draw, u))
        else:
            value = source.draw()
        if self.values is None:
            return Expansion(value)

        def potentials(here: Local, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            log_prob = here.distribution.log_prob(x)
            return log_prob, _broadcast(here.estimator.values.values, log_prob.shape, site)

        return Expansion(value, source.map(potentials, value))

    def contract(self, term: Term) -> jax.Array:
        """The term times the density ratio, less the baseline times what the ratio adds."""
        log_prob, *given = term.potentials
        # one in value; its derivatives of every order are those of the density ratio (DiCE)
        ratio = jnp.exp(log_prob - jax.lax.stop_gradient(log_prob))
        if self._leaves_out:
            baseline = self._mean_of_others(jax.lax.stop_gradient(term.value))
        elif given and term.finest:
            baseline = self._scaled(jax.lax.stop_gradient(term.value), given[0] / term.lanes)
        else:
            return term.value * ratio
        # the baseline's multiplier has expectation zero: E[ratio] = 1 for every parameter
        return baseline + (term.value - baseline) * ratio

    def _mean_of_others(self, x: jax.Array) -> jax.Array:
        return self._others(x) / (self.num_samples - (2 if self.antithetic else 1))

    def _others(self, x: jax.Array) -> jax.Array:
        """The sum over the samples that are independent of each."""
        own = x + jnp.roll(x, self.num_samples // 2, axis=0) if self.antithetic else x
        return x.sum(0, keepdims=True) - own

    def _scaled(self, value: jax.Array, baseline: jax.Array) -> jax.Array:
        values = self.values
        assert values is not None
        if not isinstance(values.coefficient, str):
            return baseline * values.coefficient
        baseline = jnp.broadcast_to(baseline, value.shape)
        inner = lambda x: x.reshape((self.num_samples, -1)).sum(1)
        products, squares = self._others(inner(value * baseline)), self._others(inner(baseline**2))
        best = jnp.where(squares > 0, products / jnp.where(squares > 0, squares, 1.0), 0.0)
        return baseline * best.reshape((-1,) + (1,) * (value.ndim - 1))


def _broadcast(values: Any, shape: tuple[int, ...], site: SiteInfo) -> jax.Array:
    try:
        return jnp.broadcast_to(values, shape)
    except ValueError:
        raise SiteError(
            f"Site '{site.name}': the baseline has shape {jnp.shape(values)}, expected one that "
            f"broadcasts to the batch shape {shape} of its distribution. Fix: give one value per "
            "element of the batch."
        ) from None
