"""What a packed loop returns: vectors, taken apart outside of the compiled program."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms import _jax
from vipp_transforms.layout import Layout, cut


@jax.tree_util.register_pytree_node_class
class Ravelled:
    """A tree as one vector for each dtype.

    XLA compiles a kernel for every slice that a program returns; outside of it they are free.

    Args:
      layout: of the tree.
      vectors: by dtype, those of random keys left out.
      keys: the leaves that are random keys, in order.
    """

    def __init__(self, layout: Layout, vectors: dict[str, Any], keys: list[Any]):
        self.layout, self.vectors, self.keys = layout, vectors, keys

    def tree_flatten(self) -> tuple[Any, Layout]:
        """The arrays, and how they lie."""
        return (self.vectors, self.keys), self.layout

    @classmethod
    def tree_unflatten(cls, layout: Layout, children: Any) -> Ravelled:
        """Of its arrays."""
        return cls(layout, *children)

    @classmethod
    def of(cls, layout: Layout, vectors: dict[str, Any]) -> Ravelled:
        """Of the vectors of :meth:`Layout.ravel`."""
        leaves = jax.tree_util.tree_leaves(layout.unravel(vectors))
        plain = {name: v for name, v in vectors.items() if not _jax.is_key(v)}
        return cls(layout, plain, [x for x in leaves if _jax.is_key(x)])

    @classmethod
    def outside(cls, tree: Any) -> Ravelled:
        """Of a tree of arrays, put together where they are not traced."""
        layout, host, leaves = Layout(tree), {}, jax.tree_util.tree_leaves(tree)
        keys = [x for x in leaves if _jax.is_key(x)]
        plain = [leaves[n] for n in layout.order if not _jax.is_key(leaves[n])]
        for x in jax.device_get(plain):
            host.setdefault(str(x.dtype), []).append(np.reshape(x, -1))
        return cls(layout, {n: jnp.asarray(np.concatenate(xs)) for n, xs in host.items()}, keys)

    def inside(self) -> Any:
        """The tree itself, within a traced function."""
        keys = iter(self.keys)
        leaves = [
            next(keys) if s.vector not in self.vectors else cut(self.vectors[s.vector], s)
            for s in self.layout.segments
        ]
        return jax.tree_util.tree_unflatten(self.layout.treedef, leaves)

    def shapes(self) -> Any:
        """The tree of the leaves' shapes and dtypes."""
        keys = iter(self.keys)
        dtypes = (
            (self.vectors[s.vector] if s.vector in self.vectors else next(keys)).dtype
            for s in self.layout.segments
        )
        shapes = (s.shape for s in self.layout.segments)
        leaves = list(map(jax.ShapeDtypeStruct, shapes, dtypes))
        return jax.tree_util.tree_unflatten(self.layout.treedef, leaves)

    def all_vectors(self) -> dict[str, Any]:
        """Those of :meth:`Layout.ravel`, within a traced function: nothing is taken apart."""
        keys = iter(self.keys)
        segments = enumerate(self.layout.segments)
        by_number = {n: next(keys) for n, s in segments if s.vector not in self.vectors}
        return self.vectors | self.layout.vectors_of(by_number)

    def tree(self) -> Any:
        """The tree itself, each leaf where its vector is."""
        host = jax.device_get(self.vectors)
        keys, leaves, places = iter(self.keys), [], []
        for segment in self.layout.segments:
            if segment.vector not in host:
                leaves.append(next(keys))
                places.append(leaves[-1].sharding)
                continue
            end = segment.start + math.prod(segment.shape)
            leaves.append(np.reshape(host[segment.vector][segment.start : end], segment.shape))
            place = self.vectors[segment.vector].sharding
            places.append(place if place.is_fully_replicated else None)
        moved = jax.device_put(leaves, places)
        return jax.tree_util.tree_unflatten(self.layout.treedef, moved)
