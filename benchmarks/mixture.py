"""A mixture in a plate, its components summed out: vipp against what one writes by hand.

First the exact marginal of the data, then the bound of a guide with logits for each point, whose
choices are enumerated.

    python benchmarks/mixture.py [--points 100000]

Prints milliseconds and temporary megabytes of one gradient, with their ratios to those by hand
(paired in one process), and CPU seconds of tracing and compiling.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from _common import paired, table, verdict
from numpyro.contrib.funsor import config_enumerate
from numpyro.infer import TraceEnum_ELBO

import vipp

COMPONENTS = 8
VECTOR = 2
MAX_TIME, MAX_MEMORY = 1.3, 1.2

Params = dict[str, jax.Array]


def start(points: int) -> tuple[Params, dict[str, jax.Array]]:
    """Parameters and data."""
    keys = iter(jax.random.split(jax.random.key(0), 5))
    draw = lambda *shape: jax.random.normal(next(keys), shape)
    params = {
        "logits": draw(COMPONENTS), "locs": jnp.linspace(-3.0, 3.0, COMPONENTS),
        "means": draw(COMPONENTS, VECTOR), "guide": draw(points, COMPONENTS),
    }  # fmt: skip
    return params, {"numbers": 3.0 * draw(points), "vectors": draw(points, VECTOR)}


def mixture(x: jax.Array) -> None:
    """One number for each point."""
    logits, locs = (numpyro.param(n, jnp.zeros(COMPONENTS)) for n in ("logits", "locs"))
    with numpyro.plate("points", len(x)):
        z = numpyro.sample("z", dist.Categorical(logits=logits))
        numpyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def of_vectors(x: jax.Array) -> None:
    """A vector for each point."""
    logits = numpyro.param("logits", jnp.zeros(COMPONENTS))
    means = numpyro.param("means", jnp.zeros((COMPONENTS, VECTOR)))
    with numpyro.plate("points", len(x)):
        z = numpyro.sample("z", dist.Categorical(logits=logits))
        numpyro.sample("x", dist.Normal(means[z], 1.0).to_event(1), obs=x)


def guide(x: jax.Array) -> None:
    """Logits for each point."""
    logits = numpyro.param("guide", jnp.zeros((len(x), COMPONENTS)))
    with numpyro.plate("points", len(x)):
        vipp.sample("z", dist.Categorical(logits=logits), vipp.Enumerate())


def numpyro_guide(x: jax.Array) -> None:
    """The same for NumPyro."""
    logits = numpyro.param("guide", jnp.zeros((len(x), COMPONENTS)))
    with numpyro.plate("points", len(x)):
        numpyro.sample("z", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


def joint_by_hand(params: Params, x: jax.Array) -> jax.Array:
    """Log densities of points and components."""
    log_p = jax.nn.log_softmax(params["logits"])
    if x.ndim == 1:
        return log_p + dist.Normal(params["locs"], 1.0).log_prob(x[:, None])
    return log_p + dist.Normal(params["means"], 1.0).log_prob(x[:, None]).sum(-1)


def marginal_by_hand(params: Params, x: jax.Array) -> jax.Array:
    return -jax.scipy.special.logsumexp(joint_by_hand(params, x), axis=-1).sum()


def bound_by_hand(params: Params, x: jax.Array) -> jax.Array:
    log_q = jax.nn.log_softmax(params["guide"])
    return -(jnp.exp(log_q) * (joint_by_hand(params, x) - log_q)).sum()


def loss(objective: Any, model: Any, guide: Any) -> Callable[..., jax.Array]:
    return lambda params, x: objective.loss(jax.random.key(0), params, model, guide, x)


def rows(points: int, rounds: int) -> list[tuple[Any, ...]]:
    params, data = start(points)
    nothing = lambda x: None
    marginal = lambda model: loss(vipp.ELBO(), vipp.marginal(model, keep=[], exact=True), nothing)
    by_numpyro = lambda model, guide: loss(TraceEnum_ELBO(), config_enumerate(model), guide)
    cases = {
        "marginal": ("numbers", {
            "by hand": marginal_by_hand, "vipp": marginal(mixture),
            "TraceEnum_ELBO": by_numpyro(mixture, nothing),
        }),
        "marginal, vectors": ("vectors", {
            "by hand": marginal_by_hand, "vipp": marginal(of_vectors),
            "TraceEnum_ELBO": by_numpyro(of_vectors, nothing),
        }),
        "enumerated guide": ("numbers", {
            "by hand": bound_by_hand, "vipp": loss(vipp.ELBO(), mixture, guide),
            "TraceEnum_ELBO": loss(TraceEnum_ELBO(), mixture, numpyro_guide),
        }),
    }  # fmt: skip
    found = []
    for case, (which, fns) in cases.items():
        args, made = (params, data[which]), {}
        for name, fn in fns.items():
            begin = time.process_time()
            program = jax.jit(jax.value_and_grad(fn)).lower(*args).compile()
            made[name] = (program, time.process_time() - begin, program(*args)[0])
        times = paired({name: (program, args) for name, (program, *_) in made.items()}, rounds)
        memory = {n: p.memory_analysis().temp_size_in_bytes / 1e6 for n, (p, *_) in made.items()}
        for name, (_, seconds, value) in made.items():
            time_, room = (x[name] / x["by hand"] for x in (times, memory))
            ours = name == "vipp"
            right = abs(value / made["by hand"][2] - 1) < 1e-4
            found.append(
                (points, case, name if right else f"{name} (wrong)", 1e3 * times[name], time_,
                 verdict(time_, MAX_TIME) if ours else "", memory[name], room,
                 verdict(room, MAX_MEMORY) if ours else "", seconds)
            )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=21)
    args = parser.parse_args()
    header = (
        "points", "case", "program", "ms", "of by hand", "target", "MB", "of by hand", "target",
        "trace + compile s",
    )  # fmt: skip
    table(
        f"A mixture of {COMPONENTS} components", header,
        [row for points in args.points for row in rows(points, args.rounds)],
    )  # fmt: skip


if __name__ == "__main__":
    main()
