"""Python functions that a program calls back with what was drawn.

What is only called, such as printing, is called in one plain run. What is called for its result is
evaluated with the program: at all values of a choice at once, where its estimator has several.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vipp_transforms.choices import Choice
from vipp_transforms.dependence import Dependence
from vipp_transforms.errors import SiteError


def check_callbacks(noted: Iterable[tuple[Any, Dependence]], choices: Mapping[int, Choice]) -> None:
    """Raise where a choice's values would be handed to a function that does not take them."""
    for eqn, dependence in noted:
        name = eqn.primitive.name
        if name == "io_callback":
            raise _refused(
                choices[max(dependence)], name, "may be called for other values than the drawn",
                "use jax.pure_callback, or jax.debug.callback if its result is not needed",
            )  # fmt: skip
        expanded = [r for r in dependence if _has_axis(choices[r])]
        if name == "pure_callback" and expanded and eqn.params.get("vmap_method") is None:
            raise _refused(
                choices[max(expanded)], name, "is to be called for several values",
                "give it a vmap_method, such as vmap_method='sequential'",
            )  # fmt: skip


def _has_axis(choice: Choice) -> bool:
    return choice.estimator.axis(choice.site) is not None


def _refused(choice: Choice, name: str, what: str, way_out: str) -> SiteError:
    return SiteError(
        f"Site '{choice.site.name}' with {choice.estimator!r}: the program calls {name} with what "
        f"depends on it, and it {what}. Fix: {way_out}."
    )
