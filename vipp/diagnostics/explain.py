"""What was derived for an objective: which estimator each random choice has, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import jax
import optax
from numpyro.infer import SVI

import vipp_transforms as vt
from vipp.distributions.answers import kind
from vipp.distributions.lanes import lane_distribution
from vipp.language.control_flow import sites
from vipp.language.notes import noting
from vipp.objectives.objective import Objective
from vipp_transforms.settings import Part


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
class Explanation:
    """A table, one row per random choice; prints as text, shows as HTML in a notebook.

    Attributes:
      objective: what is estimated.
      rows: in program order.
      biased: why the objective's gradient is biased for what it is to optimise; None if it is not.
      notes: what else the objective says of itself and these programs.
    """

    objective: str
    rows: tuple[SiteReport, ...]
    biased: str | None = None
    notes: tuple[str, ...] = ()

    def __getitem__(self, site: str) -> SiteReport:
        for row in self.rows:
            if row.site == site:
                return row
        raise KeyError(f"no site '{site}', got {[r.site for r in self.rows]}")

    def _title(self) -> list[str]:
        biased = [f"biased: {self.biased}"] if self.biased else []
        return [self.objective, *self.notes, *biased]

    def _cells(self) -> list[list[str]]:
        names = [f.name for f in fields(SiteReport)]
        return [names, *([str(getattr(r, n)) for n in names] for r in self.rows)]

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        rule = "-" * max(map(len, lines))
        return "\n".join([*self._title(), lines[0], rule, *lines[1:]])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from html import escape

        head, *body = ([f"<td>{escape(c)}</td>" for c in row] for row in self._cells())
        rows = "".join(f"<tr>{''.join(row)}</tr>" for row in [head, *body])
        title = "".join(f"<p><code>{escape(line)}</code></p>" for line in self._title())
        return f"{title}<table>{rows}</table>"


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
    rows += [_estimated(plan, site) for site in plan.program.sites.values()]
    return Explanation(repr(objective), tuple(rows), objective.biased, tuple(notes.said))


class _Drawn(sites):
    """Notes the latent sites that no handler further in gave a value: the pathwise ones."""

    def __init__(self) -> None:
        super().__init__()
        self.pathwise: dict[str, Any] = {}

    def visit(self, msg: Any) -> None:
        drawn = msg["value"] is None or msg.get("drawn_implicitly")
        if not msg["is_observed"] and drawn:
            self.pathwise[msg["name"]] = msg


def _pathwise(name: str, msg: Any) -> SiteReport:
    asked = "asked for" if msg["infer"].get("estimator") else "reparameterisable"
    fn = lane_distribution(msg["fn"])
    lanes = "x".join(map(str, fn.batch_shape)) or "1"
    return SiteReport(name, kind(fn), "Pathwise", asked, lanes, "-", 1)


def _estimated(plan: vt.Plan, site: Any) -> SiteReport:
    estimator, info, reason = plan.choices[site.index]
    axis = estimator.axis(info)
    lanes = "x".join(
        f"{n}*" if m else f"{n}" for n, m in zip(info.lane_shape, info.mixed, strict=True)
    )
    groups = sum(step.site is site for step in plan.elimination.steps)
    reason = f"{reason}; biased" if estimator.traits.biased else reason
    return SiteReport(
        site.name, info.kind, _short(estimator), reason, lanes or "1", str(groups),
        1 if axis is None else axis.size,
    )  # fmt: skip


def _short(value: Any) -> str:
    """An estimator without the arguments left at their defaults; arrays by type and shape."""
    if isinstance(value, jax.ShapeDtypeStruct | jax.Array):
        return f"{value.dtype.name}{list(value.shape)}"
    if not isinstance(value, Part):
        return repr(value)
    names: Any = value
    arguments = [
        f"{f.name}={_short(given)}"
        for f in fields(names)
        if f.repr and not _same(given := getattr(value, f.name), f.default)
    ]
    return type(value).__name__ + (f"({', '.join(arguments)})" if arguments else "")


def _same(given: Any, default: Any) -> bool:
    arrays = isinstance(given, jax.ShapeDtypeStruct | jax.Array)
    return not arrays and bool(given == default)
