"""Which inputs of a program reach which of its values, through every call, loop and branch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vipp_transforms import _jax

Labels = frozenset[Any]
Env = dict[Any, Labels]
# given an equation and the labels of its operands: those of its results, or None for all of them
Stop = Callable[[Any, list[Labels]], list[Labels] | None]

_NONE: Labels = frozenset()


def reach(jaxpr: Any, inputs: Sequence[Labels], stop: Stop | None = None) -> list[Labels]:
    """The labels of each output of a jaxpr, given those of its inputs."""
    opened, _ = _jax.open_jaxpr(jaxpr)
    env = dict(zip(opened.invars, inputs, strict=True))
    spread(opened.eqns, env, stop)
    return [read(env, v) for v in opened.outvars]


def spread(eqns: Iterable[Any], env: Env, stop: Stop | None = None) -> None:
    """Carry labels from the variables in ``env`` on through the equations."""
    for eqn in eqns:
        operands = [read(env, v) for v in eqn.invars]
        if any(operands):
            env.update(zip(eqn.outvars, through(eqn, operands, stop), strict=True))


def read(env: Mapping[Any, Labels], atom: Any) -> Labels:
    """The labels of a variable or literal."""
    return _NONE if isinstance(atom, _jax.Literal) else env.get(atom, _NONE)


def through(eqn: Any, operands: list[Labels], stop: Stop | None) -> list[Labels]:
    """The labels of an equation's results."""
    known = None if stop is None else stop(eqn, operands)
    if known is not None:
        return known
    name = eqn.primitive.name
    if name == "scan":
        return _scan(eqn, operands, stop)
    if name == "while":
        return _while(eqn, operands, stop)
    if name == "cond":
        return _cond(eqn, operands, stop)
    inner = _jax.called(eqn)
    if inner is not None:
        return reach(inner, operands, stop)
    return [_NONE.union(*operands)] * len(eqn.outvars)


def _cond(eqn: Any, operands: list[Labels], stop: Stop | None) -> list[Labels]:
    index, *rest = operands
    branches = [reach(b, rest, stop) for b in eqn.params["branches"]]
    return [index.union(*cases) for cases in zip(*branches, strict=True)]


def _scan(eqn: Any, operands: list[Labels], stop: Stop | None) -> list[Labels]:
    consts, carried = _jax.scan_arity(eqn)
    fixed, scanned = operands[:consts], operands[consts + carried :]

    def step(carry: list[Labels]) -> list[Labels]:
        return reach(eqn.params["jaxpr"], [*fixed, *carry, *scanned], stop)

    carry = _to_fixed_point(lambda c: step(c)[:carried], operands[consts : consts + carried])
    return [*carry, *step(carry)[carried:]]


def _while(eqn: Any, operands: list[Labels], stop: Stop | None) -> list[Labels]:
    tests, body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    asked, fixed, start = operands[:tests], operands[tests : tests + body], operands[tests + body :]
    carry = _to_fixed_point(lambda c: reach(eqn.params["body_jaxpr"], [*fixed, *c], stop), start)
    (again,) = reach(eqn.params["cond_jaxpr"], [*asked, *carry], stop)
    return [labels | again for labels in carry]


def _to_fixed_point(
    step: Callable[[list[Labels]], list[Labels]], carry: list[Labels]
) -> list[Labels]:
    while True:
        grown = [a | b for a, b in zip(carry, step(carry), strict=True)]
        if grown == carry:
            return carry
        carry = grown
