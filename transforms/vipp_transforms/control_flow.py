"""Random choices inside branches, loops and other calls, brought where they can be treated.

A call is opened, and a branch becomes a selection among the results of all branches: what was not
taken is masked, and with it what was drawn there. A loop of a fixed number of steps whose choices
are all score functions stays a loop: it returns its draws and their distributions' parameters,
stacked, and so becomes one site with a lane for each step. Any other such loop is unrolled, if it
is short. A ``while_loop`` cannot be treated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.constant import constant, detached, is_constant
from vipp_transforms.errors import SiteError
from vipp_transforms.released import released, released_scan
from vipp_transforms.sites import Template, draw, sample_p
from vipp_transforms.unrolling import reason_to_unroll

MAX_UNROLLED = 128


def templates_in(jaxpr: Any) -> list[Template]:
    """The sites of a jaxpr, those of the jaxprs inside it included."""
    return [e.params["template"] for e in _jax.equations(jaxpr) if e.primitive is sample_p]


def templates_inside(eqn: Any) -> list[Template]:
    """The sites inside an equation."""
    return [e.params["template"] for e in _jax.equations_inside(eqn) if e.primitive is sample_p]


def holds_constants(eqn: Any) -> bool:
    """Whether something inside an equation is held constant."""
    return any(map(is_constant, _jax.equations_inside(eqn)))


@dataclass(frozen=True, eq=False)
class Loop:
    """The loop that a site is drawn in.

    Attributes:
      eqn: the scan, rewritten to return its draws.
      trajectory: the variable that numbers the trajectory: draws differ where it does.
    """

    eqn: Any
    trajectory: Any


def opened(eqn: Any) -> Callable[..., list[Any]]:
    """A function of the operands that does what ``eqn`` does, its sites in the open."""
    name = eqn.primitive.name
    inner = _jax.called(eqn)
    if inner is not None:
        return lambda *operands: _call(inner, operands)
    if name == "cond":
        return _selection(eqn)
    if name == "scan":
        return _releasing(eqn) or _unrolled(eqn)
    raise _refused(eqn)


def _refused(eqn: Any) -> ValueError:
    name = eqn.primitive.name
    if not (templates := templates_inside(eqn)):
        return ValueError(
            f"constant(x) is used inside '{name}', where it is not seen. Fix: return x from it, "
            "and hold constant what is made of it outside."
        )
    return SiteError(
        f"Site '{templates[0].name}' is drawn inside '{name}' with {templates[0].estimator!r}, "
        "where only Pathwise choices may be drawn. Fix: use a loop of a fixed number of steps "
        "(lax.scan, or fori_loop with constant bounds), or draw it outside (under a plate, or with "
        "vipp.replicate)."
    )


def _call(jaxpr: Any, operands: Sequence[Any]) -> list[Any]:
    opened_jaxpr, consts = _jax.open_jaxpr(jaxpr)
    fn = _jax.evaluator(
        opened_jaxpr.eqns, (*opened_jaxpr.constvars, *opened_jaxpr.invars), opened_jaxpr.outvars
    )
    return fn(*consts, *operands)


def _selection(eqn: Any) -> Callable[..., list[Any]]:
    branches = [released(branch) for branch in eqn.params["branches"]]

    def select(index: Any, *operands: Any) -> list[Any]:
        # of draws from one key, only one was ever made: now they must not be the same
        results = []
        for number, (branch, _) in enumerate(branches):
            taken = _is_taken(index, number)
            results.append(_call_apart(branch, _unless_skipped(taken, operands), number, taken))
        held = zip(*(flags for _, flags in branches), strict=True)
        return [_choose(index, *x) for x in zip(zip(*results, strict=True), held, strict=True)]

    return select


def _is_taken(index: Any, number: int) -> Any:
    if index.dtype == jnp.bool_:
        return index if number else ~index
    return index == number


def _unless_skipped(taken: Any, operands: Sequence[Any]) -> list[Any]:
    """The operands of one branch, of which no derivative is taken where another one is.

    The branch is evaluated all the same; a derivative that is infinite there would come back as
    nought times infinity.
    """
    return [_unless(taken, x) if jnp.issubdtype(x.dtype, jnp.inexact) else x for x in operands]


def _unless(taken: Any, x: Any) -> Any:
    return jax.lax.select_n(jnp.broadcast_to(taken, x.shape), detached(x), x)


def _releasing(eqn: Any) -> Callable[..., list[Any]] | None:
    """A scan that returns what was held constant in each of its steps, held constant outside."""
    scan, held = released_scan(eqn)
    if not any(held):
        return None

    def run(*operands: Any) -> list[Any]:
        pairs = zip(_jax.apply(scan, operands), held, strict=True)
        return [constant(x) if flag else x for x, flag in pairs]

    return run


def _call_apart(jaxpr: Any, operands: Sequence[Any], number: int, taken: Any) -> list[Any]:
    """Call a branch, all of whose draws are independent of those of branches numbered otherwise.

    What it draws is told whether it is ``taken``.
    """

    def special(eqn: Any, inputs: list[Any]) -> list[Any] | None:
        if eqn.primitive is sample_p:
            return _draw_apart(eqn, inputs, number, taken)
        if not templates_inside(eqn) or eqn.primitive.name == "while":
            return None
        if eqn.primitive.name == "cond":
            return _jax.apply(_with_branches_apart(eqn, number), [*inputs, taken])
        if eqn.primitive.name == "scan":
            return _scan_apart(eqn, inputs, number, taken)
        inner = _jax.called(eqn)
        return None if inner is None else _call_apart(inner, inputs, number, taken)

    opened_jaxpr, consts = _jax.open_jaxpr(jaxpr)
    invars = (*opened_jaxpr.constvars, *opened_jaxpr.invars)
    values = dict(zip(invars, (*consts, *operands), strict=True))
    return _jax.evaluate_with(opened_jaxpr.eqns, values, opened_jaxpr.outvars, special)


def _draw_apart(eqn: Any, inputs: Sequence[Any], number: int, taken: Any) -> list[Any]:
    """A draw with a key of the branch, in branches within branches if all are taken."""
    template, lanes = eqn.params["template"], eqn.params["lanes"]
    key, *leaves = inputs
    if template.conditional:
        leaves[0] = jnp.logical_and(leaves[0], taken)
    else:
        template, leaves = template.in_branch, [taken, *leaves]
        lanes = tuple(lane._replace(varies=(False, *lane.varies)) for lane in lanes)
    return [sample_p.bind(_folded(key, number), *leaves, template=template, lanes=lanes)]


def _with_branches_apart(eqn: Any, number: int) -> Any:
    """A cond within a branch; its last operand is whether that is taken."""
    flag = _jax.Var(_jax.shaped_array((), jnp.dtype(jnp.bool_)))

    def apart(closed: Any) -> Any:
        fn = lambda *xs: _call_apart(closed, xs[:-1], number, xs[-1])
        return _jax.trace(fn, *map(_jax.shaped, (*closed.in_avals, flag.aval)))[0]

    branches = tuple(map(apart, eqn.params["branches"]))
    return eqn.replace(params={**eqn.params, "branches": branches}, invars=[*eqn.invars, flag])


def _scan_apart(eqn: Any, inputs: Sequence[Any], number: int, taken: Any) -> list[Any]:
    """A loop within a branch."""
    consts, carried = _jax.scan_arity(eqn)
    fixed, init = inputs[:consts], inputs[consts : consts + carried]

    def step(carry: Any, xs: Any) -> Any:
        made = _call_apart(eqn.params["jaxpr"], [*fixed, *carry, *xs], number, taken)
        return made[:carried], made[carried:]

    return _run_scan(eqn, step, init, inputs[consts + carried :])


def _run_scan(eqn: Any, step: Any, init: Sequence[Any], xs: Sequence[Any]) -> list[Any]:
    """A scan of as many steps in the same direction."""
    length, reverse = eqn.params["length"], eqn.params["reverse"]
    carry, ys = jax.lax.scan(step, list(init), list(xs), length=length, reverse=reverse)
    return [*carry, *ys]


def _folded(key: Any, number: Any) -> Any:
    fold = jax.random.fold_in
    for _ in range(key.ndim):
        fold = jax.vmap(fold, in_axes=(0, None))
    return fold(key, number)


def _choose(index: Any, cases: Sequence[Any], held: Sequence[bool]) -> Any:
    """The case taken; where some are held constant, a constant and the rest."""
    if any(held):
        # a constant cannot be selected among terms: the selected rest plus the selected constants
        free = [jnp.zeros_like(x) if h else x for x, h in zip(cases, held, strict=True)]
        fixed = [x if h else jnp.zeros_like(x) for x, h in zip(cases, held, strict=True)]
        never = (False,) * len(held)
        return _choose(index, free, never) + constant(_choose(index, fixed, never))
    if len(cases) == 1:
        return cases[0]
    which = index.astype(bool) if len(cases) == 2 else index
    return jax.lax.select_n(jnp.broadcast_to(which, cases[0].shape), *cases)


def stays_loop(eqn: Any) -> bool:
    """Whether a scan with sites can stay one."""
    if eqn.primitive.name != "scan" or eqn.params["length"] < 2:
        return False
    causal = all(template.estimator.traits.causal for template in templates_inside(eqn))
    return causal and not holds_constants(eqn)


def is_summed(eqn: Any) -> bool:
    """Whether a scan's choices may be summed out in it."""
    if eqn.primitive.name != "scan" or eqn.params["length"] < 2 or holds_constants(eqn):
        return False
    templates = templates_inside(eqn)
    exhaustive = all(t.estimator.traits.exhaustive for t in templates)
    return bool(templates) and exhaustive and not any(reason_to_unroll(t.name) for t in templates)


