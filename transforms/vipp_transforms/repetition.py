"""Values that are the same along an axis, computed once.

A choice whose every value is tried takes the same one in all of its lanes; so do the rows of a
table that it reads, and what is computed from them. Such a value is kept with an axis of size one,
and repeated where it meets one that differs from lane to lane.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vipp_transforms import _jax
from vipp_transforms.axis_rules import ENTRY_BY_ENTRY, axis_maps
from vipp_transforms.equations import spreading, squeezing

_ANY_SHAPE = ENTRY_BY_ENTRY | frozenset(
    """
    reduce_sum reduce_prod reduce_max reduce_min reduce_and reduce_or squeeze transpose concatenate
    dot_general broadcast_in_dim reshape
    """.split()
)


class Thin(NamedTuple):
    """A value that is the same along some axes.

    Attributes:
      var: it, these axes of size one.
      axes: which.
    """

    var: Any
    axes: frozenset[int]


def thin_like(var: Any, axes: Iterable[int]) -> Thin:
    """A new variable with some axes of size one, in place of another."""
    axes = frozenset(axes)
    shape = tuple(1 if a in axes else n for a, n in enumerate(var.aval.shape))
    return Thin(_jax.Var(_jax.shaped_array(shape, var.aval.dtype)), axes)


@dataclass
class Repetition:
    """Equations rewritten so that what is the same along an axis is computed once.

    Attributes:
      thin: by variable, what it is made of.
      stands_for: by new variable, the one that it is a smaller copy of.
      eqns: those rewritten so far.
    """

    thin: dict[Any, Thin] = field(default_factory=dict)
    stands_for: dict[Any, Any] = field(default_factory=dict)
    eqns: list[Any] = field(default_factory=list)
    _repeated: dict[Any, Any] = field(default_factory=dict)

    def add(self, var: Any, axes: Iterable[int]) -> Any:
        """A new variable for a value that is the same along some axes."""
        found = self.thin[var] = thin_like(var, axes)
        self.stands_for[found.var] = var
        return found.var

    def rewrite(self, eqn: Any) -> None:
        """Add an equation, as small as it can be."""
        if eqn.primitive.name == "gather":
            self._gather(eqn)
            return
        same = self._same(eqn)
        if not same:
            self.keep(eqn)
            return
        (out,) = eqn.outvars
        (maps,) = axis_maps(eqn)
        operands = [
            self.read(v, {a for a, b in enumerate(m) if b in same})
            for v, m in zip(eqn.invars, maps, strict=True)
        ]
        small = self.add(out, same)
        params = dict(eqn.params)
        for name in ("shape", "new_sizes"):
            if name in params:
                params[name] = small.aval.shape
        self.eqns.append(eqn.replace(invars=operands, outvars=[small], params=params))

    def keep(self, eqn: Any) -> None:
        """Add an equation as it is."""
        operands = [self.read(v) for v in eqn.invars]
        self.eqns.append(eqn.replace(invars=operands))

    def read(self, atom: Any, axes: Iterable[int] = ()) -> Any:
        """An atom with size one along those of ``axes`` along which it is the same."""
        thin = None if isinstance(atom, _jax.Literal) else self.thin.get(atom)
        if thin is None:
            return atom
        keeps = thin.axes & {*axes}
        if keeps == thin.axes:
            return thin.var
        if (atom, keeps) not in self._repeated:
            var: Any = thin_like(atom, keeps).var if keeps else atom
            self.stands_for[var] = atom
            self._repeated[atom, keeps] = var
            self.eqns.append(spreading(thin.var, var, range(len(var.aval.shape))))
        return self._repeated[atom, keeps]

    def _gather(self, eqn: Any) -> None:
        """A table that is the same along an axis, or read at the same indices along it."""
        table, index = eqn.invars
        numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
        rank, shape = len(eqn.outvars[0].aval.shape), table.aval.shape
        looped = [b for b in range(rank) if b not in numbers.offset_dims]
        gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
        whole = [a for a in range(len(shape)) if a not in gone]
        pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
        batched = {a: i for a, i in pairs if a not in self.axes(table)}
        dropped = [a for a in numbers.operand_batching_dims if a in self.axes(table)]
        places = {
            a: b for a, b in zip(whole, numbers.offset_dims, strict=True)
            if a in self.axes(table) and a not in numbers.start_index_map and sizes[a] == shape[a]
        }  # fmt: skip
        alike = self.axes(index) - {*batched.values(), len(looped)}
        if not dropped and not places and not alike:
            self.keep(eqn)
            return
        small = self._without(self.read(table, {*dropped, *places}), dropped)
        left = [a for a in range(len(shape)) if a not in dropped]
        kept = lambda axes: tuple(left.index(a) for a in axes)
        numbers = numbers._replace(
            collapsed_slice_dims=kept(numbers.collapsed_slice_dims),
            start_index_map=kept(numbers.start_index_map),
            operand_batching_dims=kept(batched),
            start_indices_batching_dims=tuple(batched.values()),
        )
        params = eqn.params | {
            "dimension_numbers": numbers,
            "slice_sizes": tuple(1 if a in places else sizes[a] for a in left),
        }
        operands = [small, self.read(index, alike)]
        same = {*places.values(), *(looped[i] for i in alike)}
        (out,) = eqn.outvars
        made = self.add(out, same) if same else out
        self.eqns.append(eqn.replace(invars=operands, outvars=[made], params=params))

    def _without(self, small: Any, axes: Sequence[int]) -> Any:
        """A variable without axes of size one."""
        if not axes:
            return small
        shape = tuple(n for a, n in enumerate(small.aval.shape) if a not in axes)
        var = _jax.Var(_jax.shaped_array(shape, small.aval.dtype))
        self.stands_for[var] = self.stands_for[small]
        self.eqns.append(squeezing(small, var, axes))
        return var

    def axes(self, atom: Any) -> frozenset[int]:
        """The axes along which an atom is known to be the same."""
        thin = None if isinstance(atom, _jax.Literal) else self.thin.get(atom)
        return frozenset() if thin is None else thin.axes

    def _same(self, eqn: Any) -> frozenset[int]:
        """The axes along which an equation's result is the same, and may be computed so."""
        placed = any(eqn.params.get(name) is not None for name in ("sharding", "out_sharding"))
        if eqn.primitive.name not in _ANY_SHAPE or placed:
            return frozenset()
        (maps,) = axis_maps(eqn)
        some: set[int | None] = set()
        differs: set[int | None] = set()
        for v, m in zip(eqn.invars, maps, strict=True):
            axes = self.axes(v)
            some |= {b for a, b in enumerate(m) if a in axes}
            differs |= {b for a, b in enumerate(m) if a not in axes}
        shape = eqn.outvars[0].aval.shape
        if eqn.primitive.name == "broadcast_in_dim":
            sizes = eqn.invars[0].aval.shape
            kept = dict(zip(eqn.params["broadcast_dimensions"], sizes, strict=True))
            some |= {b for b in range(len(shape)) if kept.get(b, 1) == 1}
        return frozenset(b for b in some - differs if b is not None and shape[b] > 1)
