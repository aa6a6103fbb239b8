"""Values of one shape, many of them entries of one array."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from vipp_transforms import _jax, stacking
from vipp_transforms.flattening import Atom, names


class Place(NamedTuple):
    """Where a value is: an entry of a stack, or (without entry) the whole of it."""

    stack: int
    entry: int | None


@dataclass(eq=False)
class Stacks:
    """The values of a program's variables, many of them entries of one array.

    Attributes:
      join: makes one array of several, :func:`stacking.joined` or :func:`stacking.stack`.
      part: makes several of one, :func:`stacking.entries` or :func:`stacking.unstack`.
    """

    join: Callable[..., Any] = stacking.joined
    part: Callable[[Any], list[Any]] | None = None
    arrays: list[Any] = field(default_factory=list)
    places: dict[Any, Place] = field(default_factory=dict)
    fetched: dict[Hashable, Any] = field(default_factory=dict)
    parted: dict[int, list[Any]] = field(default_factory=dict)

    def put(self, var: Any, value: Any) -> None:
        """A value by itself."""
        self.places[var] = Place(len(self.arrays), None)
        self.arrays.append(value)

    def put_all(self, variables: Sequence[Any], array: Any) -> None:
        """Values along the first axis of an array."""
        for index, var in enumerate(variables):
            self.places[var] = Place(len(self.arrays), index)
        self.arrays.append(array)

    def put_entries(self, variables: Sequence[Any], atom: Atom) -> None:
        """Values along the first axis of another value."""
        stack, entry = self.places[atom]
        if entry is not None:
            return self.put_all(variables, self.get(atom))
        for index, var in enumerate(variables):
            self.places[var] = Place(stack, index)

    def get(self, atom: Atom) -> Any:
        """One value."""
        if isinstance(atom, _jax.Literal):
            return jnp.asarray(atom.val, _dtype(atom))
        stack, entry = self.places[atom]
        array = self.arrays[stack]
        if entry is None:
            return array
        if self.part is None:
            return lax.index_in_dim(array, entry, keepdims=False)
        if stack not in self.parted:
            self.parted[stack] = self.part(array)
        return self.parted[stack][entry]

    def order(self, atoms: Sequence[Atom]) -> tuple[tuple[int, int], ...]:
        """Where they are: values in this order need not be rearranged to be taken together."""
        places = (self.places[x] for x in atoms if not isinstance(x, _jax.Literal))
        return tuple((stack, entry or 0) for stack, entry in places)

    def fetch(self, atoms: Sequence[Atom]) -> Any:
        """Several values of one shape along a new first axis."""
        label = names(atoms)
        if label not in self.fetched:
            self.fetched[label] = self._fetch(atoms)
        return self.fetched[label]

    def _fetch(self, atoms: Sequence[Atom]) -> Any:
        alone = {names([x]): x for x in atoms if self._stack_of(x) is None}
        found = dict.fromkeys(map(self._stack_of, atoms))
        starts: dict[int | None, int] = {}
        sources: list[Any] = []
        length = 0
        for stack in found:
            array = self._together(list(alone.values())) if stack is None else self.arrays[stack]
            starts[stack], length = length, length + array.shape[0]
            sources.append(array)
        within = {name: i for i, name in enumerate(alone)}
        index = []
        for atom in atoms:
            stack = self._stack_of(atom)
            entry = within[names([atom])] if stack is None else self.places[atom].entry
            index.append(starts[stack] + (entry or 0))
        joined = sources[0] if len(sources) == 1 else lax.concatenate(sources, 0)
        return _take(joined, index)

    def _stack_of(self, atom: Atom) -> int | None:
        """The array that a value is an entry of, None if it is by itself."""
        if isinstance(atom, _jax.Literal) or self.places[atom].entry is None:
            return None
        return self.places[atom].stack

    def _together(self, atoms: Sequence[Atom]) -> Any:
        if all(isinstance(x, _jax.Literal) for x in atoms):
            return jnp.asarray(np.stack([np.asarray(x.val, _dtype(x)) for x in atoms]))
        return self.join(*map(self.get, atoms))


def _dtype(atom: Any) -> Any:
    return atom.aval.dtype


def _take(array: Any, index: list[int]) -> Any:
    start, count = index[0], len(index)
    step = index[1] - start if count > 1 else 1
    if step > 0 and index == list(range(start, start + count * step, step)):
        whole = count == len(array)
        return array if whole else lax.slice_in_dim(array, start, index[-1] + 1, step)
    return array[np.asarray(index)]
