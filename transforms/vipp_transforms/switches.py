"""Jumps that decide nothing: what is made from them is continuous all the same.

``leaky_relu`` compares, and has no jump; a normal distribution function takes one formula or the
other, and both agree where it changes over. Whether that is so is tried out on the few elementwise
equations around the comparison, at arbitrary values of all that they do not make themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms import _jax
from vipp_transforms.ranges import ANY, Range, decided, range_of

COMPARISONS = frozenset({"eq", "eq_to", "ge", "gt", "le", "le_to", "lt", "lt_to", "ne"})
JUMPS = frozenset({"ceil", "floor", "nextafter", "rem", "round", "sign"})
_SHAPED = frozenset({"broadcast_in_dim", "copy", "reshape", "squeeze"})
_KEPT = _SHAPED | {"convert_element_type"}
_ELEMENTWISE = COMPARISONS | JUMPS | _SHAPED | frozenset(
    "abs add and cbrt clamp convert_element_type cos digamma div erf erfc erf_inv "
    "exp exp2 expm1 integer_pow is_finite lgamma log log1p logistic max min mul neg not or pow "
    "rsqrt select_n sin sqrt square stop_gradient sub tan tanh vipp_order vipp_settled xor".split()
)  # fmt: skip
_TRIALS, _DEPTH = 2, 40
_FLIPS, _NARROWINGS, _POINTS = 8, 4, 64
_GRID = np.unique(np.concatenate([np.linspace(-30, 30, 1201), np.linspace(-1, 2, 601)]))


class Equations:
    """The equations met so far: who makes and who uses each value, and what is known of it."""

    def __init__(self) -> None:
        self._makers: dict[Any, Any] = {}
        self._users: dict[Any, list[Any]] = {}
        self._outputs: set[Any] = set()
        self.ranges: dict[Any, Range] = {}

    def add(self, eqns: Iterable[Any], outputs: Iterable[Any]) -> None:
        """Add one body of equations, calls opened, and what it returns."""
        for eqn in eqns:
            self._makers.update((v, eqn) for v in eqn.outvars)
            for v in eqn.invars:
                if not _is_literal(v):
                    self._users.setdefault(v, []).append(eqn)
        self._outputs.update(v for v in outputs if not _is_literal(v))

    def used(self, var: Any) -> bool:
        """Whether anything is made from a value."""
        return var in self._outputs or bool(self._users.get(var))

    def follow(self, eqn: Any) -> None:
        """Note the range of an equation's result, where it follows from those of its operands."""
        found = range_of(eqn, [self._range(v) for v in eqn.invars])
        if found != ANY:
            self.ranges[eqn.outvars[0]] = found

    def _range(self, atom: Any) -> Range:
        if _is_literal(atom):
            return (float(atom.val), float(atom.val)) if np.ndim(atom.val) == 0 else ANY
        maker = self._makers.get(atom)
        if atom not in self.ranges and maker is not None and maker.primitive.name in _KEPT:
            return self._range(maker.invars[0])
        return self.ranges.get(atom, ANY)

    def decides_nothing(self, eqn: Any) -> bool:
        """Whether a comparison (or a rounding, or the like) of relaxed values may be left alone.

        It does not tell 0 from 1, nor either from what is between; or it asks for what is no
        finite number; or all that is made from it is continuous.
        """
        if eqn.primitive.name in COMPARISONS:
            x, other = eqn.invars
            endless = [v for v in eqn.invars if _is_literal(v) and not np.isfinite(v.val).any()]
            if x is other or endless:
                return True
            if decided(eqn.primitive.name, self._range(x), self._range(other)):
                return True
        return self._heals(eqn, eqn.outvars[0], _DEPTH)

    def _heals(self, jump: Any, var: Any, depth: int) -> bool:
        """Whether a value is continuous where an equation jumps, or all made from it is."""
        if var is not jump.outvars[0] and _is_float(var) and self._continuous(jump, var):
            return True
        users = self._users.get(var, [])
        if depth == 0 or var in self._outputs or not users:
            return False
        if not all(map(_is_elementwise, users)):
            return False
        return all(self._heals(jump, u.outvars[0], depth - 1) for u in users)

    def _continuous(self, jump: Any, var: Any) -> bool:
        with jax.ensure_compile_time_eval():
            return any(self._tried(jump, var, root) for root in self._roots(jump.invars))

    def _roots(self, atoms: Iterable[Any]) -> list[Any]:
        """The operands of a jump, and what they are made from alone: one of them is moved."""
        found: list[Any] = []
        for atom in atoms:
            while not _is_literal(atom) and atom not in found:
                found.append(atom)
                maker = self._makers.get(atom)
                if maker is None or not _is_elementwise(maker):
                    break
                variable = [v for v in maker.invars if not _is_literal(v)]
                atom = variable[0] if len(variable) == 1 else atom
        return [v for v in found if _is_float(v)][::-1]

    def _tried(self, jump: Any, var: Any, root: Any) -> bool:
        """Whether ``var`` is continuous where the jump is, as ``root`` moves."""
        targets = [*(v for v in jump.invars if not _is_literal(v)), jump.outvars[0], var]
        eqns = self._behind(targets, root)
        made = {v for e in eqns for v in e.outvars}
        atoms = [v for e in eqns for v in e.invars if not _is_literal(v)] + targets
        free = [v for v in dict.fromkeys(atoms) if v not in made and v is not root]
        fn = _jax.evaluator(eqns, [root, *free], targets)

        def at(r: Any, values: list[Any]) -> list[Any]:
            moved = jnp.full(root.aval.shape, r, root.aval.dtype)
            return [jnp.ravel(x)[0] for x in fn(moved, *values)]

        if any(math.prod(v.aval.shape) == 0 for v in (root, *targets)):
            return False
        trials = [_values(free, seed) for seed in range(_TRIALS)]
        fns = [jax.vmap(lambda r, t=t: at(r, t)) for t in trials]
        grids = [_GRID] if self._range(root) == ANY else [np.clip(_GRID, *self._range(root)), _GRID]
        return any(all(_is_smooth(jump, fn, grid) for fn in fns) for grid in grids)

    def _behind(self, targets: Iterable[Any], root: Any) -> list[Any]:
        """The elementwise equations behind the targets, up to ``root``, in order."""
        order: dict[int, Any] = {}
        seen = {root}

        def visit(atom: Any) -> None:
            maker = None if _is_literal(atom) or atom in seen else self._makers.get(atom)
            if maker is None or not _is_elementwise(maker):
                return
            seen.add(atom)
            for v in maker.invars:
                visit(v)
            order[id(maker)] = maker

        for target in targets:
            visit(target)
        return list(order.values())


