"""Names that a version before had: they go on working for one version, with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any


def renamed(module: str, name: str, names: Mapping[str, str], current: Mapping[str, Any]) -> Any:
    """What ``module.name`` is now, for its ``__getattr__``.

    Args:
      module: whose attribute was asked for.
      name: as asked for.
      names: new names by old ones.
      current: the module's attributes.

    Raises:
      AttributeError: if it is no old name.
    """
    if name not in names:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    warnings.warn(
        f"{module}.{name} is now {module}.{names[name]}; the old name goes with the next version.",
        DeprecationWarning,
        stacklevel=3,
    )
    return current[names[name]]
