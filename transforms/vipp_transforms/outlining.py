"""Outlining: what a program does again and again becomes calls of one function.

JAX differentiates, transposes and lowers equation by equation, but a call of a function that it has
met before only once. Sites that are alike leave runs of equations that repeat with one period:
those of a period are a block, and blocks that do the same to whatever they are given are calls.
Nothing is computed otherwise, and XLA opens the calls again.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vipp_transforms import _jax
from vipp_transforms.flattening import Flat, Node, names

_LONGEST = 64  # equations of a block
_LEAST = 16  # equations saved by a run


class _Run(NamedTuple):
    """Nodes from ``start`` on that are ``count`` times ``period`` of the same kinds."""

    start: int
    period: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + self.period * self.count

    @property
    def saved(self) -> int:
        return (self.count - 1) * (self.period - 1) - self.period


class _Form(NamedTuple):
    """What a block does, whatever it is given.

    Attributes:
      length: its nodes.
      key: equal for blocks that do the same.
      operands: what is given to it.
      outs: of its results those that others read.
    """

    length: int
    key: Hashable
    operands: tuple[Any, ...]
    outs: tuple[Any, ...]


def outlined(program: Flat) -> Flat:
    """A program, its repeated blocks calls; itself while a user has calls opened to debug."""
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        return program
    numbers: dict[Hashable, int] = {}
    kinds = [numbers.setdefault((n.kind, _literals(n)), len(numbers)) for n in program.nodes]
    runs = list(_runs(np.array(kinds, int), 0, len(kinds)))
    if not runs:
        return program
    forms = _forms(program, runs)
    times = collections.Counter(form.key for form in forms.values())
    callees: dict[Hashable, Any] = {}
    nodes: list[Node] = []
    at = 0
    while at < len(program.nodes):
        form = forms.get(at)
        if form is None or times[form.key] < 2:
            nodes.append(program.nodes[at])
            at += 1
            continue
        block = program.nodes[at : at + form.length]
        eqn = callees.get(form.key) or callees.setdefault(form.key, _callee(block, form))
        nodes.append(Node(eqn, form.operands, form.outs, id(eqn), False))
        at += form.length
    return dataclasses.replace(program, nodes=nodes)


def _literals(node: Node) -> Hashable:
    return tuple(names([x]) if isinstance(x, _jax.Literal) else None for x in node.operands)


def _runs(kinds: np.ndarray, start: int, stop: int) -> Iterator[_Run]:
    """Of the nodes in between the run that saves most, and those on both sides of it."""
    best = max(_of_periods(kinds[start:stop]), key=lambda run: run.saved, default=None)
    if best is None or best.saved < _LEAST:
        return
    best = best._replace(start=start + best.start)
    yield from _runs(kinds, start, best.start)
    yield best
    yield from _runs(kinds, best.stop, stop)


def _of_periods(kinds: np.ndarray) -> Iterator[_Run]:
    """The longest run of each period."""
    for period in range(2, min(_LONGEST, len(kinds) // 2) + 1):
        differ = np.flatnonzero(np.append(kinds[period:] != kinds[:-period], True))
        lengths = np.diff(differ, prepend=-1) - 1  # from behind one that differs to the next
        longest = int(lengths.argmax())
        start = int(differ[longest] - lengths[longest])
        yield _Run(start, period, int(lengths[longest]) // period + 1)


def _forms(program: Flat, runs: Sequence[_Run]) -> dict[int, _Form]:
    """The blocks, by the number of their first node."""
    block_of = list(range(-1, -len(program.nodes) - 1, -1))
    for run in runs:
        for i in range(run.start, run.stop):
            block_of[i] = run.start + (i - run.start) // run.period * run.period
    made = {v: i for i, node in enumerate(program.nodes) for v in node.outs}
    read = set(_jax.variables(program.outs))
    for i, node in enumerate(program.nodes):
        for v in _jax.variables(node.operands):
            if v in made and block_of[made[v]] != block_of[i]:
                read.add(v)
    found = {}
    for run in runs:
        # what is read of one block is a result of all
        results = {
            ((i - run.start) % run.period, k)
            for i in range(run.start, run.stop)
            for k, v in enumerate(program.nodes[i].outs)
            if v in read
        }
        for at in range(run.start, run.stop, run.period):
            found[at] = _form(program.nodes[at : at + run.period], sorted(results))
    return found


def _form(block: Sequence[Node], results: Sequence[tuple[int, int]]) -> _Form:
    made = {v: (j, k) for j, node in enumerate(block) for k, v in enumerate(node.outs)}
    given: dict[Any, int] = {}
    does = []
    for node in block:
        reads: list[Hashable] = []
        for x in node.operands:
            if isinstance(x, _jax.Literal):
                reads.append(names([x]))
            else:
                reads.append(made[x] if x in made else given.setdefault(x, len(given)))
        does.append((node.kind, tuple(reads)))
    outs = tuple(block[j].outs[k] for j, k in results)
    return _Form(len(block), (tuple(does), tuple(results)), tuple(given), outs)


def _callee(block: Sequence[Node], form: _Form) -> Any:
    """The equation of a call that does what the block does."""
    values_of = _jax.evaluator([n.equation for n in block], form.operands, form.outs)

    @jax.jit
    def alike(*values: Any) -> list[Any]:
        return values_of(*values)

    closed, _ = _jax.trace(alike, *(_jax.shaped(v.aval) for v in form.operands))
    (eqn,) = _jax.open_jaxpr(closed)[0].eqns
    return eqn
