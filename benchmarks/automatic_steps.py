"""``vipp.fit`` without an optimiser against a grid of 12 settings of Adam, and NumPyro's default.

Six step sizes, constant and with cosine decay, for 1,000, 3,000 and 10,000 steps. The grid's steps
are the fewest with which one of its settings comes within 0.05 nats of the best of them all. All are
trained together by one compiled program, and their bounds compared with draws in common.

    python benchmarks/automatic_steps.py [--only NAME] [--seed 0]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from _common import table
from _posteriors import POSTERIORS, Posterior
from jax.flatten_util import ravel_pytree
from numpyro.infer import SVI

import vipp

STEP_SIZES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
BUDGETS = (1_000, 3_000, 10_000)
DEFAULT = ("constant", 1e-3, 10_000)
NEAR = 0.05
TIMES = 3.0
ERROR = 0.009
MOST_DRAWS = 1 << 21
CHUNK = 4_096


class Problem(NamedTuple):
    """A posterior as a function of unconstrained parameters in one vector.

    Attributes:
      posterior: itself.
      guide: of it.
      start: a vector.
      loss: of a vector and a key, an estimate of minus the bound.
      named: of a vector, constrained values by name.
    """

    posterior: Posterior
    guide: Any
    start: jax.Array
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    named: Callable[[jax.Array], dict[str, Any]]


def problem(posterior: Posterior, key: jax.Array) -> Problem:
    """The start that ``fit`` has with the same key."""
    guide = posterior.guide()
    svi = SVI(posterior.model, guide, optax.sgd(0.0), vipp.ELBO())
    state = svi.init(key, *posterior.args)
    start, unravel = ravel_pytree(svi.optim.get_params(state.optim_state))
    named = lambda x: svi.constrain_fn(unravel(x))

    def loss(x: jax.Array, key: jax.Array) -> jax.Array:
        return svi.loss.loss(key, named(x), svi.model, svi.guide, *posterior.args)

    return Problem(posterior, guide, start, loss, named)


def settings() -> list[tuple[str, float, int]]:
    """The grid's rows; constant steps of a smaller budget are the first ones of the largest."""
    cosine = [("cosine", size, budget) for budget in BUDGETS for size in STEP_SIZES]
    return [("constant", size, BUDGETS[-1]) for size in STEP_SIZES] + cosine


def grid(of: Problem, key: jax.Array) -> dict[tuple[str, float, int], jax.Array]:
    """What every setting ends at."""
    rows = settings()
    sizes = jnp.array([size for _, size, _ in rows])
    ends = jnp.array([jnp.inf if kind == "constant" else steps for kind, _, steps in rows])
    slope = jax.grad(of.loss)

    def one(x: Any, m: Any, v: Any, size: Any, end: Any, t: Any, key: Any) -> Any:
        g = slope(x, key)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        decay = jnp.where(
            jnp.isinf(end), 1.0, 0.5 + 0.5 * jnp.cos(jnp.pi * jnp.clip(t / end, 0, 1))
        )
        push = m / (1 - 0.9 ** (t + 1)) / (jnp.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
        return x - size * decay * push, m, v

    @jax.jit
    def run(carry: Any, times: jax.Array) -> Any:
        def step(carry: Any, t: Any) -> Any:
            keys = jax.random.split(jax.random.fold_in(key, t), len(rows))
            each = jax.vmap(one, (0, 0, 0, 0, 0, None, 0))
            return each(*carry, sizes, ends, t, keys), None

        return jax.lax.scan(step, carry, times)[0]

    many = jnp.tile(of.start, (len(rows), 1))
    carry, found, done = (many, 0 * many, 0 * many), {}, 0
    for budget in BUDGETS:
        for begin in range(done, budget, 1_000):
            carry = run(carry, jnp.arange(begin, begin + 1_000))
        done = budget
        for (kind, size, steps), x in zip(rows, carry[0], strict=True):
            if kind == "constant":
                found[kind, size, budget] = x
            elif steps == budget:
                found[kind, size, steps] = x
    return found


def bounds(of: Problem) -> Callable[..., tuple[float, float]]:
    """A function of a vector: the bound there and its standard error, with draws in common."""
    if of.posterior.bound is not None:
        exact = of.posterior.bound
        return lambda x, error=ERROR: (exact(of.named(x)), 0.0)

    @jax.jit
    def chunk(x: jax.Array, number: Any) -> jax.Array:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(99), number), CHUNK)
        return -jax.vmap(partial(of.loss, x))(keys)

    def bound(x: jax.Array, error: float = ERROR) -> tuple[float, float]:
        values = np.zeros(0)
        while len(values) < MOST_DRAWS:
            values = np.append(values, np.asarray(chunk(x, len(values) // CHUNK), float))
            if len(values) >= 4 * CHUNK and values.std() / len(values) ** 0.5 < error:
                break
        return values.mean(), values.std() / len(values) ** 0.5

    return bound


def best_of(of: Problem, ends: dict[Any, jax.Array], bound: Any) -> tuple[Any, float, int]:
    """The best setting, its bound, and the fewest steps that come near it."""
    rough = {row: bound(x, error=jnp.inf)[0] for row, x in ends.items()}
    rough = {row: -np.inf if np.isnan(b) else b for row, b in rough.items()}
    best = {n: max((r for r in rough if r[2] == n), key=lambda r: rough[r]) for n in BUDGETS}
    exact = {n: bound(ends[row])[0] for n, row in best.items()}
    largest = max(exact.values())
    fewest = min(n for n in BUDGETS if exact[n] >= largest - NEAR)
    winner = max(exact, key=lambda n: exact[n])
    return best[winner], largest, fewest


def row(name: str, seed: int) -> list[Any]:
    """One line of the table."""
    key = jax.random.key(seed)
    posterior = POSTERIORS[name]()
    of = problem(posterior, key)
    bound = bounds(of)
    result = vipp.fit(
        key, vipp.ELBO(), posterior.model, of.guide, None, TIMES_STEPS, *posterior.args,
        progress_bar=False,
    )  # fmt: skip
    raw = result.state.optim_state[1][0]
    ours, error = bound(ravel_pytree(raw)[0])
    ends = grid(of, jax.random.fold_in(key, 1))
    best, largest, fewest = best_of(of, ends, bound)
    default, _ = bound(ends[DEFAULT])
    steps = len(result.losses)
    near, few = ours >= largest - NEAR, steps <= TIMES * fewest
    return [
        name, len(of.start), f"{largest:.3f}", f"{best[0]} {best[1]:g}", f"{fewest:,}",
        f"{ours - largest:+.3f}", f"{error:.3f}", f"{steps:,}", steps / fewest,
        "" if posterior.best is None else f"{posterior.best - ours:.3f}",
        f"{default - largest:+.3f}", "met" if near and few else "MISSED",
    ]  # fmt: skip


TIMES_STEPS = int(TIMES) * BUDGETS[-1]
HEADER = [
    "posterior", "parameters", "bound, best of grid", "its setting", "grid's steps",
    "automatic, above it", "error", "steps", "of grid's", "short of optimum",
    "Adam 1e-3 x 10,000", f"within {NEAR} nats, {TIMES:g} times the steps",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chosen = [name for name in POSTERIORS if options.only in name]
    rows = [row(name, options.seed) for name in tqdm.tqdm(chosen)]
    table("Without an optimiser, in nats", HEADER, rows)


if __name__ == "__main__":
    main()
