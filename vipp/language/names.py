"""Names that are nearly right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of ``names`` that is nearly ``name``, if any is."""
    found = difflib.get_close_matches(name, list(names), n=1)
    return found[0] if found else None


def close(name: str, names: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"``, where one of ``names`` is nearly ``name``."""
    found = nearest(name, names)
    return f" (did you mean '{found}'?)" if found else ""
