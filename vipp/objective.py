"""Variational objectives: ordinary functions of a model and a guide, made trainable."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from numpyro.handlers import seed
from numpyro.infer.elbo import ELBO as NumPyroELBO

import vipp_transforms as vt
from vipp.adaptive import advance
from vipp.estimation import estimate
from vipp.program import Program
from vipp.replicate import positive_int


class Objective(NumPyroELBO):
    """A bound to be maximised, usable wherever NumPyro takes an ``ELBO``.

    Made by :func:`objective`. Its keyword arguments are those of the decorated function.

    Attributes:
      config: the keyword arguments, defaults filled in.
    """

    can_infer_discrete = True
    program: Callable[..., Any]

    def __init__(self, **config: Any):
        name = type(self).__name__
        known = {
            k: p.default
            for k, p in inspect.signature(self.program).parameters.items()
            if p.kind is inspect.Parameter.KEYWORD_ONLY
        }
        for key in config:
            if key not in known:
                raise TypeError(f"{name}: unknown argument {key!r}, expected one of {list(known)}.")
        self.config = {**known, **config}
        for key, value in self.config.items():
            if value is inspect.Parameter.empty:
                raise TypeError(f"{name}: argument {key!r} is required.")
            if key.startswith("num_"):
                positive_int(f"{name}: {key}", value)
        super().__init__(num_particles=self.config.get("num_particles", 1))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.config.items())
        return f"{type(self).__name__}({arguments})"

    def draw(
        self,
        rng_key: Any,
        params: Mapping[str, Any],
        model: Any,
        guide: Any,
        args: Any,
        kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Run the objective once: its value and the mutable state. To be given to the engine."""
        plate_key, rng_key = jax.random.split(rng_key)
        mutable: dict[str, Any] = {}
        p = Program(model, params, args, kwargs, plate_key, mutable)
        q = Program(guide, params, args, kwargs, plate_key, mutable)
        with estimate(), seed(rng_seed=rng_key):
            value = type(self).program(p, q, **self.config)
        return value, mutable

    def estimate(
        self, rng_key: Any, params: Any, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        """An estimate of the bound with unbiased derivatives, and the mutable state."""
        inputs = (rng_key, params, model, guide, args, kwargs)
        value, mutable, report = vt.estimate(self.draw, *inputs)
        return value, advance(mutable, report)

    def loss(
        self, rng_key: Any, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> jax.Array:
        """Minus the bound, as ``numpyro.infer.SVI`` minimises it."""
        return -self.estimate(rng_key, param_map, model, guide, args, kwargs)[0]

    def loss_with_mutable_state(
        self, rng_key: Any, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """:meth:`loss` together with the new values of ``numpyro.mutable`` sites."""
        value, mutable = self.estimate(rng_key, param_map, model, guide, args, kwargs)
        return {"loss": -value, "mutable_state": mutable or None}


def objective(fn: Callable[..., Any]) -> type[Objective]:
    """Make an objective of a function of two programs.

    Its value is the *expectation* of what the function returns; gradients are derived.

    Args:
      fn: ``fn(p, q, *, **config)`` returning a real scalar, ``p`` the model and ``q`` the guide
        as :class:`vipp.Program`. Arguments named ``num_...`` must be positive ints.

    Returns:
      A class of objectives whose constructor takes ``config``.

    Raises:
      TypeError: when instantiated with an argument that ``fn`` doesn't have.
      ValueError: when instantiated with a non-positive ``num_...``.

    Example:
      >>> import vipp
      >>> @vipp.objective
      ... def elbo(p, q):
      ...     z, log_q = q.simulate()
      ...     return p.log_density(z) - log_q
      >>> elbo()
      elbo()

    References:
      Becker, Lew et al., *Probabilistic programming with programmable variational inference*,
      PLDI 2024.
    """
    members = {
        "program": staticmethod(fn),
        "__doc__": fn.__doc__,
        "__module__": fn.__module__,
        "__qualname__": fn.__qualname__,
    }
    return type(fn.__name__, (Objective,), members)


def value_and_grad(objective: Objective, model: Any, guide: Any) -> Callable[..., Any]:
    """The bound's estimate and gradient, as a function of key and parameters.

    Args:
      objective: the bound.
      model: a NumPyro program.
      guide: a NumPyro program.

    Returns:
      ``(rng_key, params, *args, **kwargs) -> (bound, gradient)``: a scalar, and a dict like
      ``params`` (constrained values by name). Unbiased; jit it to compile it.

    Example:
      >>> import jax, numpyro, numpyro.distributions as dist, vipp
      >>> model = lambda: numpyro.sample("z", dist.Bernoulli(0.5))
      >>> guide = lambda: numpyro.sample("z", dist.Bernoulli(numpyro.param("p", 0.5)))
      >>> bound, slope = vipp.value_and_grad(vipp.ELBO(), model, guide)(
      ...     jax.random.key(0), {"p": 0.5})
      >>> round(float(bound), 4), round(float(slope["p"]), 4)
      (0.0, 0.0)
    """

    def evaluate(rng_key: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        def bound(params: Any) -> jax.Array:
            return objective.estimate(rng_key, params, model, guide, args, kwargs)[0]

        return jax.value_and_grad(bound)(params)

    return evaluate
