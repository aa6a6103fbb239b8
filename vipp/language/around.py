"""A scan taken from its program: the handlers around it go with its steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.handlers import condition, mask, scale, seed, substitute
from numpyro.primitives import apply_stack, get_mask

from vipp.language.control_flow import Scan, scan_of


def taken_scan(msg: Any) -> Scan | None:
    """The scan that a message is, its steps under the handlers that it has met; or None.

    NumPyro tells the handlers of values from the message, and scales and masks once the scan has
    run: who runs the steps instead must do both.

    Raises:
      ValueError: if a scale or mask around it is an array.
    """
    scan = scan_of(msg)
    if scan is None:
        return None
    scaled, masked = _around()
    stack = list(msg["kwargs"]["substitute_stack"])
    step = scan.step if scaled is None else scale(scan.step, scaled)
    step = step if masked is None else mask(step, masked)
    if not stack:
        return scan._replace(step=step)

    def under(carry: Any, given: Any) -> Any:
        i, x = given
        handled: Any = step
        for kind, values in stack:
            of_step = partial(_of_step, kind, values, i, scan.length)
            if kind == "condition":
                handled = condition(handled, condition_fn=of_step)
            else:
                handled = substitute(handled, substitute_fn=of_step)
        return handled(carry, x)

    numbers = jnp.arange(scan.length)
    return scan._replace(step=under, xs=(numbers[::-1] if scan.reverse else numbers, scan.xs))


def _of_step(kind: str, values: Any, i: Any, length: int, site: Any) -> Any:
    """The value of a site at step ``i``, among those that a handler has; None if it has none."""
    if site["type"] != "sample":
        return None
    value: Any
    name, expected = site["name"], site["kwargs"]["sample_shape"] + site["fn"].shape()
    if kind == "replay":
        found = values.get(name)
        value = None if found is None or site["is_observed"] else found["value"]
    elif isinstance(values, Mapping):
        value = values.get(name)
    else:
        key = site["kwargs"].get("rng_key")
        seeded: Any = values if key is None else seed(values, rng_seed=key)
        value = seeded(site)
    if value is None or jnp.ndim(value) == len(expected):
        return value
    if jnp.shape(value)[:1] != (length,) or jnp.ndim(value) != len(expected) + 1:
        raise ValueError(
            f"Site '{name}' in a scan of {length} steps is given values of shape "
            f"{jnp.shape(value)}, expected {expected} or {(length, *expected)}. Fix: give it one "
            "value, or one for each step."
        )
    return jax.tree.map(lambda x: x[i], value)


def _around() -> tuple[Any, Any]:
    """The scale and the mask of the handlers around here, one number each."""
    probe = {"type": "param", "name": "vipp: scale", "fn": None, "args": (), "kwargs": {},
             "value": 0.0, "scale": None, "cond_indep_stack": [], "stop": False}  # fmt: skip
    scaled, masked = apply_stack(probe)["scale"], get_mask()
    if any(x is not None and jnp.ndim(x) for x in (scaled, masked)):
        raise ValueError(
            "A scan whose steps are run one by one stands under a scale or mask that is an array, "
            "expected one number. Fix: scan over the array, and put the handler inside the step."
        )
    return scaled, masked
