"""The random choices of a guide as an objective draws them, and which of them meet in a term."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import constraints

import vipp_transforms as vt
from vipp.language.control_flow import looped, sites
from vipp.language.names import close
from vipp.language.sample import with_estimators
from vipp.language.state import SUFFIX
from vipp.objectives.objective import Objective
from vipp_transforms.choices import default, single_draw


@dataclass(frozen=True)
class GuideChoice:
    """One latent site of a guide.

    Attributes:
      name: of the site.
      estimator: that it has.
      site: what the engine knows of it; None if it could not be shown to the engine.
      looped: whether it is drawn in a loop.
      own: whether the objective draws it without a gradient, whatever its estimator.
    """

    name: str
    estimator: Any
    site: vt.SiteInfo | None
    looped: bool
    own: bool


@dataclass(frozen=True)
class Look:
    """What tracing an objective shows.

    Attributes:
      choices: the guide's latent sites, in program order.
      groups: the names of sites that meet, in program order. What a group contributes to the
        gradient depends on no draw of another group.
      apart: whether that is known; if not, all sites are one group.
      elsewhere: whether something else is random: a minibatch, a site that the guide doesn't have,
        a key that a program takes for itself.
      constraints: of the parameters, by name.
    """

    choices: dict[str, GuideChoice]
    groups: tuple[tuple[str, ...], ...]
    apart: bool
    elsewhere: bool
    constraints: Mapping[str, Any]

    def group(self, site: str) -> tuple[str, ...]:
        """The sites that a site meets, itself among them."""
        return next(g for g in self.groups if site in g)


def look(
    objective: Objective, model: Any, guide: Any, params: Mapping[str, Any], args: Any, kwargs: Any
) -> Look:
    """Trace an objective, and once more with all sites of the guide shown to the engine.

    Raises:
      ValueError: naming a parameter without a value, or a value without a parameter.
    """
    met, drawn, in_model = _Met(), _Drawn(), _Drawn()
    watched = _under(in_model, model), _under(drawn, guide)
    plan = _plan(_under(met, objective.draw), *watched, params, args, kwargs)
    _check_params(met, params)
    chosen = {s.template.name: plan.choices[s.index].estimator for s in plan.program.sites.values()}
    names = list(drawn.looped)
    shown = _shown(objective, model, guide, params, args, kwargs, names)
    infos: dict[str, vt.SiteInfo] = {}
    for each in (plan, shown):
        if each is not None:
            for site in each.program.sites.values():
                infos.setdefault(site.template.name, each.choices[site.index].site)
    choices = {
        n: GuideChoice(n, chosen.get(n, default(True)), infos.get(n), drawn.looped[n], n in met.own)
        for n in names
    }
    apart = shown is not None and all(n in infos for n in names)
    together = (tuple(names),) if names else ()
    groups = _groups(shown, names) if shown is not None and apart else together
    elsewhere = bool(drawn.random or in_model.random or met.own or met.minibatch)
    others = (met.drawn | chosen.keys()) - {*names}
    return Look(choices, groups, apart, elsewhere or bool(others), met.constraints)


def _plan(
    draw: Callable[..., Any], model: Any, guide: Any, params: Any, args: Any, kwargs: Any
) -> vt.Plan:
    return vt.plan(draw, jax.random.key(0), dict(params), model, guide, args, kwargs)


def _shown(
    objective: Objective, model: Any, guide: Any, params: Any, args: Any, kwargs: Any, names: Any
) -> vt.Plan | None:
    """The plan in which the engine sees every site; None if there is none."""
    seen = with_estimators(guide, dict.fromkeys(names, single_draw()))
    try:
        return _plan(objective.draw, model, seen, params, args, kwargs)
    except (vt.SiteError, ValueError, NotImplementedError):
        return None  # such as a derivative that is stopped: then nothing is said to be apart


def _groups(plan: vt.Plan, names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """The sites that some term depends on together, before or after it is contracted."""
    by_index = {s.index: s.template.name for s in plan.program.sites.values()}
    group = {n: {n} for n in (*by_index.values(), *names)}
    for step in plan.elimination.steps:
        together = {by_index[i] for i in (*step.form.depends, *step.layout.form.depends)}
        whole = set().union(*(group[n] for n in together))
        for name in whole:
            group[name] = whole
    order = list(names)
    found = {tuple(n for n in order if n in group[name]) for name in order}
    return tuple(sorted(found, key=lambda g: order.index(g[0])))


def _check_params(met: _Met, params: Mapping[str, Any]) -> None:
    known = met.constraints
    for name in params:
        if name not in known and name not in met.mutable and not name.endswith(SUFFIX):
            raise ValueError(
                f"profile: params has a value for '{name}', which is no parameter of the model or "
                f"the guide, got {sorted(known)}{close(name, known)}. Fix: use one of these names."
            )
    for name in met.without_value:
        raise ValueError(
            f"profile: params has no value for '{name}', expected one for each of {sorted(known)}, "
            f"got {sorted(params)}. Fix: pass result.params of vipp.fit, or the parameters of "
            "svi.get_params(state), with the mutable state if there is one."
        )


def _under(handler: Any, program: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with handler:
            return program(*args, **kwargs)

    return run


class _Drawn(sites):
    """Notes the latent sites of the program beneath it, and whether each is drawn in a loop.

    And whether the program takes a key for something that is no site.
    """

    def __init__(self) -> None:
        super().__init__()
        self.looped: dict[str, bool] = {}
        self.random = False

    def process_message(self, msg: Any) -> None:
        self.random |= msg["type"] == "prng_key"
        super().process_message(msg)

    def visit(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["value"] is None:
            self.looped[msg["name"]] = looped(msg)


class _Met(sites):
    """Notes the parameters that an objective meets, and the sites that it draws as constants."""

    def __init__(self) -> None:
        super().__init__()
        self.constraints: dict[str, Any] = {}
        self.mutable: set[str] = set()
        self.without_value: dict[str, None] = {}
        self.own: set[str] = set()
        self.drawn: set[str] = set()
        self.minibatch = False

    def process_message(self, msg: Any) -> None:
        if msg["type"] in ("param", "mutable") and not msg["name"].endswith(SUFFIX):
            if msg["type"] == "param":
                constraint = msg["kwargs"].get("constraint", constraints.real)
                self.constraints[msg["name"]] = constraint
            else:
                self.mutable.add(msg["name"])
            if msg["value"] is None:
                self.without_value[msg["name"]] = None
        elif msg["type"] == "plate":
            size, count = msg["args"]
            self.minibatch |= count not in (None, size)
        super().process_message(msg)

    def visit(self, msg: Any) -> None:
        if msg.get("drawn_constant"):
            self.own.add(msg["name"])
        elif msg["value"] is None and not msg["is_observed"]:
            self.drawn.add(msg["name"])


def is_moving(x: Any) -> bool:
    """Whether a parameter is made of real numbers, which a gradient is taken in."""
    return all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in jax.tree.leaves(x))
