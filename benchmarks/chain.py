"""An enumerated chain costs in proportion to its length.

A hidden Markov chain of 8, 16 and 32 three-state sites, the guide a Markov chain of the same
shape, every site summed over: operations, bytes, and seconds to trace and to compile the value and
gradient of the evidence lower bound.

    python benchmarks/chain.py [--lengths 8 16 32]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from _common import counted, table, verdict

import vipp

STATES = 3


def model(x: Any) -> None:
    start, step = numpyro.param("prior_start", None), numpyro.param("prior_step", None)
    means = jnp.arange(float(STATES))
    logits = start
    for t in range(x.shape[0]):
        z = numpyro.sample(f"z{t}", dist.Categorical(logits=logits))
        logits = step[z]
        numpyro.sample(f"x{t}", dist.Normal(means[z], 1.0), obs=x[t])


def guide(x: Any) -> None:
    start, steps = numpyro.param("start", None), numpyro.param("steps", None)
    logits = start
    for t in range(x.shape[0]):
        z = vipp.sample(f"z{t}", dist.Categorical(logits=logits), vipp.Enumerate())
        logits = steps[t, z]


def exact(params: Any, x: Any) -> jax.Array:
    """The same bound by forward marginals, by hand."""
    prior_start, prior_step = jax.nn.log_softmax(params["prior_start"]), params["prior_step"]
    prior_step = jax.nn.log_softmax(prior_step)
    q = jax.nn.log_softmax(params["start"])
    means = jnp.arange(float(STATES))
    marginal, bound = jnp.exp(q), jnp.sum(jnp.exp(q) * (prior_start - q))
    for t in range(x.shape[0]):
        bound += marginal @ dist.Normal(means, 1.0).log_prob(x[t])
        if t + 1 < x.shape[0]:
            q = jax.nn.log_softmax(params["steps"][t])
            pair = marginal[:, None] * jnp.exp(q)
            bound += jnp.sum(pair * (prior_step - q))
            marginal = pair.sum(0)
    return bound


def arguments(length: int) -> tuple[Any, Any]:
    keys = jax.random.split(jax.random.key(0), 5)
    params = {
        "prior_start": jax.random.normal(keys[0], (STATES,)),
        "prior_step": jax.random.normal(keys[1], (STATES, STATES)),
        "start": jax.random.normal(keys[2], (STATES,)),
        "steps": jax.random.normal(keys[3], (length, STATES, STATES)),
    }
    return params, jax.random.normal(keys[4], (length,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8, 16, 32])
    lengths = parser.parse_args().lengths
    rows, shortest = [], {}
    for length in lengths:
        params, x = arguments(length)
        ways = {
            "by hand": lambda key, params, x: jax.value_and_grad(exact)(params, x),
            "vipp": vipp.value_and_grad(vipp.ELBO(), model, guide),
        }
        by_hand, _ = jax.jit(ways["by hand"])(None, params, x)
        for name, fn in ways.items():
            started = time.perf_counter()
            lowered = jax.jit(fn).lower(jax.random.key(1), params, x)
            traced = time.perf_counter()
            program = lowered.compile()
            done = time.perf_counter()
            value, _ = program(jax.random.key(1), params, x)
            flops, accessed = counted(program)
            base = shortest.setdefault(name, flops)
            limit = 5 if (lengths[0], length) == (8, 32) and name == "vipp" else None
            rows.append(
                (length, name, flops, flops / base, verdict(flops / base, limit) if limit else "",
                 accessed / 1e3, traced - started, done - traced, abs(float(value - by_hand)))
            )  # fmt: skip
    header = ("sites", "written as", "flop", "of shortest", "target", "kB", "trace s", "compile s",
              "error")  # fmt: skip
    table("Value and gradient of a chain of enumerated three-state sites", header, rows)


if __name__ == "__main__":
    main()
