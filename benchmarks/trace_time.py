"""How long ``SVI.update`` takes to trace and lower, with vipp's loss and with NumPyro's.

A model of 30 sites (a chain, so that every site has work of its own), reparameterised or binary.
Nothing is compiled.

    python benchmarks/trace_time.py [--sites 30] [--rounds 7] [--profile normal]
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from _common import table, verdict
from numpyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO

import vipp

WIDTH = 5


def normal_model(sites: int) -> None:
    z = jnp.zeros(WIDTH)
    for i in range(sites):
        z = numpyro.sample(f"z{i}", dist.Normal(z, 1.0).to_event(1))
    numpyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=jnp.ones(WIDTH))


def normal_guide(sites: int) -> None:
    for i in range(sites):
        mean = numpyro.param(f"mean{i}", jnp.zeros(WIDTH))
        scale = numpyro.param(f"scale{i}", jnp.ones(WIDTH), constraint=dist.constraints.positive)
        numpyro.sample(f"z{i}", dist.Normal(mean, scale).to_event(1))


def binary_model(sites: int) -> None:
    z = jnp.zeros(WIDTH)
    for i in range(sites):
        with numpyro.plate("rows", WIDTH):
            z = numpyro.sample(f"z{i}", dist.Bernoulli(logits=z - 0.5))
    with numpyro.plate("rows", WIDTH):
        numpyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=jnp.ones(WIDTH))


def binary_guide(sites: int) -> None:
    for i in range(sites):
        logits = numpyro.param(f"logits{i}", jnp.full(WIDTH, 0.1))
        with numpyro.plate("rows", WIDTH):
            numpyro.sample(f"z{i}", dist.Bernoulli(logits=logits))


def estimated(estimator: Any, sites: int) -> Any:
    return vipp.with_estimators(binary_guide, {f"z{i}": estimator for i in range(sites)})


def updates(sites: int) -> dict[str, list[tuple[str, SVI]]]:
    """Per group the reference and what is compared with it."""

    def svi(model: Any, guide: Any, loss: Any) -> SVI:
        return SVI(model, guide, optax.adam(1e-3), loss=loss)

    def binary(estimator: Any) -> SVI:
        return svi(binary_model, estimated(estimator, sites), vipp.ELBO())

    return {
        "normal": [
            ("numpyro Trace_ELBO", svi(normal_model, normal_guide, Trace_ELBO())),
            ("vipp ELBO, pathwise", svi(normal_model, normal_guide, vipp.ELBO())),
        ],
        "binary": [
            ("numpyro TraceGraph_ELBO", svi(binary_model, binary_guide, TraceGraph_ELBO())),
            ("vipp ELBO, ScoreFunction()", binary(vipp.ScoreFunction())),
            ("vipp ELBO, leave one out", binary(vipp.ScoreFunction(2, "leave_one_out"))),
            ("vipp ELBO, Enumerate()", binary(vipp.Enumerate())),
            ("vipp ELBO, default", svi(binary_model, binary_guide, vipp.ELBO())),
        ],
    }


def lowering(svi: SVI, sites: int) -> float:
    """CPU seconds (one thread; load disturbs them least) to trace and lower from an empty cache."""
    state = svi.init(jax.random.key(0), sites)
    jax.clear_caches()
    started = time.process_time()
    jax.jit(lambda s: svi.update(s, sites)).lower(state)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", help="also profile the last entry of this group")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = []
    for group, entries in updates(args.sites).items():
        taken: dict[str, list[float]] = {name: [] for name, _ in entries}
        for _ in range(args.rounds):
            for name, svi in entries:
                taken[name].append(lowering(svi, args.sites))
        first = taken[entries[0][0]]
        for name, values in taken.items():
            ratio = statistics.median(a / b for a, b in zip(values, first, strict=True))
            judged = "" if name == entries[0][0] else verdict(ratio, 1.5)
            rows.append((group, name, statistics.median(values), ratio, judged))
    header = ("latents", "loss", "CPU s", "ratio", "target")
    table(f"Tracing and lowering SVI.update, {args.sites} sites", header, rows)
    if args.profile:
        svi = updates(args.sites)[args.profile][-1][1]
        profile = cProfile.Profile()
        profile.runcall(lowering, svi, args.sites)
        pstats.Stats(profile).sort_stats("cumulative").print_stats(60)


if __name__ == "__main__":
    main()
