"""Sums by products of probabilities: of a factor that many sums share, exponentials are taken once.

A sum over one axis of a table that is known ahead, times an array that is not, is a product of
their exponentials, each divided by its largest entry. It says what the log of a sum of exponentials
says, unless a sum is so small that something may have been lost below the smallest number; then it
says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipp_transforms.contraction import Factor, Graph, align, multiply
from vipp_transforms.elementwise import Elementwise


class Weights(NamedTuple):
    """The exponentials of a factor.

    Attributes:
      factor: it.
      values: its exponentials, the largest of each plate's element one.
      top: the logarithm of what they were divided by.
      wide: whether some are far below the largest, but not zero.
    """

    factor: Factor
    values: Any
    top: Factor
    wide: Any


def weights_of(graph: Graph, factors: Sequence[Factor]) -> list[Weights]:
    """The exponentials of factors, those together that are about the same sites."""
    joined: list[Factor] = []
    for factor in sorted(factors, key=lambda f: -len(f.dims)):
        around = next((f for f in joined if {*factor.dims} <= {*f.dims}), None)
        if around is None:
            joined.append(factor)
        else:
            joined[joined.index(around)] = multiply([around, factor])
    return [_weights(graph, f) for f in joined]


def _weights(graph: Graph, factor: Factor) -> Weights:
    logs, top = _scaled(graph, factor)
    values = jnp.exp(logs)
    return Weights(factor, values, top, _any_lost(values, logs))


@dataclass
class ScaledGraph(Graph):
    """Factors of which some are known ahead.

    Attributes:
      known: these.
      failed: of each sum, whether some of it may be lost.
    """

    known: Sequence[Weights] = ()
    failed: list[Any] = field(default_factory=list)

    def sums_jointly(self, entries: int) -> bool:
        """Not where some factors are known ahead, of which exponentials are taken once."""
        return not self.known and super().sums_jointly(entries)

    def total(self, members: Sequence[Factor], site: str) -> list[Factor]:
        """The sum over a site of a product, in parts."""
        known = [w for w in self.known if any(w.factor is m for m in members)]
        weights = max(known, key=lambda w: jnp.size(w.values), default=None)
        others = [m for m in members if weights is None or m is not weights.factor]
        moving = multiply(others) if others else None
        if weights is None or moving is None or {*weights.factor.dims} <= {*moving.dims}:
            return super().total(members, site)
        logs, top = _scaled(self, moving)
        values = jnp.exp(logs)
        both = tuple(dict.fromkeys((*weights.factor.dims, *moving.dims)))
        rest = tuple(d for d in both if d != site)
        codes = lambda dims: [both.index(d) for d in dims]
        total = jnp.einsum(
            weights.values, codes(weights.factor.dims), values, codes(moving.dims), codes(rest),
            precision=jax.lax.Precision.HIGHEST,
        )  # fmt: skip
        small = jnp.any(total < math.exp(_floor(total)))
        self.failed.append(small & (weights.wide | _any_lost(values, logs)))
        origin = tuple(dict.fromkeys((*weights.factor.origin, *moving.origin)))
        return [Factor(_log(total), rest, origin), top, weights.top]


def _scaled(graph: Graph, factor: Factor) -> tuple[Any, Factor]:
    """A factor less its largest entry over all sites, and that entry."""
    axes = tuple(i for i, d in enumerate(factor.dims) if d in graph.plates_of)
    top = jnp.max(jax.lax.stop_gradient(factor.array), axis=axes)
    dims = tuple(d for d in factor.dims if d not in graph.plates_of)
    taken = Factor(jnp.where(jnp.isfinite(top), top, 0.0), dims, factor.origin)
    return factor.array - align(taken, factor.dims), taken


def _floor(x: Any) -> float:
    """The logarithm above which a sum is right, as what is lost from it is below its precision."""
    return math.log(jnp.finfo(x.dtype).tiny) * 2 / 3


def _any_lost(values: Any, logs: Any) -> Any:
    """Whether a product of two such that are not zero may fall below the floor."""
    return jnp.any((values < math.exp(_floor(values) / 2)) & (logs > -jnp.inf))


@Elementwise
def _log(x: Any) -> Any:
    """The logarithm; that of zero has no slope."""
    return jnp.log(x)


_log.defjvps(lambda dx, x: jnp.where(x > 0, 1.0 / jnp.where(x > 0, x, 1.0), 0.0) * dx)
