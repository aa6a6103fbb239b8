"""What was derived for an objective: which estimator each random choice has, and what it costs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from html import escape
from typing import Any

import jax
import optax
from numpyro.infer import SVI

import vipp_transforms as vt
from vipp.diagnostics.distributed import LoopReport, distributed
from vipp.diagnostics.evaluated import Evaluated
from vipp.diagnostics.packed import PackReport, packed
from vipp.diagnostics.tables import as_html, as_text, short
from vipp.distributions.answers import kind
from vipp.distributions.lanes import lane_distribution
from vipp.language.control_flow import sites
from vipp.language.notes import noting
from vipp.objectives.objective import Objective
from vipp_transforms.expected_loop import SummedInLoop


@dataclass(frozen=True)
class SiteReport:
    """One row of an :class:`Explanation`.

    Attributes:
      site: name of the random choice.
      distribution: what it is drawn from.
      estimator: how its gradient is estimated.
      reason: why it has this estimator, and whether its gradient is biased.
      lanes: independent draws, by axis; an axis that some term mixes is starred.
      terms: the number of groups of terms credited to it.
      evaluations: how many values of it the program is evaluated at.
    """

    site: str
    distribution: str
    estimator: str
    reason: str
    lanes: str
    terms: str
    evaluations: int


@dataclass(frozen=True)
class SumReport:
    """A site that :func:`vipp.marginal` sums out exactly.

    Attributes:
      site: its name.
      table: what the product of factors that is summed over it has an axis for.
      entries: the size of that product, which is its cost; in a loop, that of one step.
      steps: of the loop, from the last to the first; 1 outside of one.
    """

    site: str
    table: str
    entries: int
    steps: int


@dataclass(frozen=True)
class Explanation:
    """A table, one row per random choice; prints as text, shows as HTML in a notebook.

    Steps of a loop that are alike are printed as one row, ``z[0:64]``.

    Attributes:
      objective: what is estimated.
      rows: in program order.
      biased: why the objective's gradient is biased for what it is to optimise; None if it is not.
      notes: what else the objective says of itself and these programs.
      sums: the sites summed out exactly, in the order in which they were.
      packed: which small equations are evaluated together.
      loops: those of which a part is evaluated for all steps at once.
    """

    objective: str
    rows: tuple[SiteReport, ...]
    biased: str | None = None
    notes: tuple[str, ...] = ()
    sums: tuple[SumReport, ...] = ()
    packed: PackReport | None = None
    loops: tuple[LoopReport, ...] = ()

    def __getitem__(self, site: str) -> SiteReport:
        for row in self.rows:
            if row.site == site:
                return row
        raise KeyError(f"no site '{site}', got {[r.site for r in self.rows]}")

    def _title(self) -> list[str]:
        biased = [f"biased: {self.biased}"] if self.biased else []
        return [self.objective, *self.notes, *biased]

    def _end(self) -> list[str]:
        return [*map(str, self.loops), *([] if self.packed is None else [str(self.packed)])]

    def _tables(self) -> list[list[list[str]]]:
        tables = [_cells(SiteReport, self.rows)] if self.rows or not self.sums else []
        return tables + ([_cells(SumReport, self.sums)] if self.sums else [])

    def __str__(self) -> str:
        tables = "\n\n".join(map(as_text, self._tables()))
        return "\n".join([*self._title(), tables, *self._end()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        title = "".join(f"<p><code>{escape(line)}</code></p>" for line in self._title())
        end = "".join(f"<p>{escape(line)}</p>" for line in self._end())
        return title + "".join(map(as_html, self._tables())) + end


def _cells(kind_of_row: type, reports: Sequence[Any]) -> list[list[str]]:
    """The table's head and its rows, those of steps that are alike as one."""
    names = [f.name for f in fields(kind_of_row)]
    alike: dict[Any, list[int]] = {}
    for row in ([str(getattr(r, n)) for n in names] for r in reports):
        step = re.fullmatch(r"(.+)\[(\d+)\]", row[0])
        name, number = (step[1], int(step[2])) if step else (row[0], -1)
        alike.setdefault((name, step is None, *row[1:]), []).append(number)
    body = [[_steps(key[0], numbers), *key[2:]] for key, numbers in alike.items()]
    return [_HEADS.get(kind_of_row, names), *body]


def _steps(name: str, numbers: list[int]) -> str:
    first, last = min(numbers), max(numbers)
    if first == last:
        return name if first < 0 else f"{name}[{first}]"
    together = len(numbers) == last - first + 1
    return f"{name}[{first}:{last + 1}]" if together else f"{name}[{first}, ..., {last}]"


_HEADS = {SumReport: ["summed out", "over", "entries", "steps"]}


