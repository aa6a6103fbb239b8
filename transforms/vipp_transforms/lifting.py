"""Values with named extra axes, and functions applied along them.

A :class:`Lifted` carries only the named axes that it depends on. Applying a function maps it over
the union of its operands' axes, so what doesn't depend on an expanded site is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.estimators.base import Axis
from vipp_transforms.loop_distribution import evaluator
from vipp_transforms.support_numbers import Numbers
from vipp_transforms.table_reads import Facts


class Lifted(NamedTuple):
    """An array whose leading axes are the named ``axes``, in the order of ``Axes``."""

    array: Any
    axes: tuple[str, ...] = ()


class Axes:
    """The named axes of one evaluation: their sizes, and one order for all.

    Attributes:
      sizes: by name.
      facts: what is known of values along them.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.facts = Facts()

    def register(self, axis: Axis) -> None:
        """Register an axis; axes of equal name are the same."""
        self.sizes.setdefault(axis.name, axis.size)

    def union(self, values: Sequence[Lifted]) -> tuple[str, ...]:
        """The axes of all ``values``, in order."""
        present = {name for value in values for name in value.axes}
        if not present:
            return ()
        return tuple(name for name in self.sizes if name in present)

    def apply(
        self, fn: Callable[..., Any], *values: Lifted, summed: str | None = None
    ) -> list[Lifted]:
        """``fn`` (returning a list of arrays) mapped over the union of the operands' axes.

        Inside it the axis ``summed`` has its name, for sums along it.
        """
        names = self.union(values)
        # the first name is mapped last, and so lies in front
        for name in reversed(names):
            axes = tuple(0 if name in value.axes else None for value in values)
            known = name if name == summed else None
            fn = jax.vmap(fn, axes, axis_size=self.sizes[name], axis_name=known)
        return [Lifted(out, names) for out in fn(*(value.array for value in values))]

    def aligned(self, *values: Lifted) -> tuple[list[Any], tuple[str, ...]]:
        """The arrays with all their names as leading axes (of size one where absent)."""
        names = self.union(values)
        arrays = []
        for value in values:
            absent = tuple(i for i, name in enumerate(names) if name not in value.axes)
            arrays.append(jnp.expand_dims(value.array, absent) if absent else value.array)
        return arrays, names

    def add(self, values: Sequence[Lifted]) -> Lifted:
        """The sum, entry by entry."""
        if len(values) == 1:
            return values[0]
        arrays, names = self.aligned(*values)
        return Lifted(sum(arrays[1:], start=arrays[0]), names)

    def first(self, value: Lifted, name: str) -> Lifted:
        """``value`` with the axis ``name`` before all others and unnamed (repeated if absent)."""
        if name in value.axes:
            at = value.axes.index(name)
            array = value.array if at == 0 else jnp.moveaxis(value.array, at, 0)
            return Lifted(array, value.axes[:at] + value.axes[at + 1 :])
        shape = (self.sizes[name], *jnp.shape(value.array))
        return Lifted(jnp.broadcast_to(value.array, shape), value.axes)

    def spread(self, value: Lifted, names: Sequence[str]) -> Any:
        """``value``'s array with all of ``names`` as leading axes, in that order."""
        if tuple(names) == value.axes:
            return value.array
        order = [value.axes.index(n) for n in names if n in value.axes]
        named, ndim = len(order), jnp.ndim(value.array)
        array = jnp.transpose(value.array, (*order, *range(len(value.axes), ndim)))
        array = jnp.expand_dims(array, [i for i, n in enumerate(names) if n not in value.axes])
        sizes = tuple(self.sizes[n] for n in names)
        return jnp.broadcast_to(array, (*sizes, *jnp.shape(value.array)[named:]))

    def named(self, value: Lifted, name: str, at: int | None = None) -> Lifted:
        """``value`` with its axis ``at`` (the first unnamed one) under the name ``name``."""
        names = tuple(n for n in self.sizes if n in value.axes or n == name)
        source, target = len(value.axes) if at is None else at, names.index(name)
        same = source == target
        return Lifted(value.array if same else jnp.moveaxis(value.array, source, target), names)


Env = dict[Any, Lifted]


def value_of(env: Env, atom: Any) -> Lifted:
    """The value of a variable or a literal."""
    if not isinstance(atom, _jax.Literal):
        return env[atom]
    aval: Any = atom.aval
    return Lifted(jnp.asarray(atom.val, aval.dtype))


