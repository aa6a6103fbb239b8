"""Which inputs of a program reach which of its values, through every call, loop and branch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vipp_transforms import _jax

Labels = frozenset[Any]
Env = dict[Any, Labels]

_NONE: Labels = frozenset()


class Walk(NamedTuple):
    """How a program is walked.

    Attributes:
      known: given an equation and the labels of its operands, those of its results, or None for
        what follows from the equation.
      opened: the equations and outputs of a jaxpr.
      starts: whether an equation's results may have labels that its operands do not have.
    """

    known: Callable[[Any, list[Labels]], list[Labels] | None] = lambda eqn, operands: None
    opened: Callable[[Any], tuple[Sequence[Any], Sequence[Any]]] = lambda j: (j.eqns, j.outvars)
    starts: Callable[[Any], bool] = lambda eqn: False


_PLAIN = Walk()


def reach(jaxpr: Any, inputs: Sequence[Labels], walk: Walk = _PLAIN) -> list[Labels]:
    """The labels of each output of a jaxpr, given those of its inputs."""
    bare, _ = _jax.open_jaxpr(jaxpr)
    eqns, outputs = walk.opened(bare)
    env = dict(zip(bare.invars, inputs, strict=True))
    spread(eqns, env, walk)
    return [read(env, v) for v in outputs]


def spread(eqns: Iterable[Any], env: Env, walk: Walk = _PLAIN) -> None:
    """Carry labels from the variables in ``env`` on through the equations."""
    for eqn in eqns:
        operands = [read(env, v) for v in eqn.invars]
        if any(operands) or walk.starts(eqn):
            env.update(zip(eqn.outvars, _through(eqn, operands, walk), strict=True))


def read(env: Mapping[Any, Labels], atom: Any) -> Labels:
    """The labels of a variable or literal."""
    return _NONE if isinstance(atom, _jax.Literal) else env.get(atom, _NONE)


def _through(eqn: Any, operands: list[Labels], walk: Walk) -> list[Labels]:
    """The labels of an equation's results."""
    known = walk.known(eqn, operands)
    if known is not None:
        return known
    name = eqn.primitive.name
    if name == "scan":
        return _scan(eqn, operands, walk)
    if name == "while":
        return _while(eqn, operands, walk)
    if name == "cond":
        return _cond(eqn, operands, walk)
    inner = _jax.called(eqn)
    if inner is not None:
        return reach(inner, operands, walk)
    return [_NONE.union(*operands)] * len(eqn.outvars)


def _cond(eqn: Any, operands: list[Labels], walk: Walk) -> list[Labels]:
    index, *rest = operands
    branches = [reach(b, rest, walk) for b in eqn.params["branches"]]
    return [index.union(*cases) for cases in zip(*branches, strict=True)]


def _scan(eqn: Any, operands: list[Labels], walk: Walk) -> list[Labels]:
    consts, carried = _jax.scan_arity(eqn)
    fixed, scanned = operands[:consts], operands[consts + carried :]

    def step(carry: list[Labels]) -> list[Labels]:
        return reach(eqn.params["jaxpr"], [*fixed, *carry, *scanned], walk)

    carry = _to_fixed_point(lambda c: step(c)[:carried], operands[consts : consts + carried])
    return [*carry, *step(carry)[carried:]]


def _while(eqn: Any, operands: list[Labels], walk: Walk) -> list[Labels]:
    tests, body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    asked, fixed, start = operands[:tests], operands[tests : tests + body], operands[tests + body :]
    carry = _to_fixed_point(lambda c: reach(eqn.params["body_jaxpr"], [*fixed, *c], walk), start)
    (again,) = reach(eqn.params["cond_jaxpr"], [*asked, *carry], walk)
    return [labels | again for labels in carry]


def _to_fixed_point(
    step: Callable[[list[Labels]], list[Labels]], carry: list[Labels]
) -> list[Labels]:
    while True:
        grown = [a | b for a, b in zip(carry, step(carry), strict=True)]
        if grown == carry:
            return carry
        carry = grown
