"""Random keys: each draw has one of its own, or is refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from numpyro.handlers import seed
from numpyro.primitives import Messenger, apply_stack

import vipp_transforms as vt
from vipp.language.subsample import subsample
from vipp_transforms._jax import trace_now
from vipp_transforms.estimate import subsampled


class seeded(seed):  # noqa: N801 (a NumPyro handler, named like NumPyro's)
    """NumPyro's ``seed``, for which every draw beneath it has a key of its own.

    ``seed`` splits its key each time that Python meets a draw. Under a JAX transformation that
    begins beneath it (``jit``, ``vmap``, ``lax.scan`` and the like) Python meets the draw once,
    whereas it may be made many times: that is refused, unless the draw brings its own key.

    The n-th draw has the key ``fold_in(key, n)``, where ``seed`` has the n-th of a chain of splits:
    no draw's key waits for another's, so that the draws of many sites can be made together.
    In step ``t`` of a loop it is ``fold_in(fold_in(key, n), t)``: nor does any wait for a step.
    """

    step: Any = None

    def __enter__(self) -> None:
        self.began, self.drawn = trace_now(), 0
        return super().__enter__()

    def process_message(self, msg: Any) -> None:
        """Give a draw its key."""
        if trace_now() != self.began:
            if wants_key(msg):
                raise shared_key(msg)
            for name in msg["inside"].latent if "inside" in msg and _keyless(msg) else ():
                raise shared_key({"type": "sample", "name": name})
        waits = wants_key(msg) or (msg["type"] == "control_flow" and _keyless(msg))
        if waits and self.rng_key is not None:
            key = jax.random.fold_in(self.rng_key, self.drawn)
            msg["kwargs"]["rng_key"] = (
                key if self.step is None else jax.random.fold_in(key, self.step)
            )
            self.drawn += 1
            if msg["type"] == "control_flow":
                msg["fn"] = _with_keys_of_steps(msg["fn"])
        _draw_subsample(msg, marked=True)


def _with_keys_of_steps(run: Callable[..., Any]) -> Callable[..., Any]:
    """NumPyro's ``scan``, its steps' keys made of their numbers and not by a chain of splits."""

    def run_with_keys(*args: Any, rng_key: Any = None, **kwargs: Any) -> Any:
        if rng_key is None or len(args) != 5 or kwargs.get("enum"):  # a ``cond`` has four
            return run(*args, rng_key=rng_key, **kwargs)
        step, carry, xs, length, reverse = args
        length = len(jax.tree.leaves(xs)[0]) if length is None else length

        def keyed(carry: Any, entries: Any) -> Any:
            number, x = entries
            own = seeded(rng_seed=rng_key)
            own.step = number
            with own:
                return step(carry, x)

        steps = jnp.arange(length, dtype=jnp.uint32)
        return run(keyed, carry, (steps, xs), length, reverse, rng_key=None, **kwargs)

    return run_with_keys


class subsampling(Messenger):  # noqa: N801
    """Plates beneath it are subsampled without NumPyro's shuffle, with keys given beneath it."""

    def process_message(self, msg: Any) -> None:
        """Draw the indices of a plate."""
        if msg["type"] == "plate" and msg["kwargs"].get("rng_key") is not None:
            _draw_subsample(msg, marked=False)


def _draw_subsample(msg: Any, *, marked: bool) -> None:
    # in place of NumPyro's shuffle, which goes through all indices one by one
    if msg["type"] == "plate" and msg["value"] is None:
        size, count = msg["args"]
        drawn = subsample(msg["kwargs"]["rng_key"], size, count)
        whole = count == size or not marked
        msg["value"] = drawn if whole else subsampled(drawn, msg["name"])


def _keyless(msg: Any) -> bool:
    return msg["value"] is None and msg["kwargs"]["rng_key"] is None


def wants_key(msg: Any) -> bool:
    """Whether a draw waits for a handler to give it a key."""
    return msg["type"] in ("sample", "plate", "prng_key") and _keyless(msg)


def shared_key(msg: Any) -> vt.SiteError:
    """The error for a draw that several steps or calls would make with one key."""
    kinds = {"plate": "The subsample of plate", "sample": "Site"}
    what = f"{kinds[msg['type']]} '{msg['name']}'" if msg["type"] in kinds else "A random key"
    return vt.SiteError(
        f"{what} is drawn under a JAX transformation (jit, vmap, scan, map, cond, while_loop, "
        "checkpoint) that began inside the program: all its steps, lanes or calls would share one "
        "random key. Expected a key for each. Fix: use numpyro.contrib.control_flow.scan or cond, "
        "a plate, or vipp.replicate; or give the draw its own key, sample(..., rng_key=key)."
    )


class minibatch(Messenger):  # noqa: N801
    """Programs beneath it subsample plates of the same name alike: they see one minibatch."""

    def __init__(self, rng_key: Any):
        super().__init__()
        self.rng_key = rng_key

    def process_message(self, msg: Any) -> None:
        """Say the key."""
        if msg["type"] == "minibatch" and msg["value"] is None:
            msg["value"] = (self.rng_key,)


def minibatch_key() -> Any:
    """The key of the minibatch that is to be seen, or None if each run draws its own."""
    msg: Any = {
        "type": "minibatch", "fn": lambda: (None,), "args": (), "kwargs": {}, "value": None
    }  # fmt: skip
    return apply_stack(msg)["value"][0]


def random_key(what: str) -> Any:
    """A fresh key from the enclosing ``seed`` handler; raise if there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPyro warns where this raises
        key = numpyro.prng_key()
    if key is None:
        raise ValueError(
            f"{what} was run without a random key. Fix: use it inside vipp.expectation(fn), an "
            "objective, or numpyro.handlers.seed."
        )
    return key


def check_key(what: str, rng_key: Any) -> None:
    """It is one PRNG key.

    Raises:
      TypeError: saying what it is.
    """
    shape, dtype = getattr(rng_key, "shape", None), getattr(rng_key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if shape == ():
            return
        got, fix = f"an array of keys of shape {shape}", "take one of them, rng_key[0]"
    else:
        if dtype == jnp.uint32 and len(shape or ()) == 1:  # one of before typed keys
            return
        got, fix = repr(rng_key) if dtype is None else f"an array of {dtype}", "jax.random.key(0)"
    raise TypeError(f"{what}: rng_key must be one PRNG key, got {got}. Fix: {fix}.")