def explain(
    objective: Objective,
    model: Any,
    guide: Any,
    *args: Any,
    params: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Explanation:
    """Derive the gradient estimator without running it, and say what was derived.

    Args:
      objective: such as ``vipp.ELBO()``.
      model: a NumPyro program.
      guide: a NumPyro program.
      *args: arguments of both.
      params: parameter values by name; None for initial ones.
      **kwargs: keyword arguments of both.

    Returns:
      An :class:`Explanation`.

    Raises:
      vipp.SiteError: if a site has no sound estimator as asked.

    Example:
      >>> import numpyro, numpyro.distributions as dist, vipp
      >>> def model():
      ...     z = numpyro.sample("z", dist.Bernoulli(0.5))
      ...     numpyro.sample("x", dist.Normal(z, 1.0), obs=0.3)
      >>> guide = lambda: numpyro.sample("z", dist.Bernoulli(numpyro.param("p", 0.5)))
      >>> print(vipp.explain(vipp.ELBO(), model, guide)["z"].estimator)
      Enumerate

    References:
      Lew et al., *ADEV: sound automatic differentiation of expected values*, POPL 2023.
    """
    key = jax.random.key(0)
    if params is None:
        svi = SVI(model, guide, optax.identity(), loss=objective)
        state = svi.init(key, *args, **kwargs)
        params = {**svi.get_params(state), **(state.mutable_state or {})}
    params = {**objective.init_state(), **params}
    drawn, notes = _Drawn(), noting()

    def draw(*inputs: Any) -> Any:
        with drawn, notes:
            return objective.draw(*inputs)

    plan = vt.plan(draw, key, params, model, guide, args, kwargs)
    rows = [_pathwise(*item) for item in drawn.pathwise.items()]
    rows += _all_estimated(plan)
    own = {n: m for n, m in drawn.constant.items() if all(r.site != n for r in rows)}
    rows += [_own(objective, *item) for item in own.items()]
    evaluated = Evaluated(objective, plan, key, params, (model, guide, args, kwargs))
    return Explanation(
        repr(objective), tuple(rows), objective.biased, tuple(notes.said), tuple(drawn.sums),
        packed(evaluated), distributed(evaluated),
    )  # fmt: skip


class _Drawn(sites):
    """Notes what the engine does not draw.

    These are the latent sites that no handler further in gave a value, which are pathwise; those
    drawn as constants; and those summed out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pathwise: dict[str, Any] = {}
        self.constant: dict[str, Any] = {}
        self.sums: list[SumReport] = []

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "summed_out":
            group = msg["group"]
            self.sums += [
                SumReport(e.site, " x ".join(e.dims), e.entries, e.steps) for e in group.order
            ]
            for name in group.summed:
                self.constant.pop(name, None)  # drawn once, to see what the program has
        super().process_message(msg)

    def visit(self, msg: Any) -> None:
        if msg.get("drawn_constant"):
            self.constant[msg["name"]] = msg
            return
        drawn = msg["value"] is None or msg.get("drawn_implicitly")
        if not msg["is_observed"] and drawn:
            self.pathwise[msg["name"]] = msg


def _pathwise(name: str, msg: Any) -> SiteReport:
    asked = "asked for" if msg["infer"].get("estimator") else "reparameterisable"
    fn = lane_distribution(msg["fn"])
    lanes = "x".join(map(str, fn.batch_shape)) or "1"
    return SiteReport(name, kind(fn), "Pathwise", asked, lanes, "-", 1)


def _own(objective: Objective, name: str, msg: Any) -> SiteReport:
    """A site that the objective draws as a constant, its gradient being that of a density."""
    fn = lane_distribution(msg["fn"])
    lanes = "x".join(map(str, fn.batch_shape)) or "1"
    own = f"{type(objective).__name__}'s own"
    return SiteReport(name, kind(fn), own, "drawn as a constant", lanes, "-", 1)


def _all_estimated(plan: vt.Plan) -> list[SiteReport]:
    """The sites that the engine draws or enumerates, one row each.

    A loop that is summed out has for each step a choice of what came before it, and of its end: no
    sites of the program's.
    """
    sites = plan.program.sites.values()
    tags = {s.index: t for s in sites if isinstance(t := s.template.estimator, SummedInLoop)}
    own = {t.loop for t in tags.values() if not t.before and not t.ended}
    before = {tags[s.index].loop: s for s in sites if s.index in tags and tags[s.index].before}
    rows = []
    for site in sites:
        tag = tags.get(site.index)
        if tag is not None and tag.loop in own and (tag.before or tag.ended):
            continue
        given = None if tag is None else before.get(tag.loop)
        rows.append(_estimated(plan, site, None if given is site else given))
    return rows


def _estimated(plan: vt.Plan, site: Any, before: Any) -> SiteReport:
    """A site, and what was chosen before each step of its loop, if that was summed out."""
    estimator, info, reason = plan.choices[site.index]
    if before is not None:
        values = plan.choices[before.index].site.support
        assert values is not None
        reason += f", for {len(values)} values of {before.name}"
    axis = estimator.axis(info)
    lanes = "x".join(
        f"{n}*" if m else f"{n}" for n, m in zip(info.lane_shape, info.mixed, strict=True)
    )
    groups = sum(step.site is site for step in plan.elimination.steps)
    reason = f"{reason}; biased" if estimator.traits.biased else reason
    return SiteReport(
        site.name, info.kind, short(estimator), reason, lanes or "1", str(groups),
        1 if axis is None else axis.size,
    )  # fmt: skip
