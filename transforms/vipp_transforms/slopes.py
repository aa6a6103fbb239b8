"""Slopes with respect to draws, integers included, through the floats that a program makes of them.

Beside each value that is linear in a draw stands its *slope variable*, a float that is zero. It is
added where the value is used in any other way that takes floats: so nothing changes but that the
result has a derivative in the draw. An index or a comparison of integers has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.equations import homogeneous

# linear in the first operand, whatever the others are
_LINEAR = frozenset(
    """
    broadcast_in_dim copy cumsum dynamic_slice expand_dims gather neg reduce_sum reshape rev slice
    squeeze transpose
    """.split()
)
# an integer times a float, which is no conversion to a program
_MULTIPLIED = frozenset({"conv_general_dilated", "dot_general"})
_NONE: frozenset[Any] = frozenset()


class Slope(NamedTuple):
    """Of one draw.

    Attributes:
      var: its slope variable, a float of its shape.
      seen: the variables whose derivative in the draw is wanted.
    """

    var: Any
    seen: frozenset[Any]


class Sloped:
    """Equations in which some values depend on the slope variables of draws.

    Args:
      eqns: in order.
      draws: by variable of a draw.

    Attributes:
      eqns: the new ones, among them one for each slope variable, for order alone.
      stands_for: by new variable, one that depends on the same.
      reached: the draws that some value has a derivative in.
      seen_whole: the draws whose values count besides the floats that are made of them: those that
        are compared, an index, or multiplied with each other.
    """

    def __init__(self, eqns: Sequence[Any], draws: Mapping[Any, Slope]):
        self.eqns: list[Any] = []
        self.stands_for: dict[Any, Any] = {}
        self.reached: frozenset[Any] = _NONE
        self.seen_whole: frozenset[Any] = _NONE
        self._slopes: dict[Any, Any] = {}
        self._from: dict[Any, frozenset[Any]] = {}
        self._seen = frozenset().union(*(slope.seen for slope in draws.values()))
        self._leads = {draw: _leading(eqns, slope.seen) for draw, slope in draws.items()}
        for eqn in eqns:
            self._add(eqn)
            for var in eqn.outvars:
                if var in draws:
                    made = draws[var].var
                    self._emit(lambda x: -x.astype(jnp.result_type(float)), [var], made, var)
                    self._note(var, made, frozenset({var}))

    def linear_in(self, atom: Any) -> frozenset[Any]:
        """The draws that a value is linear in, which it shows no derivative in by itself."""
        return _NONE if self._of(atom) is None else self._from[atom]

    def _add(self, eqn: Any) -> None:
        found = _NONE.union(*(self._from.get(v, _NONE) for v in eqn.invars if _is_var(v)))
        found = frozenset(d for d in found if not self._leads[d].isdisjoint(eqn.outvars))
        if not found:
            self.eqns.append(eqn)
            return
        name, out = eqn.primitive.name, eqn.outvars[0]
        ends = out in self._seen or len(eqn.outvars) > 1
        slope = None if ends and _is_float(out) else self._slope(eqn, name)
        if slope is not None:
            self.eqns.append(eqn)
            self._note(out, slope, found)
            if name == "mul" and all(self._of(v) is not None for v in eqn.invars):
                self.seen_whole |= found  # each is multiplied with the other's slope
        elif ends and name == "convert_element_type":
            self.reached |= found
            self._float(eqn.invars[0], out)
        else:
            operands = [self._as_float(v, out, name) for v in eqn.invars]
            if operands != list(eqn.invars):
                self.reached |= found
            whole = [v for v in operands if self._of(v) is not None]
            self.seen_whole |= _NONE.union(*(self._from[v] for v in whole))
            self.eqns.append(eqn.replace(invars=operands))

    def _as_float(self, atom: Any, out: Any, name: str) -> Any:
        """An operand with its slope, if it has one and may be a float."""
        if self._of(atom) is None or not (_is_float(atom) or name in _MULTIPLIED):
            return atom
        dtype = atom.aval.dtype if _is_float(atom) else out.aval.dtype
        made = _jax.Var(_jax.shaped_array(atom.aval.shape, dtype))
        self.stands_for[made] = atom
        self._float(atom, made)
        return made

    def _float(self, atom: Any, made: Any) -> None:
        """The float made of a value, with its slope."""
        dtype = made.aval.dtype
        add = lambda x, slope: x.astype(dtype) + slope.astype(dtype)
        self._emit(add, [atom, self._slopes[atom]], made, self.stands_for.get(made, made))

    def _slope(self, eqn: Any, name: str) -> Any | None:
        """The slope variable of an equation's result, if that is linear in draws."""
        first, *rest = eqn.invars
        if name == "convert_element_type":
            return self._slopes[first]
        bind = lambda *xs: eqn.primitive.bind(*xs, **homogeneous(eqn).params)
        if name in _LINEAR:
            if self._of(first) is None or any(self._of(v) is not None for v in rest):
                return None
            return self._made(bind, [self._of(first), *rest], eqn)
        if name == "select_n":
            return self._made(bind, [first, *self._filled(rest)], eqn)
        if name == "concatenate":
            return self._made(bind, self._filled(eqn.invars), eqn)
        if name in ("add", "sub", "mul") and not _is_float(eqn.outvars[0]):
            return self._arithmetic(eqn, name)
        return None

    def _arithmetic(self, eqn: Any, name: str) -> Any:
        """Of a sum, a difference, or a product: the derivative."""
        a, b = eqn.invars
        factors = {"add": (1.0, 1.0), "sub": (1.0, -1.0), "mul": (b, a)}[name]
        parts = [(self._of(v), f) for v, f in zip((a, b), factors, strict=True)]
        known = [(slope, f) for slope, f in parts if slope is not None]
        shape = eqn.outvars[0].aval.shape

        def fn(*xs: Any) -> Any:
            given = iter(xs)
            terms = [next(given) * (f if isinstance(f, float) else next(given)) for _, f in known]
            return jnp.broadcast_to(sum(terms[1:], start=terms[0]), shape)

        atoms = [v for term in known for v in term if not isinstance(v, float)]
        return self._made(fn, atoms, eqn)

    def _of(self, atom: Any) -> Any | None:
        return self._slopes.get(atom) if _is_var(atom) else None

    def _filled(self, atoms: Sequence[Any]) -> list[Any]:
        """The slope variables of atoms; zeros for one that has none."""
        return [self._zeros(v) if self._of(v) is None else self._of(v) for v in atoms]

    def _zeros(self, atom: Any) -> Any:
        made = _jax.Var(_jax.shaped_array(atom.aval.shape, jnp.dtype(jnp.result_type(float))))
        self._emit(lambda x: jnp.zeros_like(x, jnp.result_type(float)), [atom], made, atom)
        return made

    def _note(self, var: Any, slope: Any, found: frozenset[Any]) -> None:
        self._slopes[var], self._from[var] = slope, found

    def _made(self, fn: Callable[..., Any], atoms: Sequence[Any], eqn: Any) -> Any:
        (aval,) = jax.make_jaxpr(fn)(*map(_example, atoms)).out_avals
        made = _jax.Var(aval)
        self._emit(fn, atoms, made, eqn.outvars[0])
        return made

    def _emit(self, fn: Callable[..., Any], atoms: Sequence[Any], made: Any, like: Any) -> None:
        """Add the equations of ``fn``; its result ``made`` depends on what ``like`` does."""
        closed, _ = _jax.trace(fn, *map(_example, atoms))
        jaxpr, _ = _jax.open_jaxpr(closed)
        if not any(v is jaxpr.outvars[0] for e in jaxpr.eqns for v in e.outvars):
            # a number, such as a zero for a scalar, is the result of no equation
            return self._emit(lambda *xs: jnp.copy(fn(*xs)), atoms, made, like)
        names = dict(zip(jaxpr.invars, atoms, strict=True))
        for eqn in jaxpr.eqns:
            fresh = [made if v is jaxpr.outvars[0] else _jax.fresh_like(v) for v in eqn.outvars]
            if _is_var(like):
                self.stands_for.update((v, like) for v in fresh if v is not like)
            names.update(zip(eqn.outvars, fresh, strict=True))
            inner = [names[v] if _is_var(v) else v for v in eqn.invars]
            self.eqns.append(eqn.replace(invars=inner, outvars=fresh))


