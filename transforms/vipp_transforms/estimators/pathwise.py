"""The pathwise (reparameterisation) estimator."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms.checks import positive_int
from vipp_transforms.distributions import Described
from vipp_transforms.errors import SiteError
from vipp_transforms.estimators._coupling import antithetic, quantile, require_quantile, uniform
from vipp_transforms.estimators.base import (
    Axis,
    Estimator,
    Expansion,
    Local,
    SiteInfo,
    Source,
    Term,
    Traits,
    estimator,
)


@estimator
class Pathwise(Estimator):
    r"""Differentiate through the sampler :math:`x = g(\theta, \epsilon)`, the noise being fixed.

    .. math:: \nabla_\theta E[f(x)] = E_\epsilon[\nabla f(x)\, \partial_\theta g(\theta, \epsilon)]

    With its default arguments a pathwise choice is ordinary JAX: the engine never sees it and it
    costs nothing. The others average over several values of the noise:

    - ``antithetic``: in pairs :math:`F^{-1}(u), F^{-1}(1 - u)`, which cancels what is odd in
      :math:`f`;
    - ``quasi``: a Sobol sequence in the noise of all lanes, shifted at random (modulo 1) so that
      each point is uniform: the error falls almost as :math:`1/n` where :math:`f` is smooth;
    - ``control_variate="taylor"``: less the first-order expansion of :math:`f` around the mean
      :math:`m` of the distribution,

      .. math:: \hat f = f(x) - \nabla f(m)^\top (x - m),

      whose last term is zero in expectation for all :math:`\theta`, so that subtracting its
      gradient, which takes Hessian-vector products at the mean, leaves the estimate unbiased. Exact
      in the location for quadratic :math:`f`. Two more evaluations and their directional
      derivatives, however many samples.

    Args:
      num_samples: values of the noise, at least 1; even if ``antithetic``.
      antithetic: whether they come in pairs.
      quasi: whether they are a randomised quasi-Monte Carlo sequence.
      control_variate: None or ``"taylor"``.

    Raises:
      ValueError: for arguments that are not as above, or that exclude each other.

    Example:
      >>> import vipp
      >>> vipp.Pathwise(num_samples=8, quasi=True)
      Pathwise(num_samples=8, antithetic=False, quasi=True, control_variate=None)

    References:
      Kingma and Welling, *Auto-Encoding Variational Bayes*, 2014. Figurnov, Mohamed and Mnih,
      *Implicit reparameterization gradients*, 2018. Buchholz, Wenzel and Mandt, *Quasi-Monte Carlo
      variational inference*, 2018. Miller, Foti, D'Amour and Adams, *Reducing reparameterization
      gradient variance*, 2017. Geffner and Domke, *Approximation based variance reduction for
      reparameterization gradients*, 2020.
    """

    num_samples: int = 1
    antithetic: bool = False
    quasi: bool = False
    control_variate: Literal["taylor"] | None = None

    def __post_init__(self) -> None:
        positive_int("Pathwise: num_samples", self.num_samples)
        if self.antithetic and self.num_samples % 2:
            raise ValueError(
                f"Pathwise: antithetic samples come in pairs, got num_samples={self.num_samples}, "
                "expected an even number."
            )
        if self.control_variate not in (None, "taylor"):
            raise ValueError(
                f"Pathwise: control_variate must be None or 'taylor', got {self.control_variate!r}."
            )
        if bool(self.antithetic) + bool(self.quasi) + (self.control_variate is not None) > 1:
            raise ValueError(
                "Pathwise: antithetic, quasi and control_variate exclude each other, got "
                f"{self!r}. (Antithetic pairs cancel all that the Taylor expansion could.)"
            )

    @property
    def traits(self) -> Traits:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Ordinary JAX where one plain draw is all that is wanted."""
        plain = self.num_samples == 1 and self.control_variate is None and not self.quasi
        return Traits(pathwise=True, direct=plain)

    def validate(self, site: SiteInfo) -> None:
        """Coupled samples need quantiles."""
        if self.antithetic or self.quasi:
            require_quantile(site)

    def axis(self, site: SiteInfo) -> Axis | None:
        """Joint trajectories; or the samples with the mean and a step away from it."""
        if self.control_variate is not None:
            return Axis(f"site:{site.name}", self.num_samples + 2, tangent=True)
        return Axis(f"samples:{self.num_samples}", self.num_samples, shared=True)

    def _noise(self, key: Any, shape: tuple[int, ...]) -> jax.Array:
        """Pairs, or a randomly shifted Sobol sequence."""
        if self.antithetic:
            return antithetic(uniform(key, (self.num_samples // 2, *shape)))
        points = jnp.asarray(_sobol(self.num_samples, shape), jnp.result_type(float))
        return jnp.clip((points + uniform(key, shape)[None]) % 1.0, 1e-7, 1.0 - 1e-7)

    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """Differentiable values."""
        if self.antithetic or self.quasi:
            value = source.map(
                lambda here, u: quantile(here.distribution, u, None),
                source.common(self._noise)[source.index],
            )
            return Expansion(value, ())  # the parameters enter through the values alone
        if self.control_variate is None:
            return Expansion(source.map(lambda here: here.distribution.sample(here.key)), ())

        def taylor(here: Local) -> list[jax.Array]:
            keys = jax.random.split(here.key, self.num_samples)
            draws = [here.distribution.sample(key) for key in keys]
            mean = jnp.broadcast_to(_mean(here.distribution, site), draws[0].shape)
            away = sum(draws[1:], start=draws[0]) / self.num_samples - mean
            return [*draws, mean + source.step * away, mean]

        return Expansion(jnp.stack(source.map(taylor)), ())

    def contract(self, term: Term) -> jax.Array:
        """The term: its gradient flows through the values."""
        if self.control_variate is None:
            return term.value
        *_, away, mean = term.value
        return term.value[: self.num_samples].mean(0) - (away - mean)


def _mean(distribution: Described, site: SiteInfo) -> jax.Array:
    mean = distribution.mean
    if mean is None:
        raise SiteError(
            f"Site '{site.name}': Pathwise(control_variate='taylor') expands around the mean, "
            f"which {site.kind} does not know. Fix: use Pathwise(num_samples=2, antithetic=True)."
        )
    return mean


def _sobol(num: int, shape: tuple[int, ...]) -> np.ndarray:
    """The first points of a Sobol sequence with one dimension per entry of ``shape``."""
    from scipy.stats import qmc

    size = max(1, int(np.prod(shape)))
    if size > qmc.Sobol.MAXDIM:
        raise ValueError(
            f"Pathwise(quasi=True): {size} random numbers, expected at most {qmc.Sobol.MAXDIM} "
            "(Sobol dimensions). Fix: use antithetic=True, or smaller batches."
        )
    count = 1 << (num - 1).bit_length()  # the sequence is balanced at powers of two
    return qmc.Sobol(size, scramble=False).random(count)[:num].reshape((num, *shape))
