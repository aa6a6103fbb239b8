"""The settings of an estimator that need not be given as plain numbers.

A number may be a *schedule*, a function of the step; values with an entry for each element of a
site's batch may be a function of the program's arguments. Whoever runs the program puts numbers and
arrays in their place. Which setting is which, its field says: one whose default is a number, or
that is marked ``NUMBER``, may be scheduled; ``ELEMENTS`` marks the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from vipp_transforms.errors import SiteError

NUMBER = {"setting": "number"}
ELEMENTS = {"setting": "elements"}


class Part:
    """An estimator, or a part of one such as its baseline: a dataclass of settings."""


Change = Callable[[dataclasses.Field[Any], Any], Any]


def changed(estimator: Any, change: Change) -> Any:
    """``estimator`` with ``change(field, value)`` for each setting, those of its parts included."""
    now = {}
    for field in dataclasses.fields(estimator):
        value = getattr(estimator, field.name)
        inner = isinstance(value, Part)
        new = changed(value, change) if inner else change(field, value)
        if new is not value:
            now[field.name] = new
    return dataclasses.replace(estimator, **now) if now else estimator


def at_step(estimator: Any, step: Any) -> Any:
    """The estimator with every schedule's number at ``step``."""
    now = lambda field, x: jnp.asarray(x(step)) if _is_schedule(field, x) else x
    return changed(estimator, now)


def scheduled(estimator: Any) -> list[str]:
    """The names of the settings that are schedules."""
    names: list[str] = []

    def note(field: dataclasses.Field[Any], value: Any) -> Any:
        names.extend([field.name] if _is_schedule(field, value) else [])
        return value

    changed(estimator, note)
    return names


def with_elements(estimator: Any, fn: Callable[[Any], Any]) -> Any:
    """The estimator with ``fn`` of all values that it has for the elements of the batch."""

    def change(field: dataclasses.Field[Any], value: Any) -> Any:
        given = _marked(field, ELEMENTS) and value is not None and not isinstance(value, str)
        return fn(value) if given else value

    return changed(estimator, change)


def require_numbers(name: str, estimator: Any) -> None:
    """Raise if schedules are left, which nobody counts the steps of."""
    left = scheduled(estimator)
    if left:
        raise SiteError(
            f"Site '{name}': {type(estimator).__name__} has a schedule for '{left[0]}', and so "
            "state that the program does not know of. Fix: set the estimator with "
            "vipp.sample(..., estimator=) or vipp.with_estimators, not through "
            "infer={'estimator': ...}."
        )


def _is_schedule(field: dataclasses.Field[Any], value: Any) -> bool:
    return callable(value) and (_marked(field, NUMBER) or isinstance(field.default, int | float))


def _marked(field: dataclasses.Field[Any], mark: dict[str, str]) -> bool:
    return field.metadata.get("setting") == mark["setting"]
