"""Which values in the body of a loop are known to number its steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms import _jax


def step_numbers(eqn: Any) -> set[Any]:
    """The integer variables of a scan's body that are ``t`` at step ``t``.

    A carried integer that starts at zero and grows by one is; so is whatever is computed from such
    and is found to have that value at all steps.
    """
    body, _ = _jax.open_jaxpr(eqn.params["jaxpr"])
    length = eqn.params["length"]
    if eqn.params["reverse"] or not length:
        return set()
    consts, carried = _jax.scan_arity(eqn)
    candidates = {
        k
        for k in range(carried)
        if _is_zero(eqn.invars[consts + k]) and _is_integer(body.invars[consts + k])
    }
    while candidates:
        known = {body.invars[consts + k]: np.arange(length, dtype=np.int32) for k in candidates}
        values = _evaluate(body.eqns, known, length)
        steps = np.arange(length)
        good = {
            k
            for k in candidates
            if (v := body.outvars[k]) in values and np.array_equal(values[v], steps + 1)
        }
        if good == candidates:
            return {v for v, x in values.items() if np.array_equal(x, steps)}
        candidates = good
    return set()


def _evaluate(eqns: Any, known: dict[Any, Any], length: int) -> dict[Any, np.ndarray]:
    """The integers that follow from the ``known`` ones, at every step."""
    values = dict(known)
    with jax.ensure_compile_time_eval():
        for eqn in eqns:
            fixed = [isinstance(v, _jax.Literal) for v in eqn.invars]
            varying = [v for v, f in zip(eqn.invars, fixed, strict=True) if not f]
            integers = all(map(_is_integer, eqn.outvars)) and not _jax.sub_jaxprs(eqn)
            if not varying or not integers or any(v not in values for v in varying):
                continue
            inputs = [v.val if f else values[v] for v, f in zip(eqn.invars, fixed, strict=True)]
            axes = tuple(None if f else 0 for f in fixed)
            one = lambda *xs, eqn=eqn: _jax.apply(eqn, xs)
            results = jax.vmap(one, in_axes=axes, axis_size=length)(*inputs)
            values.update(zip(eqn.outvars, results, strict=True))
        return {v: np.asarray(x) for v, x in values.items()}


def _is_zero(atom: Any) -> bool:
    return isinstance(atom, _jax.Literal) and np.ndim(atom.val) == 0 and atom.val == 0


def _is_integer(atom: Any) -> bool:
    dtype = atom.aval.dtype
    kind = jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.bool_
    return kind and atom.aval.shape == ()
