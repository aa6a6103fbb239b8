"""Which estimator a site gets when its author named none."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import jax

from vipp_transforms.elimination import Elimination
from vipp_transforms.estimators.base import Axis, Estimator, Expansion, Lot, Source, Term, estimator
from vipp_transforms.estimators.enumerate import Enumerate, joint_size
from vipp_transforms.estimators.score_function import ScoreFunction
from vipp_transforms.staging import Program, Site


@estimator
class Automatic(Estimator):
    """Choose between :class:`Enumerate` and the leave-one-out score function.

    Enumeration is chosen where the joint support of the lanes that some term mixes is at most
    ``max_support``, as long as no term is evaluated at more than ``max_evaluations`` combinations
    of automatically enumerated sites.

    Args:
      max_support: largest joint support of one site.
      max_evaluations: largest product of joint supports over one term's sites.
    """

    causal: ClassVar[bool] = True
    max_support: int = 16
    max_evaluations: int = 64

    def axis(self, lot: Lot) -> Axis | None:
        """Decided by :func:`choose`."""
        raise AssertionError("an Automatic estimator is replaced before it is used")

    def expand(self, lot: Lot, source: Source) -> Expansion:
        """Decided by :func:`choose`."""
        raise AssertionError("an Automatic estimator is replaced before it is used")

    def contract(self, term: Term) -> jax.Array:
        """Decided by :func:`choose`."""
        raise AssertionError("an Automatic estimator is replaced before it is used")


class Choice(NamedTuple):
    """A site's estimator, and why it has it."""

    estimator: Estimator
    lot: Lot
    reason: str


def choose(program: Program, elimination: Elimination) -> dict[int, Choice]:
    """Settle every site's estimator, checking those that were asked for."""
    choices = {s.index: _first(s, elimination) for s in program.sites.values()}
    for step in elimination.steps:
        _demote(program, step, choices)
    for choice in choices.values():
        choice.estimator.validate(choice.lot)
    return choices


def _first(site: Site, elimination: Elimination) -> Choice:
    template = site.template
    lot = template.placed(site.name, site.lane_shape, elimination.mixed(site))
    estimator = template.estimator
    if not isinstance(estimator, Automatic):
        return Choice(estimator, lot, "asked for")
    if site.loop is not None:
        return Choice(_FALLBACK, lot, "in a loop")
    if lot.support is None:
        return Choice(_FALLBACK, lot, "not reparameterisable, no finite support")
    if joint_size(lot) > estimator.max_support:
        mixed = math.prod(n for n, m in zip(lot.lane_shape, lot.mixed, strict=True) if m)
        size = f"{lot.support.shape[0]}" + (f"^{mixed}" if mixed > 1 else "")
        return Choice(_FALLBACK, lot, f"support of {size} values")
    return Choice(Enumerate(), lot, f"{joint_size(lot)} values, cheap to sum")


_FALLBACK = ScoreFunction(num_samples=2, baseline="leave_one_out")


def _demote(program: Program, step: Any, choices: dict[int, Choice]) -> None:
    """Give up enumerating the largest automatic sites of a term until the term is cheap."""
    together = {*step.form.depends, *step.layout.form.depends}
    by_index = {s.index: s for s in program.sites.values()}

    def automatic(i: int) -> bool:
        return isinstance(by_index[i].template.estimator, Automatic) and isinstance(
            choices[i].estimator, Enumerate
        )

    def size(i: int) -> int:
        return joint_size(choices[i].lot)

    chosen = sorted(filter(automatic, together), key=size)
    policies = [by_index[i].template.estimator for i in chosen]
    limit = min((p.max_evaluations for p in policies if isinstance(p, Automatic)), default=1)
    while chosen and math.prod(map(size, chosen)) > limit:
        worst = chosen.pop()
        choices[worst] = choices[worst]._replace(
            estimator=_FALLBACK, reason="enumerating it with the others costs too much"
        )
