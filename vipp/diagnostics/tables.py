"""Tables as text and as HTML, and how an estimator is written in one."""

from __future__ import annotations

from dataclasses import fields
from html import escape
from typing import Any

import jax

from vipp_transforms.settings import Part


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
    if isinstance(value, jax.ShapeDtypeStruct | jax.Array):
        return f"{value.dtype.name}{list(value.shape)}"
    if not isinstance(value, Part):
        return repr(value)
    names: Any = value
    arguments = [
        f"{f.name}={short(given)}"
        for f in fields(names)
        if f.repr and not _same(given := getattr(value, f.name), f.default)
    ]
    return type(value).__name__ + (f"({', '.join(arguments)})" if arguments else "")


def _same(given: Any, default: Any) -> bool:
    arrays = isinstance(given, jax.ShapeDtypeStruct | jax.Array)
    return not arrays and bool(given == default)
