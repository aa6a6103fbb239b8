"""Which equations of a loop's step have to wait for the step before."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vipp_transforms import _jax
from vipp_transforms.loop_fusion import Carried, Steps
from vipp_transforms.packing import STILL
from vipp_transforms.staging import live

SMALL = 1 << 12  # elements: where a step's arrays are larger, the loop itself costs little
MOST = 1 << 20  # elements of one variable in all steps: more memory is not spent
_STAYS = frozenset({"cond", "while", "pure_callback", "io_callback", "debug_callback"})


class Straight(NamedTuple):
    """Equations that are evaluated before the loop: once, or for each step."""

    eqns: list[Any]


class Late(NamedTuple):
    """A carried value that each step makes without the one before."""

    carried: Carried


class Kept(NamedTuple):
    """A carried value that no step changes."""

    carried: Carried


class Counter(NamedTuple):
    """A carried integer to which each step adds a number."""

    carried: Carried
    number: Any


class Order(NamedTuple):
    """The equations of a loop's step, by when they can be evaluated.

    Attributes:
      steps: the loop.
      before: what is known before it, in order.
      inside: the equations of the recurrence.
      after: those that are evaluated after it, among them those of the recurrence that a derivative
        goes through, once more.
      known: what is carried and known before the loop.
      carried: by the recurrence.
      stacked: the variables that the recurrence returns for all steps.
      entered: of the values carried, those that ``after`` needs as they are when a step begins.
      wanted: the variables that are wanted of all steps.
      still: whether the recurrence has no derivative.
    """

    steps: Steps
    before: list[Straight | Late | Kept | Counter]
    inside: list[Any]
    after: list[Any]
    known: list[Carried]
    carried: list[Carried]
    stacked: list[Any]
    entered: list[Carried]
    wanted: list[Any]
    still: bool

    @property
    def changes(self) -> bool:
        """Whether anything that differs from step to step is taken out of the loop."""
        return bool(self.known or self.after or self.steps.totals) or len(self.before) > 1


def fits(aval: Any, length: int) -> bool:
    """Whether the values of all steps may be held at once."""
    size = math.prod(aval.shape)
    return size <= SMALL and size * length <= MOST


def order_of(steps: Steps) -> Order:
    """Part the equations of a step."""
    first = _Before(steps)
    first.find()
    rest, carried = first.waiting, first.carried
    inside = _inside(rest, carried, first)
    ours = {id(e) for e in inside}
    after = [e for e in rest if id(e) not in ours]
    atoms = [s.result for s in steps.stacked] + [a for t in steps.totals for _, a in t.parts]
    wanted = list(dict.fromkeys(_jax.variables(atoms)))
    read = {*wanted, *(v for e in after for v in _jax.variables(e.invars))}
    made = {v for e in inside for v in e.outvars}
    again = _again(steps, carried, inside, read, first)
    if again is not None:
        both = {*map(id, after), *map(id, again)}
        after = [e for e in steps.eqns if id(e) in both]
        read |= {v for e in again for v in _jax.variables(e.invars)}
        made -= {v for e in again for v in e.outvars}
        entered = _entered(carried, read)
        read |= {c.result for c in entered}
    else:
        entered = [c for c in carried if c.var in read]
    stacked = [v for v in dict.fromkeys(v for e in inside for v in e.outvars) if v in made & read]
    return Order(
        steps, first.before, inside, after, first.known, carried, stacked, entered, wanted,
        again is not None,
    )  # fmt: skip


def _inside(rest: list[Any], carried: Sequence[Carried], known: _Before) -> list[Any]:
    """The equations that stay in the loop; what they make is not kept of all steps if it is large.

    Args:
      rest: those that are not evaluated before it.
      carried: by the recurrence.
      known: before the loop.
    """
    stay = [e for e in rest if not known.may_leave(e)]
    while True:
        atoms = [c.result for c in carried] + [v for e in stay for v in e.outvars]
        inside = live(rest, atoms)
        made = [v for e in inside for v in e.outvars] + [c.var for c in carried]
        large = {v for v in made if not fits(v.aval, known.length)}
        ours = {id(e) for e in inside}
        read = lambda e, large=large: not large.isdisjoint(_jax.variables(e.invars))
        more = [e for e in rest if id(e) not in ours and read(e)]
        if not more:
            return inside
        stay += more


class _Before:
    """What is known before the loop."""

    def __init__(self, steps: Steps):
        self.length = steps.length
        self.waiting, self.carried = list(steps.eqns), list(steps.carried)
        self.before: list[Straight | Late | Kept | Counter] = []
        self.known: list[Carried] = []
        self.same = {*steps.env, *(v for v, _ in steps.fixed)}
        self.each = {s.var for s in steps.scanned}

    def find(self) -> None:
        """Go on until nothing more is known."""
        while self._equations() | self._carry():
            pass

    def may_leave(self, eqn: Any) -> bool:
        """Whether an equation may be evaluated for all steps at once."""
        inner = [*_jax.equations_inside(eqn)]
        if any(e.primitive.name in _STAYS for e in (eqn, *inner)):
            return False
        return all(fits(v.aval, self.length) for e in (eqn, *inner) for v in e.outvars)

    def _equations(self) -> bool:
        once, each, waiting = [], [], []
        for eqn in self.waiting:
            inputs = _jax.variables(eqn.invars)
            if all(v in self.same for v in inputs):
                once.append(eqn)
                self.same.update(eqn.outvars)
            elif self._is_known(inputs) and self.may_leave(eqn):
                each.append(eqn)
                self.each.update(eqn.outvars)
            else:
                waiting.append(eqn)
        self.before += [Straight(group) for group in (once, each) if group]
        found, self.waiting = len(waiting) < len(self.waiting), waiting
        return found

    def _is_known(self, variables: Iterable[Any]) -> bool:
        return all(v in self.same or v in self.each for v in variables)

    def _carry(self) -> bool:
        carried = []
        for c in self.carried:
            number = _step_of(c, self.waiting)
            if c.result is c.var:
                self.before.append(Kept(c))
            elif not fits(c.var.aval, self.length):
                carried.append(c)
            elif number is not None:
                self.before.append(Counter(c, number))
            elif self._is_known(_jax.variables([c.result])):
                self.before.append(Late(c))
            else:
                carried.append(c)
        left = {id(c) for c in carried}
        found = [c for c in self.carried if id(c) not in left]
        self.same.update(c.var for c in found if c.result is c.var)
        self.each.update(c.var for c in found if c.result is not c.var)
        self.known += found
        self.carried = carried
        return bool(found)


def _step_of(c: Carried, eqns: Sequence[Any]) -> Any:
    """The literal that is added to a carried integer in each step, or None."""
    if c.var.aval.shape or not jnp.issubdtype(c.var.aval.dtype, jnp.integer):
        return None
    maker = next((e for e in eqns if c.result in e.outvars), None)
    if maker is None or maker.primitive.name not in ("add", "sub"):
        return None
    left, right = maker.invars
    if left is not c.var and maker.primitive.name == "add":
        left, right = right, left
    if left is not c.var or not isinstance(right, _jax.Literal):
        return None
    number = np.asarray(right.val).astype(np.int64)
    return number if maker.primitive.name == "add" else -number


def _again(
    steps: Steps,
    carried: Sequence[Carried],
    inside: Sequence[Any],
    read: set[Any],
    known: _Before,
) -> list[Any] | None:
    """The equations to evaluate once more after a recurrence without derivative, or None.

    Whatever a step begins with, nothing that it carries on has a derivative: so the recurrence need
    not be differentiated, if what has one is computed from what it carries when that is known.
    """
    moving = _moving(steps)
    of = {c.var: c.result for c in carried}  # what is handed on was carried on before, or is first
    if any(v in moving and v not in of for v in of.values()) or any(_circles(v, of) for v in of):
        return None
    again, need = [], set(read)
    for eqn in reversed(inside):
        if any(v in need and v in moving for v in eqn.outvars):
            again.append(eqn)
            need.update(_jax.variables(eqn.invars))
    made = {v for e in inside for v in e.outvars} | {c.var for c in carried}
    kept = made & need - {v for e in again for v in e.outvars}
    large = any(not fits(v.aval, known.length) for v in kept)
    return None if large or not all(map(known.may_leave, again)) else again[::-1]


def _circles(var: Any, of: dict[Any, Any]) -> bool:
    """Whether a carried value is handed on until it is itself again."""
    at = of[var]
    for _ in of:
        if at not in of:
            return False
        at = of[at]
    return True


def _moving(steps: Steps) -> set[Any]:
    """The variables of a step that may have a derivative."""
    given = [*steps.env, *(v for v, _ in steps.fixed), *(s.var for s in steps.scanned)]
    given += [c.var for c in steps.carried]
    moving = {v for v in given if _has_derivative(v)}
    for eqn in steps.eqns:
        if eqn.primitive.name not in STILL and any(v in moving for v in _jax.variables(eqn.invars)):
            moving.update(v for v in eqn.outvars if _has_derivative(v))
    return moving


def _has_derivative(var: Any) -> bool:
    return jnp.issubdtype(var.aval.dtype, jnp.inexact)


def _entered(carried: Sequence[Carried], read: set[Any]) -> list[Carried]:
    """The carried values that are read when a step begins, each behind what it was carried as."""
    of = {c.var: c for c in carried}
    found: dict[Any, Carried] = {}

    def add(c: Carried) -> None:
        before = of.get(c.result)
        if before is not None and c.var not in found:
            add(before)
        found[c.var] = c

    for c in carried:
        if c.var in read:
            add(c)
    return list(found.values())
