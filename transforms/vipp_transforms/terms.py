"""The program's value as a sum of terms.

Walking back from the scalar output through operations that are linear in what is random (sums,
reshapes, broadcasts, scaling by what is not random) writes it as
``sum_k sum(weight_k * leaf_k)``. A leaf that depends on fewer sites, or keeps more of their lanes
apart, than the total lets the estimators credit each choice with what it influenced alone. The walk
goes on only where that is gained.

A leaf under :func:`vipp_transforms.constant` counts in the value, and neither what is inside nor
the choices it depends on get a gradient from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.constant import is_constant
from vipp_transforms.dependence import Dependences
from vipp_transforms.lane import place
from vipp_transforms.staging import Program

Weight = Any  # a number for "this at every entry", or an array of the value's shape


@dataclass(frozen=True, eq=False)
class Split:
    """Where the walk went.

    Attributes:
      opened: equations walked through, last first, each with the operands the sum goes on through.
      leaves: the atoms that it ended at.
      constant: per leaf, whether it is one of :func:`vipp_transforms.constant`.
    """

    opened: tuple[tuple[Any, tuple[int, ...]], ...]
    leaves: tuple[Any, ...]
    constant: tuple[bool, ...]

    @property
    def masked(self) -> bool:
        """Whether some weights are zero because a mask hides what they weigh."""
        return any(eqn.primitive.name == "select_n" for eqn, _ in self.opened)

    def weigh(self, weight: Weight, x: jax.Array) -> jax.Array:
        """``weight * x``, where what a mask hides counts nothing even if it is not a number."""
        if self.masked:
            x = jnp.where((weight == 0) & ~jnp.isfinite(x), 0.0, x)
        return weight * x


def split(program: Program, depends: Dependences) -> Split:
    """Find the equations worth walking through and the leaves behind them."""
    # forwards: where walking would separate something; backwards: the walk itself
    linear = {id(e): _linear_operands(e, depends) for e in program.eqns}
    held = {v for e in program.eqns if is_constant(e) for v in e.outvars if depends[v]}
    gains = _gains(program, depends, linear, held)
    producer = {v: e for e in program.eqns for v in e.outvars}
    active, leaves, opened = {program.out: None}, [], []
    if program.out not in producer:
        return Split((), (program.out,), (False,))
    for eqn in reversed(program.eqns):
        if not any(v in active for v in eqn.outvars):
            continue
        if not gains.get(eqn.outvars[0], False):
            leaves += [v for v in eqn.outvars if v in active]
            continue
        operands = linear[id(eqn)]
        opened.append((eqn, operands))
        for atom in (eqn.invars[i] for i in operands):
            if isinstance(atom, _jax.Literal):
                if not any(atom is leaf for leaf in leaves):
                    leaves.append(atom)
            elif atom not in active:
                active[atom] = None
                if atom not in producer:
                    leaves.append(atom)
    constant = [not isinstance(v, _jax.Literal) and v in held for v in leaves]
    if sum(constant) < len(held):
        raise ValueError(
            "constant(x) was used inside the formula of a term, where there is no expectation to "
            "hold constant. Fix: only add it to the value, or multiply it by what was not drawn."
        )
    return Split(tuple(opened), tuple(leaves), tuple(constant))


def _gains(
    program: Program, depends: Dependences, linear: Mapping[int, Any], held: set[Any]
) -> dict[Any, bool]:
    """Whether walking through the equation that made a value separates anything.

    Separating something random with other lanes, or a constant, is always worth it. Separating
    something that is not random at all is so only between whole terms, not inside the formula of
    one.
    """
    gains: dict[Any, _Gain] = {}
    for eqn in program.eqns:
        operands = [eqn.invars[i] for i in linear[id(eqn)]]
        if not operands:
            continue
        out = eqn.outvars[0]
        random = [v for v in operands if depends[v]]
        # an operand that depends on fewer sites, or keeps lanes apart that the sum mixes
        finer = any(_grain(depends[v]) != _grain(depends[out]) for v in random)
        fixed = any(not depends[v] and not isinstance(v, _jax.Literal) for v in operands)
        whole = eqn.primitive.name != "select_n" and _all_lanes(out, depends[out])
        inherited = [gains.get(v, _NO_GAIN) for v in random]
        lanes = finer or any(g.lanes for g in inherited) or any(v in held for v in random)
        parts = whole and (fixed or any(g.parts for g in inherited))
        gains[out] = _Gain(lanes, parts)
    return {v: gain.lanes or gain.parts for v, gain in gains.items()}


class _Gain(NamedTuple):
    lanes: bool
    parts: bool


_NO_GAIN = _Gain(False, False)


def _all_lanes(var: Any, dependence: Any) -> bool:
    """Whether every axis of several entries keeps some site's lanes apart."""
    kept = {place(lane) for lanes in dependence.values() for lane in lanes}
    return all(a in kept for a, n in enumerate(var.aval.shape) if n != 1)


def _grain(dependence: Any) -> Any:
    return {site: tuple(map(type, lanes)) for site, lanes in dependence.items()}


_SUMS = frozenset({"add", "sub", "add_any", "concatenate", "stack"})
_SHAPES = frozenset(
    {"neg", "reduce_sum", "reshape", "transpose", "squeeze", "expand_dims", "copy", "copy_p",
     "broadcast_in_dim", "convert_element_type", "rev", "slice", "vipp_settled"}
)  # fmt: skip


