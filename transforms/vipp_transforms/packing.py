"""Packing: many small equations of one kind evaluated as one.

XLA's CPU compiler takes time that grows like the square of the number of small operations. Packing
stacks isomorphic scalars: calls are opened, equal equations shared, chains of additions summed at
once; equations are levelled by depth, and those of one level, primitive and operand shapes are one
group, evaluated by ``vmap``. A stacked value stays stacked: the operand of a later group is that
array, a slice of it or one static gather.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms import _jax, stacking
from vipp_transforms.flattening import LARGEST, Atom, Flat, Node, flatten, names
from vipp_transforms.layout import Layout
from vipp_transforms.stacks import Stacks

WORTHWHILE = 880  # small equations: with fewer, compiling them one by one is fast
_OWN = "vipp_"  # how the names of primitives begin that have rules of their own
_PACKED = contextvars.ContextVar("packed", default=False)
_APART = contextvars.ContextVar("apart", default=False)


def pack(fn: Callable[..., Any], *, worthwhile: int = WORTHWHILE) -> Callable[..., Any]:
    """``fn`` with its small equations grouped, which compiles in a fraction of the time.

    The same values, but for the order in which sums of scalars are taken. Apply it outside of
    ``jax.grad``, so that the backward pass is packed as well; it may be differentiated,
    ``vmap``ped and compiled like any function. Within a packed function it does nothing: the
    function around it is packed as a whole.

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
        if is_packed():
            return fn(*args, **kwargs)
        leaves, treedef = jax.tree_util.tree_flatten((args, kwargs))
        dynamic = [isinstance(x, jax.Array | np.ndarray) for x in leaves]
        arrays = [x for x, d in zip(leaves, dynamic, strict=True) if d]

        def flat(*given: Any) -> Any:
            rest = iter(given)
            merged = [next(rest) if d else x for x, d in zip(leaves, dynamic, strict=True)]
            inner_args, inner_kwargs = jax.tree_util.tree_unflatten(treedef, merged)
            return fn(*inner_args, **inner_kwargs)

        with around():
            closed, shape = _jax.trace(flat, *arrays)
        outs = evaluate(closed, arrays, worthwhile)
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(shape), outs)

    return packed


@contextlib.contextmanager
def around() -> Iterator[None]:
    """While a function is traced that will be packed as a whole, nothing in it is by itself."""
    token = _PACKED.set(True)
    try:
        yield
    finally:
        _PACKED.reset(token)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """While a function is traced of which it matters what depends on what: nothing is packed."""
    token = _APART.set(True)
    try:
        with around():
            yield
    finally:
        _APART.reset(token)


def is_packed() -> bool:
    """Whether what is traced now will be packed as a whole."""
    return _PACKED.get()


def is_apart() -> bool:
    """Whether nothing of what is traced now may be packed."""
    return _APART.get()


def evaluate(closed: Any, inputs: Sequence[Any], worthwhile: int = WORTHWHILE) -> list[Any]:
    """The results of a closed jaxpr, packed."""
    program = flatten(closed)
    if not pays(program, worthwhile):
        return _jax.evaluated(closed, list(inputs))
    return evaluated(program, inputs)


def evaluated(program: Flat, inputs: Sequence[Any], moving: Sequence[bool] = ()) -> list[Any]:
    """The results of a program, packed.

    Args:
      program: it.
      inputs: of it.
      moving: which of them it is being differentiated in, if it is: what moves with them and what
        does not is never evaluated together.
    """
    stacks = Stacks(stacking.stack, stacking.unstack) if moving else Stacks()
    for var, value in zip(program.invars, inputs, strict=True):
        stacks.put(var, jnp.asarray(value))
    run(program, stacks, moved(program, moving) if moving else None)
    return [stacks.get(v) for v in program.outs]


# operations whose results have no derivative
STILL = frozenset({"stop_gradient", "floor", "ceil", "round", "sign", "nextafter"})


def moved(program: Flat, moving: Sequence[bool]) -> frozenset[Any]:
    """The variables that have a derivative in inputs."""
    found = {v for v, moves in zip(program.invars, moving, strict=True) if moves}
    for node in program.nodes:
        if any(v in found for v in node.operands if not isinstance(v, _jax.Literal)):
            if node.eqn is None or node.eqn.primitive.name not in STILL:
                found.update(v for v in node.outs if jnp.issubdtype(v.aval.dtype, jnp.inexact))
    return frozenset(found)


def one_by_one(program: Flat, inputs: Sequence[Any]) -> list[Any]:
    """The results of a program without joined sums, as it stands."""
    eqns = [node.equation for node in program.nodes]
    given = [*program.consts, *program.invars]
    return _jax.evaluator(eqns, given, program.outs)(*program.consts.values(), *inputs)


def pays(program: Flat, worthwhile: int = WORTHWHILE) -> bool:
    """Whether a program has so many small equations that packing them is worth it."""
    return program.packable and program.num_small >= worthwhile


# -- evaluation ----------------------------------------------------------------------------------


def run(program: Flat, stacks: Stacks, moved: frozenset[Any] | None = None) -> None:
    """Evaluate a program level by level, the nodes of one kind on a level together."""
    for var, value in program.consts.items():
        stacks.put(var, value)
    for group in groups(program, moved):
        _evaluate(group, stacks)


