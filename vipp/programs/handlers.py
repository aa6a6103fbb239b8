"""The handlers that a NumPyro program runs under."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import Delta, MaskedDistribution, Unit
from numpyro.handlers import substitute
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import Messenger

import vipp_transforms as vt
from vipp.distributions.reparameterisation import drawn_with
from vipp.distributions.wrappers import factor
from vipp.language.around import taken_scan
from vipp.language.control_flow import Scan, hand_to_steps, look_inside, scan_of, sites
from vipp.language.steps_given import check_steps
from vipp.programs.trace import Trace


class PlateKeys(Messenger):
    """Gives each subsampled plate a key by its name, the same in every program and particle."""

    def __init__(self, fn: Callable[..., Any], key: Any):
        super().__init__(fn)
        self.key = key

    def process_message(self, msg: Any) -> None:
        """Give a plate its key."""
        if msg["type"] == "plate" and msg["value"] is None and msg["kwargs"]["rng_key"] is None:
            salt = zlib.crc32(msg["name"].encode()) >> 1
            msg["kwargs"]["rng_key"] = jax.random.fold_in(self.key, salt)


class Given(substitute):
    """Substitutes values, and refuses a latent site that has none where all must have one."""

    def __init__(self, data: dict[str, Any], given: Trace | None):
        super().__init__(data=data)
        self.given = given

    def process_message(self, msg: Any) -> None:
        """Give a site its value."""
        if msg["type"] == "composed":
            kind = type(msg["composed"]).__name__.lower()
            raise ValueError(
                f"vipp.{kind}(...) runs inside another program or under a handler, where its "
                "density would be lost. Fix: give it to the objective itself, and apply handlers "
                f"to the programs inside: vipp.{kind}(handler(program), ...)."
            )
        if "inside" in msg:
            data = self.data or {}
            check_steps(scan_of(msg), msg["inside"], data)
            handed = hand_to_steps(msg, data)
            msg["inside"] = msg["inside"].given(data)
            super().process_message(msg)
            rest = {n: x for n, x in data.items() if n not in handed}
            msg["kwargs"]["substitute_stack"][-1] = "substitute", rest
            return
        super().process_message(msg)
        if self.given is not None and latent(msg) and msg["value"] is None and not imputed(msg):
            raise missing(msg["name"], self.given)


class Constant(sites):
    """Draws latent sites without gradient, whatever their estimators."""

    def process_message(self, msg: Any) -> None:
        """Leave nothing in a loop to be drawn otherwise."""
        if "inside" in msg:
            msg["inside"] = replace(msg["inside"], latent={})
        super().process_message(msg)

    def visit(self, msg: Any) -> None:
        """Draw the site, if no handler gave it a value."""
        if not latent(msg) or msg["value"] is not None:
            return
        key = msg["kwargs"]["rng_key"]
        key = vt.lane_key(key, drawn_with(msg["fn"], key))
        value = msg["fn"](rng_key=key, sample_shape=msg["kwargs"]["sample_shape"])
        # what follows from the parameters is no draw, and keeps their gradient
        fixed = isinstance(factor(msg["fn"]), Delta)
        msg["value"] = value if fixed else jax.lax.stop_gradient(value)
        msg["drawn_constant"] = not fixed


class TakeScan(Messenger):
    """Takes the first scan of a program, which gets zeros for its results."""

    def __init__(self) -> None:
        super().__init__()
        self.scan: Scan | None = None
        self.after: list[str] = []

    def process_message(self, msg: Any) -> None:
        """Take the scan, and note what comes after it."""
        if self.scan is not None:
            if msg["type"] == "control_flow":
                self.after += look_inside(msg).shapes
            elif msg["type"] == "sample":
                self.after.append(msg["name"])
        elif (scan := taken_scan(msg)) is not None:
            self.scan = scan
            carry, ys = jax.tree.map(_blank, look_inside(msg).result)
            msg["value"] = (scan.length, None, carry), (PytreeTrace({}), ys)


def _blank(x: Any) -> Any:
    """An array of that shape and type, of whatever value."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), x.shape)
    return jnp.zeros(x.shape, x.dtype)


class Unobserve(Messenger):
    """Draws observed sites instead of taking the data; factors stay."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def process_message(self, msg: Any) -> None:
        """Forget the data of a site."""
        if msg["type"] == "sample" and msg["is_observed"] and not isinstance(msg["fn"], Unit):
            self.names.append(msg["name"])
            msg["is_observed"], msg["value"] = False, None


def latent(site: Mapping[str, Any]) -> bool:
    """Whether a site of a trace is a latent one."""
    return site["type"] == "sample" and not site["is_observed"]


def imputed(site: Mapping[str, Any]) -> bool:
    """Whether a site stands for the observations that ``sample(..., obs_mask=)`` says are missing.

    Who has no value for them may draw them as the program does.
    """
    return site["name"].endswith("_unobserved") and isinstance(site["fn"], MaskedDistribution)


def missing(name: str, given: Trace) -> ValueError:
    """The error for a latent site without a value."""
    return ValueError(
        f"Site '{name}' is latent here but was given no value, got values for "
        f"{sorted(given.values)}. Fix: draw '{name}' in the guide, observe it, or eliminate it "
        "(vipp.marginal)."
    )
