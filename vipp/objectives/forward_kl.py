"""The inclusive divergence, from the posterior to the guide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from vipp.language.keys import random_key, seeded
from vipp.objectives.importance import check_normalised, weigh
from vipp.objectives.objective import objective
from vipp.programs.densities import joint
from vipp.programs.fixed_values import check_anywhere
from vipp.programs.program import AbstractProgram, PerPlate
from vipp.programs.trace import Trace


def _biased(config: dict[str, Any]) -> str | None:
    if config["samples"] is not None:
        return None
    return "the particles' weights are normalised by their own sum, of order 1 / num_particles"


@objective(biased=_biased)
def ForwardKL(  # noqa: N802
    p: AbstractProgram,
    q: AbstractProgram,
    *,
    num_particles: int = 1,
    samples: Mapping[str, Any] | None = None,
    per_plate: PerPlate = "auto",
) -> jax.Array:
    r"""The guide's log density where the posterior is: minus the inclusive KL, but for a constant.

    .. math:: E_{p(z \mid x)}[\log q(z)] \approx \sum_k \tilde w_k \log q(z_k), \quad
        \tilde w_k \propto p(x, z_k) / q(z_k)

    The guide covers all modes of the posterior, where the ELBO picks one. The model is not trained.

    Its gradient is biased, by ``1 / K`` as the particles grow, unless ``samples`` of the posterior
    are given.

    Args:
      num_particles: ``K`` draws of the guide that stand for the posterior.
      samples: posterior values by site name, with a sample axis in front, to be used instead of
        weighted draws; without bias, if they are exact.
      per_plate: as in :class:`vipp.IWAE`.

    Raises:
      ValueError: if ``num_particles`` is not a positive int; when traced, naming a site that
        ``samples`` lacks, or of the guide a factor, an observed site, or a deterministic one that
        moves with its parameters.

    Example:
      >>> import vipp
      >>> vipp.ForwardKL(num_particles=16)
      ForwardKL(num_particles=16)

    References:
      Bornschein and Bengio, *Reweighted wake-sleep*, 2015.
    """
    if samples is not None:
        values, key = dict(samples), random_key("ForwardKL")

        def score(values: Any) -> jax.Array:
            with seeded(rng_seed=key):
                of_q = q.log_density_sites(Trace(values))
                check_normalised("ForwardKL", of_q)
                check_anywhere("ForwardKL(samples=): the guide", of_q)
                return joint(of_q)

        return jax.vmap(score)(values).mean()
    what = "ForwardKL"
    followed = q.constant().held(what)
    weights = weigh(p.stop_gradient(), followed, num_particles, per_plate, normalised=what)
    normalised = jax.nn.softmax(jax.lax.stop_gradient(weights.log_w), axis=0)
    return weights.total((normalised * weights.log_q).sum(0))
