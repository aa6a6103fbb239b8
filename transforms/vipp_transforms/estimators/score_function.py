"""The score-function (REINFORCE) estimator and its leave-one-out baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from vipp_transforms.estimators.base import Axis, Expansion, Lot, Source, Term


@dataclass(frozen=True)
class ScoreFunction:
    r"""Weigh each term by the density ratio of the lanes that it depends on.

    .. math::
        \hat f_i = f(x_i)\, m_i - b_i\,(m_i - 1), \qquad
        m_i = \exp(\log q(x_i) - \mathrm{sg}[\log q(x_i)]),

    averaged over ``num_samples`` draws, with :math:`b_i = 0` or, leaving one out,
    :math:`b_i = \mathrm{sg}[\frac{1}{n-1}\sum_{j \ne i} f(x_j)]`. Its value is that of ``f``; its
    derivatives of every order are unbiased. Because each term sees only its own lanes and sites,
    the estimator is Rao-Blackwellised by construction.

    Several sites with equal ``num_samples`` are drawn as joint trajectories, so a program of many
    such sites costs ``num_samples`` evaluations, not ``num_samples`` to the number of sites.

    Args:
      num_samples: independent draws, at least 1; at least 2 with the leave-one-out baseline.
      baseline: None or ``"leave_one_out"``.

    Raises:
      ValueError: for a count or a baseline that is not one of these.

    Example:
      >>> import vipp_transforms as vt
      >>> vt.ScoreFunction(num_samples=4, baseline="leave_one_out")
      ScoreFunction(num_samples=4, baseline='leave_one_out')

    References:
      Williams, *Simple statistical gradient-following algorithms*, 1992.
      Kool, van Hoof and Welling, *Buy 4 REINFORCE samples, get a baseline for free!*, 2019.
      Foerster et al., *DiCE: the infinitely differentiable Monte Carlo estimator*, 2018.
    """

    num_samples: int = 1
    baseline: Literal["leave_one_out"] | None = None
    biased: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    relaxed: ClassVar[bool] = False
    orders: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if isinstance(self.num_samples, bool) or not isinstance(self.num_samples, int):
            raise ValueError(
                f"ScoreFunction: num_samples must be an int, got {self.num_samples!r}."
            )
        if self.num_samples < 1:
            raise ValueError(
                f"ScoreFunction: num_samples must be positive, got {self.num_samples}."
            )
        if self.baseline not in (None, "leave_one_out"):
            raise ValueError(
                f"ScoreFunction: baseline must be None or 'leave_one_out', got {self.baseline!r}."
            )
        if self.baseline == "leave_one_out" and self.num_samples < 2:
            raise ValueError(
                "ScoreFunction: baseline='leave_one_out' averages over the other samples and so "
                f"needs num_samples of at least 2, got {self.num_samples}."
            )

    def validate(self, lot: Lot) -> None:
        """Every distribution with a density fits."""

    def axis(self, lot: Lot) -> Axis | None:
        """Joint trajectories, shared by all sites with as many samples."""
        if self.num_samples == 1:
            return None
        return Axis(f"samples:{self.num_samples}", self.num_samples, shared=True)

    def expand(self, lot: Lot, source: Source) -> Expansion:
        """One draw (per trajectory)."""
        return Expansion(source.draw())

    def contract(self, term: Term) -> jax.Array:
        """The term times the density ratio, less the baseline times what the ratio adds."""
        ratio = jnp.exp(term.log_prob - jax.lax.stop_gradient(term.log_prob))
        if self.baseline is None:
            return term.value * ratio
        others = term.value.sum(0, keepdims=True) - term.value
        baseline = jax.lax.stop_gradient(others / (self.num_samples - 1))
        return baseline + (term.value - baseline) * ratio
