"""Bounds on sequences: how near they come to the likelihood, and what long loops cost.

A linear Gaussian state space model of T = 100 steps, whose likelihood the Kalman filter knows; the
guide's gains are a little off. Then the size of the traced program, the compile time and the
operations of a loop of 10, 100 and 1,000 discrete choices.

    python benchmarks/sequences.py [--draws 400]
"""

from __future__ import annotations

import argparse
import math
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from _common import compiled, counted, table
from numpyro.contrib.control_flow import scan

import vipp


def model(xs: Any) -> None:
    def step(z: Any, x: Any) -> Any:
        z = numpyro.sample("z", dist.Normal(0.9 * z, 0.5))
        numpyro.sample("x", dist.Normal(z, 0.7), obs=x)
        return z, None

    scan(step, numpyro.sample("z0", dist.Normal(0.0, 1.0)), xs)


def guide(xs: Any) -> None:
    gains = numpyro.param("gains", jnp.array([0.6, 0.4]))
    scale = numpyro.param("scale", 0.4, constraint=dist.constraints.positive)

    def step(z: Any, x: Any) -> Any:
        return numpyro.sample("z", dist.Normal(gains[0] * z + gains[1] * x, scale)), None

    scan(step, numpyro.sample("z0", dist.Normal(0.0, 1.0)), xs)


PARAMS = {"gains": jnp.array([0.6, 0.4]), "scale": jnp.array(0.4)}


def data(length: int) -> jax.Array:
    rng, z, xs = np.random.default_rng(0), 0.0, []
    for _ in range(length):
        z = 0.9 * z + 0.5 * rng.normal()
        xs.append(z + 0.7 * rng.normal())
    return jnp.asarray(xs, jnp.float32)


def kalman(xs: jax.Array) -> float:
    mean, variance, total = 0.0, 1.0, 0.0
    for x in np.asarray(xs, np.float64):
        mean, variance = 0.9 * mean, 0.81 * variance + 0.25
        total -= 0.5 * math.log(2 * math.pi * (variance + 0.49))
        total -= 0.5 * (x - mean) ** 2 / (variance + 0.49)
        gain = variance / (variance + 0.49)
        mean, variance = mean + gain * (x - mean), (1 - gain) * variance
    return total


def bound(objective: vipp.Objective, xs: jax.Array, draws: int) -> tuple[float, float]:
    one = lambda key: -objective.loss(key, PARAMS, model, guide, xs)
    values = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), draws))
    return float(values.mean()), float(values.std() / draws**0.5)


def picture(lines: dict[str, Any], exact: float, path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4))
    axis.axhline(exact, color="black", lw=1, label="Kalman filter")
    for name, (counts, values) in lines.items():
        axis.semilogx(counts, values, "o-", base=2, label=name)
    axis.set(xlabel="particles", ylabel="bound (nats)")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def choices(theta: Any, key: Any, length: int) -> jax.Array:
    """A loop of discrete choices, each changing the odds of the next."""

    def run(theta: Any) -> jax.Array:
        def step(total: Any, given: Any) -> Any:
            z = vipp.sample("z", dist.Bernoulli(logits=theta - total), vipp.ScoreFunction())
            return 0.9 * total + z, z * total

        return scan(step, 0.0, None, length=length)[1].sum()

    return vipp.expectation(run)(key, theta)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs"))
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    xs = data(100)
    exact = kalman(xs)
    counts = [1, 4, 16, 64, 256]
    ways = {
        "IWAE": lambda k: vipp.IWAE(num_particles=k),
        "FilteringBound": lambda k: vipp.FilteringBound(num_particles=k),
        "FilteringBound, systematic": lambda k: vipp.FilteringBound(
            num_particles=k, resample="systematic"
        ),
    }
    lines, rows = {}, []
    for name, make in ways.items():
        found = [bound(make(k), xs, args.draws) for k in counts]
        lines[name] = counts, [value for value, _ in found]
        rows.append([name, *(f"{value:.2f} ± {error:.2f}" for value, error in found)])
    rows.append(["Kalman filter", *[f"{exact:.2f}"] * len(counts)])
    table("Bounds on 100 steps", ["bound", *(f"{k} particles" for k in counts)], rows)
    picture(lines, exact, args.out / "sequences.png")

    rows = []
    for length in (10, 100, 1_000):
        fn = jax.value_and_grad(lambda t, key, n=length: choices(t, key, n))
        started = time.perf_counter()
        program = compiled(fn, 0.3, jax.random.key(0))
        taken = time.perf_counter() - started
        flops, _ = counted(program)
        rows.append([length, taken, flops])
    table("A loop of score-function choices", ["steps", "trace and compile s", "flop"], rows)
    print(f"Saved {args.out / 'sequences.png'}")


if __name__ == "__main__":
    main()
