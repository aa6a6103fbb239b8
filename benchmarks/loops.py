"""Loops of 1,000 small choices: time of a scan by hand whose noise is drawn before it.

Two guides of a state space model, one of Bernoulli choices and one of Gaussian ones. By hand "noise
inside" splits a key in each step, as NumPyro's ``scan`` does.

    python benchmarks/loops.py [--steps 1000]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from _common import compiled, paired, table
from jax.scipy.stats import norm
from numpyro.contrib.control_flow import scan
from numpyro.infer import Trace_ELBO, TraceGraph_ELBO

import vipp

PARAMS = {"a": jnp.array([0.3, -0.2, 0.5])}
Step = Callable[[Any, Any, Any, Any], Any]


def programs(latent: Callable[[Any], Any], proposal: Callable[[Any, Any, Any], Any]) -> Any:
    """A model and a guide that go through a series."""

    def model(xs: Any) -> None:
        def step(z: Any, x: Any) -> Any:
            z = 1.0 * numpyro.sample("z", latent(z))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
            return z, None

        scan(step, jnp.float32(0.0), xs)

    def guide(xs: Any) -> None:
        a = numpyro.param("a", PARAMS["a"])
        step = lambda z, x: (1.0 * numpyro.sample("z", proposal(a, z, x)), None)
        scan(step, jnp.float32(0.0), xs)

    return model, guide


BITS = programs(
    lambda z: dist.Bernoulli(logits=1.5 * z - 0.5),
    lambda a, z, x: dist.Bernoulli(logits=a[0] * z + a[1] + a[2] * x),
)
NUMBERS = programs(
    lambda z: dist.Normal(0.9 * z, 0.5),
    lambda a, z, x: dist.Normal(a[0] * z + a[1] + a[2] * x, 0.4),
)


def bits(a: Any, z: Any, x: Any, u: Any) -> Any:
    """A step by hand: the choice, its log density and the summand of the bound."""
    density = lambda logits, z: z * logits - jax.nn.softplus(logits)
    logits = a[0] * z + a[1] + a[2] * x
    new = jax.lax.stop_gradient((u < jax.nn.sigmoid(logits)).astype(jnp.float32))
    log_q = density(logits, new)
    return new, (log_q, density(1.5 * z - 0.5, new) + norm.logpdf(x, new) - log_q)


def numbers(a: Any, z: Any, x: Any, u: Any) -> Any:
    """The same of a Gaussian choice, pathwise."""
    mean = a[0] * z + a[1] + a[2] * x
    new = mean + 0.4 * u
    log_p = norm.logpdf(new, 0.9 * z, 0.5) + norm.logpdf(x, new)
    return new, (0.0, log_p - norm.logpdf(new, mean, 0.4))


def by_hand(one: Step, draw: Any, xs: Any, samples: int, *, before: bool) -> Any:
    """Value and gradient; of choices, each with the cost to go, less that of the other sample."""

    def loss(params: Any, key: Any) -> Any:
        noise = draw(key, (len(xs), samples)) if before else jnp.zeros((len(xs), samples))

        def step(carry: Any, given: Any) -> Any:
            z, key = carry
            x, u = given
            if not before:
                key, own = jax.random.split(key)
                u = draw(own, (samples,))
            new, terms = one(params["a"], z, x, u)
            return (new, key), terms

        _, (log_q, terms) = jax.lax.scan(step, (jnp.zeros(samples), key), (xs, noise))
        to_go = jax.lax.stop_gradient(jnp.cumsum(terms[::-1], 0)[::-1])
        to_go = to_go - to_go[:, ::-1] if samples > 1 else to_go
        score = jnp.sum(log_q * to_go) / samples
        return -(terms.mean(1).sum() + score - jax.lax.stop_gradient(score))

    return jax.value_and_grad(loss)


def gradient(objective: Any, model: Any, guide: Any, xs: Any) -> Any:
    """Value and gradient of an objective's loss."""
    loss = lambda params, key: objective.loss(key, params, model, guide, xs)
    return jax.value_and_grad(loss)


def with_estimator(estimator: Any) -> tuple[Any, Any]:
    model, guide = BITS
    return model, vipp.with_estimators(guide, {"z": estimator})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    xs = jnp.asarray(np.random.default_rng(0).normal(size=args.steps), jnp.float32)
    one = vipp.ScoreFunction()
    two = vipp.ScoreFunction(num_samples=2, baseline="leave_one_out")
    uniform, normal = jax.random.uniform, jax.random.normal
    cases = {
        "score function": (bits, uniform, 1, with_estimator(one), TraceGraph_ELBO()),
        "leave one out of 2": (bits, uniform, 2, with_estimator(two), None),
        "pathwise": (numbers, normal, 1, NUMBERS, Trace_ELBO()),
    }
    rows, given = [], (PARAMS, jax.random.key(0))
    for name, (step, draw, samples, (model, guide), theirs) in cases.items():
        ways = {
            "before": by_hand(step, draw, xs, samples, before=True),
            "inside": by_hand(step, draw, xs, samples, before=False),
            "vipp": gradient(vipp.ELBO(), model, guide, xs),
        }
        if theirs is not None:
            bare = NUMBERS if model is NUMBERS[0] else BITS
            ways["NumPyro"] = gradient(theirs, *bare, xs)
        run = {way: (compiled(fn, *given), given) for way, fn in ways.items()}
        taken = paired(run, args.rounds, 5)
        ratios = [taken[way] / taken["before"] if way in taken else "" for way in run][1:]
        rows.append([name, 1e6 * taken["before"], *ratios, *([""] if theirs is None else [])])
    header = ["", "by hand, us", "by hand, noise inside", "vipp", "NumPyro"]
    table(f"A loop of {args.steps:,} choices, value and gradient, of by hand", header, rows)


if __name__ == "__main__":
    main()
