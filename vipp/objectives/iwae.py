"""The importance weighted bound."""

from __future__ import annotations

import jax

from vipp.objectives.double_reparameterisation import DOUBLY, weigh_doubly_reparameterised
from vipp.objectives.importance import once, weigh
from vipp.objectives.objective import objective
from vipp.programs.program import AbstractProgram, PerPlate
from vipp.programs.weights import log_mean_exp


@objective
def IWAE(  # noqa: N802
    p: AbstractProgram,
    q: AbstractProgram,
    *,
    num_particles: int,
    per_plate: PerPlate = "auto",
    doubly_reparameterised: bool = False,
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
      doubly_reparameterised: use the guide's doubly reparameterised gradient (DReG), whose signal
        does not drown in noise as ``K`` grows; every latent site must be pathwise. It costs another
        evaluation of both programs.

    Raises:
      ValueError: if ``num_particles`` is not a positive int; when traced, naming a site outside
        the plate, or one that is not pathwise where it must be.

    Example:
      >>> import vipp
      >>> vipp.IWAE(num_particles=8)
      IWAE(num_particles=8)

    References:
      Burda, Grosse and Salakhutdinov, *Importance weighted autoencoders*, 2016, equation 8.
      Tucker, Lawson, Gu and Maddison, *Doubly reparameterized gradient estimators*, 2019,
      equation 8.
    """
    if doubly_reparameterised:
        weights = weigh_doubly_reparameterised(p, q, num_particles, per_plate)
        (bound,) = once(DOUBLY, weights.score.sum(0), log_mean_exp(weights.log_w))
        return weights.total(bound)
    weights = weigh(p, q, num_particles, per_plate)
    return weights.total(log_mean_exp(weights.log_w))
