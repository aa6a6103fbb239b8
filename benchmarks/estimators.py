"""Every estimator's variance, and variance times time, relative to leave-one-out.

Small objectives of 8 Bernoulli lanes, whose gradient is known; 8 Normal lanes; the Bernoulli
variational autoencoder of variance.py; one with 20 latents of 10 categories. Equal evaluations: an
estimator that evaluates the program n times is divided by ScoreFunction(n, "leave_one_out"), one
that evaluates it once is averaged over two repetitions and divided by that of 2.

    python benchmarks/estimators.py [--only quadratic] [--draws 50000] [--vae-draws 300]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from _common import moments, paired, table
from _digits import (
    BATCH,
    binary_guide,
    binary_model,
    categorical_guide,
    categorical_model,
    digits,
    trained,
)
from numpyro.infer import SVI

import vipp

LANES, CHUNK, LEARNED = 8, 1000, "$estimator"
LOGITS = jnp.array([-1.5, -1.0, -0.5, -0.2, 0.2, 0.5, 1.0, 1.5])
SLOPES = jnp.array([1.0, -0.8, 0.6, -1.2, 0.9, 1.1, -0.7, 0.5])
TIMES = jnp.array([0.4, -0.2, 0.5, 0.3, -0.3, 0.2, -0.4, 0.6])


@vipp.objective
def value(p: Any, q: Any, *, of: Any) -> Any:
    return of(q.simulate()[0]["z"])


def linear(z: Any) -> Any:
    return (SLOPES * z).sum()


def per_lane(z: Any) -> Any:
    return ((SLOPES * z - 0.45) ** 2).sum()


def quadratic(z: Any) -> Any:
    return ((SLOPES * z).sum() - 0.45) ** 2


def mixing(z: Any) -> Any:
    return jnp.sin((SLOPES * z).sum()) + 2.0 * jnp.prod(1.0 - TIMES * z)


def rough(z: Any) -> Any:
    return jnp.sin(3.0 * (SLOPES * z).sum()) + 2.0 * jnp.prod(1.0 - TIMES * z)


def smooth(x: Any) -> Any:
    rows = jnp.stack([jnp.roll(SLOPES, i) for i in range(5)])
    return jax.nn.softplus(rows @ x).sum() + jnp.sin(TIMES @ x)


@dataclass
class Problem:
    """An objective at given parameters, and those whose gradient is looked at."""

    title: str
    objective: Any
    model: Any
    guide: Any
    params: Mapping[str, Any]
    main: tuple[str, ...]
    estimators: Mapping[str, Any]
    args: tuple[Any, ...] = ()
    together: int = CHUNK  # gradients in one call
    exact: Any = None  # the estimator that the bias is against
    laws: tuple[tuple[str, str], ...] = ()
    programs: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, int] = field(default_factory=dict)


def loo(n: int) -> str:
    return f"ScoreFunction({n}, leave-one-out)"


def leave_one_out(*sizes: int) -> dict[str, Any]:
    return {loo(n): vipp.ScoreFunction(n, "leave_one_out") for n in sizes}


def relaxations(binary: bool) -> dict[str, Any]:
    return {
        "GumbelSoftmax(1.0)": vipp.GumbelSoftmax(),
        "GumbelSoftmax(0.3)": vipp.GumbelSoftmax(0.3),
        "GumbelSoftmax(1.0, hard)": vipp.GumbelSoftmax(hard=True),
        "StraightThrough": vipp.StraightThrough(),
        "ReinMax": vipp.ReinMax(),
        **({"ReSTE": vipp.ReSTE()} if binary else {}),
        "SparseMixer": vipp.SparseMixer(),
    }


def finite(binary: bool) -> dict[str, Any]:
    """The estimators of a Bernoulli or one-hot site."""
    pair = vipp.ScoreFunction(2, antithetic=True)
    four = vipp.ScoreFunction(4, "leave_one_out", antithetic=True)
    mix = vipp.Mix(vipp.DisARM(), vipp.ScoreFunction(2, "leave_one_out"), decay=0.999)
    return {
        "ScoreFunction": vipp.ScoreFunction(),
        **({"ScoreFunction(2, antithetic)": pair} if binary else {}),
        **leave_one_out(2, 3, 4, 8),
        **({"ScoreFunction(4, antithetic, leave-one-out)": four} if binary else {}),
        "LocalExpectation": vipp.LocalExpectation(),
        **({"ARM": vipp.ARM(), "DisARM": vipp.DisARM()} if binary else {}),
        **({"MeasureValued": vipp.MeasureValued()} if binary else {}),
        "REBAR": vipp.REBAR(),
        "RELAX": vipp.RELAX(),
        **({"Mix(DisARM, leave-one-out of 2)": mix} if binary else {}),
        **relaxations(binary),
    }


CONTINUOUS = {
    "Pathwise": vipp.Pathwise(),
    "Pathwise(4)": vipp.Pathwise(4),
    "Pathwise(4, antithetic)": vipp.Pathwise(4, antithetic=True),
    "Pathwise(4, quasi)": vipp.Pathwise(4, quasi=True),
    "Pathwise(32, quasi)": vipp.Pathwise(32, quasi=True),
    "Pathwise(4, taylor)": vipp.Pathwise(4, control_variate="taylor"),
    "ScoreFunction": vipp.ScoreFunction(),
    **leave_one_out(2, 4, 8),
    "ScoreFunction(2, antithetic)": vipp.ScoreFunction(2, antithetic=True),
    "ScoreFunction(8, antithetic, leave-one-out)": vipp.ScoreFunction(
        8, "leave_one_out", antithetic=True
    ),
    "MeasureValued": vipp.MeasureValued(),
}
LAWS = (("DisARM", loo(2)), ("REBAR", "ScoreFunction"), ("RELAX", "ScoreFunction"),
        ("Mix(DisARM, leave-one-out of 2)", "DisARM"))  # fmt: skip


# -- the problems -------------------------------------------------------------------------------


def nothing() -> None:
    pass


def bernoullis() -> None:
    logits = numpyro.param("logits", LOGITS)
    numpyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))


def normals() -> None:
    loc, scale = numpyro.param("loc", 0.5 * LOGITS), numpyro.param("scale", jnp.full(LANES, 0.7))
    numpyro.sample("z", dist.Normal(loc, scale).to_event(1))


def small_problems() -> dict[str, Callable[[], Problem]]:
    def binary(fn: Any) -> Problem:
        name = fn.__name__.replace("_", " ")
        choices = {**finite(binary=True), "Enumerate": vipp.Enumerate()}
        return Problem(f"8 Bernoulli lanes, {name}", value(of=fn), nothing, bernoullis,
                       {"logits": LOGITS}, ("logits",), choices, exact="Enumerate",
                       laws=LAWS)  # fmt: skip

    params = {"loc": 0.5 * LOGITS, "scale": jnp.full(LANES, 0.7)}
    objectives = (linear, per_lane, quadratic, mixing, rough)
    made = {fn.__name__: lambda fn=fn: binary(fn) for fn in objectives}
    return {
        **made,
        "normal": lambda: Problem(
            "8 Normal lanes, smooth", value(of=smooth), nothing, normals, params,
            ("loc", "scale"), CONTINUOUS,
        ),
    }  # fmt: skip


def autoencoders(kind: str, steps: int) -> list[Problem]:
    x = digits()
    model, guide = {
        "bernoulli": (binary_model, binary_guide),
        "categorical": (categorical_model, categorical_guide),
    }[kind]
    choices, laws = finite(kind == "bernoulli"), LAWS if kind == "bernoulli" else LAWS[1:3]
    return [
        Problem(
            f"{kind.capitalize()} autoencoder of digits, {when}",
            vipp.ELBO(),
            model,
            guide,
            params,
            ("encoder",),
            choices,
            (x[:BATCH],),
            0,
            "LocalExpectation",
            laws,
        )  # fmt: skip
        for when, params in trained(model, guide, x, steps).items()
    ]


# -- measuring ----------------------------------------------------------------------------------


def adapted(problem: Problem, guide: Any, steps: int) -> tuple[dict[str, Any], Any]:
    """The estimator's own parameters and state after some steps in which nothing else moves."""
    label = lambda params: {n: "own" if n.endswith(LEARNED) else "rest" for n in params}
    optim = optax.multi_transform({"own": optax.adam(0.01), "rest": optax.set_to_zero()}, label)
    svi = SVI(problem.model, guide, optim, loss=problem.objective)
    state = svi.init(jax.random.key(5), *problem.args, init_params=dict(problem.params))
    if state.mutable_state or any(n.endswith(LEARNED) for n in svi.get_params(state)):
        step = lambda state, _: (svi.update(state, *problem.args)[0], None)
        state = jax.jit(lambda s: jax.lax.scan(step, s, None, steps)[0])(state)
    return svi.get_params(state), state.mutable_state or {}