def groups(program: Flat, moved: frozenset[Any] | None = None) -> list[list[Node]]:
    """The nodes that are evaluated together, in order; ``moved`` and other variables apart."""
    kinds = {id(node): _kind(node, moved) for node in program.nodes}
    found = []
    for level in levels(program.nodes, kinds):
        alike: dict[Hashable, list[Node]] = {}
        for node in level:
            alike.setdefault(kinds[id(node)], []).append(node)
        found += alike.values()
    return found


def levels(nodes: Sequence[Node], kinds: dict[int, Hashable]) -> list[list[Node]]:
    """The nodes by depth, counted from the inputs or from the results: the fewer groups win."""

    def num_groups(found: Sequence[Sequence[Node]]) -> int:
        return sum(len({kinds[id(node)] for node in level}) for level in found)

    return min(_from_inputs(nodes), _from_results(nodes), key=num_groups)


def _kind(node: Node, moved: frozenset[Any] | None) -> Hashable:
    if _is_piece(node):
        return "piece", id(node.operands[0]), node.outs[0].aval.shape
    if not node.small:
        return id(node)
    if moved is None:
        return node.kind
    if node.eqn is not None and node.eqn.primitive.name.startswith(_OWN):
        return id(node)  # whether it may be differentiated depends on what it is applied to
    return node.kind, *(not isinstance(v, _jax.Literal) and v in moved for v in node.operands)


def _is_piece(node: Node) -> bool:
    """Whether a node is a small part of a vector, as autoguides take sites out of theirs."""
    if node.eqn is None or node.eqn.primitive.name != "slice" or node.eqn.params["strides"]:
        return False
    (vector,), (out,) = node.operands, node.outs
    is_vector = not isinstance(vector, _jax.Literal) and len(vector.aval.shape) == 1
    return is_vector and out.aval.shape[0] <= LARGEST


def _pieces(group: list[Node], stacks: Stacks) -> None:
    """Parts of one vector, all of one size."""
    start = lambda node: node.eqn.params["start_indices"][0]
    group = sorted(group, key=start)
    (vector,), (size,) = group[0].operands, group[0].outs[0].aval.shape
    begin, array = start(group[0]), stacks.get(vector)
    if [start(node) for node in group] == [begin + n * size for n in range(len(group))]:
        parts = array[begin : begin + len(group) * size].reshape(len(group), size)
    else:
        parts = array[np.array([[start(node)] for node in group]) + np.arange(size)]
    stacks.put_all([node.outs[0] for node in group], parts)


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
    group = sorted(group, key=lambda node: stacks.order(node.operands))
    first = group[0]
    if first.eqn is None:
        count = len(first.operands)
        terms = [sorted(node.operands, key=lambda x: stacks.order([x])) for node in group]
        stack = stacks.fetch([x for operands in terms for x in operands])
        totals = stack.reshape((len(group), count, *stack.shape[1:])).sum(1)
        stacks.put_all([node.outs[0] for node in group], totals)
        return
    if first.eqn.primitive is stacking.stack_p:
        for node in group:
            stacks.put(node.outs[0], stacks.fetch(node.operands))
        return
    if first.eqn.primitive is stacking.unstack_p:
        for node in group:
            stacks.put_entries(node.outs, node.operands[0])
        return
    if len(group) > 1 and _is_piece(first):
        return _pieces(group, stacks)
    if len(group) == 1:
        values = _jax.apply(first.eqn, [stacks.get(x) for x in first.operands])
        for var, value in zip(first.outs, values, strict=True):
            stacks.put(var, value)
        return
    operands, axes = [], []
    for atoms in zip(*(node.operands for node in group), strict=True):
        # what all of the group share is not repeated
        same = len({names([x]) for x in atoms}) == 1
        operands.append(stacks.get(atoms[0]) if same else stacks.fetch(atoms))
        axes.append(None if same else 0)
    one = lambda *xs: _jax.apply(first.eqn, xs)
    values = jax.vmap(one, in_axes=tuple(axes), axis_size=len(group))(*operands)
    for position, value in enumerate(values):
        stacks.put_all([node.outs[position] for node in group], value)


# -- a step of a loop ----------------------------------------------------------------------------


def step(
    program: Flat, layout: Layout, vectors: dict[str, Any], others: Sequence[Any] = ()
) -> tuple[dict[str, Any], list]:
    """One step of a loop whose state is packed, so that nothing is taken apart between steps.

    Args:
      program: of which the first inputs, and results, are the leaves of the state.
      layout: of the state.
      vectors: the state.
      others: the other inputs.

    Returns:
      The new state's vectors, and the other results.
    """
    stacks, count = Stacks(), len(layout.segments)
    for var, value in zip(program.invars[count:], others, strict=True):
        stacks.put(var, value)
    for block in layout.blocks():
        vector, start, shape = layout.segments[block[0]]
        array = vectors[vector][start : start + len(block) * math.prod(shape)]
        stacks.put_all([program.invars[n] for n in block], array.reshape(len(block), *shape))
    run(program, stacks)
    new = _joined(program.outs[:count], layout, stacks)
    return new, [stacks.get(v) for v in program.outs[count:]]


def _joined(outs: Sequence[Atom], layout: Layout, stacks: Stacks) -> dict[str, Any]:
    """The vectors of the leaves ``outs``; small ones of one shape are fetched together."""
    parts: dict[str, list[Any]] = {}
    for block in layout.blocks():
        leaves = stacks.fetch([outs[n] for n in block])
        parts.setdefault(layout.segments[block[0]].vector, []).append(leaves.reshape(-1))
    return {name: jnp.concatenate(p) if len(p) > 1 else p[0] for name, p in parts.items()}
