"""Variational objectives: ordinary functions of a model and a guide, made trainable."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.infer.elbo import ELBO as NumPyroELBO

from vipp.language.arrays import as_jax
from vipp.language.handler import drawing
from vipp.language.keys import minibatch
from vipp.language.state import SUFFIX, advance
from vipp.objectives.arguments import apply_check, arguments, bound, frozen, schedules, written
from vipp.programs.calls import check_calls
from vipp.programs.composed import Binding
from vipp.programs.program import AbstractProgram
from vipp_transforms.checks import positive_int
from vipp_transforms.surrogate import packed_estimate

_STEP = (
    "objective" + SUFFIX
)  # counted by vipp.language.state, like the step of an estimator's schedule


class Objective(NumPyroELBO):
    """A bound to be maximised, usable wherever NumPyro takes an ``ELBO``.

    Made by :func:`objective`, which gives each class its arguments. Two of one class with equal
    arguments are equal.

    Attributes:
      config: the arguments by name, defaults filled in.
    """

    can_infer_discrete = True
    program: Callable[..., Any]
    arguments: Mapping[str, inspect.Parameter] = MappingProxyType({})
    check: Callable[[dict[str, Any]], None] | None = None
    bias: str | Callable[[dict[str, Any]], str | None] | None = None

    def __init__(self, *args: Any, **config: Any):
        name = type(self).__name__
        self.config = bound(name, self.arguments, args, config)
        for key, value in self.config.items():
            if key.startswith("num_"):
                positive_int(f"{name}: {key}", value)
        self.schedules = schedules(self.arguments, self.config)
        if self.check is not None:
            apply_check(name, self.check, self.config, self.schedules)
        super().__init__(num_particles=self.config.get("num_particles", 1))

    def __repr__(self) -> str:
        default = lambda name: frozen(self.arguments[name].default)
        shown = {n: x for n, x in self.config.items() if frozen(x) != default(n)}
        return written(type(self).__name__, shown)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Objective) and other._identity == self._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> Any:
        return type(self), frozen(self.config)

    @property
    def biased(self) -> str | None:
        """Why its gradient is biased for what it is to optimise; None if it is not.

        The gradient is meant as the objective takes it, whatever the estimators of the sites.
        """
        return self.bias(self.config) if callable(self.bias) else self.bias

    @property
    def parts(self) -> tuple[tuple[float, Objective], ...]:
        """The objectives it is the weighted sum of."""
        return ((1.0, self),)

    def __add__(self, other: Any) -> Objective:
        return _Sum(self.parts + other.parts) if isinstance(other, Objective) else NotImplemented

    def __mul__(self, factor: Any) -> Objective:
        if isinstance(factor, Objective) or jnp.ndim(factor):
            return NotImplemented
        return _Sum(tuple((factor * c, part) for c, part in self.parts))

    __rmul__ = __mul__

    def __neg__(self) -> Objective:
        return -1.0 * self

    def __sub__(self, other: Any) -> Objective:
        return self + -1.0 * other if isinstance(other, Objective) else NotImplemented

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
        check_calls(model, guide, args, kwargs)
        args, kwargs = as_jax((args, dict(kwargs)))
        plate_key, rng_key = jax.random.split(rng_key)
        mutable: dict[str, Any] = self._own_state(params)
        binding = Binding(params, args, kwargs, mutable)
        p, q = binding.program(model), binding.program(guide)
        with drawing(rng_key), minibatch(plate_key):
            value = self.value(p, q, mutable)
        return value, mutable

    def value(self, p: AbstractProgram, q: AbstractProgram, state: Mapping[str, Any]) -> Any:
        """What the function returns for these programs, schedules being read off at this step."""
        now = {key: schedule(state[_STEP]["step"]) for key, schedule in self.schedules.items()}
        return type(self).program(p, q, **{**self.config, **now})

    def init_state(self) -> dict[str, Any]:
        """The mutable state that the objective keeps from step to step, besides the programs'."""
        return {_STEP: {"step": jnp.zeros((), int)}} if self.schedules else {}

    def _own_state(self, params: Mapping[str, Any]) -> dict[str, Any]:
        own = self.init_state()
        for name in own:
            if name not in params:
                raise ValueError(
                    f"{type(self).__name__} has a schedule for {list(self.schedules)}, and so a "
                    "count of steps that is not in the state. Fix: use vipp.fit, or start "
                    "numpyro.infer.SVI from svi.init(...)._replace(mutable_state="
                    "objective.init_state()), or add objective.init_state() to the parameters."
                )
        return {name: params[name] for name in own}

    def bound_and_state(
        self, rng_key: Any, params: Any, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        """An estimate of the bound with unbiased derivatives, and the mutable state.

        Packed with its gradient where the programs have many small sites.
        """
        inputs = (rng_key, params, model, guide, args, kwargs)
        return packed_estimate(advance, self.draw, *inputs)

    def loss(
        self, rng_key: Any, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> jax.Array:
        """Minus the bound, as ``numpyro.infer.SVI`` minimises it."""
        return -self.bound_and_state(rng_key, param_map, model, guide, args, kwargs)[0]

    def loss_with_mutable_state(
        self, rng_key: Any, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """:meth:`loss` together with the new values of ``numpyro.mutable`` sites."""
        value, mutable = self.bound_and_state(rng_key, param_map, model, guide, args, kwargs)
        return {"loss": -value, "mutable_state": mutable or None}


class _Sum(Objective):
    """A weighted sum of objectives, each with draws of its own."""

    def __init__(self, parts: tuple[tuple[float, Objective], ...]):
        NumPyroELBO.__init__(self)
        self.terms = parts
        self.schedules = {k: v for _, part in parts for k, v in part.schedules.items()}

    @property
    def parts(self) -> tuple[tuple[float, Objective], ...]:
        return self.terms

    @property
    def biased(self) -> str | None:
        reasons = {type(part).__name__: part.biased for c, part in self.terms if part.biased}
        return "; ".join(f"{name}, as {reason}" for name, reason in reasons.items()) or None

    @property
    def _identity(self) -> Any:
        return type(self), tuple((frozen(c), part) for c, part in self.terms)

    def __repr__(self) -> str:
        factor = lambda c: "" if isinstance(c, float) and c == 1.0 else f"{c} * "
        return " + ".join(f"{factor(c)}{part!r}" for c, part in self.terms)

    def value(self, p: AbstractProgram, q: AbstractProgram, state: Mapping[str, Any]) -> Any:
        return sum((c * part.value(p, q, state) for c, part in self.terms), start=jnp.zeros(()))


def objective(
    fn: Callable[..., Any] | None = None,
    *,
    check: Callable[[dict[str, Any]], None] | None = None,
    biased: str | Callable[[dict[str, Any]], str | None] | None = None,
) -> Any:
    """Make an objective of a function of two programs.

    Its value is the *expectation* of what the function returns; gradients are derived. A term that
    is to count and not to be optimised stands under :func:`vipp.constant`.

    Args:
      fn: ``fn(p, q, *, **config)`` returning a real scalar, ``p`` the model and ``q`` the guide
        as :class:`vipp.Program`. Arguments named ``num_...`` must be positive ints; one that is a
        number (its default is one, or ``float`` its annotation) may be given a schedule, a function
        of the step.
      check: called with ``config`` when an objective is made, and with the values that schedules
        have at some steps; raises if it makes no sense.
      biased: why the gradient is biased for what the objective is to optimise, or a function of
        ``config`` that says so; None if it is not. What the engine derives from ``fn`` never is:
        say so where ``fn`` stops gradients, or is an estimate of something else.

    Returns:
      A class of objectives whose constructor takes ``config``, by name.

    Raises:
      TypeError: if ``fn`` does not take two programs first; when instantiated with an argument that
        ``fn`` doesn't have, without one that it needs, or by position.
      ValueError: when instantiated with a non-positive ``num_...``, or as ``check`` raises.

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
    if fn is None:
        return partial(objective, check=check, biased=biased)
    known = arguments(fn)
    members = {
        "program": staticmethod(fn),
        "arguments": MappingProxyType(known),
        "__signature__": inspect.Signature(list(known.values())),
        "check": None if check is None else staticmethod(check),
        "bias": staticmethod(biased) if callable(biased) else biased,
        "__doc__": fn.__doc__,
        "__module__": fn.__module__,
        "__qualname__": fn.__qualname__,
    }
    return type(fn.__name__, (Objective,), members)


def check_objective(what: str, given: Any) -> None:
    """It is an objective, and not the class of one.

    Raises:
      TypeError: saying what it is.
    """
    if not isinstance(given, Objective):
        raise TypeError(
            f"{what}: objective must be an instance of vipp.Objective such as vipp.ELBO(), got "
            f"{given!r}. Fix: call the class, or decorate the function with @vipp.objective."
        )


def value_and_grad(objective: Objective, model: Any, guide: Any) -> Callable[..., Any]:
    """The bound's estimate and gradient, as a function of key and parameters.

    Args:
      objective: the bound.
      model: a NumPyro program.
      guide: a NumPyro program.

    Returns:
      ``(rng_key, params, *args, **kwargs) -> (bound, gradient)``: a scalar, and a dict like
      ``params`` (constrained values by name), without what is not made of real numbers, such as
      the count of steps that an objective with a schedule needs (``objective.init_state()``).
      Unbiased; jit it to compile it.

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
            given = {**constants, **params}
            return objective.bound_and_state(rng_key, given, model, guide, args, kwargs)[0]

        constants = {n: x for n, x in params.items() if not is_real(x)}
        return jax.value_and_grad(bound)({n: x for n, x in params.items() if n not in constants})

    return evaluate


def is_real(tree: Any) -> bool:
    """Whether all of ``tree`` is made of real numbers, of which there are derivatives."""
    return all(jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in jax.tree.leaves(tree))
