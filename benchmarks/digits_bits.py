"""Variance x time of every estimator on an autoencoder of 200 bits, and of hand-written twins.

scikit-learn's digits at 28 x 28 pixels, binarised, 64 rows, 200 Bernoulli latents in one site of
one event, a 784-200-200 encoder and a 200-200-784 decoder. The variance of the encoder's gradient,
summed over its parameters, that of the decoder's, and the time of a gradient of everything, at the
start and after training, relative to a hand-written leave-one-out of 2. XLA has one thread: with
two of a busy machine times of the same program differ by a tenth.

    python benchmarks/digits_bits.py [--draws 100] [--steps 500 2000] [--rounds 15] [--only double]
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from _bits_by_hand import (
    arms,
    double_control_variates,
    leave_one_out,
    stratified,
    taylor_and_divergence,
)
from _common import apply, compiled, counted, dense, moments, paired, table, verdict
from numpyro.infer import TraceGraph_ELBO
from sklearn.datasets import load_digits

import vipp

BITS, HIDDEN, PIXELS, BATCH = 200, 200, 784, 64
REFERENCE, DEFAULT, EXACT = "by hand: leave-one-out(2)", "vipp default", "vipp default, exact KL"
WITHIN, TWIN = 1.15, 1.05  # of the best by hand, variance x time; of a hand-written twin, time


def pictures() -> jax.Array:
    images = jnp.asarray(load_digits().images, jnp.float32)
    large = jax.image.resize(images, (len(images), 28, 28), "linear")
    return (large.reshape(len(images), PIXELS) > 7).astype(jnp.float32)


def model(x: Any) -> None:
    decoder = numpyro.param("decoder", lambda key: dense(key, (BITS, HIDDEN, PIXELS)))
    with numpyro.plate("rows", x.shape[0]):
        z = numpyro.sample("z", dist.Bernoulli(probs=jnp.full(BITS, 0.5)).to_event(1))
        logits = apply(decoder, z)
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def guide(x: Any) -> None:
    encoder = numpyro.param("encoder", lambda key: dense(key, (PIXELS, HIDDEN, BITS)))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("z", dist.Bernoulli(logits=apply(encoder, x)).to_event(1))


BY_HAND = {
    REFERENCE: leave_one_out(2),
    "by hand: leave-one-out(8)": leave_one_out(8),
    "by hand: leave-one-out(16)": leave_one_out(16),
    "by hand: leave-one-out(16), exact KL": leave_one_out(16, exact=True),
    "by hand: ARMS(8)": arms(8),
    "by hand: ARMS(16)": arms(16),
    "by hand: stratified(8)": stratified(8),
    "by hand: stratified(16)": stratified(16),
    "by hand: stratified(8), exact KL": stratified(8, exact=True),
    "by hand: double control variates(8)": double_control_variates(8),
    "by hand: double control variates(8), exact KL": double_control_variates(8, exact=True),
    "by hand: fitted slope and divergence(8)": taylor_and_divergence(8),
    "by hand: fitted slope and divergence(16)": taylor_and_divergence(16),
    "by hand: fitted slope and divergence(8), first": taylor_and_divergence(8, first=True),
}
FIRST = vipp.FittedControlVariates(16, differentiate="first")
LOO = {n: vipp.ScoreFunction(n, "leave_one_out") for n in (2, 8, 16)}
DOUBLE = vipp.DoubleControlVariates(8)
ESTIMATORS = {
    DEFAULT: (vipp.ELBO(), None),
    EXACT: (vipp.ELBO(kl="analytic"), None),
    **{f"vipp leave-one-out({n})": (vipp.ELBO(), e) for n, e in LOO.items()},
    "vipp DisARM": (vipp.ELBO(), vipp.DisARM()),
    "vipp ARMS(8)": (vipp.ELBO(), vipp.ARMS(8)),
    "vipp double control variates(8)": (vipp.ELBO(), DOUBLE),
    "vipp double control variates(16)": (vipp.ELBO(), vipp.DoubleControlVariates(16)),
    "vipp fitted control variates(8)": (vipp.ELBO(), vipp.FittedControlVariates(8)),
    "vipp fitted control variates(16)": (vipp.ELBO(), vipp.FittedControlVariates(16)),
    "vipp fitted control variates(16), first": (vipp.ELBO(), FIRST),
    "NumPyro TraceGraph_ELBO": (TraceGraph_ELBO(), None),
}
TWINS = {  # what evaluates the same
    **{f"vipp leave-one-out({n})": f"by hand: leave-one-out({n})" for n in LOO},
    "vipp ARMS(8)": "by hand: ARMS(8)",
    "vipp double control variates(8)": "by hand: double control variates(8)",
    DEFAULT: "by hand: fitted slope and divergence(8), first",
    "vipp fitted control variates(8)": "by hand: fitted slope and divergence(8)",
    "vipp fitted control variates(16)": "by hand: fitted slope and divergence(16)",
}


def gradients() -> dict[str, Any]:
    """``(params, key, x) -> gradient`` of minus the bound, for all."""

    def by_vipp(loss: Any, estimator: Any) -> Any:
        chosen = guide if estimator is None else vipp.with_estimators(guide, {"z": estimator})
        return jax.value_and_grad(lambda params, key, x: loss.loss(key, params, model, chosen, x))

    def by_hand(surrogate: Any) -> Any:
        return jax.value_and_grad(lambda params, key, x: -surrogate(params, key, x))

    made = {name: by_hand(surrogate) for name, surrogate in BY_HAND.items()}
    return made | {name: by_vipp(*pair) for name, pair in ESTIMATORS.items()}


def trained(x: jax.Array, steps: list[int]) -> dict[int, Any]:
    """Parameters at the start and after training on batches, with the best that is unbiased."""
    keys = jax.random.split(jax.random.key(0))
    sizes = {"encoder": (PIXELS, HIDDEN, BITS), "decoder": (BITS, HIDDEN, PIXELS)}
    params = {name: dense(key, s) for key, (name, s) in zip(keys, sizes.items(), strict=True)}
    optim, surrogate = optax.adam(1e-3), double_control_variates(4)

    def step(carry: Any, key: Any) -> Any:
        params, state = carry
        rows = jax.random.choice(key, x.shape[0], (BATCH,), replace=False)
        loss = lambda params: -surrogate(params, jax.random.fold_in(key, 1), x[rows]) / BATCH
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optim.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

    run = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys))
    found, carry = {0: params}, (params, optim.init(params))
    keys = jax.random.split(jax.random.key(1), max(steps, default=0))
    for before, after in zip([0, *steps], steps, strict=False):
        carry, losses = run(carry, keys[before:after])
        print(f"loss per row after {after} steps: {losses[-50:].mean():.2f}")
        found[after] = carry[0]
    return found


def flat(gradient: Any, part: str) -> jax.Array:
    return jnp.concatenate([g.ravel() for g in jax.tree.leaves(gradient[part])])


def report(steps: int, programs: dict[str, Any], args: Any, draws: int, rounds: int) -> None:
    params, _, x = args
    keys = jax.random.split(jax.random.key(2), draws)
    look = jax.jit(flat, static_argnums=1)

    found, decoder = {}, {}
    for name, program in programs.items():
        drawn = [program(params, key, x)[1] for key in keys]
        for part, of in (("encoder", found), ("decoder", decoder)):
            of[name] = moments(lambda gradient, p=part: look(gradient, p)[None], drawn)[0]
    times = paired({name: (program, args) for name, program in programs.items()}, rounds)
    products = {
        name: found[name] * times[name] / (found[REFERENCE] * times[REFERENCE]) for name in programs
    }
    rows, whole = [], counted(programs[REFERENCE])[0]
    for name, program in programs.items():
        twin = TWINS.get(name)
        like = twin in programs
        rows.append((
            name, found[name] / found[REFERENCE], decoder[name] / decoder[REFERENCE],
            counted(program)[0] / whole,
            times[name] / times[REFERENCE], products[name],
            times[name] / times[twin] if like else "",
            counted(program)[0] / counted(programs[twin])[0] if like else "",
        ))  # fmt: skip
    header = (
        "estimator",
        "variance",
        "the decoder's",
        "operations",
        "time",
        "variance x time",
        "time / twin",
        "operations / twin",
    )
    milliseconds = 1e3 * times[REFERENCE]
    table(f"After {steps} steps ({draws} draws; 1 is {milliseconds:.1f} ms)", header, rows)
    best = min((n for n in BY_HAND if n in programs), key=lambda n: products[n])
    for name in (DEFAULT, EXACT):
        if name in programs:
            ratio = products[name] / products[best]
            print(f"{name} / best by hand ({best}): {ratio:.3g}, {verdict(ratio, WITHIN)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--steps", type=int, nargs="*", default=[500, 2000])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", help="parts of names of estimators")
    options = parser.parse_args()
    started, x = time.perf_counter(), pictures()
    stages = trained(x, options.steps)
    args = (stages[0], jax.random.key(3), x[:BATCH])
    wanted = lambda name: not options.only or any(part in name for part in options.only)
    programs = {
        name: compiled(fn, *args)
        for name, fn in gradients().items()
        if name == REFERENCE or wanted(name)
    }
    for steps, params in stages.items():
        report(steps, programs, (params, *args[1:]), options.draws, options.rounds)
    print(f"({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
