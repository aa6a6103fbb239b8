"""Training a model and a guide by an objective."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState

from vipp.diagnostics.check import Checked
from vipp.language.bias import noting_biased, warn_of_biased_objective
from vipp.language.names import close
from vipp.objectives.objective import Objective
from vipp.training.loop import MOST_STEPS_AT_ONCE, compiled_loop
from vipp.training.progress import Progress
from vipp.training.result import FitResult, NonFiniteError
from vipp_transforms.checks import positive_int

_SECONDS_AT_ONCE = 0.25


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

    Steps ``num_steps`` times along an estimate of :math:`\nabla_\theta E[\mathrm{objective}]`,
    unbiased unless a warning says otherwise, compiled as one loop that returns to Python only to
    move the progress bar.

    Args:
      rng_key: a PRNG key.
      objective: what is maximised, such as ``vipp.ELBO()``.
      model: a NumPyro program.
      guide: a NumPyro program; NumPyro's autoguides too.
      optim: an optax ``GradientTransformation`` or a ``numpyro.optim`` optimiser.
      num_steps: at least 1.
      *args: arguments of model and guide. Arrays are inputs of the compiled loop, anything else is
        fixed when it is compiled. The loop is kept: training the same programs with the same
        optimiser again, on arrays of the same shapes, compiles nothing.
      progress_bar: whether to show one.
      init_params: initial constrained values by name, instead of those of ``numpyro.param``.
      init_state: the state of an earlier result, to go on from it.
      **kwargs: keyword arguments of model and guide.

    Returns:
      A :class:`FitResult`.

    Warns:
      BiasedEstimatorWarning: once, naming the sites whose estimators are biased, if there are any.
      BiasedObjectiveWarning: once, if ``objective.biased`` says that its gradient is.

    Raises:
      CheckError: naming what is wrong with the model, the guide or the data; see
        :func:`vipp.check`.
      TypeError: if ``objective`` is not an :class:`vipp.Objective`.
      ValueError: if ``num_steps`` is not a positive int, ``init_params`` has a name that is no
        parameter's, or as the objective raises.
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
    checked, biased = Checked(model, guide), noting_biased()
    first = SVI(checked.model, checked.guide, optim, loss=objective)
    with biased, checked.running(args, kwargs):
        state = first.init(rng_key, *args, init_params=init_params, **kwargs)
    svi = SVI(model, guide, first.optim, loss=objective)
    svi.constrain_fn = first.constrain_fn
    _check_init_params(init_params, svi.get_params(state))
    biased.warn("fit", stacklevel=2)
    if objective.biased:
        warn_of_biased_objective("fit", repr(objective), objective.biased, stacklevel=2)
    mutable = {**(state.mutable_state or {}), **objective.init_state()}
    state = state._replace(mutable_state=mutable or None)
    state = _strongly_typed(state if init_state is None else _continued(init_state, state))
    bound_guide = jax.tree_util.Partial(guide, *args, **kwargs)

    def result(state: SVIState, losses: list[np.ndarray]) -> FitResult:
        every = jnp.asarray(np.concatenate(losses))
        return FitResult(svi.get_params(state), every, state, bound_guide, model)

    advance = compiled_loop(svi, optim, args, kwargs)
    losses: list[np.ndarray] = []
    done, chunk = 0, 1 if progress_bar else num_steps
    with Progress(num_steps, progress_bar) as progress:
        while done < num_steps:
            started = time.perf_counter()
            state, *report = advance(state, min(chunk, num_steps - done, MOST_STEPS_AT_ONCE))
            taken, ok, block = jax.device_get(report)
            losses.append(block[:taken])
            done += int(taken)
            progress.advance(int(taken), float(losses[-1].mean()))
            if not ok:
                raise _not_finite(done - 1, result(state, losses), losses[-1][-1])
            if time.perf_counter() - started < _SECONDS_AT_ONCE:
                chunk *= 2
    return result(state, losses)


def _check_init_params(init_params: Any, known: Any) -> None:
    for name in init_params or ():
        if name not in known:
            raise ValueError(
                f"fit: init_params has a value for '{name}', which is no parameter of the model or "
                f"the guide, got {sorted(known)}{close(name, known)}. Fix: use one of these names."
            )


def _continued(state: SVIState, fresh: SVIState) -> SVIState:
    """An earlier state, with the start of the mutable state that it doesn't have yet.

    SVI passes on what a state has: what it lacks would stay at its start, silently.
    """
    mutable = {**(fresh.mutable_state or {}), **(state.mutable_state or {})}
    return state._replace(mutable_state=mutable or None)


def _strongly_typed(state: SVIState) -> SVIState:
    """The state as a step returns it: a number of weak type would be compiled for apart."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), state)


def _not_finite(step: int, result: FitResult, loss: Any) -> NonFiniteError:
    what = "a parameter after the step" if np.isfinite(loss) else f"the loss ({loss})"
    return NonFiniteError(
        f"Training stopped at step {step}: {what} is not finite. The last good parameters and "
        "state are in this error's .result. Fix: check the data for NaN or inf, constrain scale "
        "parameters (constraint=constraints.positive), or lower the step size.",
        step,
        result,
    )
