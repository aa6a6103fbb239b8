"""What an exact marginal summed out, drawn back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import vipp_transforms as vt
from vipp.language.keys import seeded
from vipp.programs.composed import Binding
from vipp.programs.marginal import Marginal
from vipp.programs.summed_out import ExactMarginalProgram
from vipp.programs.trace import Trace


def infer_discrete(
    rng_key: Any,
    summed: Any,
    samples: Mapping[str, Any],
    *args: Any,
    temperature: float = 1,
    **kwargs: Any,
) -> dict[str, Any]:
    r"""The sites that an exact marginal summed out, given samples of those kept.

    .. math:: z \sim p(z \mid x, \theta), \quad\text{or}\quad \arg\max_z p(z \mid x, \theta)

    Args:
      rng_key: a PRNG key.
      summed: made by ``marginal(program, keep, exact=True)``.
      samples: by name of each site kept, its samples along a leading axis; empty if none is kept.
        Of a subsampled plate, the indices likewise, as ``FitResult.sample_posterior`` returns them.
      *args: arguments of the program.
      temperature: 1 for exact draws, 0 for the most probable joint value (of a hidden Markov model
        the Viterbi path).
      **kwargs: keyword arguments of the program.

    Returns:
      By name of the site, its values: one per sample along a leading axis, or a single one if no
      site is kept. What has no finite support, and was left out as nothing depends on it, is not
      among them.

    Raises:
      ValueError: if ``summed`` is no exact marginal, for another temperature, for a site without
        samples or samples without a site, or for a subsampled plate without indices.

    Example:
      >>> import jax, numpyro, numpyro.distributions as dist, vipp
      >>> def mixture():
      ...     mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
      ...     c = numpyro.sample("c", dist.Bernoulli(0.5))
      ...     numpyro.sample("x", dist.Normal(mean * c, 1.0), obs=4.0)
      >>> summed = vipp.marginal(mixture, keep=["mean"], exact=True)
      >>> samples = {"mean": jax.numpy.array([4.0, -4.0])}
      >>> vipp.infer_discrete(jax.random.key(0), summed, samples, temperature=0)["c"].tolist()
      [1, 0]
    """
    if not isinstance(summed, Marginal) or not summed.exact:
        raise ValueError(
            "infer_discrete needs what vipp.marginal(program, keep, exact=True) returned, got "
            f"{type(summed).__name__}. Fix: sum the discrete sites out exactly."
        )
    if temperature not in (0, 1):
        raise ValueError(
            f"infer_discrete: temperature must be 1 (draws) or 0 (the most probable value), got "
            f"{temperature!r}."
        )
    binding = Binding({}, args, kwargs)
    keys = jax.random.split(rng_key, _number(samples))
    values, indices = _apart(summed, binding, samples)
    drawn = drawn_back(keys, summed, binding, values, indices, most_probable=temperature == 0)
    return drawn if samples else jax.tree.map(lambda x: x[0], drawn)


def _number(samples: Mapping[str, Any]) -> int:
    """Of samples of each site, along a leading axis."""
    shapes = {name: jnp.shape(x) for name, x in samples.items()}
    if len({shape[:1] for shape in shapes.values()}) > 1 or () in shapes.values():
        raise ValueError(
            f"infer_discrete: samples have shapes {shapes}, expected one leading axis of one size, "
            "that of the samples. Fix: of a single one, {name: x[None] for name, x in samples}."
        )
    return next(iter(shapes.values()))[0] if shapes else 1


def _apart(
    summed: Marginal, binding: Binding, samples: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The samples of sites, and those of the indices of subsampled plates."""
    bound = _exact(summed, binding)

    def subsamples(values: dict[str, Any]) -> dict[str, Any]:
        with seeded(rng_seed=jax.random.key(0)):
            return bound.subsamples(Trace(values))

    plates = jax.eval_shape(subsamples, {n: x[0] for n, x in samples.items()})
    for name in plates:
        if name not in samples:
            raise ValueError(
                f"infer_discrete: plate '{name}' is subsampled, expected to be told of which of "
                f"its elements the sites are to be drawn. Fix: samples['{name}'] = indices, one "
                "row per sample, as FitResult.sample_posterior returns them; or drop "
                "subsample_size."
            )
    values = {n: x for n, x in samples.items() if n not in plates}
    return values, {n: samples[n] for n in plates}


def _exact(summed: Marginal, binding: Binding) -> ExactMarginalProgram:
    bound = summed.bind(binding)
    assert isinstance(bound, ExactMarginalProgram)
    return bound


def drawn_back(
    keys: Any,
    summed: Marginal,
    binding: Binding,
    samples: Mapping[str, Any],
    indices: Mapping[str, Any],
    *,
    most_probable: bool,
) -> dict[str, Any]:
    """The sites that an exact marginal summed out, for every sample of those kept.

    Args:
      keys: PRNG keys, one per sample.
      summed: an exact marginal.
      binding: its parameters and arguments.
      samples: of the sites kept, by name, each with a leading axis like that of ``keys``.
      indices: of the subsampled plates, by name, likewise.
      most_probable: whether to take the most probable values together, instead of draws.
    """
    bound = _exact(summed, binding)

    def one(key: Any, values: dict[str, Any], subsamples: dict[str, Any]) -> dict[str, Any]:
        with seeded(rng_seed=key):
            densities = bound.densities(Trace(values, subsamples))
        return vt.infer(densities, jax.random.fold_in(key, 1), most_probable=most_probable)

    # outside of jit, one compilation instead of one for each of its operations
    return jax.jit(jax.vmap(one))(keys, dict(samples), dict(indices))
