"""How much of a program is evaluated again for each sample of its choices."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from vipp_transforms import _jax
from vipp_transforms.dependence import Dependences


def numbers_again(eqns: Iterable[Any], depends: Dependences, sites: set[int]) -> int:
    """The numbers computed by equations of which some result depends on one of ``sites``."""
    again = [e for e in eqns if any(not sites.isdisjoint(depends[v]) for v in e.outvars)]
    return sum(map(_numbers, again))


def _numbers(eqn: Any) -> int:
    """Of one equation: its results, or what is computed inside of it."""
    inside = [sum(map(_numbers, _jax.open_jaxpr(j)[0].eqns)) for j in _jax.sub_jaxprs(eqn)]
    times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
    return max(sum(math.prod(v.aval.shape) for v in eqn.outvars), times * sum(inside))
