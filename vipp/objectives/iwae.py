"""The importance weighted bound."""

from __future__ import annotations

import math

import jax

from vipp.objective import objective
from vipp.objectives.importance import log_weights
from vipp.program import PerPlate, Program


@objective
def IWAE(  # noqa: N802
    p: Program, q: Program, *, num_particles: int, per_plate: PerPlate = "auto"
) -> jax.Array:
    r"""The importance weighted bound, tighter than the ELBO as the particles grow.

    .. math::
        \sum_i \frac{N}{n} E\Big[\log \frac1K \sum_{k=1}^K \frac{p(x_i, z_{ik})}{q(z_{ik})}\Big]

    with one bound for each element ``i`` of the plates that enclose the whole model (and their
    subsampling scale ``N / n``), as NumPyro's ``RenyiELBO`` has.

    Args:
      num_particles: ``K``, at least 1; with 1 it is the ELBO.
      per_plate: ``"auto"``, the name(s) of plates that enclose every site, or None for one bound
        over everything.

    Raises:
      ValueError: if ``num_particles`` is not a positive int; when traced, naming a site outside
        the plate.

    Example:
      >>> import vipp
      >>> vipp.IWAE(num_particles=8)
      IWAE(num_particles=8, per_plate='auto')

    References:
      Burda, Grosse and Salakhutdinov, *Importance weighted autoencoders*, 2016, equation 8.
    """
    log_w, scale = log_weights(p, q, num_particles, per_plate)
    bound = jax.nn.logsumexp(log_w, axis=0) - math.log(num_particles)
    return bound.sum() if scale == 1 else scale * bound.sum()
