"""The values that a program drew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("values", "subsamples"),
    meta_fields=("auxiliary", "unrolled", "random_auxiliary"),
)
@dataclass(frozen=True)
class Trace:
    """Latent values by site name, and the indices that subsampled plates drew.

    Reads like a mapping over the latent values.

    Args:
      values: by site name, each of its site's shape and dtype.
      subsamples: by plate name, int indices of shape ``(subsample_size,)``.
      auxiliary: names of sites marked ``infer={"is_auxiliary": True}``.
      unrolled: whether the program's scans were unrolled; the sites of step ``t`` of one are then
        called ``name[t]``.
      random_auxiliary: the random ones of the auxiliary sites, with the deterministic sites that
        depend on them: without these the other program must have them.

    Example:
      >>> import vipp
      >>> vipp.Trace({"z": 1.0})["z"]
      1.0
    """

    values: dict[str, Any]
    subsamples: dict[str, Any] = field(default_factory=dict)
    auxiliary: tuple[str, ...] = ()
    unrolled: bool = False
    random_auxiliary: tuple[Any, ...] = ()

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def __contains__(self, name: object) -> bool:
        return name in self.values

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)
