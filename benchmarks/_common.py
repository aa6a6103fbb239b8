"""What the benchmarks share: compiling, counting, paired timing, a VAE in plain JAX, tables."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def compiled(fn: Callable[..., Any], *args: Any) -> Any:
    """``fn`` compiled for ``args``."""
    return jax.jit(fn).lower(*args).compile()


def counted(program: Any) -> tuple[float, float]:
    """Floating-point operations and bytes accessed, as XLA counts them."""
    analysis = program.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return float(analysis["flops"]), float(analysis["bytes accessed"])


def seconds(fn: Callable[..., Any], *args: Any, repeats: int = 1) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    for _ in range(repeats):
        result = fn(*args)
    jax.block_until_ready(result)
    return (time.perf_counter() - started) / repeats


def paired(
    programs: Mapping[str, tuple[Callable[..., Any], Sequence[Any]]],
    rounds: int,
    repeats: int = 1,
) -> dict[str, float]:
    """Median seconds of each program, all run once per round so that load hits all alike.

    The first program is the reference: the others' medians are the reference's median times the
    median of their ratios to it within a round.
    """
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds + 1):
        order = list(programs) if number % 2 else list(reversed(programs))
        for name in order:
            fn, args = programs[name]
            elapsed = seconds(fn, *args, repeats=repeats)
            if number:  # the first round warms up
                taken[name].append(elapsed)
    return relative(taken)


def relative(taken: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Median seconds, the first program's times the median ratio to it of the same round."""
    first = taken[next(iter(taken))]
    base = statistics.median(first)
    return {
        name: base * statistics.median(a / b for a, b in zip(each, first, strict=True))
        for name, each in taken.items()
    }


def moments(
    draw: Callable[[Any], jax.Array], keys: Sequence[Any] | jax.Array
) -> tuple[float, np.ndarray]:
    """Variance summed over coordinates, and mean, of ``draw(key)``'s rows over all keys."""
    count, shift, first, second = 0, np.zeros(()), np.zeros(()), np.zeros(())
    for key in keys:
        rows = np.asarray(draw(key), np.float64)
        shift = rows[0] if count == 0 else shift  # so that squares do not cancel
        count, rows = count + len(rows), rows - shift
        first, second = first + rows.sum(0), second + (rows**2).sum(0)
    mean = first / count
    return float((second / count - mean**2).sum() * count / (count - 1)), shift + mean


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table."""
    cells = [[_cell(x) for x in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    print(f"\n### {title}\n")
    for number, row in enumerate(cells):
        print("| " + " | ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (w + 2) for w in widths) + "|")
    print(flush=True)


def _cell(x: Any) -> str:
    return f"{x:.4g}" if isinstance(x, float) else str(x)


def verdict(value: float, limit: float) -> str:
    """Whether a ratio stays within its target."""
    return f"{'met' if value <= limit else 'MISSED'} (<= {limit:g})"


def dense(key: jax.Array, sizes: Sequence[int]) -> list[dict[str, jax.Array]]:
    """Weights of a multilayer perceptron, Glorot normal, zero biases."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"w": jax.random.normal(k, (n, m)) * (2.0 / (n + m)) ** 0.5, "b": jnp.zeros(m)}
        for k, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def apply(layers: Sequence[Mapping[str, jax.Array]], x: jax.Array) -> jax.Array:
    """The perceptron, with softplus between layers."""
    for layer in layers[:-1]:
        x = jax.nn.softplus(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]
