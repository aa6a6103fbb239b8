"""How a tree of arrays lies in one vector for each dtype."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipp_transforms.flattening import LARGEST


class Segment(NamedTuple):
    """Where a leaf lies: in which vector, from where on, and its shape there."""

    vector: str
    start: int
    shape: tuple[int, ...]


class Layout:
    """How the leaves of a pytree lie in one vector for each dtype, those of one shape side by side.

    Args:
      tree: of arrays, or of their shapes and dtypes.

    Attributes:
      treedef: the structure of the tree.
      segments: by leaf, where it lies.
      order: the numbers of the leaves as they lie.
    """

    def __init__(self, tree: Any):
        leaves, self.treedef = jax.tree_util.tree_flatten(tree)
        together: dict[Any, list[int]] = {}
        for number, x in enumerate(leaves):
            together.setdefault((str(x.dtype), x.shape), []).append(number)
        self.order = [number for numbers in together.values() for number in numbers]
        lengths: dict[str, int] = {}
        found: dict[int, Segment] = {}
        for number in self.order:
            name, shape = str(leaves[number].dtype), leaves[number].shape
            start = lengths.get(name, 0)
            found[number] = Segment(name, start, shape)
            lengths[name] = start + math.prod(shape)
        self.segments = [found[number] for number in range(len(leaves))]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash(self._all())

    def _all(self) -> tuple[Any, ...]:
        return self.treedef, *self.segments

    def ravel(self, tree: Any) -> dict[str, Any]:
        """The vectors of a tree."""
        return self.vectors_of(dict(enumerate(jax.tree_util.tree_leaves(tree))))

    def vectors_of(self, leaves: Mapping[int, Any]) -> dict[str, Any]:
        """The vectors of some leaves, by their numbers: all of a vector's."""
        parts: dict[str, list[Any]] = {}
        for number in self.order:
            if number in leaves:
                name = self.segments[number].vector
                parts.setdefault(name, []).append(leaves[number].reshape(-1))
        return {name: jnp.concatenate(part) for name, part in parts.items()}

    def blocks(self) -> list[list[int]]:
        """The numbers of leaves that are taken together, as they lie: small ones of one shape."""
        found: list[list[int]] = []
        for number in self.order:
            last = self.segments[found[-1][0]] if found else None
            segment = self.segments[number]
            alike = last is not None and segment._replace(start=last.start) == last
            if alike and math.prod(segment.shape) <= LARGEST:
                found[-1].append(number)
            else:
                found.append([number])
        return found

    def unravel(self, vectors: dict[str, Any]) -> Any:
        """The tree of its vectors."""
        leaves = [cut(vectors[s.vector], s) for s in self.segments]
        return jax.tree_util.tree_unflatten(self.treedef, leaves)


def cut(vector: Any, segment: Segment) -> Any:
    """A leaf of its vector."""
    size = math.prod(segment.shape)
    return vector[segment.start : segment.start + size].reshape(segment.shape)
