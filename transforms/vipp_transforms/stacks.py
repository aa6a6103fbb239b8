"""Values of one shape, many of them entries of one array."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vipp_transforms import _jax
from vipp_transforms.flattening import Atom, names


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
        label = names(atoms)
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
            source = names([atom]) if literal else place.stack
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
