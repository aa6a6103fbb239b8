"""NumPyro's scan as a Python loop, for estimators that need each step on its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.primitives import Messenger

import vipp_transforms as vt
from vipp_transforms.control_flow import MAX_UNROLLED


class Scan(NamedTuple):
    """The arguments of a NumPyro ``scan``, its number of steps worked out."""

    step: Any
    carry: Any
    xs: Any
    length: int
    reverse: bool


def scan_of(msg: Any) -> Scan | None:
    """The scan that a message is, or None: a ``cond`` is a message of that type, too."""
    if msg["type"] != "control_flow" or len(msg["args"]) != 5:
        return None
    step, carry, xs, length, reverse = msg["args"]
    length = len(jax.tree.leaves(xs)[0]) if length is None else length
    return Scan(step, carry, xs, length, reverse)


class NeedsUnrolling(Exception):  # noqa: N818 (no error: the program is run again)
    """A site in a scan has an estimator that cannot be applied step by step."""

    def __init__(self, name: str, estimator: Any):
        super().__init__(f"{name} with {estimator!r}")
        self.name, self.estimator = name, estimator


class unroll(Messenger):  # noqa: N801 (a NumPyro handler, named like NumPyro's)
    """Runs each scan step by step; site ``z`` of step ``t`` is called ``z[t]``."""

    def __init__(self, because: NeedsUnrolling | None = None):
        super().__init__()
        self.because = because
        self.step: int | None = None

    def process_message(self, msg: Any) -> None:
        """Run a scan, or rename a site of one of its steps."""
        if self.step is not None and msg["type"] in ("sample", "deterministic"):
            msg["name"] = f"{msg['name']}[{self.step}]"
        scan = scan_of(msg)
        if scan is None:
            return
        if self.step is not None:
            raise vt.SiteError("A scan inside a scan cannot be unrolled. Fix: join the loops.")
        if scan.length > MAX_UNROLLED:
            raise self._too_long(scan.length)
        carry, stacked = scan.carry, [None] * scan.length
        for t in reversed(range(scan.length)) if scan.reverse else range(scan.length):
            self.step = t
            carry, stacked[t] = scan.step(carry, jax.tree.map(lambda x, t=t: x[t], scan.xs))
        self.step = None
        ys = jax.tree.map(lambda *y: jnp.stack(y), *stacked) if stacked else None
        msg["value"] = (scan.length, None, carry), (SimpleNamespace(trace={}), ys)

    def _too_long(self, length: int) -> vt.SiteError:
        who = "its sites"
        if self.because is not None:
            who = f"site '{self.because.name}' with {self.because.estimator!r}"
        return vt.SiteError(
            f"A scan of {length} steps would have to be unrolled for {who}, expected at most "
            f"{MAX_UNROLLED} steps. Fix: use ScoreFunction(num_samples=2, "
            "baseline='leave_one_out'), or sum it out (vipp.marginal with exact=True)."
        )
