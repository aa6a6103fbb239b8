"""Unbiased estimates that a program works with, of which only the linear is unbiased in turn.

A log density of a minibatch, scaled up, is right on average; what a program makes of it is so, too,
where it only adds such estimates and multiplies them by other things. The exponential of one is
not, nor is the logarithm of an average of exponentials: a bound above the evidence.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.errors import SiteError
from vipp_transforms.estimate import is_estimate
from vipp_transforms.reach import Labels, Walk, reach
from vipp_transforms.staging import live, lookup, without_calls

_NONE: Labels = frozenset()
_SUMS = frozenset(
    "add add_any all_gather broadcast_in_dim concatenate conj convert_element_type copy copy_p "
    "cumsum expand_dims fft imag neg optimization_barrier pad psum pvary real reduce_precision "
    "reduce_sum reduce_window_sum reshape rev scatter-add slice split squeeze stack stop_gradient "
    "sub transpose unstack vipp_constant vipp_settled".split()
)
PRODUCTS = frozenset({"conv_general_dilated", "dot_general", "mul"})
# linear in these operands, where the others are no estimates
_LINEAR = {
    "div": (0,),
    "dynamic_slice": (0,),
    "dynamic_update_slice": (0, 1),
    "gather": (0,),
    "scatter": (0, 2),
    "scatter-mul": (0,),  # what is not hit is no product
    "triangular_solve": (1,),
}
_CONTROL = frozenset({"cond", "scan", "while"})


def check_estimates(closed: Any) -> None:
    """Raise where a program's value is not linear in an estimate that it works with.

    What depends on the minibatch of an estimate is no factor for it either: the average of a
    product over minibatches is not the product of averages.
    """
    jaxpr, _ = _jax.open_jaxpr(closed)
    marks = [e for e in _jax.equations(jaxpr) if is_estimate(e)]
    if any(e.params["name"] for e in marks):
        value = jaxpr.replace(outvars=jaxpr.outvars[:1])
        reach(value, [_NONE] * len(value.invars), Walk(_known, _opened, _starts))


def _starts(eqn: Any) -> bool:
    return is_estimate(eqn) or any(map(is_estimate, _jax.equations_inside(eqn)))


def _opened(jaxpr: Any) -> tuple[Any, Any]:
    scope: dict[Any, Any] = {}
    eqns = without_calls(jaxpr.eqns, scope)
    outs = [lookup(v, scope) for v in jaxpr.outvars]
    return live(eqns, outs, effects=False), outs


def _known(eqn: Any, operands: list[Labels]) -> list[Labels] | None:
    """The estimates that an equation's results are linear in, if it is not to be looked into.

    And the plates whose minibatch they depend on otherwise: labels without the name of a site.
    """
    name, reached = eqn.primitive.name, _NONE.union(*operands)
    estimates = [_estimates(labels) for labels in operands]
    if is_estimate(eqn):
        label = eqn.params["name"], eqn.params["plate"]
        return [_estimates(reached) | {label} if label[0] else reached | {label}]
    if name in _CONTROL:
        if name == "cond":
            _check_apart(estimates[1:], operands[:1], name)
            _refuse(estimates[0], name)
        return None
    floats = all(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars)
    linear = linear_operands(name, len(operands)) if floats else ()
    for i, labels in enumerate(estimates):
        if i not in linear:
            _refuse(labels, name)
    if name in PRODUCTS:
        for i in range(len(operands)):
            others = [o for j, o in enumerate(operands) if j != i]
            what = "square" if eqn.invars[0] is eqn.invars[1] else name
            _check_apart(estimates[i : i + 1], others, what)
    elif name not in _SUMS:
        others = [o for i, o in enumerate(operands) if i not in linear]
        _check_apart(estimates, others, name)
    return [reached] * len(eqn.outvars)


def _estimates(labels: Labels) -> Labels:
    return frozenset(label for label in labels if label[0])


def linear_operands(name: str, count: int) -> tuple[int, ...]:
    """Operands that an equation is linear in, all but one of the factors being given."""
    if name in _SUMS | PRODUCTS:
        return tuple(range(count))
    return tuple(range(1, count)) if name == "select_n" else _LINEAR.get(name, ())


def _check_apart(estimates: list[Labels], others: list[Labels], what: str) -> None:
    """Raise where estimates meet what depends on a minibatch."""
    if any(others):
        _refuse(_NONE.union(*estimates), what)


def _refuse(labels: Labels, what: str) -> None:
    for name, plate in sorted(labels):
        raise SiteError(
            f"Site '{name}' is subsampled by plate '{plate}', so that its log density is an "
            f"estimate; expected only sums of it and multiples (by what does not depend on the "
            f"minibatch), got '{what}' of it: the value would be biased, and a bound above the "
            "evidence. Fix: take the density of each element, "
            f"p.log_density(z, per_plate='{plate}'), make the bound of each of them, and scale "
            "their sum up; or use one of vipp's own objectives, such as IWAE(num_particles=...), "
            "which do that; or drop subsample_size."
        )
