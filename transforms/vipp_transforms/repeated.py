"""How much of a program is evaluated again for each sample of its choices."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from vipp_transforms import _jax
from vipp_transforms.dependence import Dependences


class Work(NamedTuple):
    """What some equations do.

    Attributes:
      numbers: computed by them.
      products: of two numbers, which matrix products and convolutions add up.
    """

    numbers: int
    products: int


def work_again(eqns: Iterable[Any], depends: Dependences, sites: set[int]) -> Work:
    """The work of the equations of which some result depends on one of ``sites``."""
    return _total(e for e in eqns if any(not sites.isdisjoint(depends[v]) for v in e.outvars))


def _total(eqns: Iterable[Any]) -> Work:
    each = list(map(_of, eqns))
    return Work(sum(w.numbers for w in each), sum(w.products for w in each))


def _of(eqn: Any) -> Work:
    """Of one equation: what it does by itself, or what is done inside of it."""
    inside = _total(e for j in _jax.sub_jaxprs(eqn) for e in _jax.open_jaxpr(j)[0].eqns)
    times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
    numbers = max(_numbers(eqn), times * inside.numbers)
    return Work(numbers, max(_products(eqn), times * inside.products))


def _numbers(eqn: Any) -> int:
    return sum(math.prod(v.aval.shape) for v in eqn.outvars)


def _products(eqn: Any) -> int:
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return _numbers(eqn) * math.prod(shape[a] for a in contracted)
    if eqn.primitive.name == "conv_general_dilated":
        filters, kernel = eqn.params["dimension_numbers"].rhs_spec[0], eqn.invars[1].aval.shape
        return _numbers(eqn) * math.prod(kernel) // kernel[filters]
    return 0
