"""What training gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from numpyro.infer.svi import SVIState

from vipp.language.keys import check_key
from vipp.training.automatic_steps import StepSizes
from vipp.training.inference_data import inference_data
from vipp.training.posterior import draw_posterior
from vipp_transforms.checks import positive_int


class Restarts(NamedTuple):
    """All starts of ``fit(num_restarts=...)``.

    Attributes:
      losses: minus the bound of each at every step, shape ``(num_restarts, num_steps)``; NaN after
        a step that was not finite.
      bounds: what they are compared by, shape ``(num_restarts,)``: the bound of the ``validate``
        data, or minus the mean loss of the last tenth of the steps; NaN of those left out.
      best: the number of the one with the largest bound, whose result this is.
    """

    losses: jax.Array
    bounds: jax.Array
    best: int


@dataclass(frozen=True)
class FitResult:
    """What training gave; unpacks as ``params, losses, state, guide``.

    Attributes:
      params: constrained parameter values by name, as ``numpyro.infer.Predictive`` takes them.
      losses: minus the bound at every step, shape ``(num_steps,)``, in nats.
      state: NumPyro's ``SVIState``, to go on from with ``fit(..., init_state=result.state)``.
      guide: the guide with its arguments.
      model: the model.
      metrics: what was measured every ``log_every`` steps, by name, one number per look: ``step``,
        ``loss`` (the mean since the last look), ``validation`` (the bound of the held-out data),
        and, if asked for, ``bound``, ``bound_error`` (its standard error), ``gradient_norm`` and
        ``signal_to_noise/...`` of each parameter's gradient; NaN where a run that was gone on with
        from a checkpoint had not measured it.
      stopped: why training ended before its last step; None if it did not.
      restarts: what all starts gave, of ``fit(num_restarts=...)``; None of one start.
      automatic: the step sizes and averages, of ``fit(optim=None)``; None with an optimiser.
    """

    params: dict[str, Any]
    losses: jax.Array
    state: SVIState
    guide: jax.tree_util.Partial
    model: Callable[..., Any]
    metrics: dict[str, np.ndarray] = field(default_factory=dict)
    stopped: str | None = None
    restarts: Restarts | None = None
    automatic: StepSizes | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.params, self.losses, self.state, self.guide))

    def sample_posterior(
        self, rng_key: jax.Array, num_samples: int = 1, *, discrete: bool = False
    ) -> dict[str, jax.Array]:
        r"""Draw what the model leaves unknown from the trained guide, at the arguments of training.

        The values are those of the model's latent sites, under the model's names, and of its
        ``deterministic`` sites at these. An autoguide is asked for its own posterior, which for
        ``AutoLaplaceApproximation``, say, is not what it trains with.

        Of a model that :func:`vipp.marginal` summed sites ``d`` out of exactly, these can be drawn,
        too, given each draw of the others; deterministic sites are then at these values:

        .. math:: z \sim q(z), \quad d \sim p(d \mid z, x)

        Args:
          rng_key: a PRNG key.
          num_samples: how many draws.
          discrete: whether to draw what was summed out.

        Returns:
          Values by site name, each with a leading axis of size ``num_samples``; of a subsampled
          plate the indices that the values are of, ints of shape ``(num_samples, subsample_size)``.

        Raises:
          ValueError: if ``num_samples`` is not a positive int, or ``discrete`` is asked of a model
            that is not ``vipp.marginal(..., exact=True)``.

        Example:
          >>> import jax, numpyro, numpyro.distributions as dist, optax, vipp
          >>> def model():
          ...     z = numpyro.sample("z", dist.Normal(3.0, 1.0))
          ...     numpyro.deterministic("double", 2 * z)
          >>> guide = lambda: numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))
          >>> result = vipp.fit(
          ...     jax.random.key(0), vipp.ELBO(), model, guide, optax.adam(0.1), 10,
          ...     progress_bar=False)
          >>> sorted(result.sample_posterior(jax.random.key(1), num_samples=5))
          ['double', 'z']
        """
        positive_int("sample_posterior: num_samples", num_samples)
        check_key("sample_posterior", rng_key)
        params = {**self.params, **(self.state.mutable_state or {})}
        return draw_posterior(
            rng_key, self.model, self.guide, params, num_samples, discrete=discrete
        )

    def to_arviz(
        self,
        rng_key: jax.Array,
        num_samples: int = 1_000,
        *,
        predictions: tuple[Any, ...] | Mapping[str, Any] | None = None,
    ) -> Any:
        r"""The fitted model as ArviZ has it, at the arguments of training.

        Its groups are ``posterior`` (what :meth:`sample_posterior` draws, in one chain),
        ``posterior_predictive`` (the data drawn anew for each), ``log_likelihood`` (of each
        observation, without scales), ``observed_data``, and ``constant_data``, the model's other
        arguments that are arrays, by name, those inside of a dict or list as ``"argument.key"``.
        Plates are dimensions by name.

        .. math:: z_s \sim q(z), \quad \tilde x_s \sim p(x \mid z_s), \quad \log p(x_i \mid z_s)

        What :func:`vipp.marginal` summed out exactly is drawn back, and given in the likelihood.

        With other arguments in ``predictions`` there are ``predictions`` (the data and the
        deterministic sites there) and ``predictions_constant_data``, too. A latent site keeps the
        values of the posterior, unless it is in a plate of another size there: then there are no
        such values, and it is drawn from the model given the others. A plate of the same size
        has the same elements.

        Args:
          rng_key: a PRNG key.
          num_samples: how many draws.
          predictions: arguments of the model to predict at: a tuple of positional ones, beside
            the keyword ones of training, or a dict of those that are others, by name. The model
            draws a site whose data are None there; data that are given are not used.

        Returns:
          An ``xarray.DataTree``, ArviZ's format since its version 1. Needs ``vipp[arviz]``.

        Raises:
          ImportError: if ArviZ is not installed.
          TypeError: if ``predictions`` is neither a tuple nor a dict.
          ValueError: if ``num_samples`` is not a positive int, if the density of the model's sites
            is only estimated, or naming a plate that is subsampled, a name in ``predictions`` that
            no argument has, or a site that does not fit the posterior's there.

        Example:
          >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax, vipp
          >>> def model(x):
          ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
          ...     with numpyro.plate("data", len(x)):
          ...         numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
          >>> guide = lambda x: numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))
          >>> result = vipp.fit(
          ...     jax.random.key(0), vipp.ELBO(), model, guide, optax.adam(0.1), 10, jnp.ones(3),
          ...     progress_bar=False)
          >>> tree = result.to_arviz(jax.random.key(1), num_samples=5)
          >>> tree["log_likelihood"]["x"].dims
          ('chain', 'draw', 'data')
          >>> tree = result.to_arviz(jax.random.key(1), num_samples=5, predictions=(jnp.ones(8),))
          >>> tree["predictions"]["x"].shape
          (1, 5, 8)

        References:
          Kumar, Carroll, Hartikainen and Martin, *ArviZ, a unified library for exploratory
          analysis of Bayesian models*, 2019.
        """
        positive_int("to_arviz: num_samples", num_samples)
        check_key("to_arviz", rng_key)
        params = {**self.params, **(self.state.mutable_state or {})}
        return inference_data(rng_key, self.model, self.guide, params, num_samples, predictions)


class NonFiniteError(FloatingPointError):
    """Training met a loss or parameter that is not finite.

    Attributes:
      step: the first step that did.
      result: the last good parameters and state, and the losses up to ``step``.
      sites: those whose log density was not finite there, by name.
      parameters: those that were not finite there themselves, or in their gradient, by name.
    """

    def __init__(
        self,
        message: str,
        step: int,
        result: FitResult,
        sites: tuple[str, ...] = (),
        parameters: tuple[str, ...] = (),
    ):
        super().__init__(message)
        self.step = step
        self.result = result
        self.sites = sites
        self.parameters = parameters
