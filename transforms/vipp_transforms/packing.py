"""Packing: many small equations of one kind evaluated as one.

XLA's CPU compiler takes time that grows like the square of the number of small operations. Packing
stacks isomorphic scalars: calls are opened, equal equations shared, chains of additions summed at
once; equations are levelled by depth, and those of one level, primitive and operand shapes are one
group, evaluated by ``vmap``. A stacked value stays stacked: the operand of a later group is that
array, a slice of it or one static gather.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms import _jax

LARGEST = 256  # elements: an equation with a larger operand or result is left alone
WORTHWHILE = 1_000  # small equations: with fewer, compiling them one by one is fast

Atom = Any  # a variable or a literal of a jaxpr


def pack(fn: Callable[..., Any], *, worthwhile: int = WORTHWHILE) -> Callable[..., Any]:
    """``fn`` with its small equations grouped, which compiles in a fraction of the time.

    The same values, but for the order in which sums of scalars are taken. Apply it outside of
    ``jax.grad``, so that the backward pass is packed as well; it may be differentiated,
    ``vmap``ped and compiled like any function.

    Args:
      fn: a function of pytrees of arrays; Python numbers and the like stay what they are.
      worthwhile: with fewer small equations than this ``fn`` is evaluated as it is.

    Returns:
      A function of the same arguments and results.

    Example:
      >>> import jax, jax.numpy as jnp, vipp_transforms as vt
      >>> def many(xs):
      ...     return sum(jnp.sin(x) * i for i, x in enumerate(xs))
      >>> xs = [jnp.float32(i) for i in range(8)]
      >>> jaxpr = jax.make_jaxpr(vt.pack(many, worthwhile=1))(xs)
      >>> sum(eqn.primitive.name == "sin" for eqn in jaxpr.eqns)
      1
    """

    def packed(*args: Any, **kwargs: Any) -> Any:
        leaves, treedef = jax.tree_util.tree_flatten((args, kwargs))
        dynamic = [isinstance(x, jax.Array | np.ndarray) for x in leaves]
        arrays = [x for x, d in zip(leaves, dynamic, strict=True) if d]

        def flat(*given: Any) -> Any:
            rest = iter(given)
            merged = [next(rest) if d else x for x, d in zip(leaves, dynamic, strict=True)]
            inner_args, inner_kwargs = jax.tree_util.tree_unflatten(treedef, merged)
            return fn(*inner_args, **inner_kwargs)

        closed, shape = _jax.trace(flat, *arrays)
        outs = evaluate(closed, arrays, worthwhile)
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(shape), outs)

    return packed


def evaluate(closed: Any, inputs: Sequence[Any], worthwhile: int = WORTHWHILE) -> list[Any]:
    """The results of a closed jaxpr, packed."""
    program = flatten(closed)
    if not pays(program, worthwhile):
        return _jax.call(closed, list(inputs))
    stacks = Stacks()
    for var, value in zip(program.invars, inputs, strict=True):
        stacks.put(var, jnp.asarray(value))
    run(program, stacks)
    return [stacks.get(v) for v in program.outs]


def pays(program: Flat, worthwhile: int = WORTHWHILE) -> bool:
    """Whether a program has so many small equations that packing them is worth it."""
    return program.packable and program.num_small >= worthwhile


# -- the program, flat ---------------------------------------------------------------------------


class Node(NamedTuple):
    """One equation: what it does, on which atoms, and what it gives."""

    eqn: Any  # None for a sum of all operands
    operands: tuple[Atom, ...]
    outs: tuple[Any, ...]


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
        return sum(is_small(node) for node in self.nodes)


def flatten(closed: Any, *, final: bool = False) -> Flat:
    """Open the calls, share common subexpressions, join chains of additions, drop dead code.

    Args:
      closed: a jaxpr with its constants.
      final: whether it will not be differentiated, so that functions with a derivative of their own
        may be opened as well.
    """
    jaxpr, consts = _jax.open_jaxpr(closed)
    flat = Flat(list(jaxpr.invars), {}, [], [], True)
    scope: dict[Any, Any] = {}
    flat.consts.update(zip(jaxpr.constvars, consts, strict=True))
    _open(jaxpr, scope, flat, {}, final)
    flat.outs = [_lookup(v, scope) for v in jaxpr.outvars]
    flat.nodes = _alive(_summed(_alive(flat.nodes, flat.outs), flat.outs), flat.outs)
    return flat


def _lookup(atom: Atom, scope: dict[Any, Any]) -> Atom:
    return atom if isinstance(atom, _jax.Literal) else scope.get(atom, atom)


def _open(
    jaxpr: Any, scope: dict[Any, Any], flat: Flat, seen: dict[Hashable, Node], final: bool
) -> None:
    for eqn in jaxpr.eqns:
        operands = tuple(_lookup(v, scope) for v in eqn.invars)
        flat.packable = flat.packable and not eqn.effects
        if _jax.is_jit(eqn) or (final and _jax.called(eqn) is not None):
            inner, consts = _jax.open_jaxpr(_jax.called(eqn))
            own: dict[Any, Any] = dict(zip(inner.invars, operands, strict=True))
            for var, const in zip(inner.constvars, consts, strict=True):
                own[var] = _jax.fresh_like(var)
                flat.consts[own[var]] = const
            _open(inner, own, flat, seen, final)
            scope.update(zip(eqn.outvars, (_lookup(w, own) for w in inner.outvars), strict=True))
            continue
        node = Node(eqn, operands, tuple(_jax.fresh_like(v) for v in eqn.outvars))
        node = seen.setdefault((signature(node), _names(operands)), node)
        scope.update(zip(eqn.outvars, node.outs, strict=True))
        if node.eqn is eqn:
            flat.nodes.append(node)


def _names(operands: Sequence[Atom]) -> Hashable:
    """Equal for equal operands; literals by value."""
    return tuple(
        (str(x.aval), np.asarray(x.val).tobytes()) if isinstance(x, _jax.Literal) else id(x)
        for x in operands
    )


def _alive(nodes: list[Node], outs: Sequence[Atom]) -> list[Node]:
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
        made.append(Node(None, terms, node.outs) if len(terms) > 2 else node)
    return made


def _is_addition(node: Node) -> bool:
    if node.eqn is None or node.eqn.primitive.name not in ("add", "add_any"):
        return False
    shapes = {x.aval.shape for x in (*node.operands, *node.outs)}
    inexact = jnp.issubdtype(node.outs[0].aval.dtype, jnp.inexact)
    return len(shapes) == 1 and inexact and is_small(node)


def is_small(node: Node) -> bool:
    """Whether a node may be grouped: no large arrays, no inner programs."""
    if node.eqn is not None and _jax.sub_jaxprs(node.eqn):
        return False
    avals = [x.aval for x in (*node.operands, *node.outs)]
    return all(hasattr(a, "shape") and math.prod(a.shape) <= LARGEST for a in avals)


def signature(node: Node) -> Hashable:
    """Equal for nodes that do the same to operands of the same shapes."""
    eqn = node.eqn
    if eqn is None:
        return ("sum", len(node.operands), str(node.outs[0].aval))
    params = tuple(sorted((k, _hashed(v)) for k, v in eqn.params.items()))
    return eqn.primitive.name, params, tuple(str(x.aval) for x in (*node.operands, *node.outs))


def _hashed(value: Any) -> str:
    """Values that print alike may still differ where what is printed is a function or a program."""
    plain = isinstance(value, bool | int | float | str | bytes | tuple | list | None | np.dtype)
    return f"{type(value).__name__}:{value!r}" if plain or _is_record(value) else f"id:{id(value)}"


def _is_record(value: Any) -> bool:
    return hasattr(value, "_fields") or value is None


# -- values, stacked -----------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a value is: an entry of a stack, or (without entry) the whole of it."""

    stack: int
    entry: int | None