def prepare(problem: Problem, name: str, estimator: Any, adapt: int) -> None:
    """Compile ``(key) -> (gradients, all that a step of training needs)`` for an estimator."""
    guide = vipp.with_estimators(problem.guide, {"z": estimator})
    params, mutable = adapted(problem, guide, adapt)
    loss = problem.objective.loss_with_mutable_state

    def scalar(params: Any, key: Any) -> Any:
        every = {**params, **mutable}
        out = loss(key, every, problem.model, guide, *problem.args)
        return out["loss"], out["mutable_state"]

    def one(params: Any, key: Any) -> Any:
        rest, grads = jax.value_and_grad(scalar, has_aux=True)(params, key)
        looked_at = jax.tree.leaves([grads[name] for name in problem.main])
        return jnp.concatenate([g.ravel() for g in looked_at]), (rest, grads)

    def many(params: Any, key: Any) -> Any:
        if not problem.together:
            flat, rest = one(params, key)
            return flat[None], rest
        return jax.vmap(one, (None, 0))(params, jax.random.split(key, problem.together))

    program = jax.jit(many).lower(params, jax.random.key(0)).compile()
    problem.programs[name] = (program, (params, jax.random.key(0)))
    every = {**params, **mutable}
    told = vipp.explain(problem.objective, problem.model, guide, *problem.args, params=every)
    problem.cost[name] = told["z"].evaluations


