"""Hidden Markov models summed out: vipp against hand-written forward recursions.

First the evidence, then the bound of a guide that is a chain itself, its choices enumerated.

    python benchmarks/hmm.py [steps] [states]

Prints seconds of tracing and compilation (CPU), milliseconds and temporary kilobytes of one gradient.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

import vipp


def by_hand(params, xs):
    """Minus the log evidence, by a scan of scaled matrix products."""
    table, states = jax.nn.softmax(params["logits"]), len(params["means"])

    def step(alpha, x):
        seen = dist.Normal(params["means"], 1.0).log_prob(x)
        top = seen.max()
        alpha = (alpha @ table) * jnp.exp(seen - top)
        total = alpha.sum()
        return alpha / total, jnp.log(total) + top

    _, parts = jax.lax.scan(step, jnp.full(states, 1 / states), xs)
    return -parts.sum()


def chain(params, start):
    """A hidden Markov model whose state before the first step is what ``start()`` gives."""

    def model(xs):
        logits, means = (numpyro.param(n, params[n]) for n in ("logits", "means"))

        def step(z, x):
            z = numpyro.sample("z", dist.Categorical(logits=logits[z]))
            numpyro.sample("x", dist.Normal(means[z], 1.0), obs=x)
            return z, None

        scan(step, start(), xs)

    return model


def by_vipp(params, xs):
    """The same by ``marginal(exact=True)``."""
    states = len(params["means"])

    start = lambda: numpyro.sample("z0", dist.Categorical(probs=jnp.full(states, 1 / states)))
    model = chain(params, start)
    summed = vipp.marginal(model, keep=[], exact=True)
    return vipp.ELBO().loss(jax.random.key(0), params, summed, lambda xs: None, xs)


def bound_by_hand(params, xs):
    """Minus the bound of a guide that is a chain, by a scan over its probabilities."""
    states = len(params["means"])
    log_q, log_p = (jax.nn.log_softmax(x) for x in (params["guide"], params["logits"]))

    def step(alpha, x):
        seen = dist.Normal(params["means"], 1.0).log_prob(x)
        joint = alpha[:, None] * jnp.exp(log_q)
        return joint.sum(0) / joint.sum(), (joint * (log_p + seen - log_q)).sum()

    _, parts = jax.lax.scan(step, jnp.eye(states)[0], xs)
    return -parts.sum()


def bound_by_vipp(params, xs):
    """The same by ``Enumerate`` in the guide's scan."""

    model = chain(params, lambda: 0)

    def guide(xs):
        table = numpyro.param("guide", params["guide"])
        odds = lambda z: dist.Categorical(logits=table[z])
        scan(lambda z, x: (vipp.sample("z", odds(z), vipp.Enumerate()), None), 0, xs)

    return vipp.ELBO().loss(jax.random.key(0), params, model, guide, xs)


def main():
    steps, states = map(int, sys.argv[1:] or (500, 16))
    xs = 2.0 * jax.random.normal(jax.random.key(0), (steps,))
    logits = jax.random.normal(jax.random.key(1), (states, states))
    guide = jax.random.normal(jax.random.key(2), (states, states))
    params = {"logits": logits, "means": jnp.linspace(-3.0, 3.0, states), "guide": guide}
    print(f"{steps} steps, {states} states: trace s, compile s, ms, temporary kB, value")
    for fn in (by_hand, by_vipp, bound_by_hand, bound_by_vipp):
        start = time.process_time()
        lowered = jax.jit(jax.value_and_grad(fn)).lower(params, xs)
        traced = time.process_time()
        run = lowered.compile()
        compiled = time.process_time()
        times = []
        for _ in range(50):
            begin = time.perf_counter()
            value, _ = jax.block_until_ready(run(params, xs))
            times.append(time.perf_counter() - begin)
        memory = run.memory_analysis().temp_size_in_bytes / 1e3
        print(
            f"{fn.__name__:13s} {traced - start:6.2f} {compiled - traced:6.2f} "
            f"{1e3 * sorted(times)[5]:9.3f} {memory:9.1f} {value:12.3f}"
        )


if __name__ == "__main__":
    main()