@dataclass(eq=False)
class Stacks:
    """The values of a program's variables, many of them entries of one array."""

    arrays: list[Any] = field(default_factory=list)
    places: dict[Any, Place] = field(default_factory=dict)
    fetched: dict[Hashable, Any] = field(default_factory=dict)

    def put(self, var: Any, value: Any) -> None:
        """A value by itself."""
        self.places[var] = Place(len(self.arrays), None)
        self.arrays.append(value)

    def put_all(self, variables: Sequence[Any], array: Any) -> None:
        """Values along the first axis of an array."""
        for index, var in enumerate(variables):
            self.places[var] = Place(len(self.arrays), index)
        self.arrays.append(array)

    def get(self, atom: Atom) -> Any:
        """One value."""
        if isinstance(atom, _jax.Literal):
            return jnp.asarray(atom.val, _dtype(atom))
        stack, entry = self.places[atom]
        return self.arrays[stack] if entry is None else self.arrays[stack][entry]

    def fetch(self, atoms: Sequence[Atom]) -> Any:
        """Several values of one shape along a new first axis."""
        label = _names(atoms)
        if label not in self.fetched:
            self.fetched[label] = self._fetch(atoms)
        return self.fetched[label]

    def _fetch(self, atoms: Sequence[Atom]) -> Any:
        if all(isinstance(x, _jax.Literal) for x in atoms):
            return jnp.asarray(np.stack([np.asarray(x.val, _dtype(x)) for x in atoms]))
        starts: dict[Hashable, int] = {}
        sources: list[Any] = []
        length, index = 0, []
        for atom in atoms:
            literal = isinstance(atom, _jax.Literal)
            place = Place(-1, None) if literal else self.places[atom]
            source = _names([atom]) if literal else place.stack
            if source not in starts:
                alone = literal or place.entry is None
                array = self.get(atom)[None] if alone else self.arrays[place.stack]
                starts[source], length = length, length + len(array)
                sources.append(array)
            index.append(starts[source] + (place.entry or 0))
        joined = sources[0] if len(sources) == 1 else jnp.concatenate(sources)
        return _take(joined, index)