def _too_long(eqn: Any, length: int) -> ValueError:
    # two reasons to unroll: an estimator that needs each step's draw apart, or a constant inside
    others = [t for t in templates_inside(eqn) if not t.estimator.traits.causal]
    if not others:
        return ValueError(
            f"constant(x) is used in each of the {length} steps of a loop, expected at most "
            f"{MAX_UNROLLED}, or what the loop returns for each step. Fix: return x from each "
            "step, and hold constant its sum outside."
        )
    why = reason_to_unroll(others[0].name)
    unrolled = "loops with other estimators are unrolled"
    if why is not None:
        unrolled = f"its steps cannot be summed over one by one, as {why}"
    return SiteError(
        f"Site '{others[0].name}' is drawn with {others[0].estimator!r} in each of the {length} "
        f"steps of a loop. Expected ScoreFunction or Pathwise, or at most {MAX_UNROLLED} "
        f"steps: {unrolled}. Fix: give it "
        "ScoreFunction(num_samples=2, baseline='leave_one_out'), or sum it out "
        "(vipp.marginal with exact=True)."
    )


def _unrolled(eqn: Any) -> Callable[..., list[Any]]:
    length, reverse = eqn.params["length"], eqn.params["reverse"]
    consts, carried = _jax.scan_arity(eqn)
    if length > MAX_UNROLLED:
        raise _too_long(eqn, length)

    def run(*operands: Any) -> list[Any]:
        fixed, carry = operands[:consts], list(operands[consts : consts + carried])
        scanned = operands[consts + carried :]
        stacked: list[list[Any]] = []
        for t in reversed(range(length)) if reverse else range(length):
            xs = [jax.lax.index_in_dim(x, t, keepdims=False) for x in scanned]
            results = _call(eqn.params["jaxpr"], [*fixed, *carry, *xs])
            carry = results[:carried]
            stacked.append(results[carried:])
        if reverse:
            stacked.reverse()
        if not stacked:
            empty = [v.aval for v in eqn.outvars[carried:]]
            return [*carry, *(jnp.zeros(a.shape, a.dtype) for a in empty)]
        return [*carry, *(jnp.stack(step) for step in zip(*stacked, strict=True))]

    return run


