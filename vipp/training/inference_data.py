"""A fitted model in ArviZ's format: posterior, predictions, log likelihood and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from numpyro.distributions import Unit
from numpyro.handlers import block

from vipp.language.keys import seeded
from vipp.programs.composed import Binding, Composed
from vipp.programs.densities import SiteDensity
from vipp.programs.marginal import Marginal
from vipp.programs.program import Program
from vipp.programs.trace import Trace
from vipp.training.constants import constants_of
from vipp.training.dims import all_dims, shape_of
from vipp.training.posterior import draw_posterior
from vipp.training.predictions import at, predicted


def inference_data(
    rng_key: Any,
    model: Callable[..., Any],
    guide: jax.tree_util.Partial,
    params: dict[str, Any],
    num_samples: int,
    predictions: tuple[Any, ...] | Mapping[str, Any] | None = None,
) -> Any:
    """An ``xarray.DataTree`` with ArviZ's groups; see :meth:`vipp.FitResult.to_arviz`.

    Args:
      rng_key: a PRNG key.
      model: the model.
      guide: the guide with the arguments of both.
      params: parameter values, and mutable state, by name.
      num_samples: how many draws.
      predictions: arguments of the model to predict at, or None.
    """
    arviz = _arviz()
    binding = Binding(params, guide.args, guide.keywords)
    key_draws, key_data = jax.random.split(rng_key)
    discrete = isinstance(model, Marginal) and model.exact
    program = binding.program(model.program if isinstance(model, Marginal) and discrete else model)
    if isinstance(model, Composed) and not isinstance(program, Program):
        raise ValueError(
            "to_arviz: the model's sites must have densities of their own, got "
            f"{type(model).__name__}, whose density is an estimate. Fix: use "
            "vipp.marginal(..., exact=True), or take the posterior from sample_posterior."
        )
    assert isinstance(program, Program)
    sites = _sites(program)
    draws = draw_posterior(key_draws, model, guide, params, num_samples, discrete=discrete)
    latent = {s.name: draws[s.name] for s in sites if not s.observed and s.name in draws}
    keys = jax.random.split(key_data, num_samples)
    likelihood, new = jax.jit(jax.vmap(lambda *x: _at(program, *x)))(keys, latent)
    data = {s.name: np.broadcast_to(s.value, shape_of(s)) for s in sites if _is_data(s)}
    constants = constants_of(program, sites)
    groups = {
        "posterior": _one_chain(draws),
        "posterior_predictive": _one_chain(new),
        "log_likelihood": _one_chain(likelihood),
        "observed_data": data,
        "constant_data": constants,
    }
    dims, pred_dims = all_dims(program, sites, constants), {}
    if predictions is not None:
        there = at(program, predictions)
        found = _sites(there)
        constants = constants_of(there, found)
        keys = jax.random.split(jax.random.fold_in(key_data, 1), num_samples)
        groups["predictions"] = _one_chain(predicted(keys, there, found, latent, list(data)))
        groups["predictions_constant_data"] = constants
        pred_dims = all_dims(there, found, constants)
    kept = {n: group for n, group in groups.items() if group}
    return arviz.from_dict(kept, dims=dims, pred_dims=pred_dims)


def _arviz() -> Any:
    try:
        import arviz_base
    except ImportError as error:
        raise ImportError(
            "to_arviz needs ArviZ, which is not installed. Fix: pip install 'vipp[arviz]'."
        ) from error
    return arviz_base


def _one_chain(draws: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(x)[None] for name, x in draws.items()}


def _sites(program: Program) -> list[SiteDensity]:
    """The model's sites, of which all elements are there."""
    with block(), seeded(rng_seed=jax.random.key(0)):
        _, found = program.simulate_sites()
    for site in found:
        for plate, ratio in site.subsampling.items():
            if ratio != 1:
                raise ValueError(
                    f"to_arviz: site '{site.name}' is subsampled by plate '{plate}', of which each "
                    "draw sees others, expected all elements. Fix: take the draws and their "
                    "indices from sample_posterior, or train on all data."
                )
    return found


def _at(
    program: Program, key: Any, values: dict[str, Any]
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The log likelihood of the data, and new data, for one draw."""
    with block(), seeded(rng_seed=key):
        sites = program.log_density_sites(Trace(values))
        new = program.predict(Trace(values))
    return {s.name: s.log_prob for s in sites if _is_data(s)}, new


def _is_data(site: SiteDensity) -> bool:
    return site.observed and not isinstance(site.fn, Unit)
