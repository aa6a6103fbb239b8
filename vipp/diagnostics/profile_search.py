"""Going through estimators: one site at a time, then the combinations that look best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

import vipp_transforms as vt
from vipp.diagnostics.bias import measured_bias
from vipp.diagnostics.candidates import combinations
from vipp.diagnostics.guide_choices import Look
from vipp.diagnostics.measurements import Chosen, Draws, Estimate, Measurements
from vipp.diagnostics.predicted import Group, Option, Predicted, ranked
from vipp.diagnostics.profile_result import Profile, ProfileRow

_MOST_PASSES = 2
_SHARE_ONE_BY_ONE = 0.7
_LOOK = 2_000  # a number that no other call has


class Search:
    """A search for the combination with the least variance times time.

    Args:
      look: what is known of the guide.
      measurements: that measures.
      asked: the sites whose candidates the user named: one that does not fit raises.
      rounds: calls of each gradient.
      verify: how many combinations are measured.
    """

    def __init__(
        self,
        look: Look,
        measurements: Measurements,
        asked: frozenset[str],
        rounds: int,
        verify: int,
    ):
        self.look, self.measured = look, measurements
        self.asked, self.rounds, self.verify = asked, rounds, verify
        self.sites = list(measurements.candidates)
        self.varied = [n for n, c in measurements.candidates.items() if len(c) > 1]
        self.singles: dict[str, list[Chosen]] = {n: [] for n in self.varied}
        self.not_measured: dict[str, list[tuple[Any, str]]] = {}
        self.left_out: dict[str, list[tuple[Any, str]]] = {}
        self.predicted: dict[Chosen, Predicted] = {}
        self.exact: list[str] = []
        self.notes: list[str] = []

    def profile(self) -> Profile:
        """Measure, search, and say what was found."""
        present = self.measured.present
        self.measured.compile(present)
        self._one_by_one()
        best = self._together()
        others = self._objectives(best)
        rows = [self._row(c, site) for site in self.varied for c in [present, *self.singles[site]]]
        fresh = [c for c, _, new in self.measured.draws if new and c[0] == 0]
        return Profile(
            self.measured.objectives[0],
            tuple(rows),
            tuple(self._row(c, None) for c in dict.fromkeys([present, *fresh])),
            tuple(self._row(c, None) for c in others),
            {n: tuple(e) for n, e in self.not_measured.items()},
            {n: tuple(e) for n, e in self.left_out.items()},
            tuple(self._notes()),
            self.measured.seconds_compiling,
            self.measured.seconds_measuring,
        )

    # -- one site at a time ------------------------------------------------------------------------

    def _one_by_one(self) -> None:
        present = self.measured.present
        self.exact = [n for n in self._in_groups() if self._is_exact(n)]
        self.varied.sort(key=self._noise, reverse=True)
        tasks = [(present, anew) for anew in self._of_present()]
        for chosen, site in self._each():
            if site in self.exact and site not in self.asked:
                self._skip(chosen, site, "the present one has no variance")
            elif not self.measured.in_time(_SHARE_ONE_BY_ONE):
                self._skip(chosen, site, "no time left")
            elif self._compiles(chosen, site):
                self.singles[site].append(chosen)
                tasks.append((chosen, (site,)))
        self.measured.measure(tasks, self.rounds)

    def _of_present(self) -> Iterator[tuple[str, ...]]:
        """What is drawn anew within pairs of the present gradient: sites, and whole groups."""
        found: list[tuple[str, ...]] = []
        for group in self._groups():
            found += [(site,) for site in group if site not in self.exact]
            found += [group] if len(group) > 1 and not self._is_all(group) else []
        yield from dict.fromkeys(found or [()])

    def _is_all(self, group: tuple[str, ...]) -> bool:
        """Whether nothing is random but a group."""
        return not self.look.elsewhere and {*group} == {*self.look.choices}

    def _groups(self) -> list[tuple[str, ...]]:
        """Those with a site that is varied, sites that the objective draws itself left out."""
        own = {n for n, c in self.look.choices.items() if c.own}
        every = [tuple(n for n in group if n not in own) for group in self.look.groups]
        return [g for g in every if any(n in self.varied for n in g)]

    def _each(self) -> Iterator[tuple[Chosen, str]]:
        """Every candidate, the sites in turn."""
        numbers = [range(1, len(self.measured.candidates[n])) for n in self.varied]
        for row in zip_longest(*numbers):
            for site, number in zip(self.varied, row, strict=True):
                if number is not None:
                    yield self._chosen({site: number}), site

    def _chosen(self, numbers: dict[str, int]) -> Chosen:
        return 0, *(numbers.get(n, 0) for n in self.sites)

    def _candidate(self, chosen: Chosen, site: str) -> Any:
        return self.measured.estimators(chosen)[site]

    def _in_groups(self) -> list[str]:
        return [n for group in self._groups() for n in group]

    def _is_exact(self, site: str) -> bool:
        """Whether a site is not drawn at all, and so contributes nothing to the noise."""
        choice = self.look.choices[site]
        axis = None if choice.site is None else choice.estimator.axis(choice.site)
        return axis is not None and axis.drawless

    def _noise(self, site: str) -> float:
        """Roughly what a site contributes: who contributes most is looked at first."""
        if site in self.exact:
            return 0.0
        gradients = self.measured.compile(self.measured.present)
        return Draws([gradients.call(self.measured.key, _LOOK, (site,))]).within.value

    def _skip(self, chosen: Chosen, site: str, why: str) -> None:
        self.not_measured.setdefault(site, []).append((self._candidate(chosen, site), why))

    def _compiles(self, chosen: Chosen, site: str) -> bool:
        try:
            self.measured.compile(chosen)
        except (vt.SiteError, ValueError, TypeError, NotImplementedError) as error:
            if site in self.asked:
                raise
            reason = (self._candidate(chosen, site), str(error).split(". ")[0])
            self.left_out.setdefault(site, []).append(reason)
            return False
        return True

    # -- together ----------------------------------------------------------------------------------

    def _together(self) -> Chosen:
        """Measure the best combinations with fresh draws, and return the best of them."""
        present = self.measured.present
        if not self.varied:
            return present
        found = self._ranked()
        self._measure_fresh([present, *self._first(found)])
        best = self._best()
        for _ in range(_MOST_PASSES if any(len(g) > 1 for g in self._groups()) else 0):
            self._measure_fresh(self._first(self._neighbours(best)))
            before, best = best, self._best()
            if best == before:
                break
        return best

    def _first(self, found: Iterable[Predicted]) -> list[Chosen]:
        chosen = []
        for one in found:
            choice = self._chosen(one.numbers)
            if choice in self.predicted or choice == self.measured.present:
                continue
            self.predicted[choice] = one
            chosen.append(choice)
            if len(chosen) == self.verify:
                break
        return chosen

    def _measure_fresh(self, every: Sequence[Chosen]) -> None:
        tasks = []
        for chosen in every:
            known = chosen in self.measured.programs
            if known or (self.measured.in_time() and self._combines(chosen)):
                tasks.append((chosen, ()))
        if tasks:
            self.measured.measure(tasks, self.rounds, fresh=True)

    def _combines(self, chosen: Chosen) -> bool:
        try:
            self.measured.compile(chosen)
        except vt.SiteError:
            return False  # each of them alone was admitted
        return True

    def _best(self) -> Chosen:
        rows = {c: self._row(c, None) for c, _, new in self.measured.draws if new and c[0] == 0}
        return min(rows, key=lambda c: rows[c].score)

    def _ranked(self) -> list[Predicted]:
        return ranked(self._measured_groups(), self._elsewhere(), self._seconds())

    def _seconds(self) -> float:
        return self.measured.seconds(self.measured.present).value

    def _measured_groups(self) -> list[Group]:
        present, found = self.measured.present, []
        for group in self._groups():
            options = {site: self._options(site) for site in group}
            if len(group) > 1 and self._is_all(group):
                whole = self._variance(present, fresh=False)
            elif len(group) > 1:
                whole = self.measured.draws[present, group, False].within
            else:
                whole = self._own(present, next(iter(group)))
            found.append(Group(options, whole.value))
        return found

    def _options(self, site: str) -> list[Option]:
        present, number = self.measured.present, 1 + self.sites.index(site)
        now, every = self._seconds(), [present, *self.singles.get(site, [])]
        return [
            Option(
                c[number],
                self._own(c, site).value,
                0.0 if c == present else self.measured.seconds(c).value - now,
            )
            for c in every
            if not self._biased(c)
        ]

    def _elsewhere(self) -> float:
        """The variance that comes from no group with a varied site."""
        groups = self._groups()
        known = {n for g in groups for n in g}
        if not self.look.elsewhere and known >= {*self.look.choices}:
            return 0.0
        whole = self._variance(self.measured.present, fresh=False).value
        ours = sum(g.variance for g in self._measured_groups())
        return max(whole - ours, 0.0)

    def _neighbours(self, best: Chosen) -> list[Predicted]:
        """Combinations that differ from the best one at one site that meets others."""
        row = self._row(best, None)
        found = []
        for group in (g for g in self._groups() if len(g) > 1):
            for site in group:
                at = 1 + self.sites.index(site)
                options = {o.number: o for o in self._options(site)}
                now = options[best[at]]
                for option in options.values():
                    numbers = dict(zip(self.sites, best[1:], strict=True)) | {site: option.number}
                    variance = max(row.variance.value + option.own - now.own, option.own)
                    seconds = max(row.seconds.value + option.seconds - now.seconds, 1e-9)
                    found.append(Predicted(numbers, variance, seconds))
        better = [p for p in found if p.rank < row.score]
        return sorted(better, key=lambda p: p.rank)

    def _objectives(self, best: Chosen) -> list[Chosen]:
        """The other objectives, with the best estimators."""
        every = [(i, *best[1:]) for i in range(1, len(self.measured.objectives))]
        others = [c for c in every if self._objective_compiles(c)]
        if others:
            present = self.measured.present
            self.measured.measure([(c, ()) for c in (present, *others)], self.rounds, fresh=True)
        return others

    def _objective_compiles(self, chosen: Chosen) -> bool:
        objective = self.measured.objectives[chosen[0]]
        try:
            if not self.measured.in_time():
                raise TimeoutError("no time was left.")
            self.measured.compile(chosen)
        except (vt.SiteError, TimeoutError) as error:
            self.notes.append(f"Not measured: {objective!r}: {error}")
            return False
        return True

    # -- what was found ----------------------------------------------------------------------------

    def _biased(self, chosen: Chosen) -> bool:
        return any(e.traits.biased for e in self.measured.estimators(chosen).values())

    def _all(self, chosen: Chosen, fresh: bool) -> list[Draws]:
        return [d for (c, _, new), d in self.measured.draws.items() if (c, new) == (chosen, fresh)]

    def _variance(self, chosen: Chosen, fresh: bool) -> Estimate:
        found = [d.variance for d in self._all(chosen, fresh)]
        # those of one combination have the same keys, so that they are no better than one
        value = float(np.mean([v.value for v in found]))
        return Estimate(value, float(np.mean([v.error for v in found])))

    def _own(self, chosen: Chosen, site: str) -> Estimate:
        """What a site contributes, given all other draws."""
        if chosen == self.measured.present and site in self.exact:
            return Estimate(0.0, 0.0)
        return self.measured.draws[chosen, (site,), False].within

    def _row(self, chosen: Chosen, site: str | None) -> ProfileRow:
        fresh = site is None and (chosen, (), True) in self.measured.draws
        own = self._own(chosen, site) if site is not None else None
        draws = self._all(chosen, fresh)
        predicted = self.predicted.get(chosen) if site is None else None
        return ProfileRow(
            self.measured.estimators(chosen),
            self.measured.given(chosen),
            site,
            self.measured.objectives[chosen[0]],
            self._variance(chosen, fresh),
            own,
            self._bias(chosen, fresh),
            self.measured.seconds(chosen, fresh),
            draws[0].count,
            None if predicted is None else predicted.variance,
        )

    def _bias(self, chosen: Chosen, fresh: bool) -> Estimate | None:
        if not self._biased(chosen) and chosen[0] == 0:
            return None
        reference = self._all(self.measured.present, fresh)
        return measured_bias(self._all(chosen, fresh)[0].calls, reference[0].calls)

    def _notes(self) -> Iterator[str]:
        yield from self.notes
        for name, choice in self.look.choices.items():
            (first, *_) = self.measured.candidates[name]
            if first is not choice.estimator:
                what = type(choice.estimator).__name__
                yield f"'{name}' has {what}, which is biased: now stands for {first!r} there."
        groups = [g for g in self._groups() if len(g) > 1]
        own = [n for n, c in self.look.choices.items() if c.own]
        if own:
            yield f"Drawn by the objective without a gradient: {', '.join(own)}."
        if not self.look.apart and groups:
            yield "Which sites meet could not be told, so all are taken to."
        for group in groups:
            yield f"Sites that meet, so that combinations are guessed first: {', '.join(group)}."
        every = combinations(self.measured.candidates)
        yield (
            f"{len(self.measured.programs)} gradients compiled of {every} combinations: "
            f"{self.measured.seconds_compiling:.1f} s of tracing and compiling, "
            f"{self.measured.seconds_measuring:.1f} s of drawing."
        )
