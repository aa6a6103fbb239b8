"""Tables as text and as HTML, and how an estimator is written in one."""

from __future__ import annotations

from dataclasses import fields
from html import escape
from typing import Any

import jax
import numpy as np

from vipp_transforms.settings import Part

_ARRAYS = (jax.ShapeDtypeStruct, jax.Array, np.ndarray)


def as_text(cells: list[list[str]]) -> str:
    """In columns, a rule beneath the head."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:]])


def as_html(cells: list[list[str]]) -> str:
    """A ``table``."""
    rows = ("".join(f"<td>{escape(c)}</td>" for c in row) for row in cells)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def short(value: Any) -> str:
    """An estimator without the arguments left at their defaults; arrays by type and shape."""
    return _written(value, named=True)


def brief(value: Any) -> str:
    """As :func:`short`, without the names of the first arguments, unless they are booleans."""
    return _written(value, named=False)


def _written(value: Any, *, named: bool) -> str:
    if isinstance(value, _ARRAYS):
        return f"{value.dtype.name}{list(value.shape)}"
    if not isinstance(value, Part):
        return repr(value)
    parts: Any = value
    arguments = []
    for place, part in enumerate(f for f in fields(parts) if f.repr):
        given = getattr(value, part.name)
        if not _same(given, part.default):
            first = not (named or isinstance(given, bool)) and place == len(arguments)
            arguments.append(f"{'' if first else part.name + '='}{_written(given, named=named)}")
    return type(value).__name__ + (f"({', '.join(arguments)})" if arguments else "")


def _same(given: Any, default: Any) -> bool:
    return not isinstance(given, _ARRAYS) and bool(given == default)