def _dtype(atom: Any) -> Any:
    return atom.aval.dtype


def _take(array: Any, index: list[int]) -> Any:
    start, count = index[0], len(index)
    if index == list(range(start, start + count)):
        return array if count == len(array) else array[start : start + count]
    return array[np.asarray(index)]


# -- evaluation ----------------------------------------------------------------------------------


def run(program: Flat, stacks: Stacks) -> None:
    """Evaluate a program level by level, the nodes of one kind on a level together."""
    for var, value in program.consts.items():
        stacks.put(var, value)
    for level in levels(program.nodes):
        groups: dict[Hashable, list[Node]] = {}
        for node in level:
            groups.setdefault(_kind(node), []).append(node)
        for group in groups.values():
            _evaluate(group, stacks)


def levels(nodes: Sequence[Node]) -> list[list[Node]]:
    """The nodes by depth, counted from the inputs or from the results: the fewer groups win."""
    return min(_from_inputs(nodes), _from_results(nodes), key=num_groups)


def num_groups(found: Sequence[Sequence[Node]]) -> int:
    """How many groups the nodes of each level fall into."""
    return sum(len({_kind(node) for node in level}) for level in found)


def _kind(node: Node) -> Hashable:
    return signature(node) if is_small(node) else id(node)


def _from_inputs(nodes: Sequence[Node]) -> list[list[Node]]:
    depth: dict[Any, int] = {}
    found: dict[int, list[Node]] = {}
    for node in nodes:
        before = [depth.get(v, 0) for v in node.operands if not isinstance(v, _jax.Literal)]
        at = max(before, default=0)
        depth.update((v, at + 1) for v in node.outs)
        found.setdefault(at, []).append(node)
    return [found[at] for at in sorted(found)]


def _from_results(nodes: Sequence[Node]) -> list[list[Node]]:
    height: dict[Any, int] = {}
    found: dict[int, list[Node]] = {}
    for node in reversed(nodes):
        at = max((height.get(v, 0) for v in node.outs), default=0)
        for v in node.operands:
            if not isinstance(v, _jax.Literal):
                height[v] = max(height.get(v, 0), at + 1)
        found.setdefault(at, []).append(node)
    return [found[at][::-1] for at in sorted(found, reverse=True)]


