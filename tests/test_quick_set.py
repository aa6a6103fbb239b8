"""What ``make test`` runs: every law, on every estimator, objective, construct and mistake."""

import inspect
import pathlib

import numpy as np

import vipp
import vipp_transforms as vt
from quick import aspects, first_rows, spread

TESTS = pathlib.Path(__file__).parent


def table_of(item):
    return item.path, item.originalname


def thinned(item):
    """Marked by hand, the whole function: not in the quick set, or few rows of one kind."""
    marks = getattr(getattr(item, "function", None), "pytestmark", ())
    return any(mark.name in ("thorough", "few") for mark in marks)


def quick(items):
    return [item for item in items if item.get_closest_marker("thorough") is None]


def shown(items):
    """Per table, what its rows show."""
    found = {}
    for item in items:
        if hasattr(item, "callspec") and not thinned(item):
            found.setdefault(table_of(item), set()).update(aspects(item.callspec.params))
    return found


def text_of(item):
    """A test's source and its arguments, names of rows looked up in the module's tables."""
    if not hasattr(item, "function"):
        return ""
    tables = [x for x in vars(item.module).values() if isinstance(x, dict)]
    params = getattr(item, "callspec", None) and item.callspec.params
    entries = [entry for _, _, entry in aspects(params or {})]
    rows = [t[e] for t in tables for e in entries if isinstance(e, str) and e in t]
    return inspect.getsource(item.function) + repr(entries) + repr(rows)


def test_rows_that_show_something_for_the_first_time():
    rows = [{"a": a, "case": case} for a in (1, 2) for case in [("x", "y"), ("x", "z"), ("w", "z")]]
    assert first_rows(rows) == [True, True, True, True, False, False]
    assert first_rows([{"a": np.ones(1)}, {"a": np.ones(1)}, {"a": [2]}]) == [True, False, True]


def test_few_rows_are_spread_over_their_table():
    assert spread([True, False, True, True, True], 2) == [True, False, False, True, False]
    assert spread([True, True], 5) == [True, True]


def test_quick_rows_show_all_that_their_tables_show(collected):
    """No row is missing that is the only one of an estimator, context, family or mistake."""
    whole, kept = shown(collected), shown(quick(collected))
    lost = {table: found - kept.get(table, set()) for table, found in whole.items()}
    assert not any(lost.values()), {table: found for table, found in lost.items() if found}


def test_quick_tests_name_every_estimator_objective_and_error(collected):
    """Where all tests were collected, and not some that were asked for."""
    if not {*TESTS.rglob("test_*.py")} <= {item.path for item in collected}:
        return
    public = [getattr(module, name) for module in (vt, vipp) for name in module.__all__]
    bases = vt.Estimator, vipp.Objective, Exception
    names = {c.__name__ for c in public if isinstance(c, type) and issubclass(c, bases)}
    text = "".join(map(text_of, quick(collected)))
    assert not {name for name in names if name not in text}
