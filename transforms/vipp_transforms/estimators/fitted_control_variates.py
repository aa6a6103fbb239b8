"""The score function less functions of the draw, by coefficients fitted to the other draws."""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from vipp_transforms.checks import check_differentiate, positive_int
from vipp_transforms.estimators._linear import direction, require_support
from vipp_transforms.estimators.base import (
    Axis,
    Estimator,
    Expansion,
    SiteInfo,
    Source,
    Term,
    Traits,
    estimator,
)


@estimator
class FittedControlVariates(Estimator):
    r"""Leave-one-out, less what the slope at the mean and the divergence say of each draw.

    .. math::
        \frac1n \sum_k \Big[r_k - \frac{1}{n-1} \sum_{j \ne k} r_j\Big] \nabla \log q(x_k)
        + \frac1n \sum_k w_k^\top \nabla E[c], \qquad r_k = f(x_k) - w_k^\top (c(x_k) - E[c])

    with :math:`c(x)` the program's first-order expansion at the mean of all choices and its terms
    of single lanes, and :math:`w_k` the least-squares coefficients of all draws but the k-th, the
    same for all entries of a term. Unbiased whatever :math:`c` is, as :math:`w_k` does not depend
    on :math:`x_k`.

    Args:
      num_samples: :math:`n`, at least 3. Sites with as many samples, those of
        :class:`ScoreFunction` included, are drawn as joint trajectories.
      differentiate: whether the program is differentiated at ``"all"`` draws or at the
        ``"first"``, see :class:`ScoreFunction`.

    Raises:
      ValueError: if ``num_samples`` is not an int of at least 3, or for another ``differentiate``.

    Example:
      >>> import vipp_transforms as vt
      >>> vt.FittedControlVariates(num_samples=4)
      FittedControlVariates(num_samples=4, differentiate='all')

    References:
      Gu, Levine, Sutskever and Mnih, *MuProp: unbiased backpropagation for stochastic neural
      networks*, 2016.
    """

    num_samples: int = 8
    differentiate: Literal["all", "first"] = "all"

    def __post_init__(self) -> None:
        positive_int("FittedControlVariates: num_samples", self.num_samples)
        if self.num_samples < 3:
            raise ValueError(
                f"FittedControlVariates: num_samples must be at least 3, got {self.num_samples}."
            )
        check_differentiate("FittedControlVariates", self.differentiate)

    @property
    def traits(self) -> Traits:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A first derivative alone."""
        return Traits(orders=1, fitted=True, first=self.differentiate == "first")

    def validate(self, site: SiteInfo) -> None:
        """A finite support, whose mean is known."""
        require_support(site, "FittedControlVariates")

    def sums_single(self, site: SiteInfo) -> bool:
        """Where a lane has no more values than are drawn, or not many more."""
        return site.support is not None and len(site.support) <= 2 * self.num_samples

    def axis(self, site: SiteInfo) -> Axis | None:
        """Joint trajectories, shared by all sites with as many samples."""
        return Axis(f"samples:{self.num_samples}", self.num_samples, shared=True)

    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """A draw."""
        value = source.draw()
        log_prob = source.map(lambda here, x: here.distribution.log_prob(x), value)
        return Expansion(value, (direction(log_prob),))

    def contract(self, term: Term) -> jax.Array:
        """Leave-one-out of what the functions leave, and their means."""
        score, *functions = term.potentials
        n, shape = self.num_samples, jnp.shape(term.value)
        full = lambda x: jnp.broadcast_to(x, shape)
        left = jax.lax.stop_gradient(term.value)
        known = jnp.zeros(shape, left.dtype)
        if functions:
            away = jnp.stack([full(x) for x in functions[::3]], 1)
            spread = jnp.stack([full(x)[0].sum() for x in functions[2::3]])
            weights = jax.lax.stop_gradient(_coefficients(away, left, spread * n))
            left = left - jnp.einsum("ka,ka...->k...", weights, away)
            known = sum(
                w.reshape((n,) + (1,) * (len(shape) - 1)) * x
                for w, x in zip(weights.T, functions[1::3], strict=True)
            )
        left = jax.lax.stop_gradient(left)
        scored = (left - left.mean(0, keepdims=True)) * (n / (n - 1)) * score
        return term.value + scored + known


def _coefficients(functions: jax.Array, f: jax.Array, scale: jax.Array) -> jax.Array:
    """For each draw, the least-squares coefficients of all others, ``(n, number)``.

    The sums are over pairs of the others: taken as all less one, what rounding leaves where the
    others are equal would depend on the draw left out. ``scale`` depends on no draw.
    """
    n = len(f)
    others = 1.0 - jnp.eye(n, dtype=f.dtype)
    functions, f = functions.reshape((n, functions.shape[1], -1)), f.reshape((n, 1, -1))
    away, left = functions[:, None] - functions[None], f[:, None] - f[None]
    pairs = partial(jnp.einsum, "kj,kl,jl...->k...", others, others / (2 * (n - 1)))
    squares = pairs((away[:, :, :, None] * away[:, :, None]).sum(-1))
    products = pairs((away * left).sum(-1))
    # nothing to fit where a function has no variance at all
    floor = jnp.where(scale > 0, 1e-4 * scale, 1.0)
    return jnp.linalg.solve(squares + jnp.diag(floor)[None], products[..., None])[..., 0]