def _evaluate(group: list[Node], stacks: Stacks) -> None:
    first = group[0]
    if first.eqn is None:
        count = len(first.operands)
        terms = stacks.fetch([x for node in group for x in node.operands])
        totals = terms.reshape((len(group), count, *terms.shape[1:])).sum(1)
        stacks.put_all([node.outs[0] for node in group], totals)
        return
    if len(group) == 1:
        values = _jax.apply(first.eqn, [stacks.get(x) for x in first.operands])
        for var, value in zip(first.outs, values, strict=True):
            stacks.put(var, value)
        return
    operands, axes = [], []
    for atoms in zip(*(node.operands for node in group), strict=True):
        same = len({_names([x]) for x in atoms}) == 1
        operands.append(stacks.get(atoms[0]) if same else stacks.fetch(atoms))
        axes.append(None if same else 0)
    one = lambda *xs: _jax.apply(first.eqn, xs)
    values = jax.vmap(one, in_axes=tuple(axes), axis_size=len(group))(*operands)
    for position, value in enumerate(values):
        stacks.put_all([node.outs[position] for node in group], value)


# -- a step of a loop ----------------------------------------------------------------------------


class Segment(NamedTuple):
    """Where a leaf lies: in which vector, from where on, and its shape there."""

    vector: str
    start: int
    shape: tuple[int, ...]


class Layout:
    """How the leaves of a pytree lie in one vector for each dtype.

    Args:
      tree: of arrays, or of their shapes and dtypes.
    """

    def __init__(self, tree: Any):
        leaves, self.treedef = jax.tree_util.tree_flatten(tree)
        self.leaves = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
        lengths: dict[str, int] = {}
        self.segments: list[Segment] = []
        for leaf in self.leaves:
            start = lengths.get(str(leaf.dtype), 0)
            self.segments.append(Segment(str(leaf.dtype), start, leaf.shape))
            lengths[str(leaf.dtype)] = start + math.prod(leaf.shape)

    def ravel(self, tree: Any) -> dict[str, Any]:
        """The vectors of a tree."""
        parts: dict[str, list[Any]] = {}
        for leaf, segment in zip(jax.tree_util.tree_leaves(tree), self.segments, strict=True):
            parts.setdefault(segment.vector, []).append(leaf.reshape(-1))
        return {name: jnp.concatenate(part) for name, part in parts.items()}

    def unravel(self, vectors: dict[str, Any]) -> Any:
        """The tree of its vectors."""
        leaves = [_cut(vectors[s.vector], s) for s in self.segments]
        return jax.tree_util.tree_unflatten(self.treedef, leaves)


def _cut(vector: Any, segment: Segment) -> Any:
    size = math.prod(segment.shape)
    return vector[segment.start : segment.start + size].reshape(segment.shape)


def step(program: Flat, layout: Layout, vectors: dict[str, Any]) -> tuple[dict[str, Any], list]:
    """One step of a loop whose state is packed, so that nothing is taken apart between steps.

    Args:
      program: of which the inputs, and the first results, are the leaves of the state.
      layout: of the state.
      vectors: the state.

    Returns:
      The new state's vectors, and the other results.
    """
    stacks = Stacks()
    at = {}
    for name, vector in vectors.items():
        at[name] = len(stacks.arrays)
        stacks.arrays.append(vector)
    for var, segment in zip(program.invars, layout.segments, strict=True):
        if segment.shape == ():
            stacks.places[var] = Place(at[segment.vector], segment.start)
        else:
            stacks.put(var, _cut(vectors[segment.vector], segment))
    run(program, stacks)
    count = len(layout.segments)
    new = _joined(program.outs[:count], layout, stacks)
    return new, [stacks.get(v) for v in program.outs[count:]]


def _joined(outs: Sequence[Atom], layout: Layout, stacks: Stacks) -> dict[str, Any]:
    """The vectors of the leaves ``outs``; neighbouring scalars are fetched together."""
    parts: dict[str, list[Any]] = {}
    scalars: dict[str, list[Atom]] = {}

    def flush(name: str) -> None:
        if scalars.get(name):
            parts.setdefault(name, []).append(stacks.fetch(scalars.pop(name)))

    for atom, segment in zip(outs, layout.segments, strict=True):
        if segment.shape == ():
            scalars.setdefault(segment.vector, []).append(atom)
            continue
        flush(segment.vector)
        parts.setdefault(segment.vector, []).append(stacks.get(atom).reshape(-1))
    for name in list(scalars):
        flush(name)
    return {name: jnp.concatenate(p) if len(p) > 1 else p[0] for name, p in parts.items()}