def _is_elementwise(eqn: Any) -> bool:
    """Whether each entry of the result is made from one entry of every operand."""
    name, inner = eqn.primitive.name, _jax.called(eqn)
    if name not in ("custom_jvp_call", "vipp_elementwise") and not _jax.is_jit(eqn):
        return name in _ELEMENTWISE
    return inner is not None and all(map(_is_elementwise, _jax.open_jaxpr(inner)[0].eqns))


def _is_literal(atom: Any) -> bool:
    return isinstance(atom, _jax.Literal)


def _is_float(atom: Any) -> bool:
    return jnp.issubdtype(atom.aval.dtype, jnp.inexact)


def _values(atoms: list[Any], seed: int) -> list[Any]:
    """Some value for each, the same at all entries."""
    rng = np.random.default_rng(seed)
    some = lambda v: rng.uniform(0.2, 0.8) if _is_float(v) else 1
    return [jnp.full(v.aval.shape, some(v), v.aval.dtype) for v in atoms]


def _is_smooth(jump: Any, at: Any, grid: np.ndarray) -> bool:
    """Whether the last of the values ``at`` is continuous where the one before it changes.

    Where it changes is bracketed on the grid, then narrowed down.
    """

    def run(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        *operands, out, value = (np.asarray(x) for x in at(jnp.asarray(points, jnp.float32)))
        return _level(jump, operands, out), value

    level, _ = run(grid)
    flips = np.flatnonzero(level[1:] != level[:-1])
    if not len(flips):
        return False
    flips = flips[np.linspace(0, len(flips) - 1, _FLIPS).astype(int)]  # always as many: one shape
    low, high, start = grid[flips], grid[flips + 1], level[flips]
    rows = np.arange(_FLIPS)
    for _ in range(_NARROWINGS):
        points = np.linspace(low, high, _POINTS, axis=1)
        same = run(points.ravel())[0].reshape(points.shape) == start[:, None]
        first = np.clip(np.argmin(same, axis=1), 1, _POINTS - 1)  # the first that has changed
        low, high = points[rows, first - 1], points[rows, first]
    before, after = run(low)[1], run(high)[1]
    return bool(np.isfinite(before).all()) and np.allclose(before, after, rtol=1e-3, atol=1e-3)


def _level(jump: Any, operands: list[np.ndarray], out: np.ndarray) -> np.ndarray:
    """What is constant between the jumps."""
    if jump.primitive.name != "rem":
        return out
    divisor = jump.invars[1]
    by = divisor.val if _is_literal(divisor) else operands[-1]
    return np.round((operands[0] - out) / by)
