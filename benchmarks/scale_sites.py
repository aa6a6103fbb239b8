"""What many scalar latent sites under ``AutoNormal`` cost to compile, and a step of them.

Each row is a process of its own with some minutes, after which it is given up. CPU seconds are
those of `resource.getrusage`, of all threads: load by others disturbs them less than the clock.
Then a regression of 24 named coefficients, each one of six groups, under two guides.

    python benchmarks/scale_sites.py [--sites 30 100 300] [--numpyro 10 30] [--minutes 3]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from _common import table
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import vipp

STEPS = 4_000
COEFFICIENTS, GROUPS, ROWS = 24, 6, 120
GUIDES = {"AutoNormal": AutoNormal, "AutoMultivariateNormal": AutoMultivariateNormal}


def scalars(sites: int) -> None:
    total = 0.0
    for i in range(sites):
        total += numpyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(total, 1.0), obs=3.0)


def stacked(sites: int) -> None:
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([sites]).to_event(1))
    numpyro.sample("x", dist.Normal(z.sum(), 1.0), obs=3.0)


def regression(number: int) -> None:
    """Coefficients with names of their own, which differ between groups of rows."""
    draw = np.random.default_rng(0)
    x, group = draw.normal(size=(ROWS, number)), jnp.asarray(np.arange(ROWS) % GROUPS)
    y, scale = x.sum(1), numpyro.sample("scale", dist.HalfNormal(1.0))
    mean = 0.0
    for i in range(number):
        centre = numpyro.sample(f"centre{i}", dist.Normal(0.0, 1.0))
        with numpyro.plate("groups", GROUPS):
            mean += numpyro.sample(f"w{i}", dist.Normal(centre, scale))[group] * x[:, i]
    with numpyro.plate("rows", ROWS):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def spent(fn: Any) -> float:
    """CPU seconds of a call."""
    started = cpu()
    jax.block_until_ready(fn())
    return cpu() - started


def fitting(model: Any, sites: int, of: Any = AutoNormal) -> Any:
    """A function that takes steps; the guide's own first look at the model is behind it."""
    guide, optim = of(model), optax.adam(1e-2)
    SVI(model, guide, optim, vipp.ELBO()).init(jax.random.key(0), sites)
    return lambda steps: (
        vipp.fit(
            jax.random.key(0), vipp.ELBO(), model, guide, optim, steps, sites, progress_bar=False
        ).losses
    )


def with_vipp(sites: int) -> dict[str, float]:
    runs = {"scalars": fitting(scalars, sites), "stacked": fitting(stacked, sites)}
    found = {f"compile {name}": spent(lambda run=run: run(1)) for name, run in runs.items()}
    least = {(name, steps): float("inf") for name in runs for steps in (1, STEPS)}
    for _ in range(5):
        for name, steps in least:
            seconds = spent(lambda: runs[name](steps))
            least[name, steps] = min(least[name, steps], seconds)
    each = {name: (least[name, STEPS] - least[name, 1]) / (STEPS - 1) for name in runs}
    return found | {f"step {name}": seconds for name, seconds in each.items()}


def with_svi(loss: Any, sites: int) -> dict[str, float]:
    svi = SVI(scalars, AutoNormal(scalars), optax.adam(1e-2), loss)
    state = svi.init(jax.random.key(0), sites)
    step = jax.jit(lambda state: svi.update(state, sites))
    return {"compile scalars": spent(lambda: step(state))}


def of_regression(loss: Any, guide: Any) -> dict[str, float]:
    svi = SVI(regression, guide(regression), optax.adam(1e-2), loss)
    state = svi.init(jax.random.key(0), COEFFICIENTS)
    step = jax.jit(lambda state: svi.update(state, COEFFICIENTS))
    return {"compile scalars": spent(lambda: step(state))}


def fit_of_regression(guide: Any) -> dict[str, float]:
    run = fitting(regression, COEFFICIENTS, guide)
    return {"compile scalars": spent(lambda: run(1))}


CASES = {
    "fit": with_vipp,
    "SVI(vipp.ELBO())": lambda sites: with_svi(vipp.ELBO(), sites),
    "NumPyro": lambda sites: with_svi(Trace_ELBO(), sites),
}
REGRESSIONS: dict[str, Callable[[int], dict[str, float]]] = {}
for _name, _guide in GUIDES.items():
    REGRESSIONS |= {
        f"regression, {_name}, fit": lambda _, guide=_guide: fit_of_regression(guide),
        f"regression, {_name}, SVI(vipp.ELBO())": (
            lambda _, guide=_guide: of_regression(vipp.ELBO(), guide)
        ),
        f"regression, {_name}, NumPyro": lambda _, guide=_guide: of_regression(Trace_ELBO(), guide),
    }


def one(case: str, sites: int) -> None:
    spent(lambda: jnp.ones(()) + 1)
    found = (CASES | REGRESSIONS)[case](sites)
    found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(found))


def row(case: str, sites: int, limit: float) -> tuple[Any, ...]:
    command = [sys.executable, __file__, "--case", case, "--sites", str(sites)]
    try:
        output = subprocess.run(command, check=True, capture_output=True, timeout=limit).stdout
    except subprocess.TimeoutExpired:
        return (sites, case, f"over {limit:g} s on the clock", "", "", "", "")
    found = json.loads(output.splitlines()[-1])
    scalar, whole = (found.get(f"step {name}", 0.0) for name in ("scalars", "stacked"))
    steps = (scalar * 1e6, whole * 1e6, scalar / whole) if whole else ("", "", "")
    return (sites, case, found["compile scalars"], found["memory"], *steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, nargs="+", default=[30, 100, 300])
    parser.add_argument("--svi", type=int, nargs="*", default=[30, 100])
    parser.add_argument("--numpyro", type=int, nargs="*", default=[10, 30])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--case", choices=CASES | REGRESSIONS)
    args = parser.parse_args()
    if args.case:
        return one(args.case, args.sites[0])
    rows = []
    for case, sites in zip(CASES, (args.sites, args.svi, args.numpyro)):
        for count in sites:
            rows.append(row(case, count, 60 * args.minutes))
            print(rows[-1], flush=True)
    for case in REGRESSIONS:
        rows.append(row(case, 1 + COEFFICIENTS * (1 + GROUPS), 60 * args.minutes))
        print(rows[-1], flush=True)
    header = (
        "sites", "", "trace and compile, CPU s", "peak memory, GiB",
        "step, CPU us", "of a stacked program", "ratio",
    )  # fmt: skip
    table("Scalar Normal sites under AutoNormal", header, rows)


if __name__ == "__main__":
    main()
