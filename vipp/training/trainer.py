"""Training as a pure function, for ``jax.vmap`` and ``jax.jit``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vipp.language.arrays import as_jax
from vipp.language.keys import check_key
from vipp.objectives.objective import Objective, check_objective
from vipp.training.arguments import check_init_params, check_optimiser
from vipp.training.compiled import steps_of
from vipp.training.start import initialised, renewed, strongly_typed
from vipp_transforms.checks import positive_int


def trainer(
    objective: Objective,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    optim: Any,
    num_steps: int,
    init_params: dict[str, Any] | None = None,
) -> Callable[..., tuple[dict[str, Any], jax.Array]]:
    r"""Training as a function that ``jax.vmap``, ``jax.jit`` and ``jax.lax.map`` may take.

    :func:`vipp.fit` without what happens between steps: many starts at once, many data sets, many
    settings. For the best of several starts there is ``fit(num_restarts=...)``.

    Args:
      objective: what is maximised, such as ``vipp.ELBO()``.
      model: a NumPyro program.
      guide: a NumPyro program; NumPyro's autoguides too, which start anew in each call.
      optim: an optax ``GradientTransformation`` or a ``numpyro.optim`` optimiser.
      num_steps: at least 1.
      init_params: initial constrained values by name, instead of those of ``numpyro.param``.

    Returns:
      A function ``(rng_key, *args, **kwargs) -> (params, losses)``: constrained parameter values
      by name, and minus the bound at every step, shape ``(num_steps,)``. From a step on that is
      not finite the losses are NaN, and the parameters are the last good ones. Programs are
      looked at as by :func:`vipp.check`, when it is traced.

    Raises:
      TypeError: without an optimiser.
      ValueError: if ``num_steps`` is not a positive int.

    Example:
      >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax, vipp
      >>> model = lambda x: numpyro.sample("x", dist.Normal(numpyro.param("m", 0.0), 1.0), obs=x)
      >>> train = vipp.trainer(vipp.ELBO(), model, lambda x: None, optax.adam(0.1), 200)
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> params, losses = jax.jit(jax.vmap(train))(keys, jnp.array([-1.0, 0.0, 2.0]))
      >>> losses.shape, [round(float(m), 1) for m in params["m"]]
      ((3, 200), [-1.0, 0.0, 2.0])
    """
    positive_int("trainer: num_steps", num_steps)
    check_objective("trainer", objective)
    check_optimiser("trainer", optim)
    check_init_params("trainer", init_params)
    if optim is None:
        raise TypeError(
            "trainer: expected an optimiser, got None: what steps by itself decides between blocks "
            "of steps. Fix: an optimiser such as optax.adam(1e-3), or vipp.fit."
        )

    def train(rng_key: jax.Array, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], jax.Array]:
        check_key("trainer", rng_key)
        args, kwargs = as_jax((args, kwargs))
        svi, state, _ = initialised(
            rng_key, objective, model, renewed(guide), optim, args, kwargs, init_params,
            in_batches=False,
        )  # fmt: skip
        one, begin, end = steps_of(svi, args, kwargs, strongly_typed(state))

        def step(carry: Any, _: Any) -> Any:
            state, going = carry
            state, going, loss = one(state, going)
            return (state, going), loss

        (last, _), losses = jax.lax.scan(step, (begin, jnp.array(True)), length=num_steps)
        return svi.get_params(end(last)), losses

    return train
