"""Of which degree a program's terms are, as polynomials in what was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vipp_transforms import _jax
from vipp_transforms.dependence import Dependence, Dependences
from vipp_transforms.estimators.base import Degree
from vipp_transforms.lane import MIXED
from vipp_transforms.linearity import PRODUCTS, linear_operands
from vipp_transforms.staging import Program, Site, lookup, without_calls
from vipp_transforms.switches import COMPARISONS
from vipp_transforms.terms import Split

POWERS = frozenset({"integer_pow", "square"})
_EQUAL = frozenset({"eq", "ge", "le"})
_JOINED = frozenset(
    {
        "and",
        "broadcast_in_dim",
        "copy",
        "expand_dims",
        "reduce_and",
        "reshape",
        "squeeze",
        "transpose",
    }
)
_NONE = Degree(0)


def degrees(program: Program, depends: Dependences, split: Split) -> dict[int, Degree]:
    """By index of a site whose estimator asks for it, the degree of the terms that it needs.

    Of a finite choice these are the terms that depend on several of its lanes at once, of others
    all. Where a later choice is drawn from what depends on the site, there is none: what is left
    once that choice is eliminated may be any function.
    """
    asking = [s for s in program.sites.values() if s.template.estimator.traits.polynomial]
    if not asking:
        return {}
    scope: dict[Any, Any] = {}
    eqns = without_calls(program.eqns, scope)
    return {s.index: _degree(s, program, depends, split, eqns, scope) for s in asking}


def _degree(
    site: Site, program: Program, depends: Dependences, split: Split, eqns: list[Any], scope: Any
) -> Degree:
    for other in program.sites.values():
        if other is not site and site.index in depends.log_prob(other):
            return Degree(None, f"site '{other.name}', whose distribution depends on it")
    known = _follow(eqns, lookup(site.var, scope))
    of_terms = [
        known.get(lookup(v, scope), _NONE)
        for v in split.leaves
        if _is_variable(lookup(v, scope)) and _asked(site, depends[v])
    ]
    worst = next((d for d in of_terms if d.number is None), None)
    return worst or Degree(max((d.number or 0 for d in of_terms), default=0))


def _is_variable(atom: Any) -> bool:
    return not isinstance(atom, _jax.Literal)


def _asked(site: Site, dependence: Dependence) -> bool:
    if site.index not in dependence:
        return False
    lanes = zip(site.lane_shape, dependence[site.index], strict=True)
    return site.template.support is None or any(n > 1 and a == MIXED for n, a in lanes)


def _follow(eqns: Sequence[Any], var: Any) -> dict[Any, Degree]:
    """The degrees in ``var`` of all that depends on it."""
    known = {var: Degree(1)}
    for eqn in eqns:
        operands = [
            _NONE if isinstance(v, _jax.Literal) else known.get(v, _NONE) for v in eqn.invars
        ]
        if any(d != _NONE for d in operands) and var not in eqn.outvars:
            known.update(dict.fromkeys(eqn.outvars, of_equation(eqn, operands)))
    return known


def of_equation(eqn: Any, operands: list[Degree]) -> Degree:
    """The degree of an equation's results, given those of its operands."""
    worst = next((d for d in operands if d.number is None), None)
    if worst is not None:
        return worst
    name, numbers = eqn.primitive.name, [d.number or 0 for d in operands]
    if name == "is_finite" or (name in COMPARISONS and _of_all_numbers(eqn)):
        return _NONE
    floats = all(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in eqn.outvars)
    number: int | None = None
    if name in PRODUCTS:
        number = sum(numbers)
    elif name in POWERS and eqn.params.get("y", 2) >= 0:
        number = numbers[0] * eqn.params.get("y", 2)
    elif all(i in linear_operands(name, len(numbers)) for i, n in enumerate(numbers) if n):
        number = max(numbers)
    if not floats or number is None:
        return Degree(None, f"'{name}' of it{_place(eqn)}")
    return Degree(number) if number <= 2 else Degree(None, f"degree {number}{_place(eqn)}")


def _of_all_numbers(eqn: Any) -> bool:
    """Whether a comparison comes out the same for all finite numbers."""
    one, other = eqn.invars
    endless = [v for v in eqn.invars if isinstance(v, _jax.Literal) and np.isinf(v.val).all()]
    return one is other or bool(endless)


def constant_truths(eqn: Any, known: set[Any]) -> list[Any]:
    """The results of an equation that are true for all finite numbers, given others that are."""
    name = eqn.primitive.name
    if name == "is_finite" or (name in _EQUAL and eqn.invars[0] is eqn.invars[1]):
        return list(eqn.outvars)
    if name == "ne" and _of_all_numbers(eqn) and eqn.invars[0] is not eqn.invars[1]:
        return list(eqn.outvars)
    if name in _JOINED and all(v in known for v in eqn.invars if not isinstance(v, _jax.Literal)):
        return list(eqn.outvars)
    return []


def _place(eqn: Any) -> str:
    line = _jax.user_line(eqn)
    return "" if line is None else f" at {line}"
