"""Draws of a trained guide, as values of the model's own sites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from numpyro.infer import Predictive
from numpyro.infer.autoguide import AutoGuide

from vipp.language.subsample import subsample
from vipp.programs.composed import Binding
from vipp.programs.infer_discrete import drawn_back
from vipp.programs.marginal import Marginal
from vipp.training.abstract_run import facts_of


def draw_posterior(
    rng_key: Any,
    model: Callable[..., Any],
    guide: jax.tree_util.Partial,
    params: dict[str, Any],
    num_samples: int,
    *,
    discrete: bool = False,
) -> dict[str, jax.Array]:
    """Values of the model's latent and deterministic sites, ``num_samples`` in front.

    Under its name, also the indices of each subsampled plate: whose values they are.

    Args:
      rng_key: a PRNG key.
      model: the model.
      guide: the guide with the arguments of both.
      params: parameter values, and mutable state, by name.
      num_samples: how many draws.
      discrete: whether to draw what an exact marginal summed out, too.

    Raises:
      ValueError: if ``discrete`` is asked of a model that is no exact marginal.
    """
    args, kwargs = guide.args, guide.keywords
    key_guide, key_model = jax.random.split(rng_key)
    drawn = _draw_guide(key_guide, guide, params, num_samples)
    first = {n: x[0] for n, x in drawn.items()}
    kinds, plates = _sites_of(model, {**params, **first}, args, kwargs)
    latent = {n: x for n, x in drawn.items() if kinds.get(n) == "sample"}
    key_plates = jax.random.fold_in(key_model, 2)
    indices = {n: drawn.get(n, _minibatches(key_plates, num_samples, *plates[n])) for n in plates}
    if discrete:
        summed = _exact(model)
        keys = jax.random.split(jax.random.fold_in(key_model, 1), num_samples)
        binding = Binding(params, args, kwargs)
        latent |= drawn_back(keys, summed, binding, latent, indices, most_probable=False)
        model = summed.program  # what follows from the choices follows from these
    derived = [n for n, kind in kinds.items() if kind == "deterministic"]
    found = {**indices, **latent}
    if not derived:
        return found
    # what the guide draws and the model does not is of no importance to the model
    predict = Predictive(model, found, params=params, return_sites=derived)
    return {**found, **predict(key_model, *args, **kwargs)}


def _minibatches(rng_key: jax.Array, number: int, size: int, count: int) -> jax.Array:
    """The indices of a plate of which each sample sees a minibatch."""
    return jax.vmap(lambda key: subsample(key, size, count))(jax.random.split(rng_key, number))


def _exact(model: Any) -> Marginal:
    if isinstance(model, Marginal) and model.exact:
        return model
    raise ValueError(
        "sample_posterior(discrete=True) draws what the model summed out, got a model that is "
        f"{type(model).__name__}, expected what vipp.marginal(program, keep, exact=True) returned. "
        "Fix: train with such a model, or leave discrete out."
    )


def _draw_guide(
    rng_key: Any, guide: jax.tree_util.Partial, params: dict[str, Any], num_samples: int
) -> dict[str, jax.Array]:
    if isinstance(guide.func, AutoGuide):
        shape = (num_samples,)
        return guide.func.sample_posterior(
            rng_key, params, *guide.args, sample_shape=shape, **guide.keywords
        )
    kinds, plates = _sites_of(guide.func, params, guide.args, guide.keywords)
    sites = [*kinds, *plates]
    draw = Predictive(guide.func, params=params, num_samples=num_samples, return_sites=sites)
    return draw(rng_key, *guide.args, **guide.keywords)


def _sites_of(
    program: Callable[..., Any], data: Any, args: Any, kwargs: Any
) -> tuple[dict[str, str], dict[str, tuple[int, int]]]:
    """A program's unobserved sites and its subsampled plates, parameters and values given.

    Returns:
      ``"sample"`` or ``"deterministic"``, by name; size and subsample size, by name.
    """
    found = facts_of(program, data, args, kwargs)
    drawn = {n: f.kind for n, f in found.items() if f.kind == "sample" and not f.observed}
    derived = {n: f.kind for n, f in found.items() if f.kind == "deterministic"}
    plates = {n: f.args for n, f in found.items() if f.kind == "plate"}
    subsampled = {n: x for n, x in plates.items() if x[1] not in (None, x[0])}
    return drawn | derived, subsampled
