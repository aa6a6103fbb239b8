"""Two loops of equal length as one: where the second goes through what the first returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from vipp_transforms import _jax
from vipp_transforms.sites import sample_p
from vipp_transforms.staging import Inliner, live

_SAME = frozenset({"copy", "copy_p", "convert_element_type", "reshape", "broadcast_in_dim"})


class Carried(NamedTuple):
    """A carried value: its variable in a step, the first one, what is carried on, and the last."""

    var: Any
    first: Any
    result: Any
    last: Any


class Total(NamedTuple):
    """A carried value that each step adds to: the first one, the signed summands, and the last."""

    first: Any
    parts: tuple[tuple[int, Any], ...]
    last: Any


class Scanned(NamedTuple):
    """What is gone through: its variable in a step, and the whole."""

    var: Any
    whole: Any


class Stacked(NamedTuple):
    """What each step returns, and the whole."""

    result: Any
    whole: Any


@dataclass(frozen=True, eq=False)
class Steps:
    """A loop whose step lies open.

    Attributes:
      length: the number of steps.
      reverse: whether the last comes first.
      env: the values of constants.
      fixed: pairs of a variable of the step and what it stands for outside.
      carried: from step to step.
      totals: carried values that nothing in the step reads.
      scanned: one entry a step.
      stacked: one entry a step.
      eqns: of one step, its variables used nowhere else.
    """

    length: int
    reverse: bool
    env: dict[Any, Any]
    fixed: tuple[tuple[Any, Any], ...]
    carried: tuple[Carried, ...]
    totals: tuple[Total, ...]
    scanned: tuple[Scanned, ...]
    stacked: tuple[Stacked, ...]
    eqns: tuple[Any, ...]

    @property
    def operands(self) -> list[Any]:
        """The atoms outside that the loop reads."""
        return [
            *(outer for _, outer in self.fixed), *(c.first for c in self.carried),
            *(t.first for t in self.totals), *(s.whole for s in self.scanned),
        ]  # fmt: skip

    @property
    def results(self) -> list[Any]:
        """The variables outside that it makes."""
        return [
            *(c.last for c in self.carried), *(t.last for t in self.totals),
            *(s.whole for s in self.stacked),
        ]  # fmt: skip


def open_steps(eqn: Any, inside: dict[Any, Any] | None = None) -> Steps:
    """The steps of a scan.

    Args:
      eqn: the scan.
      inside: by what it scans over, an atom that has one step's entry.
    """
    inside = inside or {}
    consts, count = _jax.scan_arity(eqn)
    body, _ = _jax.open_jaxpr(eqn.params["jaxpr"])
    inner = [_jax.fresh_like(v) for v in body.invars]
    wholes = eqn.invars[consts + count :]
    slices = [_lookup(x, inside) or v for x, v in zip(wholes, inner[consts + count :], strict=True)]
    inliner = Inliner({}, loops=None)
    inputs = [*inner[: consts + count], *slices]
    results = inliner.splice(eqn.params["jaxpr"], inputs, (), {})
    carried = zip(
        inner[consts:], eqn.invars[consts : consts + count], results, eqn.outvars[:count],
        strict=False,
    )  # fmt: skip
    scanned = zip(inner[consts + count :], wholes, strict=True)
    return Steps(
        eqn.params["length"],
        eqn.params["reverse"],
        inliner.env,
        tuple(zip(inner[:consts], eqn.invars[:consts], strict=True)),
        tuple(Carried(*x) for x in carried),
        (),
        tuple(Scanned(v, x) for v, x in scanned if _lookup(x, inside) is None),
        tuple(Stacked(*x) for x in zip(results[count:], eqn.outvars[count:], strict=True)),
        tuple(inliner.eqns),
    )


def _lookup(atom: Any, found: dict[Any, Any]) -> Any:
    return None if isinstance(atom, _jax.Literal) else found.get(atom)


def fuse_followers(
    steps: Steps, eqns: Sequence[Any], may: Callable[[Any], bool]
) -> tuple[Steps, list[Any], list[Any]]:
    """Take the loops that go through what a loop returns into it.

    Args:
      steps: the loop.
      eqns: those after it.
      may: whether an equation may be taken.

    Returns:
      The loop, the equations to be computed before it, and those after it.
    """
    before: list[Any] = []
    after: list[Any] = []
    made = set(steps.results)
    entry = {s.whole: s.result for s in steps.stacked}
    for eqn in eqns:
        inputs = [v for v in eqn.invars if not isinstance(v, _jax.Literal)]
        if not any(v in made for v in inputs):
            before.append(eqn)
        elif may(eqn) and _follows(eqn, steps, made, entry):
            follower = open_steps(eqn, entry)
            steps = _joined(steps, follower)
            entry |= {s.whole: s.result for s in follower.stacked}
            made.update(eqn.outvars)
        else:
            if _is_same(eqn) and eqn.invars[0] in entry:
                entry[eqn.outvars[0]] = entry[eqn.invars[0]]
            made.update(eqn.outvars)
            after.append(eqn)
    return steps, before, after


def _is_same(eqn: Any) -> bool:
    """Whether a value is handed on as it is."""
    if eqn.primitive.name not in _SAME or isinstance(eqn.invars[0], _jax.Literal):
        return False
    a, b = eqn.invars[0].aval, eqn.outvars[0].aval
    return (a.shape, a.dtype) == (b.shape, b.dtype)


def _follows(eqn: Any, steps: Steps, made: set[Any], entry: dict[Any, Any]) -> bool:
    """Whether an equation is a loop that reads of another one what it goes through."""
    if eqn.primitive.name != "scan":
        return False
    if (eqn.params["length"], eqn.params["reverse"]) != (steps.length, steps.reverse):
        return False
    consts, count = _jax.scan_arity(eqn)
    others = [v for v in eqn.invars[: consts + count] if not isinstance(v, _jax.Literal)]
    wholes = [v for v in eqn.invars[consts + count :] if not isinstance(v, _jax.Literal)]
    return not any(v in made for v in others) and all(v in entry or v not in made for v in wholes)


def _joined(one: Steps, other: Steps) -> Steps:
    return Steps(
        one.length,
        one.reverse,
        {**one.env, **other.env},
        one.fixed + other.fixed,
        one.carried + other.carried,
        one.totals + other.totals,
        one.scanned + other.scanned,
        one.stacked + other.stacked,
        one.eqns + other.eqns,
    )


# -- what is needed of it --------------------------------------------------------------------------


def needed_of(steps: Steps, wanted: Iterable[Any]) -> Steps:
    """The loop without what only unwanted results need, and without its choices' keys.

    Args:
      steps: the loop.
      wanted: variables outside.
    """
    wanted = set(wanted)
    pairs = [(e, _without_key(e)) for e in map(_jax.without_unread, steps.eqns)]
    whole = {id(bare): e for e, bare in pairs}
    stacked = tuple(s for s in steps.stacked if s.whole in wanted)
    totals = tuple(t for t in steps.totals if t.last in wanted)
    outs = [s.result for s in stacked] + [a for t in totals for _, a in t.parts]
    carried: tuple[Carried, ...] = ()
    while True:
        needed = outs + [c.result for c in carried]
        eqns = live([bare for _, bare in pairs], needed)
        used = {v for e in eqns for v in e.invars if not isinstance(v, _jax.Literal)}
        used |= {v for v in needed if not isinstance(v, _jax.Literal)}
        more = tuple(c for c in steps.carried if c.last in wanted or c.var in used)
        if more == carried:
            break
        carried = more
    fixed = tuple(pair for pair in steps.fixed if pair[0] in used)
    scanned = tuple(s for s in steps.scanned if s.var in used)
    return replace(
        steps, fixed=fixed, carried=carried, totals=totals, scanned=scanned, stacked=stacked,
        eqns=tuple(whole[id(e)] for e in eqns),
    )  # fmt: skip


def _without_key(eqn: Any) -> Any:
    return eqn.replace(invars=eqn.invars[1:]) if eqn.primitive is sample_p else eqn


def with_totals(steps: Steps) -> Steps:
    """The loop with those carried values apart that each step only adds to."""
    uses: dict[Any, int] = {}
    atoms = [v for e in steps.eqns for v in e.invars]
    atoms += [c.result for c in steps.carried] + [s.result for s in steps.stacked]
    atoms += [a for t in steps.totals for _, a in t.parts]
    for atom in atoms:
        if not isinstance(atom, _jax.Literal):
            uses[atom] = uses.get(atom, 0) + 1
    reader = {
        v: e for e in steps.eqns for v in e.invars
        if not isinstance(v, _jax.Literal) and uses[v] == 1
    }  # fmt: skip
    carried, totals, gone = [], list(steps.totals), set()
    for c in steps.carried:
        found = _summands(c, uses, reader)
        if found is None:
            carried.append(c)
        else:
            totals.append(Total(c.first, tuple(found[0]), c.last))
            gone |= {id(e) for e in found[1]}
    eqns = tuple(e for e in steps.eqns if id(e) not in gone)
    return replace(steps, carried=tuple(carried), totals=tuple(totals), eqns=eqns)


def _summands(
    c: Carried, uses: dict[Any, int], reader: dict[Any, Any]
) -> tuple[list[tuple[int, Any]], list[Any]] | None:
    """What a step adds to a carried value and the equations that do it, if it does nothing else."""
    parts, eqns, at = [], [], c.var
    while at is not c.result:
        eqn = reader.get(at)
        if uses.get(at) != 1 or eqn is None:
            return None
        name = eqn.primitive.name
        if name in ("add", "add_any"):
            left, right = eqn.invars
            parts.append((1, right if left is at else left))
        elif name == "sub" and eqn.invars[0] is at:
            parts.append((-1, eqn.invars[1]))
        elif not _is_same(eqn):
            return None
        eqns.append(eqn)
        at = eqn.outvars[0]
    return (parts, eqns) if parts and uses.get(at) == 1 else None
