"""What a step does alike to many small arrays of its state, done once to one vector of them.

An optimiser treats every parameter alike, entry by entry; XLA compiles and launches kernels for
each array of its own. Here the arrays of one role (parameters, first moments, ...) lie in one
vector while the loop goes on, and what is alike is evaluated on that. Each entry is what it was.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vipp_transforms import _jax
from vipp_transforms.axis_rules import ENTRY_BY_ENTRY
from vipp_transforms.flattening import LARGEST, Flat, Node, alive, names
from vipp_transforms.simplified import Atom

FEWEST = 3  # arrays of a role, below which nothing is gained
_WORTH = 2  # equations done at once, for each vector that has to be put together for them
_DEEPEST = 200


class _Role(NamedTuple):
    """The vector of a role."""

    number: int


class _Shared(NamedTuple):
    """One scalar for all arrays."""

    atom: Atom


class _Cut(NamedTuple):
    """Arrays that are evaluated one by one, and put together."""

    atoms: tuple[Atom, ...]


class _Made(NamedTuple):
    """An equation that is done at once; ``grounded`` if it depends on a role by such alone."""

    eqn: Any
    position: int
    operands: tuple[Any, ...]
    atoms: tuple[Atom, ...]
    grounded: bool


class _Reader:
    """Finds what is alike in the results of a program.

    Args:
      program: of a step.
      roles: the positions of the arrays of each role, among its inputs and among its results.
    """

    def __init__(self, program: Flat, roles: Sequence[Sequence[int]]):
        self.makers = {v: (n, at) for n in program.nodes for at, v in enumerate(n.outs)}
        self.shapes = [program.invars[at].aval.shape for at in roles[0]]
        self.known: dict[Any, Any] = {
            names([program.invars[at] for at in role]): _Role(number)
            for number, role in enumerate(roles)
        }

    def source(self, atoms: Sequence[Atom], depth: int = 0) -> Any:
        """Where one vector of these arrays, one for each of a role, comes from."""
        atoms = [self._typed(x) for x in atoms]
        scalars = [self._scalar(x) for x in atoms]
        if all(x is not None for x in scalars) and len(set(map(_name, scalars))) == 1:
            return _Shared(scalars[0])
        key = names(atoms)
        if key not in self.known:
            self.known[key] = self._made(tuple(atoms), depth) or _Cut(tuple(atoms))
        return self.known[key]

    def _made(self, atoms: tuple[Atom, ...], depth: int) -> _Made | None:
        found = [self.makers[x] for x in atoms if not _is_literal(x) and x in self.makers]
        kinds = {_kind(node, at) for node, at in found}
        shapes = [x.aval.shape for x in atoms]
        alike = len(found) == len(atoms) and len(kinds) == 1 and None not in kinds
        if depth > _DEEPEST or not alike or shapes != self.shapes:
            return None
        (first, position), operands = found[0], zip(*(n.operands for n, _ in found), strict=True)
        sources = tuple(self.source(each, depth + 1) for each in operands)
        varying = {id(s): s for s in sources if not isinstance(s, _Shared)}
        grounded = any(_is_grounded(s) for s in varying.values())
        if not grounded and len(varying) > 1:  # its operands would have to be put together, each
            return None
        return _Made(first.eqn, position, sources, atoms, grounded)

    def _scalar(self, atom: Atom) -> Atom | None:
        """The scalar that an array repeats."""
        while atom.aval.shape:
            eqn = self._maker(atom)
            if eqn is None or eqn.primitive.name != "broadcast_in_dim":
                return None
            atom = self.makers[atom][0].operands[0]
        return atom

    def _typed(self, atom: Atom) -> Atom:
        """The same without conversions that only make a type weak, or no longer weak."""
        eqn = self._maker(atom)
        while eqn is not None and eqn.primitive.name == "convert_element_type":
            before = self.makers[atom][0].operands[0]
            if before.aval.dtype != atom.aval.dtype:
                break
            atom, eqn = before, self._maker(before)
        return atom

    def _maker(self, atom: Atom) -> Any:
        node = None if _is_literal(atom) else self.makers.get(atom, (None,))[0]
        return None if node is None else node.eqn


def _name(scalar: Atom) -> Any:
    """Equal for one scalar; literals by value."""
    if not _is_literal(scalar):
        return id(scalar)
    dtype = scalar.aval.dtype
    return str(dtype), np.asarray(scalar.val, dtype).tobytes()


def _is_grounded(source: Any) -> bool:
    return source.grounded if isinstance(source, _Made) else isinstance(source, _Role)


def _kind(node: Node, position: int) -> Any:
    """Equal for equations that do the same to each entry, whatever the shape; else None."""
    if node.eqn is None or node.eqn.primitive.name not in ENTRY_BY_ENTRY:
        return None
    dtypes = tuple(str(x.aval.dtype) for x in (*node.operands, *node.outs))
    return node.eqn.primitive, str(sorted(node.eqn.params.items(), key=str)), dtypes, position


def _is_literal(atom: Any) -> bool:
    return isinstance(atom, _jax.Literal)


@dataclass(eq=False)
class Fused:
    """A step whose state is carried as one vector for each role, and its other arrays behind.

    Attributes:
      program: of the step; its first inputs, and results, are the arrays of the state.
      roles: the positions of the arrays of each role.
      singles: those of the other arrays of the state.
      sources: where the new vector of each role comes from.
      before: what is evaluated one by one before that.
      after: what is evaluated one by one behind it.
      read: what of the equations done at once is read one by one, too.
    """

    program: Flat
    roles: list[list[int]]
    singles: list[int]
    sources: list[Any]
    before: list[Node]
    after: list[Node]
    read: list[_Made]

    def carried(self, leaves: Sequence[Any]) -> list[Any]:
        """The state as it is carried."""
        vectors = [_vector([leaves[at] for at in role]) for role in self.roles]
        return [*vectors, *(leaves[at] for at in self.singles)]

    def leaves(self, carried: Sequence[Any]) -> list[Any]:
        """The arrays of the state."""
        found = dict(zip(self.singles, carried[len(self.roles) :], strict=True))
        for role, vector in zip(self.roles, carried, strict=False):
            found.update(zip(role, self._parts(vector), strict=True))
        return [found[at] for at in sorted(found)]

    def holding(self, positions: Sequence[int]) -> list[int]:
        """The numbers, in what is carried, of what holds the arrays at these positions."""
        numbers = {at: n for n, role in enumerate(self.roles) for at in role}
        numbers |= {at: n + len(self.roles) for n, at in enumerate(self.singles)}
        return sorted({numbers[at] for at in positions})

    def step(self, carried: Sequence[Any], others: Sequence[Any] = ()) -> tuple[list[Any], list]:
        """The new state as it is carried, and the other results.

        Args:
          carried: the state.
          others: the other inputs of the program.
        """
        program, leaves = self.program, self.leaves(carried)
        found = dict(zip(program.invars, [*leaves, *others], strict=True)) | program.consts
        _evaluate(found, self.before)
        done: dict[int, Any] = {}
        new = [self._value(source, carried, found, done) for source in self.sources]
        for made in self.read:
            found.update(zip(made.atoms, self._parts(done[id(made)]), strict=True))
        _evaluate(found, self.after)
        alone, rest = [program.outs[at] for at in self.singles], program.outs[len(leaves) :]
        get = lambda x: jnp.asarray(x.val) if _is_literal(x) else found[x]
        vectors = (jnp.broadcast_to(x, jnp.shape(v)) for x, v in zip(new, carried, strict=False))
        return [*vectors, *map(get, alone)], list(map(get, rest))

    def _shapes(self) -> list[tuple[int, ...]]:
        return [self.program.invars[at].aval.shape for at in self.roles[0]]

    def _parts(self, vector: Any) -> list[Any]:
        """A vector, or a scalar for all of one, taken apart."""
        shapes = self._shapes()
        ends = list(itertools.accumulate(map(math.prod, shapes)))
        vector = jnp.broadcast_to(vector, (ends[-1],))
        starts = [0, *ends[:-1]]
        return [vector[a:b].reshape(s) for a, b, s in zip(starts, ends, shapes, strict=True)]

    def _value(self, source: Any, carried: Any, found: Any, done: dict[int, Any]) -> Any:
        """One vector, or a scalar in its place; of each equation once."""
        if isinstance(source, _Role):
            return carried[source.number]
        if isinstance(source, _Shared):
            return source.atom.val if _is_literal(source.atom) else found[source.atom]
        if id(source) not in done:
            if isinstance(source, _Cut):
                arrays = (x.val if _is_literal(x) else found[x] for x in source.atoms)
                scalars_too = map(jnp.broadcast_to, arrays, self._shapes())
                done[id(source)] = _vector(scalars_too)
            else:
                operands = [self._value(s, carried, found, done) for s in source.operands]
                done[id(source)] = _done(source, operands)
        return done[id(source)]


def fused(program: Flat, count: int, roles: Sequence[Sequence[int]]) -> Fused | None:
    """A step whose state is carried by roles, or None if nothing would be gained by it.

    Args:
      program: of the step; its first results are what its inputs are in the next step.
      count: of the arrays of the state.
      roles: the positions of the arrays of each role, of the same shapes in all roles.
    """
    roles = _small(program, roles)
    if not program.packable or not roles:
        return None
    reader = _Reader(program, roles)
    sources = [reader.source([program.outs[at] for at in role]) for role in roles]
    made, cuts, scalars = _behind(sources)
    if any(isinstance(s, _Cut) for s in sources) or len(made) < _WORTH * len(cuts):
        return None
    taken = {at for role in roles for at in role}
    singles = [at for at in range(count) if at not in taken]
    before = alive(program.nodes, [*(x for each in cuts for x in each.atoms), *scalars])
    wanted = [program.outs[at] for at in singles] + program.outs[count:]
    after, read = _after(program, wanted, before, made)
    return Fused(program, roles, singles, sources, before, after, read)


def _small(program: Flat, roles: Sequence[Sequence[int]]) -> list[list[int]]:
    """The roles, without what is large or no real number; none if too few are left."""
    if not roles:
        return []
    avals = [program.invars[at].aval for at in roles[0]]
    kept = [
        n
        for n, aval in enumerate(avals)
        if aval.size <= LARGEST and jnp.issubdtype(aval.dtype, jnp.floating)
    ]
    found = [[role[n] for n in kept] for role in roles]
    for role in found:
        types = [(program.invars[at].aval, program.outs[at].aval) for at in role]
        shapes = [tuple(x.shape for x in both) for both in types]
        one_dtype = len({x.dtype for both in types for x in both}) == 1
        if not one_dtype or shapes != [(avals[n].shape,) * 2 for n in kept]:
            return []
    return found if len(kept) >= FEWEST else []


def _behind(sources: Sequence[Any]) -> tuple[list[_Made], list[_Cut], list[Atom]]:
    """The equations done at once behind the sources, the vectors put together, the scalars."""
    found: dict[int, Any] = {}
    left = list(sources)
    while left:
        source = left.pop()
        if id(source) not in found:
            found[id(source)] = source
            left += source.operands if isinstance(source, _Made) else ()
    of = lambda kind: [s for s in found.values() if isinstance(s, kind)]
    return of(_Made), of(_Cut), [s.atom for s in of(_Shared)]


def _after(
    program: Flat, wanted: Sequence[Atom], before: Sequence[Node], made: Sequence[_Made]
) -> tuple[list[Node], list[_Made]]:
    """What is evaluated last, for ``wanted``, and what that reads of what was done at once."""
    members = {x: each for each in made for x in each.atoms}
    known = {v for node in before for v in node.outs} | members.keys()
    left = [n for n in program.nodes if not all(v in known for v in n.outs)]
    after = alive(left, wanted)
    read = [*wanted, *(v for node in after for v in node.operands)]
    found = {id(members[v]): members[v] for v in read if not _is_literal(v) and v in members}
    return after, list(found.values())


def _evaluate(found: dict[Any, Any], nodes: Sequence[Node]) -> None:
    """Have ``found`` hold the results of equations, from what it holds."""
    made = [v for n in nodes for v in n.outs if not _jax.is_dropped(v)]
    operands = dict.fromkeys(v for n in nodes for v in n.operands if not _is_literal(v))
    given = [v for v in operands if v not in set(made)]
    eqns = [node.equation for node in nodes]
    values = _jax.evaluator(eqns, given, made)(*(found[v] for v in given))
    found.update(zip(made, values, strict=True))


def _vector(arrays: Iterable[Any]) -> Any:
    return jnp.concatenate([jnp.reshape(x, -1) for x in arrays])


def _done(made: _Made, operands: Sequence[Any]) -> Any:
    """An equation between vectors, and scalars for all of one."""
    shape = jnp.broadcast_shapes(*map(jnp.shape, operands))
    dtypes = [x.aval.dtype for x in made.eqn.invars]
    whole = [
        jnp.broadcast_to(jnp.asarray(x, d), shape) for x, d in zip(operands, dtypes, strict=True)
    ]
    return _jax.apply(made.eqn, whole)[made.position]
