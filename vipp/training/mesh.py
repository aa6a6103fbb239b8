"""Data shared out over the devices of a mesh; parameters are on all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vipp.training.abstract_run import facts_of


@dataclass(frozen=True)
class Placement:
    """Where the arrays of a run lie.

    Attributes:
      mesh: the devices; the data are shared out along its first axis.
      plates: by the number of their elements that a step sees, the model's plates.
    """

    mesh: Mesh
    plates: dict[int, str]

    def data(self, tree: Any) -> Any:
        """Arrays along a plate split along it, all other ones on every device."""
        return jax.tree.map(self._placed, tree)

    def everywhere(self, tree: Any) -> Any:
        """Every array on every device."""
        return jax.tree.map(lambda x: _put(x, NamedSharding(self.mesh, PartitionSpec())), tree)

    def check(self, tree: Any) -> None:
        """Raise unless some array is split, and each evenly.

        Raises:
          ValueError: naming the plate that cannot be, or if no array lies along one.
        """
        devices = self.mesh.shape[self.mesh.axis_names[0]]
        sizes = {n for x in jax.tree.leaves(tree) for n in jnp.shape(x) if n in self.plates}
        for size in sorted(sizes):
            if size % devices:
                raise ValueError(
                    f"fit: plate '{self.plates[size]}' has {size} elements in a step, which "
                    f"{devices} devices of mesh axis '{self.mesh.axis_names[0]}' cannot share "
                    "evenly. Fix: leave some rows out, or repeat some under a mask."
                )
        if not sizes:
            shapes = [jnp.shape(x) for x in jax.tree.leaves(tree)]
            raise ValueError(
                f"fit: mesh= has no data to share out: no argument has an axis along a plate, got "
                f"arrays of shapes {shapes} and plates of sizes {sorted(self.plates)}. Fix: put "
                "the data into a plate, or leave mesh out."
            )

    def _placed(self, x: Any) -> Any:
        if _is_shared(x):  # as it lies, on a mesh of which the compiler works out the rest
            where = NamedSharding(self.mesh, x.sharding.spec)
            parts = [shard.data for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape, where, parts)
        if not isinstance(x, jax.Array) and not hasattr(x, "__array__"):
            return x
        first, spec = self.mesh.axis_names[0], []
        for n in jnp.shape(x):
            spec.append(first if n in self.plates and first not in spec else None)
        return _put(x, NamedSharding(self.mesh, PartitionSpec(*spec)))


def here(tree: Any) -> Any:
    """Arrays that several processes have together as the rows that this one has."""
    return jax.tree.map(lambda x: _rows_here(x) if _is_shared(x) else x, tree)


def _is_shared(x: Any) -> bool:
    return isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated


def _rows_here(x: jax.Array) -> np.ndarray:
    parts = {shard.index[0].start or 0: np.asarray(shard.data) for shard in x.addressable_shards}
    return np.concatenate([parts[start] for start in sorted(parts)])


def _put(x: Any, where: NamedSharding) -> jax.Array:
    """An array that every process has, as one of all processes' devices."""
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
        data = _put(jax.random.key_data(x), where)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    array = np.asarray(x)
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


def placement(
    mesh: Mesh, model: Callable[..., Any], params: Any, args: tuple[Any, ...], kwargs: Any
) -> Placement:
    """What of a model's data can be shared out: what lies along its plates."""
    plates: dict[int, str] = {}
    for name, found in facts_of(model, params, args, kwargs).items():
        if found.kind == "plate":
            size, count = found.args
            plates.setdefault(size if count is None else count, name)
    # the compiler works out where everything else lies: a program need not say it
    auto = (AxisType.Auto,) * len(mesh.axis_names)
    return Placement(Mesh(mesh.devices, mesh.axis_names, axis_types=auto), plates)