def _linear_operands(eqn: Any, depends: Dependences) -> tuple[int, ...]:
    """Operands in which the (random part of the) equation is linear, or none."""
    name, operands = eqn.primitive.name, eqn.invars
    random = [bool(depends[v]) for v in operands]
    if not any(random) or not _floating(eqn.outvars[0]):
        return ()
    chosen: tuple[int, ...] = ()
    if name in _SUMS:
        chosen = tuple(range(len(operands)))
    elif name in _SHAPES:
        chosen = (0,)
    elif (
        name == "select_n" and not random[0] and operands[0].aval.shape == eqn.outvars[0].aval.shape
    ):
        chosen = tuple(range(1, len(operands)))
    elif name == "mul" and random[0] != random[1]:
        chosen = (random.index(True),)
    elif name == "div" and not random[1]:
        chosen = (0,)
    elif name == "dot_general" and random[0] != random[1]:
        chosen = _contraction_only(eqn, random.index(True))
    return chosen if all(_floating(operands[i]) for i in chosen) else ()


def _floating(atom: Any) -> bool:
    return jnp.issubdtype(atom.aval.dtype, jnp.floating)


def _contraction_only(eqn: Any, operand: int) -> tuple[int, ...]:
    """A product whose other factor has no free axes: going through it costs no larger product."""
    contract, batch = eqn.params["dimension_numbers"]
    other = eqn.invars[1 - operand].aval.shape
    free = len(other) - len(contract[1 - operand]) - len(batch[1 - operand])
    return (operand,) if free == 0 else ()


def weights(split_: Split, out: Any, read: Callable[[Any], jax.Array]) -> list[Weight]:
    """The weight of each leaf; ``read`` gives the values of what is not random."""
    total: dict[Any, Weight] = {out: 1.0}
    literals: dict[int, Weight] = {}
    for eqn, operands in split_.opened:
        weight = total[eqn.outvars[0]]
        all_passed = _transpose(split_, eqn, operands, weight, read)
        for i, passed in zip(operands, all_passed, strict=True):
            atom = eqn.invars[i]
            if isinstance(atom, _jax.Literal):
                literals[id(atom)] = _add(literals.get(id(atom)), passed)
            else:
                total[atom] = _add(total.get(atom), passed)
    return [
        literals[id(v)] if isinstance(v, _jax.Literal) and id(v) in literals else total.get(v, 1.0)
        for v in split_.leaves
    ]


def _add(a: Weight | None, b: Weight) -> Weight:
    return b if a is None else a + b


def _is_uniform(weight: Weight) -> bool:
    return jnp.ndim(weight) == 0


def _is_one(weight: Weight) -> bool:
    return isinstance(weight, float) and weight == 1.0


def _fit(weight: Weight, atom: Any, out: Any) -> Weight:
    """Sum a weight of ``out``'s shape down to an operand that was broadcast to it."""
    shape, full = atom.aval.shape, out.aval.shape
    if shape == full:
        return weight
    if _is_uniform(weight):
        return weight * (math.prod(full) // max(math.prod(shape), 1))
    if not shape:
        return jnp.sum(weight)
    axes = tuple(a for a, (n, m) in enumerate(zip(shape, full, strict=True)) if n != m)
    return jnp.sum(weight, axis=axes, keepdims=True)


def _transpose(split_: Split, eqn: Any, operands: Any, weight: Weight, read: Any) -> list[Weight]:
    """The weights of ``operands`` given the weight of the equation's result."""
    name, out = eqn.primitive.name, eqn.outvars[0]
    atoms = [eqn.invars[i] for i in operands]
    if name in ("add", "add_any"):
        return [_fit(weight, a, out) for a in atoms]
    if name == "sub":
        return [_fit(weight, atoms[0], out), _fit(-weight, atoms[1], out)]
    if name == "neg":
        return [-weight]
    if name in ("mul", "div"):
        # linear in the random operand: the other one becomes part of the weight
        factor = read(eqn.invars[1 - operands[0]])
        if name == "div":
            product = weight / factor
        else:
            product = factor if _is_one(weight) else split_.weigh(weight, factor)
        if not _is_uniform(product) and jnp.shape(product) != out.aval.shape:
            product = jnp.broadcast_to(product, out.aval.shape)
        return [_fit(product, atoms[0], out)]
    if _is_uniform(weight):
        return _transpose_uniform(eqn, operands, weight, read)
    return _transpose_full(eqn, operands, weight, read)


def _transpose_uniform(eqn: Any, operands: Any, weight: Weight, read: Any) -> list[Weight]:
    """A weight that is one number mostly stays one number, and costs nothing."""
    name, out = eqn.primitive.name, eqn.outvars[0]
    shape = eqn.invars[operands[0]].aval.shape
    if name == "broadcast_in_dim":
        return [weight * (math.prod(out.aval.shape) // max(math.prod(shape), 1))]
    if name in ("slice", "select_n", "dot_general"):
        full = jnp.broadcast_to(jnp.asarray(weight, out.aval.dtype), out.aval.shape)
        return _transpose_full(eqn, operands, full, read)
    return [weight for _ in operands]


def _transpose_full(eqn: Any, operands: Any, weight: Weight, read: Any) -> list[Weight]:
    atoms = [eqn.invars[i] for i in operands]
    fixed = {i: read(a) for i, a in enumerate(eqn.invars) if i not in operands}

    def apply(*values: Any) -> Any:
        given = iter(values)
        inputs = [fixed[i] if i in fixed else next(given) for i in range(len(eqn.invars))]
        return _jax.apply(eqn, inputs)[0]

    shaped = [jax.ShapeDtypeStruct(a.aval.shape, a.aval.dtype) for a in atoms]
    # any other linear equation: its transpose sends the weight back to the operands
    cotangent = jnp.asarray(weight, eqn.outvars[0].aval.dtype)
    return list(jax.linear_transpose(apply, *shaped)(cotangent))
