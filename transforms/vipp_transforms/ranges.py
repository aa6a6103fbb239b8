"""The range of a value made from relaxed ones, which lie between 0 and 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Range = tuple[float, float]

ANY: Range = (-math.inf, math.inf)
_SMALLEST = 1e-300  # an exponential is positive


def range_of(eqn: Any, ranges: list[Range]) -> Range:
    """The range of an equation's result, given those of its operands; ``ANY`` if unknown."""
    rule = _RULES.get(eqn.primitive.name)
    if rule is None:
        return ANY
    try:
        ends = rule(eqn, *ranges)
    except OverflowError:
        return ANY
    return ANY if any(map(math.isnan, ends)) else (min(ends), max(ends))


def decided(name: str, one: Range, two: Range) -> bool:
    """Whether a comparison has the same outcome for all values in two closed ranges."""
    name = name.removesuffix("_to")  # in the total order
    if name in ("eq", "ne"):
        return one[1] < two[0] or one[0] > two[1]
    if name in ("lt", "ge"):
        return one[1] < two[0] or one[0] >= two[1]
    return one[1] <= two[0] or one[0] > two[1]


def _increasing(fn: Callable[[float], float]) -> Callable[..., tuple[float, ...]]:
    return lambda eqn, x: tuple(map(fn, x))


def _exp(x: float) -> float:
    return math.inf if x > 700 else max(math.exp(x), _SMALLEST)


def _products(eqn: Any, x: Range, y: Range) -> list[float]:
    return [a * b for a in x for b in y]


def _quotients(eqn: Any, x: Range, y: Range) -> list[float]:
    return [a / b for a in x for b in y] if y[0] > 0 or y[1] < 0 else list(ANY)


def _absolute(eqn: Any, x: Range) -> tuple[float, float]:
    sizes = [abs(end) for end in x]
    return (0.0 if x[0] <= 0 <= x[1] else min(sizes)), max(sizes)


def _power(eqn: Any, x: Range) -> list[float]:
    exponent = eqn.params["y"]
    if exponent < 0:
        return list(ANY)
    size = _absolute(eqn, x) if exponent % 2 == 0 else x
    return [end**exponent for end in size]


def _sum(eqn: Any, x: Range) -> list[float]:
    operand, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    count = math.prod(operand) / max(math.prod(out), 1)
    return [end * count for end in x]


def _union(eqn: Any, *ranges: Range) -> tuple[float, float]:
    return min(r[0] for r in ranges), max(r[1] for r in ranges)


def _same(eqn: Any, x: Range, *_: Range) -> Range:
    return x


_RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ["broadcast_in_dim", "convert_element_type", "copy", "expand_dims", "reshape", "rev",
         "slice", "squeeze", "stop_gradient", "transpose", "reduce_max", "reduce_min"], _same,
    ),
    **dict.fromkeys(["concatenate", "stack"], _union),
    "abs": _absolute,
    "add": lambda eqn, x, y: (x[0] + y[0], x[1] + y[1]),
    "div": _quotients,
    "exp": _increasing(_exp),
    "integer_pow": _power,
    "logistic": _increasing(lambda x: _exp(x) / (1 + _exp(x)) if x < 30 else 1.0),
    "max": lambda eqn, x, y: (max(x[0], y[0]), max(x[1], y[1])),
    "min": lambda eqn, x, y: (min(x[0], y[0]), min(x[1], y[1])),
    "mul": _products,
    "neg": lambda eqn, x: (-x[1], -x[0]),
    "reduce_sum": _sum,
    "select_n": lambda eqn, which, *cases: _union(eqn, *cases),
    "sub": lambda eqn, x, y: (x[0] - y[1], x[1] - y[0]),
    "tanh": _increasing(math.tanh),
}  # fmt: skip
