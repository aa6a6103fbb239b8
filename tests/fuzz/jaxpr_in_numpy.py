"""Evaluation of a jaxpr by NumPy in double precision, without compiling anything.

Most of the time of a test of a small program is compilation for a single use. Here each equation
is one NumPy call; the few primitives that have no rule are run by JAX, one at a time. Keys are
64-bit codes (see `draws`), so that an evaluation decides itself what is drawn.
"""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from numpy_rules import RULES, SEVERAL, dtype_of

CALLS = {"jaxpr", "call_jaxpr", "fun_jaxpr"}


def sub_jaxprs(eqn):
    """The jaxprs among an equation's parameters."""
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns") or hasattr(item, "jaxpr"):
                yield item


def primitives(jaxpr):
    """How often each primitive occurs in a jaxpr and in those inside it."""
    found = Counter()
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        found[eqn.primitive.name] += 1
        for sub in sub_jaxprs(eqn):
            found.update(primitives(sub))
    return found


class Interpreter:
    """Evaluates jaxprs.

    Args:
      special: rules by primitive name that come before the others, of ``(eqn, *operands)``.
      fallbacks: counts the primitives that JAX had to evaluate.
    """

    def __init__(self, special, fallbacks=None):
        self.special, self.fallbacks = special, Counter() if fallbacks is None else fallbacks

    def run(self, closed, args, consts=None):
        """The results of a jaxpr, closed or not."""
        jaxpr = getattr(closed, "jaxpr", closed)
        consts = getattr(closed, "consts", ()) if consts is None else consts
        env = dict(zip(jaxpr.constvars, map(to_numpy, consts), strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        read = lambda v: to_numpy(v.val) if isinstance(v, core.Literal) else env[v]
        for eqn in jaxpr.eqns:
            results = self.equation(eqn, [read(v) for v in eqn.invars])
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn, values):
        name = eqn.primitive.name
        called = eqn.params.get("name") if "jaxpr" in eqn.params else None
        if called in self.special:
            return self.special[called](eqn, *values)
        if name in self.special:
            return self.special[name](eqn, *values)
        if name in RULES:
            return [RULES[name](eqn.params, *values)]
        if name in SEVERAL:
            return SEVERAL[name](eqn.params, *values)
        if name in CONTROL:
            return CONTROL[name](self, eqn, values)
        inner = [eqn.params[k] for k in CALLS if k in eqn.params]
        if inner and name not in NOT_CALLS:
            return self.run(inner[0], values)
        self.fallbacks[name] += 1
        return by_jax(eqn, values)


NOT_CALLS = {"custom_linear_solve", "linear_call", "reduce_window", "custom_root"}


def to_numpy(value):
    """A value as NumPy computes with it: floats in double precision."""
    if jnp.issubdtype(getattr(value, "dtype", np.float64), jax.dtypes.prng_key):
        data = np.asarray(jax.random.key_data(value)).astype(np.uint64)
        return (data[..., 0] << np.uint64(32)) | data[..., 1]
    array = np.asarray(value)
    return (
        array.astype(np.float64)
        if array.dtype.kind == "f" or array.dtype.name == "bfloat16"
        else array
    )


def by_jax(eqn, values):
    """One equation, by JAX."""
    typed = [_typed(x, v.aval.dtype) for x, v in zip(values, eqn.invars, strict=True)]
    out = eqn.primitive.bind(*typed, **eqn.params)
    return list(map(to_numpy, out if eqn.primitive.multiple_results else [out]))


def _typed(value, dtype):
    """A value as JAX computes with it."""
    if not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jnp.asarray(value, dtype)
    halves = np.stack([value >> np.uint64(32), value & np.uint64(0xFFFFFFFF)], -1)
    return jax.random.wrap_key_data(jnp.asarray(halves.astype(np.uint32)))


# -- control flow ------------------------------------------------------------------------------


def scan_arity(eqn):
    """How many constants a scan has, and how many carried values."""
    body = getattr(eqn.params["jaxpr"], "jaxpr", eqn.params["jaxpr"])
    same = lambda outer, inner: sum(
        len(a.aval.shape) == len(b.aval.shape) for a, b in zip(outer, inner, strict=True)
    )
    carried = same(eqn.outvars, body.outvars)
    return same(eqn.invars, body.invars) - carried, carried


def _scan(self, eqn, values):
    p, (consts, carried) = eqn.params, scan_arity(eqn)
    body = p["jaxpr"]
    fixed, carry = values[:consts], values[consts : consts + carried]
    scanned, ys = values[consts + carried :], []
    order = range(p["length"])
    for t in reversed(order) if p["reverse"] else order:
        out = self.run(body, [*fixed, *carry, *(x[t] for x in scanned)])
        carry = out[:carried]
        ys.append(out[carried:])
    if p["reverse"]:
        ys.reverse()
    if not ys:
        return [*carry, *(np.zeros(v.aval.shape) for v in eqn.outvars[carried:])]
    return [*carry, *(np.stack(y) for y in zip(*ys, strict=True))]


def _while(self, eqn, values):
    p = eqn.params
    n, m = p["cond_nconsts"], p["body_nconsts"]
    test, fixed, carry = values[:n], values[n : n + m], values[n + m :]
    while bool(np.all(self.run(p["cond_jaxpr"], [*test, *carry])[0])):
        carry = self.run(p["body_jaxpr"], [*fixed, *carry])
    return carry


def _cond(self, eqn, values):
    index, *operands = values
    branches = eqn.params["branches"]
    return self.run(branches[int(np.clip(int(index), 0, len(branches) - 1))], operands)


def _linear_solve(self, eqn, values):
    """The solve of a ``custom_linear_solve``, on its constants and right-hand sides."""
    jaxprs, lengths = eqn.params["jaxprs"], eqn.params["const_lengths"]
    sizes = [lengths.matvec, lengths.vecmat, lengths.solve, lengths.transpose_solve]
    start = sum(sizes[:2])
    return self.run(jaxprs.solve, [*values[start : start + sizes[2]], *values[sum(sizes) :]])


CONTROL = {"scan": _scan, "while": _while, "cond": _cond, "custom_linear_solve": _linear_solve}


def _sort(_, eqn, values):
    p = eqn.params
    axis, keys = p["dimension"], values[: p["num_keys"]]
    order = np.lexsort(tuple(reversed(keys)), axis=axis)
    return [np.take_along_axis(x, order, axis) for x in values]


CONTROL["sort"] = _sort
CONTROL["unstack"] = lambda _, eqn, values: [
    np.take(values[0], i, eqn.params["axis"]) for i in range(len(eqn.outvars))
]
CONTROL["empty"] = CONTROL["empty2"] = lambda _, eqn, values: [
    np.zeros(v.aval.shape, dtype_of(v.aval.dtype)) for v in eqn.outvars
]
CONTROL["platform_index"] = lambda _, eqn, values: [np.int32(0)]
CONTROL["stack"] = lambda _, eqn, values: [np.stack(values, eqn.params["axis"])]
CONTROL["optimization_barrier"] = lambda _, eqn, values: values
CONTROL["split"] = lambda _, eqn, values: np.split(
    values[0], np.cumsum(eqn.params["sizes"])[:-1], eqn.params["axis"]
)
