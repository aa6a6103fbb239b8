"""What was measured of the gradient under several estimators, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from vipp.diagnostics.measurements import Estimate, times
from vipp.diagnostics.tables import as_html, as_text, brief


@dataclass(frozen=True)
class ProfileRow:
    """One combination of estimators, measured.

    Attributes:
      estimators: by site, all of them.
      given: those that ``vipp.with_estimators`` is to set: the others a site has by itself.
      site: the one whose estimators are compared; None for a whole combination.
      objective: the objective.
      variance: the trace of the gradient's covariance.
      own: the part of it that the site contributes, given all other draws; None if no one site.
      bias: how far the gradient's mean is from that of an unbiased combination, measured; None if
        there is none by the contract of the estimators.
      seconds: of one gradient.
      draws: the number of gradients.
      predicted: what the variance was predicted to be; None if it was not.
    """

    estimators: dict[str, Any]
    given: dict[str, Any]
    site: str | None
    objective: Any
    variance: Estimate
    own: Estimate | None
    bias: Estimate | None
    seconds: Estimate
    draws: int
    predicted: float | None = None

    @property
    def product(self) -> Estimate:
        """Variance times seconds: what so many seconds leave of the noise."""
        return times(self.variance, self.seconds)

    @property
    def score(self) -> tuple[float, float]:
        """By which combinations are compared: less is better."""
        squared = 0.0 if self.bias is None else self.bias.value**2
        return (self.variance.value + squared) * self.seconds.value, self.seconds.value


def _alike(now: ProfileRow, other: ProfileRow) -> bool:
    """Whether another combination is not better by more than the standard error."""
    a, b = (now.product, other.product) if now.variance.value else (now.seconds, other.seconds)
    if other.bias is not None:
        return False
    return a.value - b.value <= (a.error**2 + b.error**2) ** 0.5


@dataclass(frozen=True)
class Profile:
    """What :func:`vipp.profile` found; prints as a table, shows as HTML in a notebook.

    Attributes:
      objective: that was profiled.
      rows: by site, its present estimator and the others, all other sites as at present.
      combinations: the present combination and the best others, measured again with fresh draws.
      objectives: other objectives, with the best estimators.
      not_measured: by site, the candidates that were passed over, with the reason: no time was
        left, or the present estimator has no variance.
      left_out: by site, the candidates that the program does not admit, with the reason.
      notes: how it was measured.
      seconds_compiling: what tracing and compiling took.
      seconds_measuring: what drawing gradients took.
    """

    objective: Any
    rows: tuple[ProfileRow, ...]
    combinations: tuple[ProfileRow, ...]
    objectives: tuple[ProfileRow, ...]
    not_measured: dict[str, tuple[tuple[Any, str], ...]]
    left_out: dict[str, tuple[tuple[Any, str], ...]]
    notes: tuple[str, ...]
    seconds_compiling: float
    seconds_measuring: float

    @property
    def present(self) -> ProfileRow:
        """The combination that the guide has now."""
        return self.combinations[0]

    def best(self, *, biased: bool = False) -> dict[str, Any]:
        """The estimators with the least variance times time, by site.

        The present ones, unless others are better by more than the standard error.

        Args:
          biased: whether biased ones may be chosen, too. Of these the square of the bias is
            added to the variance, and what was measured at one site at a time is looked at.

        Returns:
          What ``vipp.with_estimators(guide, profile.best())`` takes.
        """
        return dict(self.best_row(biased=biased).given)

    def best_row(self, *, biased: bool = False) -> ProfileRow:
        """The combination that :meth:`best` returns, as it was measured."""
        among = self.combinations + (self.rows if biased else ())
        among = [r for r in among if biased or r.bias is None]
        first, now = min(among, key=lambda row: row.score), self.present
        return now if now in among and _alike(now, first) else first

    def table(self) -> str:
        """As text."""
        return str(self)

    def plot(self, ax: Any = None) -> Any:
        """Draw variance times time of all that was measured, with two standard errors.

        Args:
          ax: matplotlib ``Axes`` to draw on; None for new ones.

        Returns:
          The ``Axes``. Needs ``vipp[plots]``.

        Raises:
          ImportError: if matplotlib is not installed.
        """
        from vipp.diagnostics.profile_plot import draw

        return draw(self, ax)

    def _tables(self) -> list[tuple[str, list[list[str]]]]:
        found = [("One site at a time", self._by_site())] if self.rows else []
        if len(self.combinations) > 1 or not self.rows:
            found.append(
                (
                    "Together" + ", measured again" * bool(self.rows),
                    self._together(self.combinations),
                )
            )
        if self.objectives:
            found.append(("Objectives", self._together(self.objectives)))
        return found

    def _by_site(self) -> list[list[str]]:
        head = ["site", "estimator", "variance", "its own", "bias", "ms", "variance x ms", "of now"]
        cells = [head]
        for row in self.rows:
            assert row.site is not None
            what = brief(row.estimators[row.site]) + (" (now)" if self._is_present(row) else "")
            cells.append([row.site, what, *self._figures(row, self.rows[0], own=True)])
        for site, options in self.not_measured.items():
            cells += [[site, brief(e), "not measured"] + [""] * 5 for e, _ in options]
        return cells

    def _together(self, rows: Sequence[ProfileRow]) -> list[list[str]]:
        several = len({repr(r.objective) for r in (*rows, self.present)}) > 1
        head = ["combination", "variance", "predicted", "bias", "ms", "variance x ms", "of now"]
        best, cells = self.best_row(), [head]
        for row in rows:
            name = self.label(row) + (", the best" if row is best else "")
            name = f"{row.objective!r}: {name}" if several else name
            variance, bias, *rest = self._figures(row, self.present, own=False)
            predicted = "" if row.predicted is None else f"{row.predicted:.3g}"
            cells.append([name, variance, predicted, bias, *rest])
        return cells

    def _is_present(self, row: ProfileRow) -> bool:
        return not self._changed(row)

    def _changed(self, row: ProfileRow) -> list[str]:
        now = self.present.estimators
        return [n for n, e in row.estimators.items() if repr(e) != repr(now[n])]

    def label(self, row: ProfileRow, between: str = ", ") -> str:
        """What a combination has otherwise than now, ``between`` standing between sites."""
        changed = (f"{n}: {brief(row.estimators[n])}" for n in self._changed(row))
        return between.join(changed) or "as now"

    def _figures(self, row: ProfileRow, now: ProfileRow, *, own: bool) -> list[str]:
        ms = Estimate(1e3 * row.seconds.value, 1e3 * row.seconds.error)
        product, base = row.product, now.product.value
        ratio = f"{row.product.value / base:.3g}" if base else ""
        return [
            str(row.variance),
            *([("" if row.own is None else str(row.own))] if own else []),
            "0" if row.bias is None else f"{row.bias} (measured)",
            str(ms),
            str(Estimate(1e3 * product.value, 1e3 * product.error)),
            ratio,
        ]

    def _end(self) -> list[str]:
        found = list(self.notes)
        for site, options in self.not_measured.items():
            for why in dict.fromkeys(why for _, why in options):
                these = ", ".join(brief(e) for e, reason in options if reason == why)
                found.append(f"Not measured at '{site}', as {why}: {these}.")
        for site, options in self.left_out.items():
            found += [f"Left out at '{site}': {brief(e)}: {why}" for e, why in options]
        return found

    def __str__(self) -> str:
        tables = [f"{title}\n\n{as_text(cells)}" for title, cells in self._tables()]
        return "\n\n".join([f"Gradient of {self.objective!r}", *tables, "\n".join(self._end())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        tables = [f"<p>{title}</p>{as_html(cells)}" for title, cells in self._tables()]
        end = "".join(f"<p>{escape(line)}</p>" for line in self._end())
        return f"<p><code>{escape(repr(self.objective))}</code></p>" + "".join(tables) + end