class Unit(NamedTuple):
    """Of a value that is unit vectors: the k-th along a named axis is one at its k-th entry.

    Attributes:
      name: of that axis.
      axis: of the entries.
    """

    name: str
    axis: int


class Node(NamedTuple):
    """A value that is made otherwise than by evaluating its equation: a drawn or expanded site.

    Attributes:
      names: of the axes that the value will carry.
      make: the value, given the environment.
      numbers: the value, if it is the same at all entries and known ahead.
      same: the axes along which it is the same at all entries.
      unit: where it is unit vectors, along which axes.
    """

    names: frozenset[str]
    make: Callable[[Env], Lifted]
    numbers: Numbers | None = None
    same: tuple[int, ...] = ()
    unit: Unit | None = None


def evaluate(
    eqns: Sequence[Any],
    env: Env,
    axes: Axes,
    nodes: Mapping[Any, Node],
    outputs: Sequence[Any],
    names_of: Callable[[Any], frozenset[str]],
) -> None:
    """Evaluate ``eqns`` into ``env``, keeping at least ``outputs``.

    A value's names include its operands', so equations with equal names can be evaluated together
    as one sub-program, fewer names first: tracing costs one pass over the equations however they
    are mapped. ``names_of`` says which axes a value may carry: of an equation with several results
    one may depend on less than the others, and is then the same along what it doesn't depend on.
    """
    runs = _runs(eqns, env, nodes, names_of)
    users: dict[Any, int] = {}
    for number, (_, run) in enumerate(runs):
        for eqn in run:
            users.update((v, number) for v in eqn.invars if not isinstance(v, _jax.Literal))
    kept = {v for v in outputs if not isinstance(v, _jax.Literal)}
    for number, (is_node, run) in enumerate(runs):
        if is_node:
            var = run[0].outvars[0]
            env[var] = nodes[var].make(env)
            continue
        made = [v for eqn in run for v in eqn.outvars]
        # only what a later run reads leaves this one: the rest is the compiler's to forget
        results = [v for v in made if v in kept or users.get(v, number) > number]
        inputs = _jax.free(run)
        fn = evaluator(run, inputs, results)
        for var, value in zip(results, axes.apply(fn, *(env[v] for v in inputs)), strict=True):
            env[var] = _narrow(value, names_of(var))


def _narrow(value: Lifted, names: frozenset[str]) -> Lifted:
    """The first entry along every axis that the value doesn't depend on."""
    if names.issuperset(value.axes):
        return value
    index = tuple(slice(None) if n in names else 0 for n in value.axes)
    return Lifted(value.array[index], tuple(n for n in value.axes if n in names))


class _Rank(NamedTuple):
    """Where an equation stands in the order of evaluation; those of equal rank run together."""

    phase: int  # grows where a result depends on less than its equation's operands
    names: frozenset[str]


def _runs(
    eqns: Sequence[Any],
    env: Env,
    nodes: Mapping[Any, Node],
    names_of: Callable[[Any], frozenset[str]],
) -> list[tuple[bool, list[Any]]]:
    """The equations ordered by number of names, cut into nodes and runs of equal names."""
    ranks = {v: _Rank(0, frozenset(x.axes)) for v, x in env.items()}
    groups: dict[_Rank, list[Any]] = {}
    for eqn in eqns:
        node = nodes.get(eqn.outvars[0]) if eqn.outvars else None
        operands = [ranks[v] for v in eqn.invars if not isinstance(v, _jax.Literal)]
        names = node.names if node else frozenset().union(*(r.names for r in operands))
        rank = _Rank(max((r.phase for r in operands), default=0), names)
        for v in eqn.outvars:
            narrow = names & names_of(v)
            # a result narrower than its operands opens a new phase: it must be cut before it is
            # used
            ranks[v] = rank if narrow == names else _Rank(rank.phase + 1, narrow)
        groups.setdefault(rank, []).append(eqn)
    runs: list[tuple[bool, list[Any]]] = []
    for rank in sorted(groups, key=lambda r: (r.phase, len(r.names))):
        fresh = True
        for eqn in groups[rank]:
            if eqn.outvars and eqn.outvars[0] in nodes:
                runs.append((True, [eqn]))
                fresh = True
            elif fresh:
                runs.append((False, [eqn]))
                fresh = False
            else:
                runs[-1][1].append(eqn)
    return runs
