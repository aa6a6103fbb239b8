"""A program as a flat list of small operations: calls opened, equal ones shared, sums joined."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vipp_transforms import _jax, threefry
from vipp_transforms.elementwise import is_elementwise
from vipp_transforms.simplified import Atom, simplified, type_of
from vipp_transforms.spreads import Spread, is_spread, sunk

LARGEST = 256  # elements: an equation with a larger operand or result is not small


class Node(NamedTuple):
    """One equation: what it does, on which atoms, and what it gives.

    Attributes:
      eqn: None for a sum of all operands.
      operands: what it is applied to.
      outs: the variables of its results.
      kind: equal for nodes that do the same to operands of the same shapes.
      small: whether it may be grouped: no large arrays, no inner programs.
    """

    eqn: Any
    operands: tuple[Atom, ...]
    outs: tuple[Any, ...]
    kind: Hashable
    small: bool

    @property
    def equation(self) -> Any:
        """What it does, as an equation between its own variables; of no sum."""
        return self.eqn.replace(invars=list(self.operands), outvars=list(self.outs))


@dataclass(eq=False)
class Flat:
    """A program without calls, equal equations shared.

    Attributes:
      invars: its inputs.
      consts: its constants, by variable.
      nodes: in order.
      outs: the atoms that it returns.
      packable: whether nothing in it has effects.
    """

    invars: list[Any]
    consts: dict[Any, Any]
    nodes: list[Node]
    outs: list[Atom]
    packable: bool

    @property
    def num_small(self) -> int:
        """The number of equations that could be grouped."""
        return sum(node.small for node in self.nodes)


def flatten(
    closed: Any,
    *,
    final: bool = False,
    sums: bool = True,
    identities: frozenset[Any] = frozenset(),
) -> Flat:
    """Open the calls, share common subexpressions, join chains of additions, drop dead code.

    Args:
      closed: a jaxpr with its constants.
      final: whether it will not be differentiated, so that functions with a derivative of their own
        may be opened as well.
      sums: whether to join additions.
      identities: primitives that stand for their first operand.
    """
    jaxpr, consts = _jax.open_jaxpr(closed)
    flat = Flat(list(jaxpr.invars), {}, [], [], True)
    scope: dict[Any, Any] = {}
    flat.consts.update(zip(jaxpr.constvars, consts, strict=True))
    opens = (lambda eqn: _jax.called(eqn) is not None) if final else _jax.is_jit
    _open(jaxpr, scope, flat, {}, _Reading(opens, identities, not sums, {}))
    flat.outs = [_lookup(v, scope) for v in jaxpr.outvars]
    flat.nodes = alive(flat.nodes, flat.outs)
    if sums:
        flat.nodes = alive(_summed(flat.nodes, flat.outs), flat.outs)
    return flat


def _lookup(atom: Atom, scope: dict[Any, Any]) -> Atom:
    return atom if isinstance(atom, _jax.Literal) else scope.get(atom, atom)


class _Reading(NamedTuple):
    """How a program is read.

    Attributes:
      opens: whether an equation's inside is.
      identities: primitives that stand for their first operand.
      sinks: whether what is done to a spread array is done before.
      spreads: by variable, how another array was spread to it.
    """

    opens: Callable[[Any], bool]
    identities: frozenset[Any]
    sinks: bool
    spreads: dict[Any, Spread]


def _open(
    jaxpr: Any, scope: dict[Any, Any], flat: Flat, seen: dict[Hashable, Node], reading: _Reading
) -> None:
    for eqn in jaxpr.eqns:
        operands = tuple(_lookup(v, scope) for v in eqn.invars)
        flat.packable = flat.packable and not eqn.effects
        if eqn.primitive in reading.identities:
            scope[eqn.outvars[0]] = operands[0]
            continue
        if reading.opens(eqn):
            inner, consts = _jax.open_jaxpr(_jax.called(eqn))
            own: dict[Any, Any] = dict(zip(inner.invars, operands, strict=True))
            for var, const in zip(inner.constvars, consts, strict=True):
                own[var] = _jax.fresh_like(var)
                flat.consts[own[var]] = const
            _open(inner, own, flat, seen, reading)
            scope.update(zip(eqn.outvars, (_lookup(w, own) for w in inner.outvars), strict=True))
            continue
        _add(eqn, scope, flat, seen, reading)


def _add(
    eqn: Any, scope: dict[Any, Any], flat: Flat, seen: dict[Hashable, Node], reading: _Reading
) -> None:
    """Add one equation, or those that do the same with less."""
    less, operands = simplified(eqn, tuple(_lookup(v, scope) for v in eqn.invars), reading.spreads)
    if less is None:
        scope[eqn.outvars[0]] = operands[0]
        return
    before = sunk(less, operands, reading.spreads) if reading.sinks else None
    if before is not None:
        for each in before:
            _add(each, scope, flat, seen, reading)
        return
    new = node_of(less, operands, tuple(_jax.fresh_like(v) for v in eqn.outvars))
    node = seen.setdefault((new.kind, names(operands)), new)
    scope.update(zip(eqn.outvars, node.outs, strict=True))
    if node is new:
        flat.nodes.append(node)
        if is_spread(less):
            reading.spreads[node.outs[0]] = Spread(less, operands[0])


def node_of(eqn: Any, operands: tuple[Atom, ...], outs: tuple[Any, ...]) -> Node:
    """An equation, or None for a sum, as a node."""
    avals = [x.aval for x in (*operands, *outs)]
    shaped = all(hasattr(a, "shape") and math.prod(a.shape) <= LARGEST for a in avals)
    shaped = shaped and all(threefry.is_key(a) for a in avals if _jax.is_key(a))
    small = shaped and (eqn is None or is_elementwise(eqn) or not _jax.sub_jaxprs(eqn))
    if eqn is None:
        return Node(eqn, operands, outs, ("sum", len(operands), type_of(avals[-1])), small)
    params = tuple(sorted((k, _hashed(v)) for k, v in eqn.params.items()))
    return Node(eqn, operands, outs, (eqn.primitive.name, params, *map(type_of, avals)), small)


def names(operands: Sequence[Atom]) -> Hashable:
    """Equal for equal operands; literals by value."""
    return tuple(
        (str(x.aval), np.asarray(x.val).tobytes()) if isinstance(x, _jax.Literal) else id(x)
        for x in operands
    )


def alive(nodes: Sequence[Node], outs: Sequence[Atom]) -> list[Node]:
    """The nodes that some of ``outs`` needs."""
    needed = {v for v in outs if not isinstance(v, _jax.Literal)}
    kept = []
    for node in reversed(nodes):
        if any(v in needed for v in node.outs):
            needed.update(v for v in node.operands if not isinstance(v, _jax.Literal))
            kept.append(node)
    return kept[::-1]


def _summed(nodes: list[Node], outs: Sequence[Atom]) -> list[Node]:
    """Chains of additions of one small shape as sums of many."""
    uses = collections.Counter(
        v for n in nodes for v in n.operands if not isinstance(v, _jax.Literal)
    )
    uses.update(v for v in outs if not isinstance(v, _jax.Literal))
    parts: dict[Any, tuple[Atom, ...]] = {}
    made = []
    for node in nodes:
        if not _is_addition(node):
            made.append(node)
            continue
        terms: tuple[Atom, ...] = ()
        for atom in node.operands:
            inner = None if isinstance(atom, _jax.Literal) else parts.get(atom)
            terms += inner if inner is not None and uses[atom] == 1 else (atom,)
        parts[node.outs[0]] = terms
        made.append(node_of(None, terms, node.outs) if len(terms) > 2 else node)
    return made


def _is_addition(node: Node) -> bool:
    if node.eqn is None or node.eqn.primitive.name not in ("add", "add_any"):
        return False
    shapes = {x.aval.shape for x in (*node.operands, *node.outs)}
    inexact = jnp.issubdtype(node.outs[0].aval.dtype, jnp.inexact)
    return len(shapes) == 1 and inexact and node.small


def _hashed(value: Any) -> str:
    """Values that print alike may still differ where what is printed is a function or a program."""
    if isinstance(value, tuple):  # of a NumPy integer it is the number that counts
        value = tuple(int(x) if isinstance(x, np.integer) else x for x in value)
    plain = isinstance(value, bool | int | float | str | bytes | tuple | list | None | np.dtype)
    return f"{type(value).__name__}:{value!r}" if plain or _is_record(value) else f"id:{id(value)}"


def _is_record(value: Any) -> bool:
    return hasattr(value, "_fields") or value is None
