"""Results of loops and branches that are constants, made so outside.

What each step or branch holds constant is returned free, and held constant by who called: then the
loop stays one, and the branch a selection. So are sums and multiples of constants, and what an
inner loop returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.constant import is_constant

_LINEAR = frozenset(
    "add add_any broadcast_in_dim convert_element_type copy div mul neg reduce_sum reshape squeeze "
    "sub transpose".split()
)


def released(jaxpr: Any, first: int = 0) -> tuple[Any, list[bool]]:
    """A jaxpr whose results are no constants, and which of them (from the ``first`` on) were."""
    opened, consts = _jax.open_jaxpr(jaxpr)
    eqns, outs = opened.eqns, opened.outvars
    loops = _loops(eqns)
    free = _freed(eqns, outs[:first], loops)
    held = [_is_var(v) and v in free for v in outs]
    if not any(held):
        return jaxpr, held

    def special(eqn: Any, inputs: list[Any]) -> list[Any] | None:
        if is_constant(eqn):
            return inputs if eqn.outvars[0] in free else None
        if id(eqn) in loops and free.issuperset(_constants(eqn, loops)):
            return _jax.apply(loops[id(eqn)][0], inputs)
        return None

    def release(*operands: Any) -> list[Any]:
        invars = (*opened.constvars, *opened.invars)
        values = dict(zip(invars, (*consts, *operands), strict=True))
        return _jax.evaluate_with(eqns, values, outs, special)

    return _jax.trace(release, *(_jax.shaped(v.aval) for v in opened.invars))[0], held


def released_scan(eqn: Any) -> tuple[Any, list[bool]]:
    """A scan whose results are no constants, and which of them were."""
    body, held = released(eqn.params["jaxpr"], _jax.scan_arity(eqn)[1])
    return eqn.replace(params={**eqn.params, "jaxpr": body}), held


Loops = dict[int, tuple[Any, list[bool]]]  # by equation: the scan, released; its results


def _loops(eqns: Sequence[Any]) -> Loops:
    scans = [e for e in eqns if e.primitive.name == "scan"]
    holding = [e for e in scans if any(map(is_constant, _jax.equations_inside(e)))]
    found = {id(e): released_scan(e) for e in holding}
    return {key: loop for key, loop in found.items() if any(loop[1])}


def _constants(eqn: Any, loops: Loops) -> list[Any]:
    """Which results of a loop were constants."""
    flags = loops[id(eqn)][1] if id(eqn) in loops else []
    return [v for v, flag in zip(eqn.outvars, flags, strict=False) if flag]


def _freed(eqns: Sequence[Any], carried: Sequence[Any], loops: Loops) -> set[Any]:
    """The constants, and what is linear in them, of which nothing else is made."""
    barred: set[Any] = {v for v in carried if _is_var(v)}
    while True:
        free: set[Any] = set()
        for eqn in eqns:
            made = eqn.outvars if _links(eqn, free) else _constants(eqn, loops)
            if barred.isdisjoint(made):
                free.update(made)
        ends = [e for e in eqns if not (_links(e, free) and free.issuperset(e.outvars))]
        used = {v for e in ends for v in e.invars if _is_var(v) and v in free}
        if not used:
            return free
        barred |= used


def _links(eqn: Any, free: set[Any]) -> bool:
    """Whether an equation makes a constant, or is linear in some and made of nothing else."""
    if is_constant(eqn):
        return True
    variables = [v for v in eqn.invars if _is_var(v)]
    if eqn.primitive.name not in _LINEAR or not variables or not free.issuperset(variables):
        return False
    if not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.inexact):
        return False
    if eqn.primitive.name in ("mul", "div"):
        return len(variables) == 1 and not (eqn.primitive.name == "div" and _is_var(eqn.invars[1]))
    return True


def _is_var(atom: Any) -> bool:
    return not isinstance(atom, _jax.Literal)