def usable(slope: jax.Array) -> jax.Array:
    """``slope``, by which a derivative that is not finite is multiplied as if it were zero.

    What a mask hides may have no derivative, nought times infinity: it has no slope then.
    """
    return _usable_p.bind(slope)


def _batch(operands: Any, dims: Any) -> tuple[Any, Any]:
    return _usable_p.bind(operands[0]), dims[0]


def _jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    primal, (tangent,) = _usable_p.bind(*primals), tangents
    return primal, tangent if _jax.is_zero(tangent) else _usable_p.bind(tangent)


_usable_p = _jax.define_linear(
    "vipp_slope", lambda y: y, _batch, _jvp, lambda ct: jnp.where(jnp.isfinite(ct), ct, 0.0)
)


def _leading(eqns: Sequence[Any], seen: frozenset[Any]) -> set[Any]:
    """The variables that some of ``seen`` depends on, these included."""
    found = set(seen)
    for eqn in reversed(eqns):
        if not found.isdisjoint(eqn.outvars):
            found.update(v for v in eqn.invars if _is_var(v))
    return found


def _is_float(atom: Any) -> bool:
    return jnp.issubdtype(atom.aval.dtype, jnp.inexact)


def _example(atom: Any) -> Any:
    return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype)


def _is_var(atom: Any) -> bool:
    return not isinstance(atom, _jax.Literal)
