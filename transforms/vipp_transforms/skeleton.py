"""A pytree without its array leaves."""

from __future__ import annotations

from typing import Any

import jax


class Skeleton:
    """A pytree without its array leaves, and how to put it together again.

    Python numbers stay static: a support or a shape may depend on them.
    """

    def __init__(self, tree: Any):
        leaves, self.treedef = jax.tree_util.tree_flatten(tree)
        self.dynamic = tuple(isinstance(leaf, jax.Array) for leaf in leaves)
        self.static = tuple(None if d else x for d, x in zip(self.dynamic, leaves, strict=True))

    def leaves(self, tree: Any) -> list[Any]:
        """The array leaves of ``tree``."""
        leaves = jax.tree_util.tree_leaves(tree)
        return [x for d, x in zip(self.dynamic, leaves, strict=True) if d]

    def build(self, leaves: Any) -> Any:
        """The tree with these array leaves."""
        arrays = iter(leaves)
        merged = [next(arrays) if d else s for d, s in zip(self.dynamic, self.static, strict=True)]
        return jax.tree_util.tree_unflatten(self.treedef, merged)


def shapes(tree: Any) -> Any:
    """``tree`` with the shape and dtype of each array in its place."""

    def shape(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        return leaf

    return jax.tree_util.tree_map(shape, tree)
