"""Hidden Markov models summed out: vipp against hand-written forward recursions.

First the evidence, then the bound of a guide that is a chain itself, its choices enumerated.

    python benchmarks/hmm.py

Prints seconds of tracing and compilation (CPU), milliseconds (medians, their ratios paired) and
temporary kilobytes of one gradient.
NumPyro's TraceEnum_ELBO over a scan is silently wrong (its funsor.log_density is right); at 5,000
steps it takes too long.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.contrib.funsor import config_enumerate
from numpyro.infer import TraceEnum_ELBO

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


def by_numpyro(params, xs):
    """What NumPyro's enumerating objective makes of it: not the evidence, over a ``scan``."""
    states = len(params["means"])

    start = lambda: numpyro.sample("z0", dist.Categorical(probs=jnp.full(states, 1 / states)))
    model = config_enumerate(chain(params, start))
    return TraceEnum_ELBO().loss(jax.random.key(0), params, model, lambda xs: None, xs)


def compiled(fn, *args):
    """One gradient, compiled, and the CPU seconds of tracing and of compiling it."""
    start = time.process_time()
    lowered = jax.jit(jax.value_and_grad(fn)).lower(*args)
    traced = time.process_time()
    run = lowered.compile()
    return run, traced - start, time.process_time() - traced


def table(title, fns, sizes):
    """A row for each size and program; of those after the first, ratios too."""
    print(f"\n## {title}\n")
    print("| steps | states | program | trace s | compile s | ms | of by hand | kB | of by hand |")
    print("|---|---|---|---|---|---|---|---|---|")
    for steps, states in sizes:
        xs = 2.0 * jax.random.normal(jax.random.key(0), (steps,))
        keys = {"logits": jax.random.key(1), "guide": jax.random.key(2)}
        params = {n: jax.random.normal(key, (states, states)) for n, key in keys.items()}
        params["means"] = jnp.linspace(-3.0, 3.0, states)
        wanted = {n: fn for n, fn in fns.items() if fn is not by_numpyro or steps <= 500}
        programs = {n: compiled(fn, params, xs) for n, fn in wanted.items()}
        times = {n: [] for n in programs}
        values = {}
        for _ in range(100):  # in turns, so that all meet the same machine
            for name, (run, _, _) in programs.items():
                begin = time.perf_counter()
                values[name], _ = jax.block_until_ready(run(params, xs))
                times[name].append(1e3 * (time.perf_counter() - begin))
        memory = {
            n: run.memory_analysis().temp_size_in_bytes / 1e3 for n, (run, _, _) in programs.items()
        }
        for name in fns:
            if name not in programs:
                print(f"| {steps} | {states} | {name} | - | - | - | - | - | - |")
                continue
            _, trace, compile_ = programs[name]
            pairs = zip(times[name], times["by hand"], strict=True)
            ratio = statistics.median(own / other for own, other in pairs)
            right = abs(values[name] / values["by hand"] - 1) < 1e-4
            label = (
                name if right else f"{name} (wrong: {values[name]:.1f}, {values['by hand']:.1f})"
            )
            print(
                f"| {steps} | {states} | {label} | {trace:.2f} | {compile_:.2f} | "
                f"{statistics.median(times[name]):.3f} | {ratio:.2f} | {memory[name]:.1f} | {memory[name] / memory['by hand']:.2f} |"
            )


def main():
    sizes = [(steps, states) for states in (5, 16) for steps in (100, 500, 5000)]
    evidence = {"by hand": by_hand, "vipp": by_vipp, "TraceEnum_ELBO": by_numpyro}
    table("Log evidence", evidence, sizes)
    bound = {"by hand": bound_by_hand, "vipp": bound_by_vipp}
    table("ELBO of a guide that is a chain", bound, [(64, 5), (1000, 5), (500, 16)])


if __name__ == "__main__":
    main()
