"""Lifted evaluation in which all lanes share what is the same for them.

Where every value of a choice is tried, each of its lanes takes the same one. What is computed from
it alone is computed once (:mod:`repetition`), and a table that it reads is no gather
(:mod:`table_reads`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from vipp_transforms import _jax, lifting
from vipp_transforms.lifting import Axes, Env, Lifted, Node, value_of
from vipp_transforms.repetition import Repetition, thin_like
from vipp_transforms.support_numbers import numbers_of
from vipp_transforms.table_reads import Facts, Read

NamesOf = Callable[[Any], frozenset[str]]


def evaluate(
    eqns: Sequence[Any],
    env: Env,
    axes: Axes,
    nodes: Mapping[Any, Node],
    outputs: Sequence[Any],
    names_of: NamesOf,
) -> None:
    """As :func:`lifting.evaluate`, what lanes share computed once."""
    facts = axes.facts
    facts.numbers.update((v, n.numbers) for v, n in nodes.items() if n.numbers is not None)
    known = any(n.same or n.unit for n in nodes.values())
    if not facts.numbers and not facts.thin and not known:
        lifting.evaluate(eqns, env, axes, nodes, outputs, names_of)
        return
    _Sharing(eqns, env, axes, nodes, names_of).run(_jax.variables(outputs))


def call(
    closed: Any, values: Sequence[Lifted], axes: Axes, env: Env, atoms: Sequence[Any]
) -> list[Lifted]:
    """The results of a jaxpr on lifted values, along the axes of all of these.

    Args:
      closed: the jaxpr.
      values: its operands.
      axes: named.
      env: the values known so far.
      atoms: those that the operands are the values of, or None.
    """
    jaxpr, consts = _jax.open_jaxpr(closed)
    inner = dict(
        zip((*jaxpr.constvars, *jaxpr.invars), [*map(Lifted, consts), *values], strict=True)
    )
    inside, outside = copy.copy(axes), axes.facts
    inside.facts = Facts()
    for var, atom in zip(jaxpr.invars, atoms, strict=True):
        numbers = None if atom is None else numbers_of(atom, outside.numbers)
        if numbers is not None:
            inside.facts.numbers[var] = numbers
        thin = None if isinstance(atom, _jax.Literal) else outside.thin.get(atom)
        if thin is not None and thin.var in env:
            made = inside.facts.thin[var] = thin_like(var, thin.axes)
            inner[made.var] = env[thin.var]
    evaluate(jaxpr.eqns, inner, inside, {}, jaxpr.outvars, lambda _: frozenset(axes.sizes))
    names, results = axes.union(values), [value_of(inner, v) for v in jaxpr.outvars]
    return [Lifted(axes.spread(x, names), names) for x in results]


class _Sharing:
    """One evaluation, its equations rewritten."""

    def __init__(
        self,
        eqns: Sequence[Any],
        env: Env,
        axes: Axes,
        nodes: Mapping[Any, Node],
        names_of: NamesOf,
    ):
        self.env, self.axes, self.nodes, self.names_of = env, axes, dict(nodes), names_of
        self.thin = Repetition({v: t for v, t in axes.facts.thin.items() if t.var in env})
        at_hand = [*env.items(), *((v, env[t.var]) for v, t in self.thin.thin.items())]
        self.names = {v: frozenset(x.axes) for v, x in at_hand}
        constants = {v: x.array for v, x in env.items() if not x.axes}
        reads = axes.facts.reads(eqns, tuple(axes.sizes), constants)
        for eqn in eqns:
            var = eqn.outvars[0] if eqn.outvars else None
            if var in nodes:
                self._node(eqn, nodes[var])
            elif not ((var in reads and self._read(reads[var])) or self._rows_of_units(eqn)):
                self.thin.rewrite(eqn)
                self._note(eqn, self._carried(eqn.invars))

    def run(self, outputs: Sequence[Any]) -> None:
        """Evaluate what ``outputs`` need."""
        smaller = [self.thin.thin[v].var for v in outputs if v in self.thin.thin]
        made = {v for e in self.thin.eqns for v in e.outvars}
        needed = [v for v in (*outputs, *smaller) if v in made]
        eqns, of = _needed(self.thin.eqns, needed), self.thin.stands_for
        names_of = lambda v: self.names_of(of.get(v, v))
        lifting.evaluate(eqns, self.env, self.axes, self.nodes, needed, names_of)
        self.axes.facts.thin.update((v, t) for v, t in self.thin.thin.items() if t.var in self.env)
        for v in outputs:
            if v not in self.env:
                value = self.env[self.thin.thin[v].var]
                shape = (*jnp.shape(value.array)[: len(value.axes)], *v.aval.shape)
                self.env[v] = value._replace(array=jnp.broadcast_to(value.array, shape))

    def _node(self, eqn: Any, node: Node) -> None:
        self._note(eqn, node.names)
        (var,) = eqn.outvars
        if node.same:
            self._same(eqn, node)
            return
        many = [a for a, n in enumerate(var.aval.shape) if n > 1]
        if node.numbers is None or not many:
            self.thin.keep(eqn)
            return
        table, made = node.numbers, self.thin.add(var, many)
        array = np.reshape(table.table, (*table.table.shape, *(1 for _ in var.aval.shape)))
        self.nodes[made] = Node(node.names, lambda _: Lifted(jnp.asarray(array), table.axes))
        self.thin.keep(eqn.replace(invars=[], outvars=[made]))

    def _same(self, eqn: Any, node: Node) -> None:
        """Add a choice that is the same along some axes, with these of size one."""
        (var,) = eqn.outvars
        made = self.thin.add(var, node.same)

        def first(env: Env) -> Lifted:
            value = node.make(env)
            axes = [len(value.axes) + a for a in node.same]
            index = tuple(slice(1) if a in axes else slice(None) for a in range(value.array.ndim))
            return value._replace(array=value.array[index])

        self.nodes[made] = Node(node.names, first)
        self.thin.keep(eqn.replace(outvars=[made]))

    def _read(self, read: Read) -> bool:
        """Add a table read at known numbers, if its other operands are at hand."""
        operands = read.operands
        # an index of several axes may have been put together elsewhere
        if not all(v in self.names for v in _jax.variables(operands)):
            return False
        carried = self._carried(operands)
        if not carried.isdisjoint(read.axes):
            return False
        table, *columns = operands
        passed = read.passed(self.thin.axes(table))
        operands = [self.thin.read(table, passed), *map(self.thin.read, columns)]
        (out,) = read.eqn.outvars
        same = read.same(passed)
        var = self.thin.add(out, same) if same else out

        make = partial(_rows, read, self.axes, operands)
        node = self.nodes[var] = Node(carried.union(read.axes), make)
        self._note(read.eqn, node.names)
        self.thin.keep(read.eqn.replace(invars=_jax.variables(operands), outvars=[var]))
        return True

    def _rows_of_units(self, eqn: Any) -> bool:
        """Add a product of unit vectors and a matrix at hand: the rows of the matrix."""
        if eqn.primitive.name != "dot_general":
            return False
        contracted, batched = eqn.params["dimension_numbers"]
        known = [
            self.nodes[v].unit if v in self.nodes else None for v in _jax.variables(eqn.invars)
        ]
        found = [i for i, u in enumerate(known) if u and (u.axis,) == tuple(contracted[i])]
        if batched != ((), ()) or len(known) != 2 or len(found) != 1:
            return False
        (i,), (out,) = found, eqn.outvars
        unit, matrix, (along,) = known[i], self.thin.read(eqn.invars[1 - i]), contracted[1 - i]
        carried = self._carried([eqn.invars[1 - i]])
        if unit is None or unit.name in carried:
            return False
        free, others = (len(v.aval.shape) - 1 for v in (eqn.invars[i], matrix))
        gaps = [others * i + a for a in range(free)]
        same = [a for a in gaps if out.aval.shape[a] > 1]
        var = self.thin.add(out, same) if same else out

        def make(env: Env) -> Lifted:
            value = value_of(env, matrix)
            named = len(value.axes)
            x = jnp.moveaxis(value.array, named + along, named).astype(out.aval.dtype)
            x = jnp.expand_dims(x, [named + 1 + a for a in gaps])
            return self.axes.named(value._replace(array=x), unit.name)

        node = self.nodes[var] = Node(carried | {unit.name}, make)
        self._note(eqn, node.names)
        self.thin.keep(eqn.replace(invars=[matrix], outvars=[var]))
        return True

    def _carried(self, atoms: Iterable[Any]) -> frozenset[str]:
        return frozenset().union(*(self.names[v] for v in _jax.variables(atoms)))

    def _note(self, eqn: Any, names: frozenset[str]) -> None:
        self.names.update((v, names & self.names_of(v)) for v in eqn.outvars)


def _rows(read: Read, axes: Axes, operands: Sequence[Any], env: Env) -> Lifted:
    """The value of a table read at known numbers."""
    values = [value_of(env, v) for v in operands]
    (value,) = axes.apply(lambda *xs: [read.run(*xs)], *values)
    for name in read.axes:
        value = axes.named(value, name)
    return value


def _needed(eqns: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
    needed = {*outputs}
    kept = []
    for eqn in reversed(eqns):
        if eqn.effects or not needed.isdisjoint(eqn.outvars):
            needed.update(_jax.variables(eqn.invars))
            kept.append(eqn)
    return kept[::-1]
