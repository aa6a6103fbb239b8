"""What a fit of eight schools costs: the first, the second, and 10,000 steps again.

CPU seconds of `resource.getrusage`, and of 10,000 steps the clock; each in this one process, in
which NumPyro's comes last, after what it shares with vipp is compiled.

    python benchmarks/first_call.py
"""

from __future__ import annotations

import contextlib
import io
import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from _common import table
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import vipp

Y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
STEPS, ROUNDS, LIMIT = 10_000, 5, 8.0
OPTIM = optax.adam(1e-2)


def schools(y: jax.Array, sigma: jax.Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(sigma)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def spent(fn: Callable[..., Any], *args: Any, clock: Callable[[], float] = cpu) -> float:
    started = clock()
    jax.block_until_ready(fn(*args))
    return clock() - started


def by_hand() -> Callable[[jax.Array], Any]:
    """The mean field over mu, log tau and theta, by a scan of Adam's steps."""

    def loss(params: Any, key: jax.Array) -> jax.Array:
        mean, raw = params
        scale = jax.nn.softplus(raw)
        z = mean + scale * jax.random.normal(key, (10,))
        mu, log_tau, theta = z[0], z[1], z[2:]
        normal = jax.scipy.stats.norm.logpdf
        prior = normal(mu, 0.0, 5.0) - jnp.log1p((jnp.exp(log_tau) / 5.0) ** 2) + log_tau
        joint = prior + normal(theta, mu, jnp.exp(log_tau)).sum() + normal(Y, theta, SIGMA).sum()
        return normal(z, mean, scale).sum() - joint

    @jax.jit
    def run(key: jax.Array) -> Any:
        def step(carry: Any, key: jax.Array) -> Any:
            params, state = carry
            value, slope = jax.value_and_grad(loss)(params, key)
            updates, state = OPTIM.update(slope, state)
            return (optax.apply_updates(params, updates), state), value

        params = (jnp.zeros(10), jnp.full(10, -2.0))
        return jax.lax.scan(step, (params, OPTIM.init(params)), jax.random.split(key, STEPS))

    return run


def fitting(guide: Any, bar: bool = False) -> Callable[[int], Any]:
    def run(steps: int) -> Any:
        with contextlib.redirect_stderr(io.StringIO()):
            return vipp.fit(
                jax.random.key(0), vipp.ELBO(), schools, guide, OPTIM, steps, Y, SIGMA,
                progress_bar=bar,
            ).losses  # fmt: skip

    return run


def svi_run(guide: Any, bar: bool) -> Callable[[int], Any]:
    svi = SVI(schools, guide, OPTIM, Trace_ELBO())

    def run(steps: int) -> Any:
        with contextlib.redirect_stderr(io.StringIO()):
            return svi.run(jax.random.key(0), steps, Y, SIGMA, progress_bar=bar).losses

    return run


def main() -> None:
    fit = fitting(AutoNormal(schools))
    calls = [("first fit, 1,000 steps", spent(fit, 1_000))]
    calls += [("second fit, same shapes", spent(fit, 1_000))]
    hand = by_hand()
    calls_again = {
        "hand-written scan": lambda _: hand(jax.random.key(0)),
        "vipp.fit": fit,
        "vipp.fit with its bar": fitting(AutoNormal(schools), bar=True),
        "SVI.run": svi_run(AutoNormal(schools), bar=False),
        "SVI.run with its bar": svi_run(AutoNormal(schools), bar=True),
    }
    table("Eight schools", ("", "CPU s"), calls)
    taken: dict[str, list[float]] = {name: [] for name in calls_again}
    for number in range(ROUNDS + 1):
        for name, run in calls_again.items():
            if number < 2 or sum(taken[name]) < LIMIT:
                seconds = spent(run, STEPS, clock=time.perf_counter)
                print(name, seconds, flush=True)
                if number:  # the first compiles
                    taken[name].append(seconds)
    best = {name: min(values) for name, values in taken.items()}
    base = best["hand-written scan"]
    rows = [(name, value, value / base) for name, value in best.items()]
    table("10,000 steps again", ("", "s", "of hand-written"), rows)


if __name__ == "__main__":
    main()
