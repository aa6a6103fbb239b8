"""A NumPyro program run for its densities, with the sites to be summed out drawn by the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.handlers import block, seed, substitute, trace
from numpyro.primitives import Messenger

import vipp_transforms as vt
from vipp.distributions.answers import Answering
from vipp.distributions.lanes import lane_distribution
from vipp.language.around import taken_scan
from vipp.language.control_flow import Scan
from vipp.programs.densities import site_density


def staged(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    key: Any,
    constants: Mapping[str, Any],
    values: Mapping[str, Any],
    summed: tuple[str, ...],
) -> list[vt.Density]:
    """The densities of one run of a program.

    Args:
      fn: the program.
      args: its arguments.
      kwargs: its keyword arguments.
      key: for what it draws that is no site.
      constants: parameters, mutable state and subsample indices, by name.
      values: of the latent sites that are not summed out; of those in a loop, stacked.
      summed: the names of the sites that are.
    """
    drawing = _Drawing(key, constants, values, summed)
    return drawing.run(fn, *args, **kwargs)


class _Drawing(Messenger):
    """Draws the sites that are summed out so that the engine sees them, in loops, too."""

    def __init__(
        self,
        key: Any,
        constants: Mapping[str, Any],
        values: Mapping[str, Any],
        summed: tuple[str, ...],
    ):
        super().__init__()
        self.key, self.constants, self.values, self.summed = key, constants, values, summed

    def run(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> list[vt.Density]:
        """The densities of a run."""
        return self._run(fn, *args, **kwargs)[1]

    def _run(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        data = {**self.constants, **self.values}
        with block(), trace() as record, seed(rng_seed=self.key), substitute(data=data), self:
            result = fn(*args, **kwargs)
        densities = []
        for site in record.values():
            if site["type"] == "sample":
                densities.append(self._density(site, record))
            elif site["type"] == "density":
                densities.append(site["value"])
        return result, densities

    def _density(self, site: Any, record: Any) -> vt.Density:
        if site["name"] in self.summed:
            log_prob, ndim = None, len(site["fn"].batch_shape)
        else:
            log_prob = site_density(site, record).log_prob
            ndim = log_prob.ndim
        plates = tuple((frame.name, ndim + frame.dim) for frame in site["cond_indep_stack"])
        return vt.Density(site["name"], log_prob, plates, site["scale"])

    def process_message(self, msg: Any) -> None:
        """Draw a site lane by lane, whatever its mask; run a loop."""
        scan = taken_scan(msg)
        if scan is not None:
            msg["value"] = self._loop(scan)
        elif msg["type"] == "sample" and msg["name"] in self.summed:
            fn, shape = msg["fn"], msg["kwargs"]["sample_shape"]
            fn = lane_distribution(fn.expand_by(shape) if shape else fn)
            msg["value"] = vt.summed(self.key, Answering(fn, msg["name"]), name=msg["name"])

    def _loop(self, scan: Scan) -> Any:
        """The scan, each step returning its densities; these are handed on as messages."""
        sliced = {n: x for n, x in self.values.items() if jnp.shape(x)[:1] == (scan.length,)}

        def step(carry: Any, xs: Any) -> Any:
            x, values = xs
            inside = _Drawing(self.key, self.constants, {**self.values, **values}, self.summed)
            (carry, y), densities = inside._run(scan.step, carry, x)
            return carry, (y, densities)

        xs = (scan.xs, sliced)
        carry, (ys, densities) = jax.lax.scan(
            step, scan.carry, xs, length=scan.length, reverse=scan.reverse
        )
        messages = {d.name: {"type": "density", "name": d.name, "value": d} for d in densities}
        return (scan.length, None, carry), (SimpleNamespace(trace=messages), ys)
