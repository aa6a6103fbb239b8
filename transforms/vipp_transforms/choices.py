"""Which estimator a site gets when its author named none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from vipp_transforms.elimination import Elimination
from vipp_transforms.estimators.base import Degree, Estimator, Policy, SiteInfo, Traits, estimator
from vipp_transforms.estimators.enumerate import Enumerate, joint_size
from vipp_transforms.estimators.pathwise import Pathwise
from vipp_transforms.estimators.score_function import ScoreFunction
from vipp_transforms.staging import Program, Site


@estimator
class Automatic(Policy):
    """Choose between :class:`Enumerate` and the leave-one-out score function.

    Enumeration is chosen where the joint support of the lanes that some term mixes is at most
    ``max_support``, as long as no term is evaluated at more than ``max_evaluations`` combinations
    of automatically enumerated sites.

    Args:
      max_support: largest joint support of one site.
      max_evaluations: largest product of joint supports over one term's sites.
    """

    traits: ClassVar[Traits] = Traits(causal=True)
    max_support: int = 16
    max_evaluations: int = 64

    def choose(self, site: SiteInfo, looped: bool) -> tuple[Estimator, str]:
        """For a site on its own; where several together cost too much, some fall back later."""
        if looped:
            return _FALLBACK, "in a loop"
        if site.support is None:
            return _FALLBACK, "not reparameterisable, no finite support"
        if joint_size(site) > self.max_support:
            mixed = math.prod(n for n, m in zip(site.lane_shape, site.mixed, strict=True) if m)
            size = f"{site.support.shape[0]}" + (f"^{mixed}" if mixed > 1 else "")
            return _FALLBACK, f"support of {size} values"
        return Enumerate(), f"{joint_size(site)} values, cheap to sum"


_FALLBACK = ScoreFunction(num_samples=2, baseline="leave_one_out")


def default(reparameterised: bool) -> Estimator | Policy:
    """What a site gets whose author named nothing."""
    return Pathwise() if reparameterised else Automatic()


def single_draw() -> Estimator:
    """One plain draw, for an objective that draws something itself, and any distribution."""
    return ScoreFunction()


class Choice(NamedTuple):
    """A site's estimator, and why it has it."""

    estimator: Estimator
    site: SiteInfo
    reason: str


def choose(
    program: Program, elimination: Elimination, degrees: Mapping[int, Degree]
) -> dict[int, Choice]:
    """Settle every site's estimator, checking those that were asked for.

    Args:
      program: whose sites it is.
      elimination: of its terms.
      degrees: of the terms, by index of a site whose estimator asks for them.
    """
    sites = program.sites.values()
    choices = {s.index: _first(s, elimination, degrees.get(s.index)) for s in sites}
    for step in elimination.steps:
        _demote(program, step, choices)
    for choice in choices.values():
        choice.estimator.validate(choice.site)
    return choices


def _first(site: Site, elimination: Elimination, degree: Degree | None) -> Choice:
    template = site.template
    known = template.placed(site.name, site.lane_shape, elimination.mixed(site))
    known = known._replace(degree=degree)
    if isinstance(template.estimator, Policy):
        estimator, reason = template.estimator.choose(known, site.loop is not None)
        return Choice(estimator, known, reason)
    return Choice(template.estimator, known, "asked for")


def _demote(program: Program, step: Any, choices: dict[int, Choice]) -> None:
    """Give up enumerating the largest automatic sites of a term until the term is cheap."""
    together = {*step.form.depends, *step.layout.form.depends}
    by_index = {s.index: s for s in program.sites.values()}

    def automatic(i: int) -> bool:
        return isinstance(by_index[i].template.estimator, Automatic) and isinstance(
            choices[i].estimator, Enumerate
        )

    def size(i: int) -> int:
        return joint_size(choices[i].site)

    chosen = sorted(filter(automatic, together), key=size)
    policies = [by_index[i].template.estimator for i in chosen]
    limit = min((p.max_evaluations for p in policies if isinstance(p, Automatic)), default=1)
    while chosen and math.prod(map(size, chosen)) > limit:
        worst = chosen.pop()
        choices[worst] = choices[worst]._replace(
            estimator=_FALLBACK, reason="enumerating it with the others costs too much"
        )
