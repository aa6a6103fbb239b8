"""Different importance weighted bounds for model and guide."""

from __future__ import annotations

import jax

from vipp.language.keys import random_key, seeded
from vipp.objectives.importance import gradient_only, weigh
from vipp.objectives.miwae import bounds
from vipp.objectives.objective import objective
from vipp.programs.program import AbstractProgram, PerPlate
from vipp.programs.weights import log_mean_exp


@objective
def PIWAE(  # noqa: N802
    p: AbstractProgram,
    q: AbstractProgram,
    *,
    num_bounds: int,
    num_particles: int,
    per_plate: PerPlate = "auto",
) -> jax.Array:
    r"""The tight bound for the model, the well estimated one for the guide.

    The model's parameters follow ``IWAE(M K)``, the guide's ``MIWAE(M, K)``, from one set of draws;
    the value is that of ``IWAE(M K)``. A parameter that both programs have gets both gradients.
    There is no one function of which they are the gradient, and so no Hessian: a derivative in the
    model's parameters of one in the guide's is nought.

    Args:
      num_bounds: ``M``, at least 1.
      num_particles: ``K``, those of each of the guide's bounds.
      per_plate: as in :class:`vipp.IWAE`.

    Raises:
      ValueError: if ``num_bounds`` or ``num_particles`` is not a positive int.

    Example:
      >>> import vipp
      >>> vipp.PIWAE(num_bounds=4, num_particles=16)
      PIWAE(num_bounds=4, num_particles=16)

    References:
      Rainforth et al., *Tighter variational bounds are not necessarily better*, 2018, section 5.
    """
    key, total = random_key("PIWAE"), num_bounds * num_particles
    with seeded(rng_seed=key):
        model = weigh(p, q.stop_gradient().constant(), total, per_plate)
    with seeded(rng_seed=key):  # the same draws, which the compiler makes once
        guide = weigh(p.stop_gradient(), q, total, per_plate)
    tight = model.total(log_mean_exp(model.log_w))
    return tight + gradient_only(guide.total(bounds(guide.log_w, num_bounds).mean(0)))
