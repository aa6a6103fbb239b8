"""Dependent draws of categories, by hand: CARMS and stratified draws against independent ones.

The autoencoder of categorical.py, 20 latents of 10 categories, 64 rows: the variance of the
encoder's gradient at the start and after training, times the operations of a gradient of
everything, relative to leave-one-out of 2. Of each estimator also with the divergence exact.

    python benchmarks/categorical_draws.py [--draws 200] [--steps 500 2000] [--only fitted]
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _bits_by_hand import fitted
from _common import apply, compiled, counted, moments, table
from _digits import BATCH, CHOICES, GROUPS, categorical_guide, categorical_model, digits, trained

import vipp

stop = jax.lax.stop_gradient


# -- draws: uniform numbers (n, rows, lanes), and the joint probability of two of them -------------


def independent(n: int) -> tuple[Any, Any]:
    return lambda key, shape: jax.random.uniform(key, (n, *shape)), None


def dirichlet(n: int) -> tuple[Any, Any]:
    """The copula of CARMS (Dimitriev and Zhou 2021)."""

    def draw(key: Any, shape: Any) -> jax.Array:
        parts = jax.random.exponential(key, (n, *shape))
        return 1.0 - (1.0 - parts / parts.sum(0)) ** (n - 1)

    def below(u: jax.Array, v: jax.Array) -> jax.Array:
        kept = (1.0 - u) ** (1 / (n - 1)) + (1.0 - v) ** (1 / (n - 1)) - 1.0
        return u + v - 1.0 + jnp.maximum(kept, 0.0) ** (n - 1)

    return draw, below


def stratified(n: int) -> tuple[Any, Any]:
    """One in each of n equal parts of the circle, whose origin is random: no pair is impossible."""

    def draw(key: Any, shape: Any) -> jax.Array:
        keys = jax.random.split(key, 3)
        places = jnp.argsort(jax.random.uniform(keys[0], (n, *shape)), 0)
        inside, origin = (
            jax.random.uniform(keys[1], (n, *shape)),
            jax.random.uniform(keys[2], shape),
        )
        return ((places + inside) / n + origin) % 1.0

    def twice(t: jax.Array) -> jax.Array:
        """The second integral of the probability of lying in one part, at a distance."""
        t = jnp.abs(t)
        return jnp.where(t < 1 / n, t**2 / 2 - n * t**3 / 6, t / (2 * n) - 1 / (6 * n**2))

    def below(u: jax.Array, v: jax.Array) -> jax.Array:
        here = sum(twice(u - v + turn) for turn in (-1, 0, 1))
        return (u * v + here) * n / (n - 1)  # up to what cancels in differences

    return draw, below


# -- estimators ------------------------------------------------------------------------------------


def divergence(log_probs: jax.Array) -> jax.Array:
    return (jnp.exp(log_probs) * (log_probs + jnp.log(1.0 * CHOICES))).sum((-1, -2))


def value_at(params: Any, x: Any, z: Any, log_probs: Any, exact: bool) -> jax.Array:
    logits = apply(params["decoder"], z.reshape(*z.shape[:-2], -1))
    reached = (x * logits - jax.nn.softplus(logits)).sum(-1)
    if exact:
        return reached
    return reached - GROUPS * jnp.log(1.0 * CHOICES) - (stop(log_probs) * z).sum((-1, -2))


def by_hand(draws: tuple[Any, Any], exact: bool, apart: int = 1, slopes: bool = False) -> Any:
    """Leave-one-out over pairs of draws; of ``apart`` groups, over pairs of different groups."""
    draw, below = draws

    def surrogate(params: Any, key: Any, x: Any) -> jax.Array:
        logits = apply(params["encoder"], x).reshape(len(x), GROUPS, CHOICES)
        log_probs = jax.nn.log_softmax(logits)
        edges = jnp.cumsum(jnp.exp(stop(log_probs)), -1).at[..., -1].set(1.0)
        u = jnp.concatenate([draw(k, (len(x), GROUPS)) for k in jax.random.split(key, apart)])
        which = (edges < u[..., None]).sum(-1)
        z = jax.nn.one_hot(which, CHOICES)
        n, score = len(u), (log_probs * z).sum(-1)
        shift = 0.0
        if slopes:
            fixed = score.sum(-1) - stop(score.sum(-1))
            probs = jnp.exp(log_probs)
            part = (fixed - fixed.mean(0))[..., None, None] * (z - stop(probs)) * (n / (n - 1))
            shift = (probs - stop(probs)) - (part.sum(0) - part) / (n - 1)
        f = value_at(params, x, z + shift, log_probs, exact)
        if below is None:
            slope = (stop(f - f.mean(0)) / (n - 1) * score.sum(-1)).sum(0)
        elif apart > 1:
            means = stop(f).reshape(apart, -1, len(x)).mean(1)
            others = (means.sum(0) - means) / (apart - 1)
            away = stop(f) - jnp.repeat(others, n // apart, axis=0)
            slope = (away * score.sum(-1)).mean(0)
        else:
            lines = jnp.concatenate([jnp.zeros_like(edges[..., :1]), edges], -1)[None]
            low, high = (
                jnp.take_along_axis(lines, (which + i)[..., None], -1)[..., 0] for i in (0, 1)
            )
            c = lambda a, b: below(a[:, None], b[None])
            both = c(high, high) - c(low, high) - c(high, low) + c(low, low)
            alone = high - low
            weight = jnp.where(
                which[:, None] == which[None],
                0.0,
                alone[:, None] * alone[None] / jnp.maximum(both, 1e-15),
            )
            pull = (weight * (score[:, None] - score[None])).sum(-1)
            slope = (stop(f[:, None] - f[None]) * pull).sum((0, 1)) / (2 * n * (n - 1))
        total = f.mean(0) + slope - divergence(log_probs) * exact
        return total.sum()

    return jax.grad(surrogate)


def fitted_by_hand(n: int) -> Any:
    """Independent draws; the slope at the mean and the divergence, as far as they fit others."""

    def surrogate(params: Any, key: Any, x: Any) -> jax.Array:
        logits = apply(params["encoder"], x).reshape(len(x), GROUPS, CHOICES)
        log_probs = jax.nn.log_softmax(logits)
        which = jax.random.categorical(key, stop(logits), shape=(n, len(x), GROUPS))
        z = jax.nn.one_hot(which, CHOICES)
        score = (log_probs * z).sum((-1, -2))
        flat = lambda a: a.reshape(*a.shape[:-2], -1)
        reached = lambda params, z: value_at(params, x, z, log_probs, exact=True)
        mean = jnp.exp(log_probs)
        slope = jax.grad(lambda z: reached(stop(params), z).sum())(stop(mean))
        slopes = (flat(slope), flat(-stop(log_probs)))
        total = fitted(flat(z), flat(mean), score, reached(params, z), slopes)
        return (total - divergence(log_probs)).sum()

    return jax.grad(surrogate)


def estimators() -> dict[str, Any]:
    """Gradients of the bound."""
    found = {}
    for exact in (False, True):
        made = {
            **{f"leave-one-out({n})": by_hand(independent(n), exact) for n in (2, 8, 16)},
            **{f"CARMS({n})": by_hand(dirichlet(n), exact) for n in (4, 8)},
            **{f"stratified({n})": by_hand(stratified(n), exact) for n in (4, 8)},
            **{
                f"{8 // m} groups of {m} stratified": by_hand(stratified(m), exact, apart=8 // m)
                for m in (2, 4)
            },
            "double control variates(8)": by_hand(independent(8), exact, slopes=True),
        }
        found |= {n + ", exact KL" * exact: g for n, g in made.items()}
    found |= {f"fitted slope and divergence({n})": fitted_by_hand(n) for n in (8, 12, 16)}
    loss = vipp.ELBO()
    default = lambda params, key, x: loss.loss(key, params, categorical_model, categorical_guide, x)
    return found | {"vipp's default": jax.grad(lambda *a: -default(*a))}


def check(programs: dict[str, Any], params: Any, x: Any, draws: int) -> None:
    """The means, against the default's: in standard errors, the root of the mean square."""
    keys = jax.random.split(jax.random.key(5), draws)
    found = {}
    for name, program in programs.items():
        rows = np.stack([np.asarray(flat(program(params, k, x))) for k in keys])
        found[name] = rows.mean(0), rows.var(0) / draws
    mean, error = found["vipp's default"]
    for name, (m, e) in found.items():
        off = np.square(m - mean) / np.maximum(e + error, 1e-12)
        print(f"{name}: {np.sqrt(off[e > 0].mean()):.3f}")


