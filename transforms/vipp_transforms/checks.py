"""Checks of arguments that estimators, objectives and training share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vipp_transforms import _jax


def positive_int(what: str, value: Any) -> None:
    """Raise unless ``value`` is an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{what} must be a positive int, got {value!r}.")


def check_differentiate(what: str, value: Any) -> None:
    """Raise unless ``value`` says at which draws to differentiate."""
    if value not in ("all", "first"):
        raise ValueError(f"{what}: differentiate must be 'all' or 'first', got {value!r}.")


def number(what: str, value: Any, expected: str, holds: Callable[[Any], Any]) -> None:
    """Raise unless ``holds(value)``, where ``value`` is a number: no schedule, nothing traced.

    Args:
      what: the argument, for the error.
      value: as given.
      expected: what it must be, for the error.
      holds: of a float, or an array of them, whether it is so.
    """
    if callable(value) or _jax.is_tracer(value) or isinstance(value, jax.ShapeDtypeStruct):
        return
    if isinstance(value, bool | str) or not np.all(holds(np.asarray(value, float))):
        raise ValueError(f"{what} must be {expected}, got {value!r}.")