def compile_all(problem: Problem, adapt: int) -> None:
    """All estimators, and leave-one-out of as many samples as each evaluates."""
    for name, estimator in problem.estimators.items():
        prepare(problem, name, estimator, adapt)
    drawn = [name for name, e in problem.estimators.items() if not isinstance(e, vipp.Enumerate)]
    for count in sorted({max(2, problem.cost[name]) for name in drawn}):
        if loo(count) not in problem.programs:
            prepare(problem, loo(count), vipp.ScoreFunction(count, "leave_one_out"), adapt)


def bias(mean: Any, error: float, exact: Any, exact_error: float) -> str:
    """Distance to the exact gradient relative to it, less what noise alone would give."""
    noise = error**2 + exact_error**2
    size = np.sqrt(max(float((exact**2).sum()) - exact_error**2, 1e-30))
    found = max(float(((mean - exact) ** 2).sum()) - noise, 0.0) ** 0.5 / size
    resolved = 2.0 * noise**0.5 / size
    return f"{found:.3f}" if found > resolved else f"< {resolved:.2g}"


def report(problem: Problem, calls: int, rounds: int) -> None:
    keys = jax.random.split(jax.random.key(2), calls)
    found, count = {}, calls * max(problem.together, 1)
    for name, (program, (params, _)) in problem.programs.items():
        found[name] = moments(lambda key: program(params, key)[0], keys)
    reference = {loo(2): problem.programs[loo(2)]}
    times = paired({**reference, **problem.programs}, rounds)
    error = {name: (variance / count) ** 0.5 for name, (variance, _) in found.items()}
    rows = []
    for name, (variance, mean) in found.items():
        cost = problem.cost[name]
        row = [name, cost, variance]
        if loo(max(cost, 2)) in found:
            base, base_time = found[loo(max(cost, 2))][0], times[loo(max(cost, 2))]
            # a repetition of an estimator that evaluates once halves its variance
            row += [variance / base * cost / max(cost, 2), times[name] / base_time]
            row.append(variance * times[name] / (base * base_time))
        else:
            row += [0.0, "-", 0.0]  # enumeration
        row.append(times[name] / times[loo(2)])
        if problem.exact:
            exact = (found[problem.exact][1], error[problem.exact])
            row.append("" if name == problem.exact else bias(mean, error[name], *exact))
        rows.append(row)
    header = ("estimator", "evaluations", "variance", "/ leave-one-out", "time / its",
              "variance x time / its", "time / leave-one-out of 2", "relative bias")  # fmt: skip
    told = vipp.explain(problem.objective, problem.model, problem.guide, *problem.args,
                        params=dict(problem.params))  # fmt: skip
    lanes = told["z"].lanes
    table(f"{problem.title} (lanes {lanes}; {count} draws)", header[: len(rows[0])], rows)
    for low, high in problem.laws:
        if not {low, high} <= set(found):
            continue
        met = found[low][0] <= found[high][0]
        ratio = found[low][0] / found[high][0] if found[high][0] else float("nan")
        print(f"- variance of {low} <= {high}: {'met' if met else 'MISSED'}, ratio {ratio:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=50_000, help="of a small objective")
    parser.add_argument("--vae-draws", type=int, default=300)
    parser.add_argument("--steps", type=int, default=500, help="of training an autoencoder")
    parser.add_argument("--adapt", type=int, default=500, help="steps that RELAX and Mix learn")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", help="names of problems")
    parser.add_argument("--estimators", nargs="*", help="names of estimators; all by default")
    options = parser.parse_args()
    small = small_problems()
    for name in options.only or (*small, "bernoulli", "categorical"):
        started = time.perf_counter()
        problems = [small[name]()] if name in small else autoencoders(name, options.steps)
        for problem in problems:
            chosen = {*(options.estimators or problem.estimators), problem.exact}
            problem.estimators = {n: e for n, e in problem.estimators.items() if n in chosen}
            compile_all(problem, options.adapt)
            calls = options.draws // CHUNK if problem.together else options.vae_draws
            report(problem, max(calls, 2), options.rounds)
        print(f"({name}: {time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