def flat(gradient: Any) -> jax.Array:
    return jnp.concatenate([g.ravel() for g in jax.tree.leaves(gradient["encoder"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--steps", type=int, nargs="*", default=[500, 2000])
    parser.add_argument("--only", nargs="*", help="parts of names of estimators")
    parser.add_argument("--check", action="store_true", help="means against the default's")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)  # probabilities of pairs are small differences
    x = digits().astype(float)
    stages: dict[str, Any] = {}
    for steps in options.steps:
        stages |= trained(categorical_model, categorical_guide, x, steps)
    args = next(iter(stages.values())), jax.random.key(3), x[:BATCH]
    reference, *others = estimators().items()
    wanted = lambda name: not options.only or any(part in name for part in options.only)
    taken = [reference, *(pair for pair in others if wanted(pair[0]))]
    programs = {name: compiled(fn, *args) for name, fn in taken}
    keys = jax.random.split(jax.random.key(2), options.draws)
    look, variances = jax.jit(flat), {}
    for when, params in stages.items():
        if options.check:
            check(programs, params, x[:BATCH], options.draws)
        for name, program in programs.items():
            draw = partial(
                lambda key, p, params: look(p(params, key, x[:BATCH]))[None],
                p=program,
                params=params,
            )
            variances[when, name] = moments(draw, keys)[0]
    first = reference[0]
    cost = {n: counted(p)[0] / counted(programs[first])[0] for n, p in programs.items()}
    rows = []
    for name in programs:
        v = [variances[when, name] / variances[when, first] for when in stages]
        rows.append((name, *v, cost[name], *(a * cost[name] for a in v)))
    header = ("estimator", *stages, "operations", *(f"x operations, {w}" for w in stages))
    table(f"20 choices of 10 ({options.draws} draws)", header, rows)


if __name__ == "__main__":
    main()
