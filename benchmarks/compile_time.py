"""Compile time of ``SVI.update`` on many scalar sites, where XLA on CPU is slow.

python benchmarks/compile_time.py [--sites 10 30]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from _common import table
from numpyro.infer import SVI, Trace_ELBO

import vipp


def model(sites: int) -> None:
    total = 0.0
    for i in range(sites):
        total += numpyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(total, 1.0), obs=3.0)


def guide(sites: int) -> None:
    for i in range(sites):
        mean = numpyro.param(f"mean{i}", jnp.zeros(()))
        scale = numpyro.param(f"scale{i}", jnp.ones(()), constraint=dist.constraints.positive)
        numpyro.sample(f"z{i}", dist.Normal(mean, scale))


def stages(loss: Any, optim: Any, sites: int) -> tuple[float, float, float]:
    """Seconds to initialise, to trace and lower, and to compile one update."""
    svi = SVI(model, guide, optim, loss=loss)
    jax.clear_caches()
    times = [time.perf_counter()]
    state = svi.init(jax.random.key(0), sites)
    times.append(time.perf_counter())
    lowered = jax.jit(lambda s: svi.update(s, sites)).lower(state)
    times.append(time.perf_counter())
    lowered.compile()
    times.append(time.perf_counter())
    return tuple(b - a for a, b in zip(times[:-1], times[1:], strict=True))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, nargs="+", default=[10, 30])
    rows = []
    for sites in parser.parse_args().sites:
        base = 0.0
        for name, loss, optim in (
            ("numpyro Trace_ELBO", Trace_ELBO(), optax.adam(1e-2)),
            ("vipp ELBO", vipp.ELBO(), optax.adam(1e-2)),
            ("numpyro Trace_ELBO, flat Adam", Trace_ELBO(), optax.flatten(optax.adam(1e-2))),
            ("vipp ELBO, flat Adam", vipp.ELBO(), optax.flatten(optax.adam(1e-2))),
        ):
            init, trace, compiling = stages(loss, optim, sites)
            base = base or compiling
            rows.append((sites, name, init, trace, compiling, compiling / base))
            print(rows[-1], flush=True)
    header = ("sites", "loss", "init s", "trace s", "compile s", "ratio")
    table("Compiling SVI.update on scalar Normal sites", header, rows)


if __name__ == "__main__":
    main()
