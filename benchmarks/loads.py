"""Much at once: a thousand short fits in one process, a million rows in batches, a slow loader.

Memory is that of the process, after so many fits or steps. The loader sleeps; wall seconds of
runs with and without that sleep, taken in turn, say how much of it is hidden behind the steps.

    python benchmarks/loads.py [--part fits|fresh|rows|loader] [--number 1000]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import psutil
from _common import table

import vipp

KEY = jax.random.key(0)
ROWS, COLUMNS, BATCH = 1_000_000, 20, 1_000


def mebibytes() -> float:
    """The memory of this process."""
    return psutil.Process().memory_info().rss / 2**20


def programs() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A model and a guide, new ones each time."""

    def model(x: Any) -> None:
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x: Any) -> None:
        scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
        numpyro.sample("mean", dist.Normal(numpyro.param("loc", 0.0), scale))

    return model, guide


def fits(number: int, *, fresh: bool) -> None:
    """Short fits, of the same programs or of new ones each time."""
    optim, x = optax.adam(0.1), np.random.default_rng(0).normal(size=50).astype(np.float32)
    (model, guide), rows, started = programs(), [], time.process_time()
    for done in range(1, number + 1):
        if fresh:
            model, guide = programs()
        vipp.fit(
            jax.random.key(done), vipp.ELBO(), model, guide, optim, 5, x + done, progress_bar=False
        )
        if done * 10 % number == 0:
            seconds = time.process_time() - started
            rows.append([done, f"{mebibytes():.0f}", len(jax.live_arrays()), f"{seconds:.1f}"])
    kind = "new programs each time" if fresh else "the same programs"
    table(f"Fits: {kind}", ["fits", "memory, MiB", "live arrays", "CPU s"], rows)


def regression(x: Any, y: Any) -> None:
    """A linear model of a million rows, of which a batch is given."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("rows", ROWS, subsample_size=len(x)):
        numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def of_regression(x: Any, y: Any) -> None:
    """Its guide."""
    loc = numpyro.param("loc", jnp.zeros(x.shape[1]))
    scale = numpyro.param("scale", 0.1 * jnp.ones(x.shape[1]), constraint=dist.constraints.positive)
    numpyro.sample("w", dist.Normal(loc, scale).to_event(1))


class Loader:
    """Batches made when they are asked for.

    Args:
      size: rows of each.
      number: how many.
      columns: of the covariates.
      seconds: to sleep before each.
    """

    def __init__(self, size: int, number: int, columns: int, seconds: float = 0.0):
        self.size, self.number, self.columns, self.seconds = size, number, columns, seconds
        self.weights = np.linspace(-1, 1, columns).astype(np.float32)

    def __iter__(self) -> Iterator[Any]:
        draw = np.random.default_rng(0)
        for _ in range(self.number):
            time.sleep(self.seconds)
            x = draw.standard_normal((self.size, self.columns), np.float32)
            yield x, x @ self.weights + draw.standard_normal(self.size, np.float32)


def rows_in_batches() -> None:
    """A million rows, three times over."""
    found: list[list[Any]] = []
    note = lambda p: found.append([p.step, p.step * BATCH, f"{mebibytes():.0f}", p.metrics["loss"]])
    result = vipp.fit(
        KEY, vipp.ELBO(), regression, of_regression, optax.adam(0.01), 3 * ROWS // BATCH,
        batches=Loader(BATCH, ROWS // BATCH, COLUMNS), log_every=250, callback=lambda p: note(p),
        progress_bar=False,
    )  # fmt: skip
    table("A million rows in batches", ["step", "rows seen", "memory, MiB", "loss"], found)
    error = np.abs(result.params["loc"] - np.linspace(-1, 1, COLUMNS)).max()
    print(f"All rows at once would be {ROWS * (COLUMNS + 1) * 4 / 2**20:.0f} MiB. "
          f"Largest error of a weight: {error:.4f}.")  # fmt: skip


def loader(rounds: int = 9, steps: int = 200) -> None:
    """Steps of some milliseconds beside a loader that sleeps 2 ms a batch."""
    optim, ready = optax.adam(0.01), list(Loader(5_000, 4, 100))

    class Slow(list):
        def __iter__(self) -> Iterator[Any]:
            for batch in super().__iter__():
                time.sleep(0.002)
                yield batch

    def seconds(batches: Any) -> float:
        started = time.perf_counter()
        vipp.fit(
            KEY, vipp.ELBO(), regression, of_regression, optim, steps, batches=batches,
            progress_bar=False,
        )  # fmt: skip
        return (time.perf_counter() - started) / steps

    seconds(ready), seconds(ready)
    taken = [(seconds(ready), seconds(Slow(ready))) for _ in range(rounds)]
    step = statistics.median(a for a, _ in taken)
    more = statistics.median(b / a for a, b in taken)
    rows = [
        ["batches in memory", 1e3 * step, 1.0],
        ["asleep for 2 ms before each", 1e3 * step * more, more],
    ]
    table("A loader beside the steps", ["batches", "wall ms a step", "ratio"], rows)


PARTS: dict[str, Callable[[int], None]] = {
    "fits": lambda number: fits(number, fresh=False),
    "fresh": lambda number: fits(number, fresh=True),
    "rows": lambda _: rows_in_batches(),
    "loader": lambda _: loader(),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--number", type=int, default=1_000, help="of fits")
    given = parser.parse_args()
    for name, part in PARTS.items():
        if given.part in (None, name):
            part(given.number)
