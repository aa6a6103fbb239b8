"""Held-out bound against seconds of training, of every estimator, on two autoencoders of digits.

200 bits (28 x 28 pixels, the programs of digits_bits.py) and twenty choices of ten (8 x 8 pixels,
those of categorical.py). One start, Adam at each of two step sizes, batches of 64; every estimator
trains for as many seconds as every other. The clock is CPU seconds of this process, whose XLA has
one thread: all train in turns, and an estimator's seconds are its steps times the median seconds of
one, so that other work on the machine hits all alike. Held out is the bound itself, its divergence
exact, by eight draws. Each estimator is shown with the step size that ends with the better bound.

    python benchmarks/digits_bound.py [--seconds 20] [--rates 3e-3 1e-2] [--only bits choices]
        [--without REBAR] [--folder outputs]

What was measured is kept in the folder, and the picture is made of all that is there.
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import argparse
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import digits_bits
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from _bits_by_hand import double_control_variates, leave_one_out
from _common import dense, relative, table
from _digits import categorical_guide, categorical_model, digits
from numpyro.infer import TraceGraph_ELBO
from numpyro.infer.elbo import ELBO

import vipp

BATCH, HELD_OUT, LOOKS, DRAWS = 64, 360, 12, 8
DEFAULT = "default"
PAIR, EIGHT, SIXTEEN = (vipp.ScoreFunction(n, "leave_one_out") for n in (2, 8, 16))
COMMON = {
    DEFAULT: (vipp.ELBO(), None),
    "double control variates(16)": (vipp.ELBO(), vipp.DoubleControlVariates(16)),
    "double control variates(4)": (vipp.ELBO(), vipp.DoubleControlVariates(4)),
    "leave-one-out(2)": (vipp.ELBO(), PAIR),
    "leave-one-out(8)": (vipp.ELBO(), EIGHT),
    "leave-one-out(16)": (vipp.ELBO(), SIXTEEN),
    "REBAR": (vipp.ELBO(), vipp.REBAR()),
    "ReinMax (biased)": (vipp.ELBO(), vipp.ReinMax()),
    "NumPyro TraceGraph_ELBO": (TraceGraph_ELBO(), None),
}


class ByHand(ELBO):
    """A surrogate of the bound in plain JAX, for the programs that it was written for."""

    def __init__(self, surrogate: Any):
        self.surrogate = surrogate
        super().__init__()

    def loss(self, rng_key: Any, param_map: Any, model: Any, guide: Any, *args: Any) -> Any:
        """Minus the bound."""
        return -self.surrogate(param_map, rng_key, *args)


class Case(NamedTuple):
    """An autoencoder, its images, and what it is trained with."""

    title: str
    model: Any
    guide: Any
    images: Any
    sizes: tuple[tuple[int, ...], tuple[int, ...]]
    estimators: Mapping[str, tuple[Any, Any]]


BITS = Case(
    "200 bits",
    digits_bits.model,
    digits_bits.guide,
    digits_bits.pictures,
    ((digits_bits.PIXELS, 200, 200), (200, 200, digits_bits.PIXELS)),
    {
        **COMMON,
        "DisARM": (vipp.ELBO(), vipp.DisARM()),
        "ARMS(8)": (vipp.ELBO(), vipp.ARMS(8)),
        "by hand: leave-one-out(16)": (ByHand(leave_one_out(16)), None),
        "fitted control variates(8), all draws": (vipp.ELBO(), vipp.FittedControlVariates(8)),
        "by hand: double control variates(8)": (ByHand(double_control_variates(8)), None),
    },
)
CHOICES = Case(
    "20 choices of 10",
    categorical_model,
    categorical_guide,
    digits,
    ((64, 64, 200), (200, 64, 64)),
    {
        **COMMON,
        "LocalExpectation": (vipp.ELBO(), vipp.LocalExpectation()),
        "Gumbel-softmax, hard (biased)": (vipp.ELBO(), vipp.GumbelSoftmax(hard=True)),
    },
)
COLOURS = {
    DEFAULT: "#000000",
    "double control variates(16)": "#CC79A7",
    "double control variates(4)": "#0072B2",
    "leave-one-out(2)": "#E69F00",
    "leave-one-out(8)": "#D55E00",
    "leave-one-out(16)": "#8B4513",
    "REBAR": "#009E73",
    "ReinMax (biased)": "#56B4E9",
    "NumPyro TraceGraph_ELBO": "#F0E442",
}
OTHERS = ("#6A3D9A", "#999999", "#33A02C", "#FB9A99", "#B15928")


class Run:
    """One estimator under training."""

    def __init__(self, case: Case, loss: Any, estimator: Any, images: Any, seed: int):
        guide = case.guide
        if estimator is not None:
            guide = vipp.with_estimators(guide, {"z": estimator})
        keys = jax.random.split(jax.random.key(seed), 3)
        names = zip(("encoder", "decoder"), case.sizes, keys, strict=False)
        params = {name: dense(key, sizes) for name, sizes, key in names}
        # the step size is a number of the program's, so that it is compiled once
        optim = optax.scale_by_adam()
        self.first, self.key = (params, optim.init(params)), keys[2]

        def step(number: Any, carry: Any) -> Any:
            (params, state), key, rate = carry
            key_of_step = jax.random.fold_in(key, number)
            rows = jax.random.randint(key_of_step, (BATCH,), 0, len(images))
            bound = lambda p: loss.loss(key_of_step, p, case.model, guide, images[rows]) / BATCH
            updates, state = optim.update(jax.grad(bound)(params), state)
            params = jax.tree.map(lambda x, u: x - rate * u, params, updates)
            return (params, state), key, rate

        def run(state: Any, key: Any, rate: Any, begin: Any, end: Any) -> Any:
            return jax.lax.fori_loop(begin, end, step, (state, key, rate))[0]

        given = (self.first, self.key, jnp.float32(0.0), jnp.int32(0), jnp.int32(1))
        self.run = jax.jit(run).lower(*given).compile()
        self.restart(0.0)

    def restart(self, rate: float) -> None:
        """Begin again."""
        self.state, self.done, self.rate = self.first, 0, jnp.float32(rate)

    def advance(self, steps: int) -> float:
        """CPU seconds a step."""
        began, numbers = time.process_time(), map(jnp.int32, (self.done, self.done + steps))
        state = self.run(self.state, self.key, self.rate, *numbers)
        self.state = jax.block_until_ready(state)
        self.done += steps
        return (time.process_time() - began) / steps

    @property
    def params(self) -> Any:
        """As they are now."""
        return self.state[0]


def step_seconds(runs: Mapping[str, Run], rounds: int) -> dict[str, float]:
    """CPU seconds of a step, by ratios to the first within a round."""
    return relative({n: [run.advance(4) for _ in range(rounds)] for n, run in runs.items()})


def curves(
    case: Case, names: list[str], seconds: float, rates: list[str], seed: int
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """By step size and estimator, seconds of training and the held-out bound per image."""
    images = np.random.default_rng(0).permutation(np.asarray(case.images()))
    train, held_out = jnp.asarray(images[:-HELD_OUT]), jnp.asarray(images[-HELD_OUT:])
    runs = {name: Run(case, *case.estimators[name], train, seed) for name in names}
    plain = vipp.with_estimators(case.guide, {"z": vipp.ScoreFunction()})
    bound = vipp.ELBO(kl="analytic", num_particles=DRAWS)
    loss = jax.jit(lambda p: bound.loss(jax.random.key(9), p, case.model, plain, held_out))
    look = lambda run: -float(loss(run.params)) / HELD_OUT
    each, taken = step_seconds(runs, 5), {name: [] for name in names}
    looks: dict[str, dict[str, list[tuple[int, float]]]] = {}
    # more looks at the start, where the bound moves
    ends = seconds * (np.arange(1, LOOKS + 1) / LOOKS) ** 2
    for rate in rates:
        for run in runs.values():
            run.restart(float(rate))
        found = looks[rate] = {name: [(0, look(run))] for name, run in runs.items()}
        for end in ends:
            for name, run in runs.items():
                steps = max(1, round(end / each[name]) - run.done)
                taken[name].append(run.advance(steps))
                found[name].append((run.done, look(run)))
    each = relative(taken)
    return {
        rate: {n: [(done * each[n], b) for done, b in curve] for n, curve in found.items()}
        for rate, found in looks.items()
    }


def at(curve: list[list[float]], seconds: float) -> float:
    """The bound after so many seconds, between looks by interpolation."""
    return float(np.interp(seconds, *map(np.array, zip(*curve, strict=True))))


def better(found: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, Any]]:
    """By estimator, the step size that ends with the better bound, and the curve."""
    names = next(iter(found.values()))
    best = {n: max(found, key=lambda rate, n=n: found[rate][n][-1][1]) for n in names}
    return {n: (rate, found[rate][n]) for n, rate in best.items()}


def report(case: Case, found: Mapping[str, Any]) -> None:
    shown = better(found)
    last = min(curve[-1][0] for _, curve in shown.values())
    times = [last * share for share in (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)]
    rows = [(n, rate, *(f"{at(c, t):.2f}" for t in times)) for n, (rate, c) in shown.items()]
    table(case.title, ("estimator", "step size", *(f"{t:.1f} s" for t in times)), rows)
    for t in times:
        best = max(shown, key=lambda n: at(shown[n][1], t))
        gap = at(shown[best][1], t) - at(shown[DEFAULT][1], t)
        print(f"- after {t:.1f} s the best is {best}, {gap:.2f} nats above the default")


def picture(path: pathlib.Path, results: Mapping[str, Any]) -> None:
    plt.rcParams.update({"axes.titlelocation": "left", "font.size": 9})
    figure, every = plt.subplots(1, len(results), figsize=(7.5 * len(results), 4.4), squeeze=False)
    names: dict[str, Any] = {}
    for ax, (which, found) in zip(every[0], results.items(), strict=True):
        others, ends = iter(OTHERS), []
        for name, (_, curve) in better(found).items():
            seconds, bounds = map(np.array, zip(*curve, strict=True))
            colour = COLOURS.get(name) or names.get(name) or next(others)
            by_hand, default = name.startswith("by hand"), name == DEFAULT
            ax.plot(seconds, bounds, "--" if by_hand else "-", color=colour, label=name,
                    lw=2.5 if default else 1.2, zorder=3 if default else 2)  # fmt: skip
            ends.append(bounds[-1])
        top, low = max(ends), min(ends)
        ax.set(ylim=(low - 0.1 * (top - low), top + 0.1 * (top - low)), title=CASES[which].title)
        ax.set(
            xlabel="CPU seconds of training, one thread", ylabel="held-out bound, nats per image"
        )
        ax.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    figure.savefig(path, dpi=90)


CASES = {"bits": BITS, "choices": CHOICES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of training, each estimator")
    parser.add_argument("--rates", nargs="*", default=["3e-3", "1e-2"], help="Adam's step sizes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--without", nargs="*", default=(), help="names of estimators")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("outputs"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for which in options.only:
        case = CASES[which]
        names = [n for n in case.estimators if n not in options.without]
        found = curves(case, names, options.seconds, options.rates, options.seed)
        (options.folder / f"{which}.json").write_text(json.dumps(found))
        report(case, found)
    kept = {w: options.folder / f"{w}.json" for w in CASES}
    picture(options.folder / "digits_bound.png",
            {w: json.loads(path.read_text()) for w, path in kept.items() if path.exists()})  # fmt: skip


if __name__ == "__main__":
    main()
