"""Whether two values of a staged program are the same number, however often it was computed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vipp_transforms import _jax


class ValueNumbering:
    """Numbers for values: equal ones are computed by equal operations from equal inputs."""

    def __init__(self, eqns: Sequence[Any], env: Mapping[Any, Any]):
        self._made = {v: (eqn, i) for eqn in eqns for i, v in enumerate(eqn.outvars)}
        self._env = env
        self._numbers: dict[Any, int] = {}
        self._known: dict[Hashable, int] = {}

    def __call__(self, atom: Any) -> int:
        """The number of an atom's value."""
        if isinstance(atom, _jax.Literal):
            return self._number(_constant(atom.val))
        if atom not in self._numbers:
            self._numbers[atom] = self._number(self._key(atom))
        return self._numbers[atom]

    def _number(self, key: Hashable) -> int:
        return self._known.setdefault(key, len(self._known))

    def _key(self, var: Any) -> Hashable:
        if var not in self._made:
            return _constant(self._env[var]) if var in self._env else ("input", id(var))
        eqn, position = self._made[var]
        if _jax.sub_jaxprs(eqn):
            return ("result", id(eqn), position)
        inputs = tuple(self(v) for v in eqn.invars)
        return (eqn.primitive.name, str(sorted(eqn.params.items())), inputs, position)


def _constant(value: Any) -> Hashable:
    if _jax.is_tracer(value):
        return ("tracer", id(value))
    if jnp.issubdtype(jnp.result_type(value), np.number):
        array = np.asarray(value)
        return (array.dtype.name, array.shape, array.tobytes())
    return ("object", id(value))
