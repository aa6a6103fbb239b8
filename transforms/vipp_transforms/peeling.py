"""Loops with their first steps taken out, one more step standing for all that are left.

A loop whose steps are alike from some step on is understood by looking at that step: its equations,
copied among the program's, are an ordinary part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.control_flow import opened
from vipp_transforms.sites import sample_p
from vipp_transforms.staging import Inliner, Program, Traced, lookup, sites_of


class Taken(NamedTuple):
    """One step taken out of a loop.

    Attributes:
      carry: variables for what was carried into it.
      slices: variables for its part of what is scanned.
      results: atoms of what it carries on, then of what it adds to what is stacked.
      sites: the variables of its sites, in order.
      eqns: its equations.
    """

    carry: tuple[Any, ...]
    slices: tuple[Any, ...]
    results: tuple[Any, ...]
    sites: tuple[Any, ...]
    eqns: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Peeled:
    """A loop, its first steps taken out.

    Attributes:
      length: the number of all steps.
      reverse: whether the last entries of what is scanned come first.
      xs: atoms of what is scanned.
      steps: those taken out; the last one stands for all that follow, unless it is the last of all.
      outvars: what the whole loop returns: what was carried, then what was stacked.
    """

    length: int
    reverse: bool
    xs: tuple[Any, ...]
    steps: tuple[Taken, ...]
    outvars: tuple[Any, ...]

    @property
    def carried(self) -> int:
        """The number of values carried."""
        return len(self.steps[0].carry)

    @property
    def unrolled(self) -> bool:
        """Whether all of its steps were taken out."""
        return len(self.steps) == self.length

    @property
    def first(self) -> int:
        """The number of the step that stands for others."""
        return len(self.steps) - 1

    def left(self) -> slice:
        """The entries of what is scanned that the step that stands for others goes through."""
        return slice(0, self.length - self.first) if self.reverse else slice(self.first, None)


def peel(traced: Traced, steps: Mapping[int, int]) -> tuple[Program, list[Peeled]]:
    """Open a program's calls, and take steps out of its loops with sites.

    Args:
      traced: the program.
      steps: how many, by number of the loop; two for others.

    Returns:
      The program, with the loops' own equations left out unless all steps were taken out, and the
      loops.
    """
    jaxpr, consts = _jax.open_jaxpr(traced.closed)
    env = dict(zip(jaxpr.constvars, consts, strict=True))
    env |= dict(zip(jaxpr.invars, traced.arrays, strict=True))
    peeling = _Peeling(steps)
    inliner = Inliner(env, loops=None, scan=peeling.scan)
    scope: dict[Any, Any] = {}
    inliner.run(jaxpr.eqns, scope)
    out, *aux = (lookup(v, scope) for v in jaxpr.outvars)
    sites = sites_of(inliner.eqns, [])
    inputs = tuple(jaxpr.invars)
    eqns = tuple(inliner.eqns)
    program = Program(env, eqns, eqns, sites, out, tuple(aux), traced.aux_tree, inputs)
    return program, peeling.loops


class _Peeling:
    """Takes the first steps out of each scan that it is given."""

    def __init__(self, steps: Mapping[int, int]):
        self.loops: list[Peeled] = []
        self._steps = steps
        self._inside = False

    def scan(self, inliner: Inliner, eqn: Any, inputs: list[Any], scope: dict[Any, Any]) -> None:
        if self._inside:  # a loop in a step of a loop
            closed, _ = _jax.trace(opened(eqn), *(_jax.shaped(v.aval) for v in eqn.invars))
            inliner.splice(closed, inputs, eqn.outvars, scope)
            return
        self._inside = True
        length, reverse = eqn.params["length"], eqn.params["reverse"]
        consts, carried = _jax.scan_arity(eqn)
        fixed, carry = inputs[:consts], inputs[consts : consts + carried]
        xs = inputs[consts + carried :]
        taken = []
        for number in range(min(self._steps.get(len(self.loops), 2), length)):
            at = length - 1 - number if reverse else number
            step = _take(inliner, eqn, fixed, carry, xs, at)
            carry = step.results[:carried]
            taken.append(step)
        outvars = tuple(_jax.fresh_like(v) for v in eqn.outvars)
        scope.update(zip(eqn.outvars, outvars, strict=True))
        loop = Peeled(length, reverse, tuple(xs), tuple(taken), outvars)
        if loop.unrolled:
            _join_steps(inliner, loop)
        self.loops.append(loop)
        self._inside = False


def _take(
    inliner: Inliner, eqn: Any, fixed: Sequence[Any], carry: Sequence[Any], xs: Any, at: int
) -> Taken:
    """Copy one step's equations, its inputs being variables of their own."""
    copies = lambda *cs: [jnp.copy(c) for c in cs]
    sliced = lambda *xs: [jax.lax.index_in_dim(x, at, keepdims=False) for x in xs]
    carry_in = _spliced(inliner, copies, carry)
    slices = _spliced(inliner, sliced, xs)
    start = len(inliner.eqns)
    body = eqn.params["jaxpr"]
    results = inliner.splice(body, [*fixed, *carry_in, *slices], (), {})
    eqns = tuple(inliner.eqns[start:])
    sites = tuple(e.outvars[0] for e in eqns if e.primitive is sample_p)
    return Taken(tuple(carry_in), tuple(slices), tuple(results), sites, eqns)


def _spliced(inliner: Inliner, fn: Any, inputs: Sequence[Any]) -> list[Any]:
    closed, _ = _jax.trace(fn, *(_jax.shaped(v.aval) for v in inputs))
    return inliner.splice(closed, list(inputs), (), {})


def _join_steps(inliner: Inliner, loop: Peeled) -> None:
    """What a loop returns, from its steps."""
    carried = loop.carried
    steps = loop.steps[::-1] if loop.reverse else loop.steps
    columns = list(zip(*(step.results[carried:] for step in steps), strict=True))
    stack = lambda *rows: [jnp.stack(rows)]
    made = [loop.steps[-1].results[i] for i in range(carried)]
    made += [_spliced(inliner, stack, column)[0] for column in columns]
    copy = lambda x: [jnp.copy(x)]
    for outvar, atom in zip(loop.outvars, made, strict=True):
        (result,) = _spliced(inliner, copy, [atom])
        last = inliner.eqns.pop()
        assert last.outvars == [result]
        inliner.eqns.append(last.replace(outvars=[outvar]))
