"""The evidence lower bound."""

from __future__ import annotations

import jax

from vipp.objective import objective
from vipp.program import Program
from vipp.replicate import replicate


@objective
def ELBO(p: Program, q: Program, *, num_particles: int = 1) -> jax.Array:  # noqa: N802
    r"""The evidence lower bound.

    .. math:: E_{q(z)}[\log p(x, z) - \log q(z)] \le \log p(x)

    Args:
      num_particles: draws averaged over, at least 1.

    Raises:
      ValueError: if ``num_particles`` is not a positive int.

    Example:
      >>> import vipp
      >>> vipp.ELBO(num_particles=4)
      ELBO(num_particles=4)

    References:
      Jordan et al., *An introduction to variational methods for graphical models*, 1999.
    """

    def log_weight() -> jax.Array:
        z, log_q = q.simulate()
        return p.log_density(z) - log_q

    return replicate(log_weight, num_particles).mean()
