"""What is done to an array that was spread to more axes, done to the array before it is spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vipp_transforms import _jax
from vipp_transforms.axis_rules import ENTRY_BY_ENTRY
from vipp_transforms.equations import spreading

Atom = Any  # a variable or a literal of a jaxpr

_REDUCTIONS = frozenset({"reduce_sum", "reduce_max", "reduce_min", "reduce_prod"})


class Spread(NamedTuple):
    """An array that another one was spread to.

    Attributes:
      eqn: the equation that did it.
      operand: the other one.
    """

    eqn: Any
    operand: Atom

    @property
    def places(self) -> tuple[int, ...]:
        """Where the axes of the other one are."""
        return self.eqn.params["broadcast_dimensions"]


def is_spread(eqn: Any) -> bool:
    """Whether an equation spreads an array, over no devices that it names."""
    spreads = eqn.primitive.name == "broadcast_in_dim" and len(eqn.invars) == 1
    return spreads and eqn.params["sharding"] is None


def sunk(eqn: Any, operands: Sequence[Atom], spreads: Mapping[Any, Spread]) -> list[Any] | None:
    """Equations in place of one, for what was spread before it was; None if there are none.

    Args:
      eqn: an equation.
      operands: what it is of.
      spreads: by variable, those known.
    """
    known = [None if isinstance(v, _jax.Literal) else spreads.get(v) for v in operands]
    if eqn.params.get("sharding") is not None or eqn.params.get("out_sharding") is not None:
        return None
    name, first = eqn.primitive.name, known[0] if known else None
    if name == "reshape":
        return _widened(eqn, operands)
    if name in ENTRY_BY_ENTRY:
        return _entry_by_entry(eqn, operands, known) if any(known) else None
    if first is None:
        return None
    if name in _REDUCTIONS:
        return _reduction(eqn, first)
    return _transposition(eqn, first) if name == "transpose" else None


def _widened(eqn: Any, operands: Sequence[Atom]) -> list[Any] | None:
    """A reshape that adds axes of size one."""
    (out,) = eqn.outvars
    sizes, shape = operands[0].aval.shape, out.aval.shape
    places: list[int] = []
    for a, n in enumerate(shape):
        if len(places) < len(sizes) and n == sizes[len(places)]:
            places.append(a)
        elif n != 1:
            return None
    if len(places) < len(sizes) or len(sizes) == len(shape):
        return None
    return [spreading(operands[0], out, tuple(places))]


def _entry_by_entry(
    eqn: Any, operands: Sequence[Atom], known: Sequence[Spread | None]
) -> list[Any] | None:
    (out,) = eqn.outvars
    shape = out.aval.shape
    spread = [s for v, s in zip(operands, known, strict=True) if s and v.aval.shape]
    if any(len(v.aval.shape) not in (0, len(shape)) for v in operands):
        return None
    if len(spread) < sum(v.aval.shape != () for v in operands):
        return None
    kept = sorted({p for s in spread for p in s.places})
    if len(kept) == len(shape):
        return None
    made, inner = [], []
    for v, s in zip(operands, known, strict=True):
        if s is None:
            inner.append(v)
            continue
        small = tuple(v.aval.shape[a] for a in kept)
        var = _like(v, small)
        made.append(spreading(s.operand, var, tuple(kept.index(p) for p in s.places)))
        inner.append(var)
    result = _like(out, tuple(shape[a] for a in kept))
    made.append(eqn.replace(invars=inner, outvars=[result]))
    return [*made, spreading(result, out, tuple(kept))]


def _reduction(eqn: Any, spread: Spread) -> list[Any] | None:
    """A reduction of axes that were there before."""
    (out,), places = eqn.outvars, spread.places
    shape = spread.eqn.params["shape"]
    gone = {int(a) for a in eqn.params["axes"]}
    if len(places) == len(shape) or any(a not in places and shape[a] > 1 for a in gone):
        return None
    axes = tuple(i for i, p in enumerate(places) if p in gone)
    if any(shape[places[i]] != spread.operand.aval.shape[i] for i in axes):
        return None
    left = [i for i in range(len(places)) if i not in axes]
    result = _like(out, tuple(spread.operand.aval.shape[i] for i in left))
    at = tuple(places[i] - sum(a < places[i] for a in gone) for i in left)
    inner = eqn.replace(
        invars=[spread.operand], outvars=[result], params={**eqn.params, "axes": axes}
    )
    return [inner, spreading(result, out, at)]


def _transposition(eqn: Any, spread: Spread) -> list[Any] | None:
    (out,), places = eqn.outvars, spread.places
    if len(places) == len(out.aval.shape):
        return None
    target = [eqn.params["permutation"].index(p) for p in places]
    order = tuple(sorted(range(len(places)), key=target.__getitem__))
    sizes = spread.operand.aval.shape
    result = _like(out, tuple(sizes[i] for i in order))
    inner = eqn.replace(
        invars=[spread.operand], outvars=[result], params={**eqn.params, "permutation": order}
    )
    return [inner, spreading(result, out, tuple(sorted(target)))]


def _like(var: Any, shape: tuple[int, ...]) -> Any:
    aval = var.aval
    return _jax.Var(_jax.shaped_array(shape, aval.dtype, weak_type=aval.weak_type))
