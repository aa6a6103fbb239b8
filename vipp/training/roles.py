"""Which arrays of a training state hold what of the parameters: themselves, their moments, ..."""

from __future__ import annotations

import jax
from jax.example_libraries.optimizers import OptimizerState
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState


def roles(svi: SVI, state: SVIState) -> list[list[int]]:
    """The positions of the arrays of each role, first those of the parameters, in their order.

    An optimiser keeps trees like that of the parameters, or (JAX's own ones) of each parameter all
    that belongs to it.
    """
    of = lambda state: svi.optim.get_params(state.optim_state)
    jaxpr, params = jax.make_jaxpr(of, return_shape=True)(state)
    places = {var: at for at, var in enumerate(jaxpr.jaxpr.invars)}
    if not all(v in places for v in jaxpr.jaxpr.outvars):  # what is kept is not the parameters
        return []
    numbered = jax.tree.unflatten(jax.tree.structure(state), range(len(jax.tree.leaves(state))))
    alike = jax.tree.structure(params)
    whole = lambda x: isinstance(x, OptimizerState) or jax.tree.structure(x) == alike
    found = [[places[v] for v in jaxpr.jaxpr.outvars]]
    for part in jax.tree.leaves(numbered.optim_state, is_leaf=whole):
        if isinstance(part, OptimizerState):
            found += map(list, zip(*part.packed_state, strict=True))
        elif jax.tree.structure(part) == alike:
            found.append(jax.tree.leaves(part))
    return [role for n, role in enumerate(found) if role not in found[:n]]
