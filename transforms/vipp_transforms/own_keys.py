"""A choice in a loop has a key for each step, or is refused by name.

Its steps are taken to be independent draws. With one key for all they would be one draw, repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vipp_transforms import _jax
from vipp_transforms.errors import SiteError
from vipp_transforms.reach import Labels, read, spread
from vipp_transforms.sites import lane_key_p, sample_p

_DRAWS = (sample_p, lane_key_p)


def check_keys(closed: Any) -> None:
    """Raise for a choice whose key does not change from step to step of a loop around it."""
    if any(eqn.primitive in _DRAWS for eqn in _jax.equations(closed)):
        _check(closed, [frozenset()] * len(_jax.open_jaxpr(closed)[0].invars), frozenset())


def _check(jaxpr: Any, inputs: Sequence[Labels], loops: Labels) -> None:
    """Walk through equations; a value is labelled with the loops whose steps it changes with."""
    bare, _ = _jax.open_jaxpr(jaxpr)
    env = dict(zip(bare.invars, inputs, strict=True))
    for eqn in bare.eqns:
        operands = [read(env, v) for v in eqn.invars]
        if eqn.primitive in _DRAWS:
            name = _name(eqn)
            if name and loops - operands[0]:
                raise _one_key(name)
        elif any(e.primitive in _DRAWS for e in _jax.equations_inside(eqn)):
            _check_inside(eqn, operands, loops)
        spread([eqn], env)


def _check_inside(eqn: Any, operands: list[Labels], loops: Labels) -> None:
    name, inner = eqn.primitive.name, _jax.called(eqn)
    if inner is not None:
        _check(inner, operands, loops)
    elif name == "cond":
        for branch in eqn.params["branches"]:
            _check(branch, operands[1:], loops)
    elif name == "scan":
        consts, carried = _jax.scan_arity(eqn)
        _check_loop(eqn.params["jaxpr"], operands, consts, carried, eqn.params["length"], loops)
    elif name == "while":
        tests, consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        carried = len(operands) - tests - consts
        _check_loop(eqn.params["body_jaxpr"], operands[tests:], consts, carried, None, loops)


def _check_loop(
    body: Any, operands: list[Labels], consts: int, carried: int, length: int | None, loops: Labels
) -> None:
    """The body of a loop; what is carried may come to be anything that enters the loop."""
    here = frozenset() if length == 1 else frozenset({object()})
    bare, anything = _jax.open_jaxpr(body)[0], here.union(*operands)
    carry = bare.invars[consts : consts + carried]
    kept = [a is b for a, b in zip(carry, bare.outvars, strict=False)]
    pairs = zip(kept, operands[consts : consts + carried], strict=True)
    changing = [x if same else anything for same, x in pairs]
    scanned = [x | here for x in operands[consts + carried :]]
    _check(body, [*operands[:consts], *changing, *scanned], loops | here)


def _name(eqn: Any) -> str:
    return eqn.params["name"] if eqn.primitive is lane_key_p else eqn.params["template"].name


def _one_key(name: str) -> SiteError:
    return SiteError(
        f"Site '{name}' is drawn in a loop (scan, map, fori_loop, while_loop) with one random key "
        "for all of its steps, expected a key for each: they would draw the same. Fix: scan over "
        "jax.random.split(key, length) and give each step its key; or use "
        "numpyro.contrib.control_flow.scan, without a numpyro.handlers.seed of your own."
    )
