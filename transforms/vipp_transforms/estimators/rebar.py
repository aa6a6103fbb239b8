"""The REBAR estimator: the score function with a relaxed control variate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vipp_transforms.estimators._linear import FIRST_ORDER
from vipp_transforms.estimators._relaxation import (
    gumbel_behind,
    gumbel_given,
    relax,
    require_relaxable,
    require_temperature,
)
from vipp_transforms.estimators.base import Axis, Expansion, Lot, Source, Term


@dataclass(frozen=True)
class Rebar:
    r"""The score function, less the relaxed program's, plus the relaxed program's own gradient.

    .. math::
        [f(b) - \eta f(\tilde y)]\,\nabla \log q(b) + \eta \nabla f(y) - \eta \nabla f(\tilde y)

    with :math:`b` the choice, :math:`y = \mathrm{softmax}(z / \tau)` its relaxation and
    :math:`\tilde y` another given :math:`b`: unbiased for every temperature and :math:`\eta`. The
    program must be differentiable at relaxed values; three evaluations.

    Args:
      temperature: :math:`\tau`, positive.
      eta: :math:`\eta`, the control variate's scale.

    Raises:
      ValueError: if ``temperature`` is not positive.

    Example:
      >>> import vipp_transforms as vt
      >>> vt.Rebar(temperature=0.5)
      Rebar(temperature=0.5, eta=1.0)

    References:
      Tucker, Mnih, Maddison, Lawson and Sohl-Dickstein, *REBAR: low-variance, unbiased gradient
      estimates for discrete latent variable models*, 2017, equation 7.
    """

    temperature: float = 0.5
    eta: float = 1.0
    biased: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    relaxed: ClassVar[bool] = True
    orders: ClassVar[int | None] = FIRST_ORDER

    def __post_init__(self) -> None:
        require_temperature("Rebar", self.temperature)

    def validate(self, lot: Lot) -> None:
        """A Bernoulli or a one-hot choice."""
        require_relaxable(lot, "Rebar")

    def axis(self, lot: Lot) -> Axis | None:
        """The choice, its relaxation, and another given the choice."""
        return Axis(f"site:{lot.name}", 3)

    def expand(self, lot: Lot, source: Source) -> Expansion:
        """The three values, and the log probability of the choice."""
        drawn = source.draw().astype(jnp.result_type(float))

        def soften(perturb: Callable[..., jax.Array], salt: int) -> jax.Array:
            def value(key: Any, logits: jax.Array, one_hot: jax.Array) -> jax.Array:
                perturbed = perturb(jax.random.fold_in(key, salt), logits, one_hot)
                return jax.nn.softmax(perturbed / self.temperature)

            return relax(lot, source, value)

        values = jnp.stack([drawn, soften(gumbel_behind, 0), soften(gumbel_given, 1)])
        log_prob = source.map(lambda key, distribution, x: distribution.log_prob(x), drawn)
        return Expansion(values, (jnp.broadcast_to(log_prob, (3, *log_prob.shape)),))

    def contract(self, term: Term) -> jax.Array:
        """The score function of what the control variate leaves, and the control variate's own."""
        hard, soft, given = term.value
        log_prob = term.log_prob[0]
        ratio = jnp.exp(log_prob - jax.lax.stop_gradient(log_prob))
        control = jax.lax.stop_gradient(given)
        return hard * ratio + self.eta * (soft - given - control * (ratio - 1.0))
