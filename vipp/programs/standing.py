"""An exact marginal as a NumPyro program: the sites that are kept, and one factor for the rest."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from numpyro.handlers import block, trace
from numpyro.primitives import Messenger

from vipp.language.keys import seeded
from vipp.programs.outside import given_outside
from vipp.programs.program import Program
from vipp.programs.summed_out import ExactMarginalProgram
from vipp.programs.trace import Trace


def run_summed_out(
    fn: Callable[..., Any],
    keep: tuple[str, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    parallel: bool | None = None,
) -> Any:
    """Run ``fn`` so that NumPyro's handlers see an exact marginal.

    The sites kept are drawn and can be given values; those whose density depends on what is summed
    out have it in the factor. What is summed out is drawn for the program's result, and hidden;
    where a handler around has a value for it, it is kept instead.

    Args:
      fn: a NumPyro program.
      keep: its latent sites that stay.
      args: its arguments.
      kwargs: its keyword arguments.
      parallel: whether the steps of a loop are multiplied in a tree; None where that pays.

    Returns:
      What it returns.
    """
    hidden, coupled, seen = _look(fn, keep, args, kwargs)
    if given := given_outside({n: seen[n] for n in hidden}):
        for name in given:
            if seen[name]["is_observed"]:
                raise _observed(name)
        keep = (*keep, *sorted(given))
        hidden, coupled, _ = _look(fn, keep, args, kwargs)
    # other sites come from handlers further out, such as the volumes of NumPyro's transforms
    with block(hide=list(hidden)), trace() as record:
        with _Keyed(hidden), _Unscored(coupled):
            result = fn(*args, **kwargs)
    marginal = replace(_marginal(fn, keep, args, kwargs, record), parallel=parallel)
    given = _given(record, keep)

    def summed_out() -> jax.Array:
        with block(), seeded(rng_seed=jax.random.key(0)):
            sites = marginal.log_density_sites(given)
        return sum((s.total() for s in sites if s.name not in keep), start=jnp.zeros(()))

    # outside of jit, one compilation instead of one for each of its operations
    numpyro.factor("summed_out", jax.jit(summed_out)())
    return result


def _look(
    fn: Any, keep: tuple[str, ...], args: Any, kwargs: Any
) -> tuple[frozenset[str], frozenset[str], dict[str, Any]]:
    """The sites not kept; those kept whose density depends on what is summed out; all of them."""
    found: list[Any] = []

    def run() -> None:
        with block(), seeded(rng_seed=jax.random.key(0)):
            with trace() as record:
                fn(*args, **kwargs)
            marginal = _marginal(fn, keep, args, kwargs, record)
            sites = marginal.log_density_sites(_given(record, keep))
        names = frozenset(n for n, s in record.items() if s["type"] == "sample")
        apart = {s.name for s in sites}
        found[:] = names.difference(keep), names.intersection(keep) - apart, dict(record)

    jax.eval_shape(run)  # names are wanted, and no values
    hidden, coupled, seen = found
    return hidden, coupled, seen


def _observed(name: str) -> ValueError:
    return ValueError(
        f"Site '{name}' is observed, and hidden in the factor of a program with sites summed out "
        "(marginal with exact=True), but a handler around gives it another value. Expected a site "
        f"that the program shows. Fix: give it inside, marginal(condition(program, "
        f"data={{'{name}': ...}}), ...)."
    )


def _marginal(
    fn: Any, keep: tuple[str, ...], args: Any, kwargs: Any, record: Any
) -> ExactMarginalProgram:
    constants = {n: s["value"] for n, s in record.items() if s["type"] == "param"}
    mutable = {n: s["value"] for n, s in record.items() if s["type"] == "mutable"}
    return ExactMarginalProgram(Program(fn, constants, args, kwargs, mutable), keep)


def _given(record: Any, keep: tuple[str, ...]) -> Trace:
    """The values of the sites kept, and the subsamples."""
    values = {n: s["value"] for n, s in record.items() if n in keep and s["type"] == "sample"}
    plates = {n: s["value"] for n, s in record.items() if s["type"] == "plate"}
    return Trace(values, plates)


class _Keyed(Messenger):
    """Keys for what is drawn and hidden, if no handler further out has one."""

    def __init__(self, names: frozenset[str]):
        super().__init__()
        self.names = names

    def process_message(self, msg: Any) -> None:
        """Give a hidden site a key."""
        if msg["type"] != "control_flow" and msg.get("name") not in self.names:
            return
        if msg["value"] is None and msg["kwargs"].get("rng_key") is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NumPyro warns where there is none
                key = numpyro.prng_key()
            msg["kwargs"]["rng_key"] = jax.random.key(0) if key is None else key


class _Unscored(Messenger):
    """Takes the density off sites that a factor scores."""

    def __init__(self, names: frozenset[str]):
        super().__init__()
        self.names = names

    def process_message(self, msg: Any) -> None:
        """Mask a site."""
        if msg["type"] == "sample" and msg["name"] in self.names:
            msg["fn"] = msg["fn"].mask(False)
