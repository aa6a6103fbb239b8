"""Simulation-based calibration of a trained guide."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import chi2
from numpyro.handlers import block

from vipp.language.keys import check_key, seeded
from vipp.language.names import close
from vipp.programs.composed import Binding, Composed
from vipp.programs.program import Program
from vipp.training.posterior import draw_posterior
from vipp_transforms import _jax
from vipp_transforms.checks import positive_int

_BINS = 10


class Calibration(NamedTuple):
    """What :func:`calibration` finds.

    Attributes:
      ranks: by site, how many of the guide's draws are below the value that the data were simulated
        with: ints of shape ``(num_simulations, *shape)``.
      num_samples: of how many draws.
    """

    ranks: dict[str, np.ndarray]
    num_samples: int

    def coverage(self, level: float) -> dict[str, np.ndarray]:
        """How often the value lies in the guide's central interval of mass ``level``, by site.

        Of a guide that is the posterior, ``level`` itself.

        Raises:
          ValueError: if ``level`` is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"coverage: level must be between 0 and 1, got {level!r}.")
        place = {n: (r + 0.5) / (self.num_samples + 1) for n, r in self.ranks.items()}
        return {n: (np.abs(u - 0.5) <= level / 2).mean(0) for n, u in place.items()}

    def p_values(self) -> dict[str, np.ndarray]:
        r"""By site, of the :math:`\chi^2` test that the ranks are uniform, in ten bins."""
        group = np.arange(self.num_samples + 1) * _BINS // (self.num_samples + 1)
        share = np.bincount(group, minlength=_BINS) / len(group)
        found = {}
        for name, ranks in self.ranks.items():
            counts = (group[ranks][..., None] == np.arange(_BINS)).sum(0)
            expected = share * len(ranks)
            distance = ((counts - expected) ** 2 / expected).sum(-1)
            found[name] = np.asarray(chi2.sf(distance, _BINS - 1))
        return found


def calibration(
    rng_key: jax.Array,
    result: Any,
    num_simulations: int = 200,
    num_samples: int = 99,
    data: Mapping[str, str] | None = None,
) -> Calibration:
    r"""Whether a guide that reads the data is right for data that the model makes up.

    .. math:: z_0 \sim p(z), \quad x \sim p(x \mid z_0), \quad z_s \sim q(z \mid x)

    Where the guide is the posterior, the rank of :math:`z_0` among the draws is uniform. Ranks in
    the middle too seldom mean that the guide is too narrow, to one side that it is shifted.

    Args:
      rng_key: a PRNG key.
      result: of :func:`vipp.fit`. Its guide has been trained for data such as the model makes up.
      num_simulations: how many data sets.
      num_samples: how many draws for each; 9, 99 or 999 give bins of one size.
      data: by observed site the model's argument that holds its data; None for the one of the
        site's own name.

    Returns:
      A :class:`Calibration`.

    Raises:
      ValueError: if a number is not a positive int or there are fewer than 9 samples, naming an
        observed site of which no argument holds the data, or if the guide does not read them.
      TypeError: if the model is composed of others.

    Example:
      >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax, vipp
      >>> def model(x):
      ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
      ...     numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
      >>> def guide(x):
      ...     slope = numpyro.param("slope", 0.5)  # as the posterior has, of scale 0.71
      ...     numpyro.sample("z", dist.Normal(slope * x, 0.35))
      >>> result = vipp.fit(
      ...     jax.random.key(0), vipp.ELBO(), model, guide, optax.sgd(0.0), 1, jnp.array(0.8),
      ...     progress_bar=False)
      >>> found = vipp.calibration(jax.random.key(1), result)
      >>> bool(found.coverage(0.9)["z"] < 0.7)
      True

    References:
      Talts, Betancourt, Simpson, Vehtari and Gelman, *Validating Bayesian inference algorithms with
      simulation-based calibration*, 2018.
      Yao, Vehtari, Simpson and Gelman, *Yes, but did it work?: evaluating variational inference*,
      ICML 2018.
    """
    check_key("calibration", rng_key)
    positive_int("calibration: num_simulations", num_simulations)
    positive_int("calibration: num_samples", num_samples)
    if num_samples < _BINS - 1:
        raise ValueError(f"calibration: num_samples must be at least 9, got {num_samples}.")
    if isinstance(result.model, Composed):
        raise TypeError(
            "calibration simulates from the model, got one composed of others "
            f"({type(result.model).__name__}). Fix: give a NumPyro program."
        )
    params = {**result.params, **(result.state.mutable_state or {})}
    place = _places(result, params, data)

    def draws(key: Any, made: dict[str, Any], number: int) -> dict[str, Any]:
        guide = place(made)
        return draw_posterior(key, result.model, guide, params, number)

    def one(key: Any) -> dict[str, jax.Array]:
        key_data, key_draws, key_ties = jax.random.split(key, 3)
        values, made = _simulated(result, params, key_data)
        drawn = draws(key_draws, made, num_samples)
        return {n: _rank(x, drawn[n], key_ties) for n, x in values.items() if n in drawn}

    _, made = _simulated(result, params, rng_key)
    closed, _ = _jax.trace(lambda made: draws(rng_key, made, 1), made)
    if not any(_jax.depends(closed)):
        raise ValueError(
            f"calibration: the guide does not read the data ({sorted(made)}): it is a posterior of "
            "one data set, of which there is nothing to calibrate. Fix: let its parameters be a "
            "function of the data."
        )
    keys = jax.random.split(rng_key, num_simulations)
    ranks = jax.jit(lambda keys: jax.lax.map(one, keys))(keys)
    return Calibration({n: np.asarray(r) for n, r in ranks.items()}, num_samples)


def _simulated(result: Any, params: Any, key: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Latent values and data, by site."""
    program = Program(result.model, params, result.guide.args, result.guide.keywords)
    with block(), seeded(rng_seed=key):
        drawn, made = program.simulate_data()
    return dict(drawn.values), made


def _rank(value: Any, draws: Any, key: Any) -> jax.Array:
    below, equal = (draws < value).sum(0), (draws == value).sum(0)
    return below + jax.random.randint(key, jnp.shape(value), 0, equal + 1)


def _places(
    result: Any, params: Any, data: Mapping[str, str] | None
) -> Callable[[dict[str, Any]], jax.tree_util.Partial]:
    """A function that gives the guide other data."""
    guide = result.guide
    given = inspect.signature(result.model).bind(*guide.args, **guide.keywords)
    binding = Binding(params, guide.args, guide.keywords).program(result.model)
    with block(), seeded(rng_seed=jax.random.key(0)):
        _, sites = binding.simulate_sites()
    names = [s.name for s in sites if s.observed and s.fn.shape() != (0,)]
    places = {n: (data or {}).get(n, n) for n in names}
    for site, argument in places.items():
        if argument not in given.arguments:
            raise ValueError(
                f"calibration: no argument of the model holds the data of site '{site}', got "
                f"{sorted(given.arguments)}{close(argument, given.arguments)}. Fix: "
                f"data={{'{site}': name of the argument}}."
            )

    def replaced(made: dict[str, Any]) -> jax.tree_util.Partial:
        arguments = dict(given.arguments)
        for site, argument in places.items():
            kept = jnp.asarray(arguments[argument])
            arguments[argument] = made[site].astype(kept.dtype).reshape(kept.shape)
        now = inspect.BoundArguments(given.signature, arguments)  # pyright: ignore
        return jax.tree_util.Partial(guide.func, *now.args, **now.kwargs)

    return replaced
