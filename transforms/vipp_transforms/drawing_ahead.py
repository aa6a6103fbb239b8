"""The noise of many steps of a loop drawn at once, before they are taken.

A step that draws its noise by itself evaluates the random bit generator once for each draw and each
split of a key: on a few numbers that takes longer than the rest of the step. What depends on the
keys of a step alone is evaluated for many steps side by side; only the keys are chained.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from vipp_transforms import _jax, threefry
from vipp_transforms.flattening import LARGEST, Flat, alive

MOST_STEPS = 64
MOST_NUMBERS = 2**16  # of all steps together: they should stay in the cache
FEWEST_STEPS = 8


class Ahead(NamedTuple):
    """A step of a loop in two parts.

    Attributes:
      keys: the positions of the inputs, and results, that are keys.
      chain: from these keys to those of the next step.
      noise: from these keys to what the other part needs of them.
      rest: from the inputs, and the noise behind them, to the results.
      count: for how many steps the noise is to be drawn at once.
    """

    keys: tuple[int, ...]
    chain: Flat
    noise: Flat
    rest: Flat
    count: int

    def draw(self, evaluate: Callable[[Flat, Sequence[Any]], list[Any]], keys: Any) -> list[Any]:
        """The noise of the next steps along a first axis.

        Args:
          evaluate: evaluates a program.
          keys: of the first of them.
        """

        def following(keys: list[Any], _: None) -> tuple[list[Any], list[Any]]:
            return _next(self.chain, keys), keys

        _, before = jax.lax.scan(following, keys, length=self.count)
        return jax.vmap(lambda *keys: evaluate(self.noise, keys))(*before)


def _next(chain: Flat, keys: Sequence[Any]) -> list[Any]:
    """The keys of the next step."""

    def special(eqn: Any, values: list[Any]) -> list[Any] | None:
        splits = eqn.primitive.name == "random_split" and threefry.splits_alike(values[0])
        return [threefry.split(values[0], eqn.params["shape"])] if splits else None

    eqns = [node.equation for node in chain.nodes]
    values = dict(zip(chain.invars, keys, strict=True)) | chain.consts
    return _jax.evaluate_with(eqns, values, chain.outs, special)


def ahead(program: Flat) -> Ahead | None:
    """A step in two parts, or None if it draws nothing, or too much to be drawn at once.

    Args:
      program: of the step; its first results are what its inputs are in the next step.
    """
    keys = tuple(i for i, v in enumerate(program.invars) if _jax.is_key(v.aval))
    mine = {program.invars[i] for i in keys}
    drawn, fixed = _drawn(program, mine)
    following = [program.outs[i] for i in keys]
    if not program.packable or not keys or not all(v in drawn | mine for v in following):
        return None
    if not all(threefry.is_key(v.aval) for v in mine):  # drawn with together they give others
        return None
    first = [n for n in program.nodes if n.outs[0] in drawn | fixed]
    rest = [n for n in program.nodes if n.outs[0] not in drawn]
    used = [v for n in rest for v in n.operands] + [v for v in program.outs]
    passed = list(dict.fromkeys(v for v in used if not _is_literal(v) and v in drawn))
    sizes = [math.prod(v.aval.shape) for v in drawn]
    numbers = max(sum(math.prod(v.aval.shape) for v in passed), *sizes, 1)
    count = min(MOST_STEPS, MOST_NUMBERS // numbers)
    if count < FEWEST_STEPS or not passed:
        return None
    part = lambda invars, nodes, outs: dataclasses.replace(
        program, invars=invars, nodes=alive(nodes, outs), outs=outs
    )
    before = [program.invars[i] for i in keys]
    return Ahead(
        keys,
        part(before, first, following),
        part(before, first, passed),
        part([*program.invars, *passed], rest, program.outs),
        count,
    )


def _drawn(program: Flat, keys: set[Any]) -> tuple[set[Any], set[Any]]:
    """What depends on keys, and on nothing else that may differ from step to step; constants."""
    large = {v for v in program.consts if math.prod(v.aval.shape) > LARGEST}
    others = ({*program.invars} - keys) | large
    drawn: set[Any] = set()
    fixed: set[Any] = set()
    for node in program.nodes:
        operands = {v for v in node.operands if not _is_literal(v)}
        if operands & others:
            others.update(node.outs)
        elif operands & (keys | drawn):
            drawn.update(node.outs)
        else:
            fixed.update(node.outs)
    return drawn, fixed


def _is_literal(atom: Any) -> bool:
    return isinstance(atom, _jax.Literal)
