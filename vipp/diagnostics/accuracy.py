"""How near a trained guide is to the posterior, from its importance weights."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from numpyro.handlers import block

from vipp.diagnostics.pareto import smoothed
from vipp.language.keys import check_key, minibatch, seeded
from vipp.objectives.importance import ImportanceWeights, weigh
from vipp.programs.composed import Binding
from vipp.programs.program import PerPlate
from vipp.programs.weights import log_mean_exp
from vipp_transforms.checks import positive_int


class PSIS(NamedTuple):
    """What :func:`psis` finds.

    Attributes:
      k_hat: the shape of the importance weights' tail: of so many moments as its inverse says, the
        weights have a finite one. With ``per_plate``, an array with an axis for each plate.
      threshold: above it the draws can't be corrected, nor an expectation by them be trusted.
      effective_sample_size: of the smoothed weights.
    """

    k_hat: Any
    threshold: float
    effective_sample_size: Any


class BoundGap(NamedTuple):
    """What :func:`bound_gap` finds, in nats.

    Attributes:
      elbo: the evidence lower bound.
      iwae: the importance weighted bound.
      gap: by how much it is higher.
      error: the standard error of ``gap``, from the same draws.
    """

    elbo: float
    iwae: float
    gap: float
    error: float


def psis(
    rng_key: jax.Array, result: Any, num_samples: int = 1_000, per_plate: PerPlate = None
) -> PSIS:
    r"""Whether a trained guide is near enough to the posterior to be corrected by its weights.

    .. math:: w_s = p(x, z_s) / q(z_s), \quad z_s \sim q

    have a tail of shape :math:`\hat k`. Below 0.5 the guide is close; between that and the
    threshold :math:`\min(1 - 1/\log_{10} S, 0.7)` its draws can be reweighted; above it the guide
    is far from the posterior, in most cases as it is too narrow. It is a high bar for many latent
    sites together: where a plate encloses them all, ask for its elements.

    Args:
      rng_key: a PRNG key.
      result: of :func:`vipp.fit`.
      num_samples: how many draws, at least 25.
      per_plate: None for all sites together, or the name(s) of plates that enclose every site.

    Returns:
      A :class:`PSIS`.

    Raises:
      ValueError: for fewer samples, naming a guide's site if it draws nothing at random, or a plate
        that does not enclose all sites or is subsampled outside of ``per_plate``.

    Example:
      >>> import jax, numpyro, numpyro.distributions as dist, optax, vipp
      >>> model = lambda: numpyro.sample("z", dist.Normal(0.0, 1.0))
      >>> guide = lambda: numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.2))
      >>> result = vipp.fit(
      ...     jax.random.key(0), vipp.ELBO(), model, guide, optax.adam(0.1), 1, progress_bar=False)
      >>> found = vipp.psis(jax.random.key(1), result)
      >>> bool(found.k_hat < found.threshold)
      True

    References:
      Yao, Vehtari, Simpson and Gelman, *Yes, but did it work?: evaluating variational inference*,
      ICML 2018.
      Vehtari, Simpson, Gelman, Yao and Gabry, *Pareto smoothed importance sampling*, JMLR 2024.
    """
    check_key("psis", rng_key)
    positive_int("psis: num_samples", num_samples)
    if num_samples < 25:
        raise ValueError(
            f"psis: num_samples must be at least 25, to have a tail, got {num_samples}. Fix: give "
            "a thousand."
        )
    weights = jax.jit(lambda key: _weights(key, result, num_samples, per_plate).log_w)
    log_w = np.asarray(weights(rng_key))
    rows = log_w.reshape(num_samples, -1)
    shapes, sizes = np.array([_judged(row) for row in rows.T]).T
    shapes, sizes = shapes.reshape(log_w.shape[1:]), sizes.reshape(log_w.shape[1:])
    threshold = min(1 - 1 / math.log10(num_samples), 0.7)
    if log_w.ndim == 1:
        return PSIS(float(shapes), threshold, float(sizes))
    return PSIS(shapes, threshold, sizes)


def bound_gap(
    rng_key: jax.Array,
    result: Any,
    num_particles: int = 100,
    num_estimates: int = 100,
    per_plate: PerPlate = "auto",
) -> BoundGap:
    r"""By how much an importance weighted bound is above the ELBO, for a trained guide.

    .. math::
        E\Big[\log \frac1K \sum_k w_k - \frac1K \sum_k \log w_k\Big]
            \le \mathrm{KL}(q(z) \,\|\, p(z \mid x))

    of the same draws, so that the noise that the two bounds share is not in the gap. It grows with
    the particles to the divergence itself. The model and the guide may have been trained by any
    objective.

    Args:
      rng_key: a PRNG key.
      result: of :func:`vipp.fit`.
      num_particles: ``K``.
      num_estimates: how many times both are estimated.
      per_plate: as in :class:`vipp.IWAE`.

    Returns:
      A :class:`BoundGap`.

    Raises:
      ValueError: if a number is not a positive int, or there is but one estimate; and as
        :class:`vipp.IWAE` raises.

    Example:
      >>> import jax, numpyro, numpyro.distributions as dist, optax, vipp
      >>> model = lambda: numpyro.sample("z", dist.Normal(0.0, 1.0))
      >>> guide = lambda: numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))
      >>> result = vipp.fit(
      ...     jax.random.key(0), vipp.ELBO(), model, guide, optax.adam(0.1), 1, progress_bar=False)
      >>> abs(vipp.bound_gap(jax.random.key(1), result).gap) < 0.02
      True

    References:
      Burda, Grosse and Salakhutdinov, *Importance weighted autoencoders*, 2016.
      Domke and Sheldon, *Importance weighting and variational inference*, 2018.
    """
    check_key("bound_gap", rng_key)
    positive_int("bound_gap: num_particles", num_particles)
    positive_int("bound_gap: num_estimates", num_estimates)
    if num_estimates == 1:
        raise ValueError("bound_gap: num_estimates must be at least 2, for a standard error.")

    def both(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        weights = _weights(key, result, num_particles, per_plate)
        log_w = weights.log_w
        return weights.total(log_w.mean(0)), weights.total(log_mean_exp(log_w))

    keys = jax.random.split(rng_key, num_estimates)
    elbo, iwae = (np.asarray(x, float) for x in jax.jit(lambda k: jax.lax.map(both, k))(keys))
    gap = iwae - elbo
    error = gap.std(ddof=1) / num_estimates**0.5
    return BoundGap(float(elbo.mean()), float(iwae.mean()), float(gap.mean()), float(error))


def _judged(log_w: np.ndarray) -> tuple[float, float]:
    shape, smooth = smoothed(log_w)
    return shape, 1 / np.exp(2 * smooth).sum()


def _weights(
    rng_key: jax.Array, result: Any, num_samples: int, per_plate: PerPlate
) -> ImportanceWeights:
    """Densities of draws of the guide, at the arguments of training."""
    guide = result.guide
    params = {**result.params, **(result.state.mutable_state or {})}
    binding = Binding(params, guide.args, guide.keywords)
    plate_key, key = jax.random.split(rng_key)
    with block(), minibatch(plate_key), seeded(rng_seed=key):
        p, q = binding.program(result.model), binding.program(guide.func)
        _check_random(q)
        return weigh(p, q, num_samples, per_plate)


def _check_random(guide: Any) -> None:
    _, sites = guide.simulate_sites()
    fixed = [s.name for s in sites if s.deterministic and not s.observed]
    if fixed and not any(s.random for s in sites):
        raise ValueError(
            "psis and bound_gap: the guide draws nothing at random, its site "
            f"'{fixed[0]}' being a point: it has no importance weights. Expected a guide with a "
            "spread. Fix: train another one, such as AutoNormal."
        )
