"""Relaxed values that reach a decision, whose derivative says nothing of what was decided.

A relaxation puts numbers between the choices and lets the gradient flow through them. Where the
program compares such a number, rounds it, or uses it as an index, it jumps: a control variate that
is such a relaxed program is biased, and what is not a control variate loses the gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.choices import Choice
from vipp_transforms.errors import RelaxedDecisionWarning, SiteError
from vipp_transforms.reach import Labels, Walk, spread
from vipp_transforms.sites import sample_p
from vipp_transforms.staging import Program, live, lookup, without_calls
from vipp_transforms.switches import COMPARISONS, JUMPS, Equations

_CONTROL = frozenset({"cond", "scan", "while"})
# continuous, whatever the pivots
_PIVOTED = frozenset({"custom_linear_solve", "lu"})
_NONE: Labels = frozenset()


def check_relaxed(program: Program, choices: Mapping[int, Choice]) -> None:
    """Raise for an unbiased relaxation whose value reaches a decision; warn of a biased one."""
    sites = {
        v: site for v, site in program.sites.items() if choices[site.index].estimator.traits.relaxed
    }
    if not sites:
        return
    found = _Decisions(program, {v: s.index for v, s in sites.items()}).found
    for site in sites.values():
        if site.index not in found:
            continue
        estimator = choices[site.index].estimator
        what = (
            f"Site '{site.name}': the relaxed value of {type(estimator).__name__} reaches "
            f"'{found[site.index]}', expected a program that is continuous in it"
        )
        if not estimator.traits.biased:
            raise SiteError(
                f"{what}: its gradient would be biased. Fix: compute with the value (z * a + "
                "(1 - z) * b in place of a choice), or use an estimator that keeps the values: "
                "LocalExpectation(), or ScoreFunction(num_samples=2, baseline='leave_one_out')."
            )
        warnings.warn(
            f"{what}: what is decided there has no gradient. Fix: compute with the value (z * a + "
            "(1 - z) * b in place of a choice), or use an estimator that keeps the values, such "
            "as LocalExpectation().",
            RelaxedDecisionWarning,
            stacklevel=2,
        )


class _Decisions:
    """The first decision that each relaxed site reaches, by its primitive's name."""

    def __init__(self, program: Program, sites: Mapping[Any, int]):
        self.found: dict[int, str] = {}
        self._met = Equations()
        scope: dict[Any, Any] = {}
        eqns, _ = self._open(live(list(program.eqns), [program.out]), [program.out], scope)
        drawn = {lookup(v, scope): index for v, index in sites.items()}
        env = {v: frozenset({index}) for v, index in drawn.items()}
        self._met.ranges.update((v, (0.0, 1.0)) for v in drawn)
        walk = Walk(self._known, self._opened)
        for eqn in eqns:
            if not any(v in drawn for v in eqn.outvars):
                spread([eqn], env, walk)

    def _opened(self, jaxpr: Any) -> tuple[Any, Any]:
        return self._open(jaxpr.eqns, jaxpr.outvars, {})

    def _open(self, eqns: Any, outputs: Any, scope: dict[Any, Any]) -> tuple[Any, Any]:
        opened = without_calls(eqns, scope)
        outs = [lookup(v, scope) for v in outputs]
        needed = live(opened, outs, effects=False)  # a call may return what nothing reads
        self._met.add(needed, outs)
        return needed, outs

    def _known(self, eqn: Any, operands: list[Labels]) -> list[Labels] | None:
        """The labels of an equation's results, if it is known not to be looked into."""
        name, reached = eqn.primitive.name, _NONE.union(*operands)
        self._met.follow(eqn)
        if eqn.primitive is sample_p:
            return [_NONE]  # another choice: its density knows the parameters
        if name == "is_finite":
            return [_NONE]
        if name in _CONTROL:
            return None
        if self._decides(eqn, operands):
            for index in reached:
                self.found.setdefault(index, name)
        if name in _PIVOTED or not any(_is_float(v) for v in eqn.outvars):
            return [reached if _is_float(v) else _NONE for v in eqn.outvars]
        return None

    def _decides(self, eqn: Any, operands: list[Labels]) -> bool:
        name = eqn.primitive.name
        if name in JUMPS or name in COMPARISONS:
            return not self._met.decides_nothing(eqn)
        if name == "sort":  # what goes along with a sorted key jumps
            return any(operands[: eqn.params["num_keys"]]) and len(operands) > 1
        if any(e.primitive.name in COMPARISONS | JUMPS for e in _jax.equations_inside(eqn)):
            return name not in _PIVOTED
        discrete = [v for v in eqn.outvars if not _is_float(v) and self._met.used(v)]
        return bool(discrete) and name not in _PIVOTED


def _is_float(atom: Any) -> bool:
    return jnp.issubdtype(atom.aval.dtype, jnp.inexact)
