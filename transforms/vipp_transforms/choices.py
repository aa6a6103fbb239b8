"""Which estimator a site gets when its author named none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from vipp_transforms.checks import positive_int
from vipp_transforms.dependence import Dependences
from vipp_transforms.elimination import Elimination
from vipp_transforms.estimators.base import Degree, Estimator, Policy, SiteInfo, Traits, estimator
from vipp_transforms.estimators.enumerate import Enumerate, joint_size
from vipp_transforms.estimators.fitted_control_variates import FittedControlVariates
from vipp_transforms.estimators.pathwise import Pathwise
from vipp_transforms.estimators.score_function import ScoreFunction
from vipp_transforms.repeated import work_again
from vipp_transforms.seen_slopes import slopes_of
from vipp_transforms.slopes import Sloped
from vipp_transforms.staging import Program, Site
from vipp_transforms.terms import Split


@estimator
class Automatic(Policy):
    """Choose among :class:`Enumerate`, :class:`FittedControlVariates` and leave-one-out.

    Enumeration is chosen where the joint support of the lanes that some term mixes is at most
    ``max_support``, as long as no term is evaluated at more than ``max_evaluations`` combinations
    of automatically enumerated sites.

    Otherwise there are ``max_samples`` samples: the variance of leave-one-out falls like
    ``1 / (samples - 1)``, so that times the time of a gradient it is less the more there are. There
    are half or a quarter of them where each has so much evaluated again that it would not fit, and
    where several particles are weighed against each other (``IWAE``), at most
    ``max_samples / sqrt(particles)``: there almost all of a gradient's time goes into them.
    Fitted control variates are chosen for a finite support of which some term mixes lanes and
    computes with them, if there are at least 8 samples; the score function with a leave-one-out
    baseline elsewhere. Where there are more than two samples, and matrix products are most of what
    is evaluated again for each (at least 8,192 numbers, and 8 products for each of these), the
    program is differentiated at the first one alone: the derivative is most of the time.

    Args:
      max_support: largest joint support of one site.
      max_evaluations: largest product of joint supports over one term's sites.
      max_samples: most samples where a site is not enumerated, at least 2.
      max_numbers: how many numbers all samples together may have evaluated again.

    Raises:
      ValueError: if ``max_samples`` is not an int of at least 2.
    """

    traits: ClassVar[Traits] = Traits(causal=True)
    max_support: int = 16
    max_evaluations: int = 64
    max_samples: int = 8
    max_numbers: int = 2**25

    def __post_init__(self) -> None:
        positive_int("Automatic: max_samples", self.max_samples)
        if self.max_samples < 2:
            raise ValueError(f"Automatic: max_samples must be at least 2, got {self.max_samples}.")

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
_DEAR = 2**13  # numbers: the derivative of a sample with fewer takes no time
_MOSTLY = 8  # products a number: with fewer the derivative takes no longer than the rest
_SLOPES_PAY = 8  # samples: coefficients fitted to fewer add more noise than they take


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
    program: Program,
    depends: Dependences,
    split: Split,
    elimination: Elimination,
    degrees: Mapping[int, Degree],
) -> dict[int, Choice]:
    """Settle every site's estimator, checking those that were asked for.

    Args:
      program: whose sites it is.
      depends: which sites each of its values depends on.
      split: its terms.
      elimination: of these.
      degrees: of the terms, by index of a site whose estimator asks for them.
    """
    sites = program.sites.values()
    choices = {s.index: _first(s, elimination, degrees.get(s.index)) for s in sites}
    for step in elimination.steps:
        _demote(program, step, choices)
    _sample(program, depends, split, elimination, choices)
    for choice in choices.values():
        choice.estimator.validate(choice.site)
    return choices


def _sample(
    program: Program,
    depends: Dependences,
    split: Split,
    elimination: Elimination,
    choices: dict[int, Choice],
) -> None:
    """Say how many samples the automatic sites have that are not enumerated, and which ones."""
    drawn: list[tuple[Site, Automatic]] = []
    for site in program.sites.values():
        policy = site.template.estimator
        if isinstance(policy, Automatic) and choices[site.index].estimator == _FALLBACK:
            drawn.append((site, policy))
    if not drawn:
        return
    again, products = work_again(program.eqns, depends, {site.index for site, _ in drawn})
    dear = again >= _DEAR and products >= _MOSTLY * again
    counts = {
        site.index: _count(policy, again, _particles(site, elimination)) for site, policy in drawn
    }
    able = {
        site.index
        for site, _ in drawn
        if site.loop is None and site.template.support is not None
        if counts[site.index] >= _SLOPES_PAY and any(elimination.grouped(site))
    }
    slopes = slopes_of(program, depends, split, elimination, lambda site: site.index in able)
    reached = Sloped(program.eqns, slopes).reached if able else ()
    for site, _ in drawn:
        count, choice = counts[site.index], choices[site.index]
        why = f"{choice.reason}; {count} samples, of {again:,} numbers each"
        where: Literal["all", "first"] = "first" if count > 2 and dear else "all"
        if site.var in reached:
            made = FittedControlVariates(count, differentiate=where)
            why = f"{why}, which have slopes"
        else:
            made = ScoreFunction(count, "leave_one_out", differentiate=where)
        why = f"{why}; differentiated at the first" if where == "first" else why
        choices[site.index] = choice._replace(estimator=made, reason=why)


def _count(policy: Automatic, again: int, particles: int) -> int:
    """As many samples as fit; half or a quarter of the most, but two."""
    most = policy.max_samples
    fits = [
        n
        for n in (most, most // 2, most // 4)
        if n >= 2 and n * again <= policy.max_numbers and n * n * particles <= most * most
    ]
    return fits[0] if fits else 2


def _particles(site: Site, elimination: Elimination) -> int:
    """How many repetitions of it some term weighs against each other."""
    first = 0 if site.loop is None else 1  # the steps of its loop
    lanes = zip(site.lanes, elimination.mixed(site), strict=False)
    return math.prod(lane.size for lane, mixed in list(lanes)[first:] if mixed)


def _first(site: Site, elimination: Elimination, degree: Degree | None) -> Choice:
    template = site.template
    known = template.placed(site.name, site.lane_shape, elimination.mixed(site))
    known = known._replace(degree=degree, grouped=elimination.grouped(site))
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
