"""A picture of what a profile measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from vipp.diagnostics.plots import BLUE, GREY, ORANGE, pyplot
from vipp.diagnostics.profile_result import Profile, ProfileRow
from vipp.diagnostics.tables import brief


def draw(profile: Profile, ax: Any = None) -> Any:
    """Variance times time, of now, of each combination, with two standard errors.

    What has no variance stands at the left edge. Biased estimators are orange.

    Args:
      profile: of :func:`vipp.profile`.
      ax: matplotlib ``Axes`` to draw on; None for new ones.

    Returns:
      The ``Axes``.
    """
    lines = _lines(profile)
    if ax is None:
        size = (9.0, 1.2 + 0.27 * sum(1 + label.count("\n") for label, _, _ in lines))
        ax = pyplot("Profile.plot").subplots(figsize=size, layout="constrained")[1]
    base = profile.present.product.value or max(row.product.value for _, row, _ in lines) or 1.0
    values = np.array([row.product.value for _, row, _ in lines]) / base
    errors = 2 * np.array([row.product.error for _, row, _ in lines]) / base
    edge = values[values > 0].min() / 3 if (values > 0).any() else 0.1
    for height, ((_, _, colour), x, error) in enumerate(zip(lines, values, errors, strict=True)):
        if x <= 0:
            ax.plot(edge, height, "<", color=colour)
            ax.annotate("no variance", (edge, height), xytext=(6, 0), va="center",
                        textcoords="offset points", color=GREY, fontsize="small")  # fmt: skip
            continue
        left = min(error, x - min(x, edge))
        ax.errorbar(x, height, xerr=[[left], [error]], fmt="o", color=colour, ms=4, lw=1)
    ax.axhline(len(profile.rows) - 0.5, color=GREY, lw=0.8)
    ax.axvline(1.0, color=GREY, lw=0.8, ls=":")
    ax.set(xscale="log", xlabel="variance x time of a gradient, of the present one")
    ax.set_yticks(range(len(lines)), [label for label, _, _ in lines], fontsize="small")
    ax.invert_yaxis()
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _lines(profile: Profile) -> list[tuple[str, ProfileRow, str]]:
    """A label, what it is of, and a colour."""
    colour = lambda row: BLUE if row.bias is None else ORANGE
    found = []
    for row in profile.rows:
        assert row.site is not None
        found.append((f"{row.site}: {brief(row.estimators[row.site])}", row, colour(row)))
    best = profile.best_row()
    for row in profile.combinations:
        name = profile.label(row, ",\n") + (" (best)" if row is best else "")
        found.append((name, row, "#000000" if row is best else colour(row)))
    return found
