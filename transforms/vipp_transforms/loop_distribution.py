"""Loop distribution: what no step before decides is computed for all steps of a loop at once.

The equations of a step are parted: those that depend on the step's own entries alone (its noise,
the data) are mapped over all steps before the loop, those that nothing later in it depends on after
it. What is left, the recurrence, stays a loop. Where all that it carries has no derivative (choices
that were drawn), it is not differentiated: what leads to a derivative is computed again, after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import singledispatchmethod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.control_flow import holds_constants
from vipp_transforms.loop_fusion import Carried, needed_of, open_steps, with_totals
from vipp_transforms.noting import LOOPS, Distributed
from vipp_transforms.step_order import Counter, Kept, Late, Order, Straight, fits, order_of


def evaluator(
    eqns: Sequence[Any], invars: Sequence[Any], outvars: Sequence[Any]
) -> Callable[..., list[Any]]:
    """A function that evaluates equations, their loops distributed where something is gained.

    Args:
      eqns: in order.
      invars: the variables that its arguments are the values of.
      outvars: the atoms whose values it returns.
    """
    if not any(map(_is_open, eqns)):
        return _jax.evaluator(eqns, invars, outvars)
    read = {v for e in eqns for v in _jax.variables(e.invars)} | {*_jax.variables(outvars)}
    pieces: list[_Piece] = []
    straight: list[Any] = []
    for eqn in eqns:
        piece = _piece(eqn, read)
        if piece is None:
            straight.append(eqn)
        else:
            pieces += [_straight(straight, read), piece]
            straight = []
    pieces.append(_straight(straight, read))

    def evaluate(*inputs: Any) -> list[Any]:
        values = dict(zip(invars, inputs, strict=True))
        for piece in pieces:
            results = piece.run(*(values[v] for v in piece.inputs))
            values.update(zip(piece.outputs, results, strict=True))
        return [_literal(v) if isinstance(v, _jax.Literal) else values[v] for v in outvars]

    return evaluate


class _Piece(NamedTuple):
    """A part of a program: a function, and the variables that it reads and makes."""

    run: Callable[..., Sequence[Any]]
    inputs: list[Any]
    outputs: list[Any]


def _straight(eqns: Sequence[Any], read: set[Any]) -> _Piece:
    """Equations as they are."""
    inputs = _jax.free(eqns)
    outputs = [v for e in eqns for v in e.outvars if v in read]
    return _Piece(_jax.evaluator(eqns, inputs, outputs), inputs, outputs)


def _is_open(eqn: Any) -> bool:
    return eqn.primitive.name == "scan" and eqn.params["length"] > 1 and not eqn.effects


def _piece(eqn: Any, read: set[Any]) -> _Piece | None:
    """A loop, distributed; None if nothing can be taken out of it."""
    if not _is_open(eqn) or holds_constants(eqn):
        return None
    wanted = [v for v in eqn.outvars if v in read]
    steps = needed_of(open_steps(eqn), wanted)
    apart = with_totals(steps)
    if all(fits(t.first.aval, steps.length) for t in apart.totals):
        steps = apart
    order = order_of(steps)
    if not order.changes:
        return None
    operands = list(dict.fromkeys(_jax.variables(steps.operands)))

    def run(*values: Any) -> list[Any]:
        LOOPS.note([_noted(order)])
        made = _Run(order, dict(zip(operands, values, strict=True))).results()
        return [made[v] for v in wanted]

    return _Piece(run, operands, wanted)


def _noted(order: Order) -> Distributed:
    before = sum(len(part.eqns) for part in order.before if isinstance(part, Straight))
    return Distributed(order.steps.length, before, len(order.inside), len(order.after))


class _Run:
    """One evaluation of a distributed loop.

    Args:
      order: how its step is parted.
      outside: the values of the variables that it reads.
    """

    def __init__(self, order: Order, outside: Mapping[Any, Any]):
        steps = order.steps
        self.order, self.steps, self.outside = order, steps, outside
        # by variable of the step: its value if that is the same in each, or those in all of them
        self.same = dict(steps.env) | {v: self._outer(x) for v, x in steps.fixed}
        self.each = {s.var: self._outer(s.whole) for s in steps.scanned}

    def results(self) -> dict[Any, Any]:
        """The values of what the loop returns, by variable outside."""
        for part in self.order.before:
            self._do(part)
        last = self._loop()
        self._map(self.order.after, self.order.wanted)
        last |= {c.last: self._last(c) for c in self.order.known}
        for t in self.steps.totals:
            total = jnp.asarray(self._outer(t.first))
            for sign, x in t.parts:
                total = total + sign * self._sum(x)
            last[t.last] = total.astype(t.last.aval.dtype)
        return last | {s.whole: self._all(s.result) for s in self.steps.stacked}

    # -- values --------------------------------------------------------------------------------

    def _outer(self, atom: Any) -> Any:
        return _literal(atom) if isinstance(atom, _jax.Literal) else self.outside[atom]

    def _once(self, atom: Any) -> Any:
        return _literal(atom) if isinstance(atom, _jax.Literal) else self.same[atom]

    def _differs(self, atom: Any) -> bool:
        return not isinstance(atom, _jax.Literal) and atom in self.each

    def _all(self, atom: Any) -> Any:
        """An atom's values in all steps."""
        if self._differs(atom):
            return self.each[atom]
        x = jnp.asarray(self._once(atom))
        return jnp.broadcast_to(x, (self.steps.length, *x.shape))

    def _sum(self, atom: Any) -> Any:
        """The sum over all steps."""
        if self._differs(atom):
            return jnp.sum(self.each[atom], axis=0)
        x = jnp.asarray(self._once(atom))
        return jnp.asarray(self.steps.length, x.dtype) * x

    def _last(self, c: Carried) -> Any:
        """What the last step carries on."""
        if not self._differs(c.result):
            return jnp.asarray(self._once(c.result), c.last.aval.dtype)
        return self.each[c.result][0 if self.steps.reverse else -1]

    def _entering(self, c: Carried) -> Any:
        """What each step finds carried: what the one before it carries on."""
        each = self._all(c.result)
        first = jnp.asarray(self._outer(c.first), each.dtype)[None]
        return jnp.concatenate([each[1:], first] if self.steps.reverse else [first, each[:-1]])

    # -- equations -----------------------------------------------------------------------------

    @singledispatchmethod
    def _do(self, part: Any) -> None:
        """Evaluate a part of what is known before the loop."""
        raise TypeError(part)

    @_do.register
    def _(self, part: Straight) -> None:
        self._map(part.eqns, [v for e in part.eqns for v in e.outvars])

    @_do.register
    def _(self, part: Late) -> None:
        self.each[part.carried.var] = self._entering(part.carried)

    @_do.register
    def _(self, part: Kept) -> None:
        self.same[part.carried.var] = self._outer(part.carried.first)

    @_do.register
    def _(self, part: Counter) -> None:
        c, dtype = part.carried, part.carried.var.aval.dtype
        steps = jnp.arange(self.steps.length).astype(dtype)  # wraps around as additions do
        steps = steps[::-1] if self.steps.reverse else steps
        self.each[c.var] = self._outer(c.first) + steps * part.number.astype(dtype)

    def _map(self, eqns: Sequence[Any], wanted: Iterable[Any]) -> None:
        """Evaluate equations, for all steps if anything that they read differs between these."""
        read, inputs = {*wanted}, _jax.free(eqns)
        outputs = [v for e in eqns for v in e.outvars if v in read]
        fn = evaluator(eqns, inputs, outputs)
        values = [self.each[v] if v in self.each else self.same[v] for v in inputs]
        axes = tuple(0 if v in self.each else None for v in inputs)
        if any(a == 0 for a in axes):
            fn = jax.vmap(fn, axes, axis_size=self.steps.length)
            self.each.update(zip(outputs, fn(*values), strict=True))
        else:
            self.same.update(zip(outputs, fn(*values), strict=True))

    def _loop(self) -> dict[Any, Any]:
        """Run the recurrence; what it carries last, by variable outside."""
        order, steps = self.order, self.steps
        if not order.inside and not order.carried:
            return {}
        count, carry = len(order.carried), [c.var for c in order.carried]
        outs = [*(c.result for c in order.carried), *order.stacked]
        if not order.still:
            outs += [c.var for c in order.entered]
        given = dict.fromkeys([*_jax.free(order.inside), *_jax.variables(outs)])
        made = {*carry, *(v for e in order.inside for v in e.outvars)}
        xs = [v for v in given if v not in made and v in self.each]
        fixed = [v for v in given if v not in made and v not in self.each]
        fn = evaluator(order.inside, [*fixed, *carry, *xs], outs)
        stop = jax.lax.stop_gradient if order.still else (lambda x: x)
        constants = [stop(self.same[v]) for v in fixed]

        def step(carried: Any, entries: Any) -> Any:
            results = fn(*constants, *carried, *entries)
            return results[:count], results[count:]

        firsts = [jnp.asarray(self._outer(c.first), c.var.aval.dtype) for c in order.carried]
        last, each = jax.lax.scan(
            step, [*map(stop, firsts)], [stop(self.each[v]) for v in xs], length=steps.length,
            reverse=steps.reverse,
        )  # fmt: skip
        self.each.update(zip(outs[count:], each, strict=True))
        if order.still:
            for c in order.entered:
                self.each[c.var] = self._entering(c)
        return {c.last: x for c, x in zip(order.carried, last, strict=True)}


def _literal(atom: Any) -> Any:
    return jnp.asarray(atom.val, atom.aval.dtype)
