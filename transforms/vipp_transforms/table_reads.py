"""Tables read at the values of a choice: rows of the table, and no gather.

Where every value of a choice is tried, and all of its lanes take the same one, ``table[z]`` is the
table itself with its rows along the axis of the choice: one for all lanes, or of each lane its own.
A gather would copy the table for each lane, and its derivative add up entry by entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms import _jax, indices
from vipp_transforms.axis_sums import settled
from vipp_transforms.indices import Index
from vipp_transforms.repetition import Thin
from vipp_transforms.support_numbers import Numbers, follow, numbers_of, table_over


class Look(NamedTuple):
    """How an equation reads a table.

    Attributes:
      columns: by axis of the table that is indexed, the indices.
      windows: by axis that is taken as it lies, or a part of it, the axis of the result.
      apart: by axis that is taken entry by entry, that axis of the result.
      looped: the axes of the result that are those of the indices.
    """

    columns: dict[int, Any]
    windows: dict[int, int]
    apart: dict[int, int]
    looped: tuple[int, ...]


class Read(NamedTuple):
    """An equation that reads a table at numbers that are known.

    Attributes:
      eqn: it.
      look: how.
      picked: by axis of the table, the numbers that it is read at.
      axes: the names of the choices, in order.
    """

    eqn: Any
    look: Look
    picked: dict[int, Numbers]
    axes: tuple[str, ...]

    @property
    def left(self) -> list[int]:
        """The axes of the table that are not picked."""
        return [a for a in range(len(self.eqn.invars[0].aval.shape)) if a not in self.picked]

    @property
    def operands(self) -> list[Any]:
        """What it is computed from: the table, and the indices of other axes."""
        return [self.eqn.invars[0], *self.look.columns.values()]

    @property
    def _places(self) -> dict[int, int]:
        return {**self.look.windows, **self.look.apart}

    @property
    def _absent(self) -> list[int]:
        """The axes of the result that no axis of the table, or of indices, lies along."""
        if self.look.columns:
            return sorted(self._places[a] for a in self.picked if a in self._places)
        present = {self._places[a] for a in self.left}
        return [b for b in range(len(self.eqn.outvars[0].aval.shape)) if b not in present]

    def passed(self, same: Iterable[int]) -> frozenset[int]:
        """Those axes along which the table is the same that may be left at size one."""
        return frozenset() if self.look.columns else frozenset(same) - {*self.picked}

    def same(self, passed: Iterable[int]) -> frozenset[int]:
        """The axes of the result that :meth:`run` leaves at size one, given those of the table."""
        shape = self.eqn.outvars[0].aval.shape
        axes = {*self._absent, *(self._places[a] for a in passed)}
        return frozenset(b for b in axes if shape[b] > 1)

    def run(self, table: Any, *columns: Any) -> Any:
        """The result, with the axes of the choices in front."""
        count, rows = len(self.axes), _rows(table, self.picked, self.axes)
        if columns:
            fn: Callable[[Any], Any] = lambda x: self._gathered(x, columns)
            for _ in range(count):
                fn = jax.vmap(fn)
            rows = fn(rows)
        else:
            order = np.argsort([self._places[a] for a in self.left])
            rows = jnp.transpose(rows, (*range(count), *(count + i for i in order)))
        return jnp.expand_dims(rows, [count + b for b in self._absent])

    def _gathered(self, rows: Any, columns: Sequence[Any]) -> Any:
        """What is left to look up, for one value of each choice."""
        params, left = self.eqn.params, self.left
        sizes = tuple(params["slice_sizes"][a] for a in left)
        if self.eqn.primitive.name == "dynamic_slice":
            given = dict(zip(self.look.columns, columns, strict=True))
            return jax.lax.dynamic_slice(rows, [given.get(a, 0) for a in left], sizes)
        numbers, windows = params["dimension_numbers"], self.look.windows
        gone = [windows[a] for a in self.picked if a in windows]
        kept = lambda axes: tuple(left.index(a) for a in axes if a not in self.picked)
        numbers = numbers._replace(
            offset_dims=tuple(
                b - sum(g < b for g in gone) for b in numbers.offset_dims if b not in gone
            ),
            collapsed_slice_dims=kept(numbers.collapsed_slice_dims),
            start_index_map=kept(self.look.columns),
            operand_batching_dims=kept(numbers.operand_batching_dims),
        )
        return jax.lax.gather(
            rows, jnp.concatenate(columns, axis=-1), numbers, sizes, mode=params["mode"],
            fill_value=params["fill_value"],
        )  # fmt: skip


@dataclass
class Facts:
    """What is known of values before they are evaluated.

    Attributes:
      numbers: of those that are the same at every entry.
      counted: of integers that count along an axis.
      columns: of indices of several axes, the index of each.
      thin: of those that are the same along an axis, what they are made of.
    """

    numbers: dict[Any, Numbers] = field(default_factory=dict)
    counted: indices.Scope = field(default_factory=dict)
    columns: dict[Any, list[Any]] = field(default_factory=dict)
    thin: dict[Any, Thin] = field(default_factory=dict)

    def reads(
        self, eqns: Sequence[Any], order: Sequence[str], constants: Mapping[Any, Any]
    ) -> dict[Any, Read]:
        """The equations that read a table at known numbers, by what they compute.

        Args:
          eqns: in order.
          order: of the names of choices.
          constants: the values of variables that no equation computes.
        """
        if not self.numbers:
            return {}
        follow(eqns, self.numbers, order)
        tables = [e for e in eqns if e.primitive.name in ("gather", "dynamic_slice")]
        if not tables:
            return {}
        counted = {v: k for v, x in constants.items() if (k := indices.of_array(x)) is not None}
        self.counted.update(counted)
        indices.follow(eqns, self.counted)
        self.columns.update(
            (e.outvars[0], list(e.invars)) for e in eqns if e.primitive.name == "concatenate"
        )
        found = ((e.outvars[0], _read(e, self, order)) for e in tables)
        return {v: read for v, read in found if read is not None}


def _read(eqn: Any, facts: Facts, order: Sequence[str]) -> Read | None:
    """An equation as one that reads a table at known numbers, if it is one."""
    known, counted = facts.numbers, facts.counted
    look = _look(eqn, facts.columns)
    if look is None or 0 in eqn.outvars[0].aval.shape:
        return None
    shape, sizes = eqn.invars[0].aval.shape, eqn.params["slice_sizes"]
    picked: dict[int, Numbers] = {}
    columns: dict[int, Any] = {}
    apart = dict(look.apart)
    windows = dict(look.windows)
    for axis, atom in look.columns.items():
        numbers = _inside(numbers_of(atom, known), shape[axis], eqn) if sizes[axis] == 1 else None
        if numbers is not None:
            picked[axis] = numbers
        elif not _is_whole(atom, known, sizes[axis], shape[axis]):
            columns[axis] = atom
    if not any(x.axes for x in picked.values()):
        return None
    if any(sizes[a] != shape[a] for a in windows if a not in picked and a not in columns):
        return None
    places = {a: _counting(v, counted, look, sizes[a], shape[a]) for a, v in columns.items()}
    taken = [*apart.values(), *places.values()]
    if None not in places.values() and len(set(taken)) == len(taken):
        # a number of each lane's own: these axes are laid along each other
        apart |= {a: b for a, b in places.items() if b is not None}
        columns = {}
    axes = tuple(n for n in order if any(n in x.axes for x in picked.values()))
    return Read(eqn, Look(columns, windows, apart, look.looped), picked, axes)


def _look(eqn: Any, joined: Mapping[Any, list[Any]]) -> Look | None:
    """How an equation reads a table, if it does."""
    name, params = eqn.primitive.name, eqn.params
    if name == "dynamic_slice":
        axes = range(len(eqn.invars[0].aval.shape))
        return Look(dict(zip(axes, eqn.invars[1:], strict=True)), {a: a for a in axes}, {}, ())
    if name != "gather":
        return None
    numbers = params["dimension_numbers"]
    columns = _columns(eqn.invars[1], joined)
    if columns is None:
        return None
    rank, batched = len(eqn.outvars[0].aval.shape), numbers.operand_batching_dims
    looped = tuple(b for b in range(rank) if b not in numbers.offset_dims)
    gone = (*numbers.collapsed_slice_dims, *batched)
    whole = [a for a in range(len(eqn.invars[0].aval.shape)) if a not in gone]
    apart = [looped[i] for i in numbers.start_indices_batching_dims]
    return Look(
        dict(zip(numbers.start_index_map, columns, strict=True)),
        dict(zip(whole, numbers.offset_dims, strict=True)),
        dict(zip(batched, apart, strict=True)),
        looped,
    )


def _columns(index: Any, joined: Mapping[Any, list[Any]]) -> list[Any] | None:
    """The columns of an array of indices, if they are known one by one."""
    width = index.aval.shape[-1]
    if width == 1:
        return [index]
    found: list[Any] | None = None if isinstance(index, _jax.Literal) else joined.get(index)
    if found is None or any(v.aval.shape[-1:] != (1,) for v in found):
        return None
    return found if len(found) == width else None


def _inside(numbers: Numbers | None, size: int, eqn: Any) -> Numbers | None:
    """Numbers that are inside of an axis, or put there."""
    if numbers is None:
        return None
    clips = eqn.params.get("mode", _CLIP) == _CLIP
    table = np.clip(numbers.table, 0, size - 1)
    return numbers._replace(table=table) if clips or np.all(table == numbers.table) else None


_CLIP = jax.lax.GatherScatterMode.CLIP


def _is_whole(atom: Any, known: Mapping[Any, Numbers], size: int, full: int) -> bool:
    """Whether an axis is taken from its start to its end."""
    numbers = numbers_of(atom, known)
    return size == full and numbers is not None and not numbers.table.any()


def _counting(atom: Any, counted: indices.Scope, look: Look, size: int, full: int) -> int | None:
    """The axis of the result that an index counts along, if it does and runs through all of its."""
    found = indices.of(atom, counted)
    if not isinstance(found, Index) or not isinstance(found.place, int) or size != 1:
        return None
    whole = (found.first, found.size) == (0, full) and found.place < len(look.looped)
    return look.looped[found.place] if whole else None


def _rows(table: Any, picked: Mapping[int, Numbers], axes: Sequence[str]) -> Any:
    """The entries at known numbers, along the axes of the choices, in front."""
    at = {a: x.table for a, x in picked.items() if x.axes}
    by_name: dict[str, int] = {}
    for axis, numbers in list(at.items()):
        first, size = int(numbers.flat[0]), numbers.size
        if np.array_equal(numbers, first + np.arange(size)):
            at[axis] = numbers - first
            table = jax.lax.slice_in_dim(table, first, first + size, axis=axis)
            by_name |= dict.fromkeys(picked[axis].axes, axis)
    left = [a for a in range(jnp.ndim(table)) if a not in picked]
    fixed = [a for a in picked if a not in at]
    front = [by_name[n] for n in axes] if len(by_name) == len(at) else [*at]
    order = (*fixed, *front, *left)
    table = jnp.transpose(settled(table) if order != tuple(sorted(order)) else table, order)
    if fixed:  # XLA adds up the derivatives of many such, but not those of slices
        index = tuple(np.reshape(picked[a].table, 1) for a in fixed)
        table = jnp.squeeze(table.at[index].get(mode="promise_in_bounds"), 0)
    if len(by_name) == len(at):
        return table
    index = tuple(table_over(picked[a]._replace(table=x), axes) for a, x in at.items())
    return table.at[index].get(mode="promise_in_bounds")
