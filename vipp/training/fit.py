"""Training a model and a guide by an objective."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from numpyro.infer import SVI, Predictive
from numpyro.infer.svi import SVIState

from vipp.language.bias import noting_biased
from vipp.language.replicate import positive_int
from vipp.objectives.objective import Objective

_MOST_STEPS_AT_ONCE = 4096
_SECONDS_AT_ONCE = 0.25


class FitResult(NamedTuple):
    """What training gave.

    Attributes:
      params: constrained parameter values by name, as ``numpyro.infer.Predictive`` takes them.
      losses: minus the bound at every step, shape ``(num_steps,)``, in nats.
      state: NumPyro's ``SVIState``, to go on from with ``fit(..., init_state=result.state)``.
      guide: the guide with its arguments.
    """

    params: dict[str, Any]
    losses: jax.Array
    state: SVIState
    guide: jax.tree_util.Partial

    def sample_posterior(self, rng_key: jax.Array, num_samples: int = 1) -> dict[str, jax.Array]:
        """Draw from the trained guide at the arguments it was trained with.

        Args:
          rng_key: a PRNG key.
          num_samples: how many draws.

        Returns:
          Values by site name, each with a leading axis of size ``num_samples``.
        """
        positive_int("sample_posterior: num_samples", num_samples)
        params = {**self.params, **(self.state.mutable_state or {})}
        draw = Predictive(self.guide.func, params=params, num_samples=num_samples)
        return draw(rng_key, *self.guide.args, **self.guide.keywords)


class NonFiniteError(FloatingPointError):
    """Training met a loss or parameter that is not finite.

    Attributes:
      step: the first step that did.
      result: the last good parameters and state, and the losses up to ``step``.
    """

    def __init__(self, message: str, step: int, result: FitResult):
        super().__init__(message)
        self.step = step
        self.result = result


def fit(
    rng_key: jax.Array,
    objective: Objective,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    optim: Any,
    num_steps: int,
    *args: Any,
    progress_bar: bool = True,
    init_params: dict[str, Any] | None = None,
    init_state: SVIState | None = None,
    **kwargs: Any,
) -> FitResult:
    r"""Maximise an objective over the parameters of model and guide.

    Steps ``num_steps`` times along an unbiased estimate of
    :math:`\nabla_\theta E[\mathrm{objective}]`, compiled as one loop that returns to Python only to
    move the progress bar.

    Args:
      rng_key: a PRNG key.
      objective: what is maximised, such as ``vipp.ELBO()``.
      model: a NumPyro program.
      guide: a NumPyro program; NumPyro's autoguides too.
      optim: an optax ``GradientTransformation`` or a ``numpyro.optim`` optimiser.
      num_steps: at least 1.
      *args: arguments of model and guide. JAX arrays are passed to the compiled loop; anything else
        (NumPy arrays too) is fixed when it is compiled.
      progress_bar: whether to show one.
      init_params: initial constrained values by name, instead of those of ``numpyro.param``.
      init_state: the state of an earlier result, to go on from it.
      **kwargs: keyword arguments of model and guide.

    Returns:
      A :class:`FitResult`.

    Warns:
      BiasedEstimatorWarning: once, naming the sites whose estimators are biased, if there are any.

    Raises:
      TypeError: if ``objective`` is not an :class:`vipp.Objective`.
      ValueError: if ``num_steps`` is not a positive int, or as the objective raises.
      NonFiniteError: at the first step whose loss or parameters are not finite.

    Example:
      >>> import jax, numpyro, numpyro.distributions as dist, optax, vipp
      >>> model = lambda: numpyro.sample("z", dist.Normal(3.0, 1.0))
      >>> guide = lambda: numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))
      >>> result = vipp.fit(
      ...     jax.random.key(0), vipp.ELBO(), model, guide, optax.adam(0.03), 500,
      ...     progress_bar=False)
      >>> abs(float(result.params["m"]) - 3.0) < 0.3
      True
    """
    positive_int("fit: num_steps", num_steps)
    if not isinstance(objective, Objective):
        raise TypeError(
            f"fit: objective must be an instance of vipp.Objective such as vipp.ELBO(), got "
            f"{objective!r}. Fix: call the class, or decorate the function with @vipp.objective."
        )
    svi = SVI(model, guide, optim, loss=objective)
    biased = noting_biased()
    with biased:
        state = svi.init(rng_key, *args, init_params=init_params, **kwargs)
    biased.warn("fit", stacklevel=2)
    mutable = {**(state.mutable_state or {}), **objective.init_state()}
    state = state._replace(mutable_state=mutable or None)
    state = state if init_state is None else _continued(init_state, state)
    bound_guide = jax.tree_util.Partial(guide, *args, **kwargs)

    def result(state: SVIState, losses: list[np.ndarray]) -> FitResult:
        return FitResult(
            svi.get_params(state), jnp.asarray(np.concatenate(losses)), state, bound_guide
        )

    advance = _advance(svi, args, kwargs, min(num_steps, _MOST_STEPS_AT_ONCE))
    losses: list[np.ndarray] = []
    done, chunk = 0, 1 if progress_bar else num_steps
    with tqdm.tqdm(total=num_steps, disable=not progress_bar) as bar:
        while done < num_steps:
            started = time.perf_counter()
            steps = min(chunk, num_steps - done, _MOST_STEPS_AT_ONCE)
            state, *report = advance(state, steps)
            taken, ok, block = jax.device_get(report)
            losses.append(block[:taken])
            done += int(taken)
            bar.update(int(taken))
            if not ok:
                raise _not_finite(done - 1, result(state, losses), losses[-1][-1])
            bar.set_postfix_str(f"loss: {losses[-1].mean():.4f}", refresh=False)
            if time.perf_counter() - started < _SECONDS_AT_ONCE:
                chunk *= 2
    return result(state, losses)


def _continued(state: SVIState, fresh: SVIState) -> SVIState:
    """An earlier state, with the start of the mutable state that it doesn't have yet.

    SVI passes on what a state has: what it lacks would stay at its start, silently.
    """
    mutable = {**(fresh.mutable_state or {}), **(state.mutable_state or {})}
    return state._replace(mutable_state=mutable or None)


def _advance(svi: SVI, args: Any, kwargs: Any, capacity: int) -> Callable[..., Any]:
    """A compiled function taking up to ``capacity`` steps, stopping before a bad one."""
    leaves, treedef = jax.tree_util.tree_flatten((args, kwargs))
    dynamic = [isinstance(x, jax.Array) for x in leaves]
    arrays = [x for x, d in zip(leaves, dynamic, strict=True) if d]

    @jax.jit
    def advance(state: SVIState, steps: Any, arrays: Any) -> Any:
        given = iter(arrays)
        merged = [next(given) if d else x for x, d in zip(leaves, dynamic, strict=True)]
        inner_args, inner_kwargs = jax.tree_util.tree_unflatten(treedef, merged)

        def step(carry: Any) -> Any:
            i, state, _, losses = carry
            new, loss = svi.update(state, *inner_args, **inner_kwargs)
            ok = jnp.isfinite(loss) & _finite(svi.optim.get_params(new.optim_state))
            kept = jax.tree.map(partial(jnp.where, ok), new, state)
            return i + 1, kept, ok, losses.at[i].set(loss)

        start = (0, state, jnp.array(True), jnp.zeros(capacity))
        taken, state, ok, losses = jax.lax.while_loop(
            lambda carry: (carry[0] < steps) & carry[2], step, start
        )
        return state, taken, ok, losses

    return lambda state, steps: advance(state, steps, arrays)


def _finite(params: Any) -> jax.Array:
    leaves = [jnp.isfinite(x).all() for x in jax.tree.leaves(params)]
    return jnp.stack(leaves).all() if leaves else jnp.array(True)


def _not_finite(step: int, result: FitResult, loss: Any) -> NonFiniteError:
    what = "a parameter after the step" if np.isfinite(loss) else f"the loss ({loss})"
    return NonFiniteError(
        f"Training stopped at step {step}: {what} is not finite. The last good parameters and "
        "state are in this error's .result. Fix: check the data for NaN or inf, constrain scale "
        "parameters (constraint=constraints.positive), or lower the step size.",
        step,
        result,
    )
