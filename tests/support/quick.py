"""Which rows of tables belong to the quick set: those that show something for the first time.

A row of a table shows the values of its arguments; an argument that is a tuple, each of its
entries. So the quick set has every estimator, context, family, objective and mistake of every
table, in the first row that has it; what only combines them anew is marked ``thorough``. Of a
table whose rows are of one kind, marked ``few(n)``, it has ``n`` rows from its first to its last.
"""

from collections.abc import Iterator
from typing import Any


def aspects(params: dict[str, Any]) -> Iterator[Any]:
    """What a row shows: ``(argument, position, value)``."""
    for name, value in params.items():
        whole = type(value) is not tuple
        for position, entry in enumerate((value,) if whole else value):
            yield name, position, _hashable(entry)


def first_rows(rows: list[dict[str, Any]]) -> list[bool]:
    """For each row of one table, whether it shows something that no earlier quick row shows."""
    seen, quick = set(), []
    for row in rows:
        shown = set(aspects(row))
        quick.append(not shown <= seen)
        seen |= shown if quick[-1] else set()
    return quick


def spread(quick: list[bool], count: int) -> list[bool]:
    """``count`` of the quick rows, evenly spread over the table."""
    rows = [k for k, row in enumerate(quick) if row]
    count = min(count, len(rows))
    kept = {rows[k * len(rows) // count] for k in range(count)}
    return [k in kept for k in range(len(quick))]


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value