def returning_draws(
    eqn: Any, body: Sequence[Any], env: dict[Any, Any], invars: Sequence[Any], outs: Sequence[Any]
) -> tuple[Callable[..., Any], list[Any]]:
    """The scan, returning also what its sites drew.

    Args:
      eqn: the scan.
      body: the equations of its body, opened.
      env: the constants among their variables.
      invars: of the body.
      outs: the atoms that it returns.

    Returns:
      A function of one trajectory number per site, then of the operands, returning the scan's
      results and then, per site, the value, its key and its leaves; and the sites' equations.
    """
    consts, carried = _jax.scan_arity(eqn)
    # draws of one trajectory number are the same whenever the loop runs: the number is folded
    # into the key of each step
    sites = [e for e in body if e.primitive is sample_p]

    def run(*operands: Any) -> list[Any]:
        trajectories, operands = operands[: len(sites)], operands[len(sites) :]
        fixed, init = operands[:consts], operands[consts : consts + carried]

        def step(carry: Any, xs: Any) -> Any:
            extras: list[Any] = []

            def special(e: Any, inputs: list[Any]) -> list[Any] | None:
                if e.primitive is not sample_p:
                    return None
                return _draw(e, inputs, trajectories[sites.index(e)], extras)

            values = {**env, **dict(zip(invars, (*fixed, *carry, *xs), strict=True))}
            made = _jax.evaluate_with(body, values, outs, special)
            return made[:carried], [*made[carried:], *extras]

        return _run_scan(eqn, step, init, operands[consts + carried :])

    return run, sites


def _draw(eqn: Any, inputs: Sequence[Any], trajectory: Any, extras: list[Any]) -> list[Any]:
    key, *leaves = inputs
    template, lanes = eqn.params["template"], eqn.params["lanes"]
    value = draw(template, lanes, _folded(key, trajectory), leaves)
    extras += [value, key, *map(jnp.asarray, leaves)]
    return [value]
