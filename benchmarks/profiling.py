"""What vipp.profile finds, checked by draws of its own, and what it costs.

A model of four discrete sites of different structure: a scalar choice of five, a count that depends
on it, 20 bits that one decoder mixes, and 100 choices of four in a plate. The combination that
profile picks against every estimator at all sites, or where it fits, the others being enumerated or
leave-one-out of 2.
Then the digits autoencoder of variance.py, at the start and after training: what it picks against
the default. The cost of measuring in training steps a candidate, and that of compiling in
compilations of a training step. All seconds are CPU seconds, so that other load hardly counts.

    python benchmarks/profiling.py [--draws 2000] [--steps 500] [--rounds 60] [--only four digits]
        [--cost]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import _common
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from _common import apply, compiled, dense, moments, paired, table, verdict
from _digits import BATCH, binary_guide, binary_model, digits, trained
from numpyro.infer import SVI

import vipp
from vipp.diagnostics import gradient_draws, measurements

CHUNK, TARGET, STEPS = 50, 1.5, 200
BITS, PIXELS, ROWS, KINDS, SPLIT = 20, 64, 100, 5, 4
DECODER = dense(jax.random.key(0), (BITS, 64, PIXELS))
PICTURE = jax.random.bernoulli(jax.random.key(1), 0.4, (PIXELS,)).astype(jnp.float32)
POINTS = 2.0 * jax.random.normal(jax.random.key(2), (ROWS,))
RATES = jnp.array([0.5, 1.5, 3.0, 5.0, 8.0])
CENTRES = jnp.array([-3.0, -1.0, 1.0, 3.0])


def model() -> None:
    kind = numpyro.sample("kind", dist.Categorical(logits=jnp.zeros(KINDS)))
    count = numpyro.sample("count", dist.Poisson(RATES[kind]))
    numpyro.sample("total", dist.Normal(count + 0.3 * kind, 1.0), obs=4.0)
    bits = numpyro.sample("bits", dist.Bernoulli(0.5 * jnp.ones(BITS)).to_event(1))
    logits = 3.0 * apply(DECODER, 2.0 * bits - 1.0)
    numpyro.sample("picture", dist.Bernoulli(logits=logits).to_event(1), obs=PICTURE)
    with numpyro.plate("rows", ROWS):
        part = numpyro.sample("part", dist.Categorical(logits=jnp.zeros(SPLIT)))
        numpyro.sample("point", dist.Normal(CENTRES[part], 1.0), obs=POINTS)


def guide() -> None:
    kind = numpyro.sample("kind", dist.Categorical(logits=numpyro.param("kinds", jnp.zeros(KINDS))))
    rates = numpyro.param("rates", 3.0 * jnp.ones(KINDS), constraint=dist.constraints.positive)
    numpyro.sample("count", dist.Poisson(rates[kind]))
    numpyro.sample(
        "bits", dist.Bernoulli(logits=numpyro.param("odds", jnp.zeros(BITS))).to_event(1)
    )
    parts = numpyro.param("parts", jnp.zeros((ROWS, SPLIT)))
    with numpyro.plate("rows", ROWS):
        numpyro.sample("part", dist.Categorical(logits=parts))


SITES = ("kind", "count", "bits", "part")
SCORE = {f"leave-one-out of {n}": vipp.ScoreFunction(n, "leave_one_out") for n in (2, 4, 8, 16)}
UNIFORM = {
    "ScoreFunction": vipp.ScoreFunction(),
    **SCORE,
    "MeasureValued": vipp.MeasureValued(),
}
PAIR = SCORE["leave-one-out of 2"]
ELSEWHERE = {"kind": vipp.Enumerate(), "count": PAIR, "bits": PAIR, "part": vipp.Enumerate()}
FITTING = {
    "Enumerate": (vipp.Enumerate(), ("kind", "part")),
    "LocalExpectation": (vipp.LocalExpectation(), ("kind", "bits", "part")),
    "DisARM": (vipp.DisARM(), ("bits",)),
    "ARMS(8)": (vipp.ARMS(8), ("bits",)),
}


def four() -> dict[str, dict[str, Any]]:
    """By name, estimators of the four sites."""
    uniform = {n: dict.fromkeys(SITES, e) for n, e in UNIFORM.items()}
    fitting = {
        f"{n} where it fits": ELSEWHERE | dict.fromkeys(s, e) for n, (e, s) in FITTING.items()
    }
    return uniform | fitting


def gradient(model: Any, guide: Any, transforms: Any, args: Any) -> Any:
    def one(raw: Any, key: Any) -> jax.Array:
        def bound(raw: Any) -> jax.Array:
            params = {n: transforms.get(n, lambda x: x)(x) for n, x in raw.items()}
            return vipp.ELBO().bound_and_state(key, params, model, guide, args, {})[0]

        return jnp.concatenate([g.ravel() for g in jax.tree.leaves(jax.grad(bound)(raw))])

    return lambda raw, keys: jax.lax.map(lambda key: one(raw, key), keys)


def checked(
    model: Any, guide: Any, chosen: Mapping[str, Any], raw: Any, transforms: Any, args: Any,
    draws: int, rounds: int,
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Variance and seconds of each combination, from draws that profile has not seen."""
    keys = jax.random.split(jax.random.key(7), (max(draws // CHUNK, 2), CHUNK))
    programs, variances = {}, {}
    for name, estimators in chosen.items():
        fn = gradient(model, vipp.with_estimators(guide, estimators), transforms, args)
        program = compiled(fn, raw, keys[0])
        programs[name] = (program, (raw, keys[0]))
        variances[name] = moments(lambda k, program=program: program(raw, k), list(keys))[0]
    times = paired(programs, rounds)
    return {name: (variances[name], times[name] / CHUNK) for name in chosen}


def step_seconds(model: Any, guide: Any, params: Any, args: Any) -> tuple[float, float]:
    """CPU seconds of a training step, and of tracing and compiling it."""
    svi = SVI(model, guide, optax.adam(1e-3), loss=vipp.ELBO())
    state = svi.init(jax.random.key(0), *args, init_params=params)
    count = STEPS // 4
    run = lambda state: jax.lax.fori_loop(0, count, lambda _, s: svi.update(s, *args)[0], state)
    began = time.process_time()
    program = compiled(run, state)
    compiling = time.process_time() - began
    return seconds_each(program, state) / count, compiling


def seconds_each(program: Any, state: Any) -> float:
    """The median of some calls."""
    each = []
    for _ in range(6):
        began = time.process_time()
        jax.block_until_ready(program(state))
        each.append(time.process_time() - began)
    return statistics.median(each[1:])


@contextmanager
def cpu_clock() -> Iterator[None]:
    """All seconds are CPU seconds, those of vipp.profile among them."""
    clock = SimpleNamespace(perf_counter=time.process_time)
    with ExitStack() as patches:
        for module in (measurements, gradient_draws, _common):
            patches.enter_context(patch.object(module, "time", clock))
        yield


def report(title: str, found: Any, figures: Any, reference: str) -> None:
    base = figures[reference][0] * figures[reference][1]
    rows = [(n, v, 1e3 * s, 1e3 * v * s, v * s / base) for n, (v, s) in figures.items()]
    header = ("combination", "variance", "ms", "variance x ms", f"of {reference}")
    print(f"\n{found}\n\nbest: {found.best()}")
    table(f"{title}, checked", header, rows)


def cost(found: Any, model: Any, guide: Any, params: Any, args: Any) -> None:
    """In training steps of the median candidate, and in compilations of one."""
    rows = (*found.rows, *found.combinations, *found.objectives)
    median = sorted(rows, key=lambda row: row.seconds.value)[len(rows) // 2]
    its = vipp.with_estimators(guide, median.given)
    step, compiling = step_seconds(model, its, params, args)
    steps = found.seconds_measuring / step / len(rows)
    programs = len({repr((row.objective, row.estimators)) for row in rows})
    whole = (found.seconds_compiling + found.seconds_measuring) / programs
    print(f"- CPU seconds: measuring {found.seconds_measuring:.2f} for {len(rows)} candidates, each "
          f"as long as {steps:.0f} training steps of {1e3 * step:.2f} ms: {verdict(steps, STEPS)}; "
          f"compiling {found.seconds_compiling / programs:.1f} a candidate; both {whole:.1f}, "
          f"{whole / (compiling + STEPS * step):.2f} of compiling and training {STEPS} steps",
          flush=True)  # fmt: skip


def four_sites(options: Any) -> None:
    start = {"kinds": jnp.zeros(KINDS), "rates": 3.0 * jnp.ones(KINDS), "odds": jnp.zeros(BITS),
             "parts": jnp.zeros((ROWS, SPLIT))}  # fmt: skip
    found = vipp.profile(vipp.ELBO(), model, guide, start)
    cost(found, model, guide, start, ())
    if options.cost:
        return
    chosen = {"profile": found.best(), "default": {}, **four()}
    raw = {**start, "rates": jnp.log(start["rates"])}
    figures = checked(
        model, guide, chosen, raw, {"rates": jnp.exp}, (), options.draws, options.rounds
    )
    report("Four sites", found, figures, "profile")
    products = {n: v * s for n, (v, s) in figures.items()}
    best = min(products[n] for n in four()) / products["profile"]
    print(f"- the best uniform one has {best:.2f} times its variance x time: "
          f"{'met' if best >= TARGET else 'MISSED'} (>= {TARGET})")  # fmt: skip


def autoencoder(options: Any) -> None:
    x = digits()
    for when, params in trained(binary_model, binary_guide, x, options.steps).items():
        found = vipp.profile(vipp.ELBO(), binary_model, binary_guide, params, x[:BATCH])
        cost(found, binary_model, binary_guide, params, (x[:BATCH],))
        print(f"best: {found.best()}", flush=True)
        if options.cost:
            continue
        chosen = {"default": {}, "profile": found.best()}
        figures = checked(
            binary_model, binary_guide, chosen, params, {}, (x[:BATCH],),
            min(options.draws, 400), options.rounds // 4,
        )  # fmt: skip
        report(f"Digits autoencoder, {when}", found, figures, "default")
        (v0, s0), (v, s) = figures.values()
        kept = found.best_row() is found.present
        judged = "met, the default itself" if kept else verdict(v * s / (v0 * s0), 1.0)
        print(f"- profile's of the default's: {judged}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2_000)
    parser.add_argument("--steps", type=int, default=500, help="of training the autoencoder")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--cost", action="store_true", help="that alone, nothing checked")
    parser.add_argument("--only", nargs="*", default=("four", "digits"))
    options = parser.parse_args()
    with cpu_clock():
        if "four" in options.only:
            four_sites(options)
        if "digits" in options.only:
            autoencoder(options)


if __name__ == "__main__":
    main()
