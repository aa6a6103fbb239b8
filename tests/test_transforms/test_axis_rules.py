"""The axis rules against what the primitives really do.

Soundness: every equation of every program in `PROGRAMS` is evaluated; for every claim, all lanes
but one are perturbed and that lane of the output must not change. Precision: `EXPECTED` lists exact
maps, so that claiming less fails, too. `test_every_rule_has_a_program` keeps the table complete.
"""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Literal

from vipp_transforms import axis_rules, axis_sums, constant, elementwise
from vipp_transforms._jax import scan_arity
from vipp_transforms.axis_rules import axis_maps
from vipp_transforms.orders import limited

pytestmark = pytest.mark.uncompiled

# Rules for names that no public function of this JAX release leads to.
NOT_REACHED = {
    "copy_p", "geqp3", "from_edtype", "layout_constraint", "ormqr", "pvary", "reshard", "tie",
    "to_edtype",
    "random_gamma_grad", "scatter_add", "scatter_max", "scatter_min", "scatter_mul", "scatter_sub",
    "eq_to", "geqrf",
    "threefry2x32",
}  # fmt: skip

# Reached or not, as JAX's own functions are written in one release or another.
VARIES = {"le_to", "lt_to"}

# Kernels whose rounding may depend on the whole batch; everything else must agree to the bit.
ROUNDING = {"dot_general", "conv_general_dilated", "fft", "triangular_solve", "tridiagonal_solve",
            "regularized_incomplete_beta"}  # fmt: skip

# Primitives that run operation by operation, compiling each, when they are bound to arrays.
SLOW = {"random_gamma"}

# Primitives whose behaviour depends on the values of their indices.
INDEXED = {"gather", "scatter", "scatter-add", "dynamic_slice", "dynamic_update_slice"}

# Equations that call one jaxpr on their operands, and the parameter that holds it.
CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
INLINED = ("jit", "pjit", "closed_call", "checkpoint", "remat2", "custom_jvp_call",
           "custom_vjp_call", "custom_vjp_call_jaxpr", "vipp_elementwise")  # fmt: skip


def bind(eqn, values):
    params = eqn.primitive.get_bind_params(eqn.params)
    functions, params = params if isinstance(params, tuple) else ((), params)  # by JAX release
    outs = eqn.primitive.bind(*functions, *values, **params)
    return list(outs) if eqn.primitive.multiple_results else [outs]


def runner(eqn):
    """The equation as a function of the values of its operands."""
    return jax.jit(partial(bind, eqn)) if eqn.primitive.name in SLOW else partial(bind, eqn)


def inner(eqn):
    """The jaxpr and constants that `eqn` evaluates on its operands, if that is what it does."""
    body = next((eqn.params[key] for key in CALLS if key in eqn.params), None)
    if body is None or eqn.primitive.name not in (*INLINED, "scan"):
        return None
    return (body.jaxpr, body.consts) if hasattr(body, "jaxpr") else (body, ())


def walk(jaxpr, consts, args, visit):
    """Evaluate a jaxpr and call `visit(eqn, values, run)` at every equation, inside calls too."""
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    for eqn in jaxpr.eqns:
        values = [v.val if isinstance(v, Literal) else env[v] for v in eqn.invars]
        call = inner(eqn)
        if call and eqn.primitive.name != "scan":
            outs = walk(*call, values, visit)
        else:
            if call:  # the first step
                fixed = sum(scan_arity(eqn))
                walk(*call, (*values[:fixed], *(x[0] for x in values[fixed:])), visit)
            run = runner(eqn)
            visit(eqn, values, run)
            outs = run(values)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [v.val if isinstance(v, Literal) else env[v] for v in jaxpr.outvars]


def trace(fn, *args):
    with jax.numpy_rank_promotion("allow"):
        return jax.make_jaxpr(fn)(*args)


def equations(closed, args):
    """Every first-order equation of a jaxpr, the values of its operands, and how to run it."""
    found = []
    walk(closed.jaxpr, closed.consts, jax.tree.leaves(args), lambda *case: found.append(case))
    return found


def to_numpy(x):
    key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if key else x)


def perturbed(rng, x, axis, keep, stretch):
    """`x` with other admissible values wherever its index on `axis` is not `keep`."""
    old = to_numpy(x)
    kind = jnp.dtype(old.dtype).kind
    if kind == "b":
        new = rng.random(old.shape) < 0.5
    elif kind in "iu":  # random keys have words, indices have bounds: stay close to what was there
        wide = old.size and int(old.max()) > 10_000
        low, high = (old.min() - (kind == "i"), old.max() + 2) if old.size else (0, 1)
        low, high = (0, 2**31) if wide else (low, high)
        new = rng.integers(low, high, old.shape)
    else:
        noise = rng.normal(size=old.shape) + (1j * rng.normal(size=old.shape) if kind == "c" else 0)
        # Stretched values stay in the domain (positive, ordered, ...); shifted ones may leave it.
        new = np.where(old == 0, noise, old * np.exp(noise)) if stretch else old + noise
    kept = np.arange(old.shape[axis]) == keep
    kept = kept.reshape(-1, *(1,) * (old.ndim - axis - 1))
    with np.errstate(over="ignore", invalid="ignore"):
        mixed = jnp.asarray(np.where(kept, old, new.astype(old.dtype)))
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.random.wrap_key_data(mixed, impl=jax.random.key_impl(x)) if is_key else mixed


def violations(eqn, values, run, maps):
    """The claims `(output, operand, axis, output axis)` of `maps` that a perturbation refutes."""
    rng = np.random.default_rng(0)
    values = [jnp.asarray(x) for x in values]
    before = [to_numpy(x) for x in run(values)]
    bad = set()
    for i, x in enumerate(values):
        for a, size in enumerate(x.shape):
            claims = [(o, row[i][a]) for o, row in enumerate(maps) if row[i][a] is not None]
            if not claims or size < 2:
                continue
            for lane, stretch in ((0, True), (size - 1, False)):
                other = perturbed(rng, x, a, lane, stretch)
                after = run([*values[:i], other, *values[i + 1 :]])
                for o, b in claims:
                    if not same_lane(eqn, before[o], to_numpy(after[o]), b, lane):
                        bad.add((o, i, a, b))
    return bad


def same_lane(eqn, old, new, axis, index):
    old, new = old.take(index, axis), new.take(index, axis)
    inexact = jnp.dtype(old.dtype).kind in "fcV"  # V: bfloat16
    if eqn.primitive.name in ROUNDING:
        return np.allclose(old, new, rtol=1e-4, atol=1e-5, equal_nan=True)
    return np.array_equal(old, new, equal_nan=inexact)


def check_form(eqn, maps):
    """Maps have the shape that is promised and claim only axes of equal size, once each."""
    assert len(maps) == len(eqn.outvars)
    for out, row in zip(eqn.outvars, maps, strict=True):
        assert len(row) == len(eqn.invars)
        for operand, axis_map in zip(eqn.invars, row, strict=True):
            src = getattr(operand.aval, "shape", ())
            assert type(axis_map) is tuple and len(axis_map) == len(src)
            claimed = [b for b in axis_map if b is not None]
            assert all(type(b) is int for b in claimed) and len(set(claimed)) == len(claimed)
            pairs = zip(src, axis_map, strict=True)
            assert all(b is None or out.aval.shape[b] == size for size, b in pairs)


# Inputs. Sizes differ so that axes cannot be confused, except where squares are needed.
_rng = np.random.default_rng(1)


def array(*shape):
    return _rng.normal(size=shape).astype(np.float32)


def positive(*shape):
    return np.exp(array(*shape))


def unit(*shape):
    return 1 / (1 + np.exp(-array(*shape)))


def integers(high, *shape):
    return _rng.integers(0, high, shape).astype(np.int32)


X, Y, P, Q, U, V = (f(3, 4) for f in (array, array, positive, positive, unit, unit))
X3, X4 = array(3, 4, 5), array(2, 3, 4, 5)
N1, N2 = integers(9, 3, 4), integers(9, 3, 4)
B, C = X > 0, Y > 0
Z = X + 1j * Y
M = array(3, 4, 4)
SPD = M @ M.mT + 4 * np.eye(4, dtype=np.float32)
K = jax.random.split(jax.random.key(0), 3)
SIMPLEX = P / P.sum(-1, keepdims=True)
ROWS, COLS = integers(3, 6), integers(4, 6)

UNARY = [
    lax.neg, lax.abs, lax.sign, lax.exp, lax.expm1, lax.exp2, lax.log, lax.log1p, lax.sqrt,
    lax.rsqrt, lax.cbrt, lax.square, lax.floor, lax.ceil, lax.round, lax.sin, lax.cos, lax.tan,
    lax.sinh, lax.cosh, lax.tanh, lax.asinh, lax.acosh, lax.atan, lax.logistic, lax.erf, lax.erfc,
    lax.lgamma, lax.digamma, lax.bessel_i0e, lax.bessel_i1e, lax.is_finite, jax.nn.relu,
    jax.nn.gelu, jax.nn.softplus, jax.nn.softmax, jax.nn.log_softmax, jax.nn.logsumexp,
    lax.stop_gradient, constant, jnp.copy, lax.optimization_barrier,
]  # fmt: skip
BINARY = [
    lax.add, lax.sub, lax.mul, lax.div, lax.rem, lax.max, lax.min, lax.pow, lax.atan2,
    lax.nextafter, lax.eq, lax.ne, lax.lt, lax.le, lax.gt, lax.ge, lax.igamma, lax.igammac,
    lax.igamma_grad_a, jnp.logaddexp,
]  # fmt: skip
BITWISE = [
    lax.bitwise_and, lax.bitwise_or, lax.bitwise_xor, lax.shift_left, lax.shift_right_arithmetic,
    lax.shift_right_logical,
]  # fmt: skip
REDUCTIONS = [
    jnp.sum, jnp.prod, jnp.max, jnp.min, jnp.mean, jnp.var, jnp.argmax, jnp.argmin,
    jnp.cumsum, jnp.cumprod, lax.cummax, lax.cummin, lax.cumlogsumexp, jnp.sort, jnp.argsort,
    jnp.flip, jnp.diff, jnp.linalg.norm, jax.nn.softmax,
]  # fmt: skip


def programs():
    table = {f"unary {f.__name__}": (f, P) for f in UNARY}
    table |= {f"binary {f.__name__}": (f, P, Q) for f in BINARY}
    table |= {f"scalar {f.__name__}": (lambda x, f=f: f(x, 1.5), P) for f in (lax.add, jnp.mod)}
    table |= {f"bitwise {f.__name__}": (f, N1, N2) for f in BITWISE}
    table |= {f"{f.__name__}": (lambda x, f=f: f(x, axis=1), X3) for f in REDUCTIONS}
    return table | {
        "inverse trigonometry": (lambda x: [f(x) for f in (lax.asin, lax.acos, lax.atanh)], U),
        "erf_inv": (lax.erf_inv, U),
        "what may be differentiated once": (lambda x, y: limited(x, [y], 1, "It"), P, Q),
        "a cotangent laid out by itself": (axis_sums._settled_p.bind, X),
        "zeta": (lambda x, y: lax.zeta(1 + x, y), P, Q),
        "polygamma": (lax.polygamma, np.ones((3, 4), np.float32), P),
        "betainc": (lax.betainc, P, Q, U),
        "integer_pow": (lambda x: x**3, X),
        "one_hot": (lambda i: jax.nn.one_hot(i, 9), N1),
        "integers": (lambda i: (lax.population_count(i), lax.clz(i), ~i, i % 3, i // 2, -i), N1),
        "booleans": (lambda a, b: (a & b, a | b, a ^ b, ~a, jnp.all(a, 1), jnp.any(a, 0)), B, C),
        "reduce_xor": (lambda i: lax.reduce_xor(i, (1,)), N1),
        "complex": (lambda z: (z.real, z.imag, z.conj(), lax.complex(z.real, z.imag), abs(z)), Z),
        "where": (jnp.where, B, X, Y),
        "where with scalar predicate": (lambda x, y: lax.select_n(x[0, 0] > 0, x, y), X, Y),
        "where column": (lambda x, y: jnp.where(x[:, :1] > 0, x, y), X, Y),
        "select_n of three": (lax.select_n, integers(3, 3, 4), X, Y, P),
        "clamp": (lax.clamp, np.zeros((3, 4), np.float32), X, P),
        "clamp by scalars": (lambda x: jnp.clip(x, -0.5, 0.5), X),
        "casts": (lambda x: (x.astype(jnp.int32), x.astype(jnp.bfloat16), x.astype(bool)), X),
        "reduce_precision": (lambda x: lax.reduce_precision(x, 5, 10), X),
        "bitcasts": (
            lambda x: (bytes_ := x.view(jnp.uint8), lax.bitcast_convert_type(x, jnp.int32),
                       lax.bitcast_convert_type(x, jnp.int16),
                       lax.bitcast_convert_type(bytes_.reshape(3, 4, 4), jnp.float32)), X,
        ),
        "name": (lambda x: checkpoint_name(x, "x"), X),
        "checkpoint": (jax.checkpoint(lambda x: jnp.sin(x) * x), X),
        "device_put": (lambda x: jax.device_put(x, jax.devices()[0]), X),
        "barrier of two": (lambda x, y: lax.optimization_barrier((x, y)), X, X3),
        "sharding": (
            lambda x: lax.with_sharding_constraint(
                x, jax.sharding.SingleDeviceSharding(jax.devices()[0])), X,
        ),
        "random keys": (
            lambda k: (jax.random.split(jax.random.clone(k[0]), 2), jax.random.key_data(k),
                       jax.random.wrap_key_data(jax.random.key_data(k)),
                       jax.vmap(jax.random.fold_in)(k, jnp.arange(3)),
                       jax.vmap(jax.random.normal)(k)), K,
        ),
        "gamma draws": (
            lambda k, a: jax.vmap(jax.random.loggamma)(k, a), K, P,
        ),
        # Shapes.
        "broadcast": (lambda x: jnp.broadcast_to(x, (2, 3, 4)), X),
        "broadcast size 1": (lambda x: jnp.broadcast_to(x[:, None], (3, 5, 4)), X),
        "broadcast_in_dim": (lambda x: lax.broadcast_in_dim(x, (3, 2, 4), (0, 2)), X),
        "outer sum": (lambda x, y: x[:, None, :] + y[None, :, :], X, array(5, 4)),
        "reshape merge": (lambda x: x.reshape(3, 20), X3),
        "reshape split": (lambda x: x.reshape(3, 2, 2, 5), X3),
        "reshape flat": (lambda x: x.reshape(-1), X3),
        "reshape to the same sizes, moved": (lambda x: x.reshape(4, 3), X),
        "reshape ones": (lambda x: x.reshape(1, 3, 1, 4, 1).reshape(3, 1, 4), X),
        "ravel order": (lambda x: jnp.ravel(x, order="F"), X3),
        "transpose": (lambda x: x.transpose(2, 0, 1), X3),
        "moveaxis swapaxes": (lambda x: jnp.moveaxis(jnp.swapaxes(x, 0, 1), 2, 0), X3),
        "squeeze expand": (lambda x: jnp.squeeze(lax.expand_dims(x, (0, 2)), (0,)), X),
        "reverse": (lambda x: lax.rev(x, (0, 2)), X3),
        "tile": (lambda x: jnp.tile(x, (1, 2)), X),
        "repeat": (lambda x: jnp.repeat(x, 2, axis=1), X),
        "roll": (lambda x: jnp.roll(x, 1, axis=0), X),
        "stack": (lambda x, y: jnp.stack([x, y], -1), X, Y),
        "unstack": (jnp.unstack, X),
        "concatenate": (lambda x, y: jnp.concatenate([x, y, x], 1), X, Y),
        "concatenate rows": (lambda x, y: jnp.concatenate([x, y[:1], x[:0]], 0), X, Y),
        "split": (lambda x: (jnp.split(x, 2, 1), lax.split(x, (1, 2), 0)), X),
        "pad": (lambda x: (jnp.pad(x, ((0, 0), (1, 2))), jnp.pad(x, 1, mode="edge")), X),
        "pad interior": (lambda x: lax.pad(x, 0.0, [(0, 0, 1), (0, 0, 0)]), X),
        "pad shift": (lambda x: lax.pad(x, 0.0, [(0, 0, 0), (-1, 1, 0)]), X),
        "diagonals": (lambda m: (jnp.tril(m), jnp.diagonal(m, 0, 1, 2)), M),
        # Indexing.
        "slice": (lambda x: (x[:, 1:3], x[::2], x[0], x[..., -1], x[:, ::-1], x[:, None]), X),
        "lax.slice": (lambda x: lax.slice(x, (0, 1, 0), (3, 4, 5), (1, 2, 1)), X3),
        "dynamic_slice": (
            lambda x, i: (lax.dynamic_slice(x, (i[0], i[1], i[2]), (3, 2, 5)), x[i[3]],
                          lax.dynamic_index_in_dim(x, i[0], 1)), X3, np.array([1, 1, 2, 2], np.int32),
        ),
        "dynamic_update_slice": (
            lambda x, y, i: (lax.dynamic_update_slice(x, y, (i[0], i[1])),
                             lax.dynamic_update_slice(x, y[:2], (i[0], i[1]))),
            X, Y[:, :2], np.array([1, 1], np.int32),
        ),
        "vmap dynamic_slice": (
            jax.vmap(lambda x, i: lax.dynamic_slice_in_dim(x, i, 2)), X3, COLS[:3],
        ),
        "vmap dynamic_update_slice": (
            jax.vmap(lambda x, y, i: lax.dynamic_update_slice(x, y, (i, 0))),
            X3, array(3, 2, 5), COLS[:3],
        ),
        "take": (lambda x, i: (x[i], x[:, i % 3], x[i, :, i % 5], jnp.take(x, i, 2)), X3, ROWS),
        "take modes": (
            lambda x, i: [x.at[i].get(mode=m) for m in ("fill", "clip", "promise_in_bounds")],
            X3, ROWS,
        ),
        "take two": (lambda x, i, j: (x[i, j], x[i, 1:3, j], x[:, i, j]), X3, ROWS, COLS % 3),
        "take matrix of indices": (lambda x, i: x[:, i], X3, integers(4, 2, 6)),
        "take_along_axis": (
            lambda x, i: (jnp.take_along_axis(x, i, 1), jnp.take_along_axis(x, i % 3, 0)),
            X, integers(4, 3, 4),
        ),
        "vmap take": (jax.vmap(lambda x, i: x[i]), X3, integers(4, 3, 6)),
        "vmap take, axes": (jax.vmap(lambda x, i: x[:, i], (2, 1), 1), X3, integers(4, 6, 5)),
        "vmap vmap take": (jax.vmap(jax.vmap(lambda x, i: x[i])), X4, integers(4, 2, 3)),
        "vmap take, one table": (jax.vmap(lambda x, i: x[i], (None, 0)), X3, integers(3, 5, 6)),
        "boolean mask": (lambda x, b: jnp.where(b[..., None], x, 0).sum(1), X3, B),
        "set": (lambda x, i: (x.at[i].set(0.0), x.at[:, i].set(1.0), x.at[1].set(0.0)), X, ROWS),
        "update": (
            lambda x, i, u: (x.at[i].add(u), x.at[i].multiply(u), x.at[i].min(u), x.at[i].max(u),
                             x.at[i].subtract(u), x.at[i].apply(jnp.sin), x.at[i].power(2.0)),
            X, ROWS, array(6, 4),
        ),
        "update middle": (lambda x, i, u: x.at[:, i].add(u), X3, COLS, array(3, 6, 5)),
        "update part": (lambda x, i, u: x.at[i, 1:3].add(u), X3, ROWS, array(6, 2, 5)),
        "update modes": (
            lambda x, i, u: [x.at[i].add(u, mode=m) for m in ("drop", "clip", "promise_in_bounds")],
            X, ROWS, array(6, 4),
        ),
        "vmap update": (
            jax.vmap(lambda x, i, u: x.at[i].add(u)), X3, integers(4, 3, 6), array(3, 6, 5),
        ),
        "vmap set": (jax.vmap(lambda x, i: x.at[i].set(0.0)), X3, COLS[:3]),
        "vmap update, axes": (
            jax.vmap(lambda x, i, u: x.at[:, i].max(u), (2, 0, 1), 1),
            X3, integers(4, 5, 6), array(3, 5, 6),
        ),
        "segment_sum": (lambda x, i: jax.ops.segment_sum(x, i, 4), array(6, 2), ROWS),
        "segment_max": (lambda x, i: jax.ops.segment_max(x, i, 4), array(6, 2), ROWS),
        "bincount": (lambda i: jnp.bincount(i, length=5), ROWS),
        "grad of take": (jax.grad(lambda x, i: (x[i] ** 2).sum()), X3, ROWS),
        "grad of vmap take": (
            jax.grad(lambda x, i: (jax.vmap(lambda x, i: x[i])(x, i) ** 2).sum()),
            X3, integers(4, 3, 6),
        ),
        # Order.
        "sort by key": (lambda x, y: lax.sort((x, y), dimension=0, num_keys=1), X, Y),
        "lexsort": (lambda x, y: jnp.lexsort((x, y), axis=-1), X, Y),
        "top_k": (lambda x: (lax.top_k(x, 2), lax.top_k(x, 4)), X),
        "vmap top_k": (jax.vmap(lambda x: lax.top_k(x, 3), 1), X),
        "quantile": (lambda x: jnp.quantile(x, 0.3, axis=1), X),
        "searchsorted": (
            lambda x, y: [jnp.searchsorted(jnp.sort(x), y, s) for s in ("left", "right")], X[0], Y,
        ),
        # Reductions.
        "reduce axes": (lambda x: (x.sum((0, 2)), x.max((1,), keepdims=True), x.sum()), X3),
        "reduce": (lambda x: lax.reduce(x, 1.0, lambda a, b: a * b + 0.0 * a, (1,)), X3),
        "reduce two": (
            lambda x, y: lax.reduce(
                (x, y), (0.0, 0.0), lambda a, b: (a[0] + b[1], a[1] * b[0]), (1,)), X, Y,
        ),
        "reverse cumsum": (lambda x: (lax.cumsum(x, 1, reverse=True), jnp.cumsum(x)), X),
        "scan": (lambda x: lax.scan(lambda c, a: (c * a, c + a), x[0], x), X3),
        "cond": (lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x), X),
        "while": (lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x), X),
        "max pool": (lambda x: nn.max_pool(x, (2, 2), strides=(2, 2)), array(2, 4, 6, 3)),
        "average pool": (lambda x: nn.avg_pool(x, (1, 2)), array(2, 4, 6, 3)),
        "min pool": (
            lambda x: lax.reduce_window(x, jnp.inf, lax.min, (1, 2, 1), (1, 1, 2), "SAME"), X3,
        ),
        "reduce_window": (
            lambda x: lax.reduce_window(
                x, 1.0, lambda a, b: a * b + 0.0 * a, (1, 2, 1), (1, 1, 1),
                [(0, 0), (0, 1), (1, -1)]), X3,
        ),
        "reduce_window, dilated": (
            lambda x: lax.reduce_window(
                x, 0.0, lax.add, (1, 2, 1), (1, 1, 1), "VALID", (2, 1, 1), (1, 2, 3)), X3,
        ),
        "grad of max pool": (
            jax.grad(lambda x: (nn.max_pool(x, (2, 2)) ** 2).sum()), array(2, 4, 6, 3),
        ),
        "jvp of max pool": (
            lambda x, t: jax.jvp(lambda x: nn.max_pool(x, (2, 2)), (x,), (t,)),
            array(2, 4, 6, 3), array(2, 4, 6, 3),
        ),
        # Contractions.
        "matmul": (lambda x, y: (x @ y.T, x @ y[0], x[0] @ y[1], jnp.outer(x[0], y[0])), X, Y),
        "batched matmul": (jnp.matmul, X4, array(2, 3, 5, 6)),
        "vmap matmul": (jax.vmap(jnp.matmul, (0, None)), X4, array(5, 6)),
        "tensordot": (lambda x, y: jnp.tensordot(x, y, 2), X3, array(4, 5, 6)),
        "einsum": (lambda x, y: jnp.einsum("abc,dba->cd", x, y), X3, array(6, 4, 3)),
        "einsum batch": (lambda x, y: jnp.einsum("nab,mnb->nma", x, y), X3, array(6, 3, 5)),
        "einsum diagonal": (lambda m: jnp.einsum("nii->ni", m), M),
        "einsum three": (lambda x, m, y: jnp.einsum("ni,nij,nj->n", x, m, y), X, M, Y),
        "kron": (jnp.kron, X, Y),
        "convolve": (jnp.convolve, X[0], Y[1]),
        "conv": (
            nn.Conv(6, (3,)).apply, {"params": {"kernel": array(3, 5, 6), "bias": array(6)}}, X3,
        ),
        "conv groups": (
            lambda x, w: lax.conv_general_dilated(
                x, w, (2,), "SAME", feature_group_count=2, dimension_numbers=("NCH", "OIH", "HNC")),
            array(3, 4, 6), array(8, 2, 3),
        ),
        "conv depthwise": (
            lambda x, w: lax.conv_general_dilated(
                x, w, (1,), "VALID", feature_group_count=4, rhs_dilation=(2,)),
            array(3, 4, 6), array(4, 1, 3),
        ),
        "conv batch groups": (
            lambda x, w: lax.conv_general_dilated(x, w, (1,), "SAME", batch_group_count=2),
            array(4, 5, 6), array(8, 5, 3),
        ),
        "conv 1x1": (
            lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME"),
            array(2, 3, 4, 5), array(6, 3, 1, 3),
        ),
        "conv 1x1 strided": (
            lambda x, w: lax.conv_general_dilated(
                x, w, (2, 1), [(0, 0), (1, -1)], lhs_dilation=(2, 1)),
            array(2, 3, 4, 5), array(6, 3, 1, 1),
        ),
        "grad of conv": (
            jax.grad(
                lambda x, w: (lax.conv_general_dilated(x, w, (1,), "SAME") ** 2).sum(), (0, 1)),
            array(3, 4, 6), array(8, 4, 3),
        ),
        "conv transpose": (
            lambda x, w: lax.conv_transpose(x, w, (2,), "SAME"), array(3, 6, 4), array(3, 4, 5),
        ),
        # Linear algebra.
        "cholesky": (jnp.linalg.cholesky, SPD),
        "eigh": (jnp.linalg.eigh, SPD),
        "eig": (jnp.linalg.eig, M),
        "svd": (jnp.linalg.svd, X4),
        "svd values": (lambda m: jnp.linalg.svd(m, compute_uv=False), X4),
        "qr": (lambda m: (jnp.linalg.qr(m), lax.linalg.qr(m, pivoting=True)), X4),
        "lu": (jax.vmap(jax.scipy.linalg.lu), M),
        "det": (lambda m: (jnp.linalg.det(m), jnp.linalg.slogdet(m), jnp.linalg.inv(m)), M),
        "solve": (jnp.linalg.solve, M, array(3, 4, 2)),
        "solve_triangular": (
            lambda m, b: (lax.linalg.triangular_solve(m, b, left_side=True, lower=True),
                          lax.linalg.triangular_solve(m, b.mT, left_side=False, transpose_a=True)),
            SPD, array(3, 4, 2),
        ),
        "cho_solve": (lambda m, b: jax.scipy.linalg.cho_solve((m, True), b), SPD[0], array(4, 2)),
        "tridiagonal": (lax.linalg.tridiagonal, SPD),
        "tridiagonal_solve": (
            lambda d, b: lax.linalg.tridiagonal_solve(0.1 * d, d, 0.1 * d, b), P, array(3, 4, 2),
        ),
        "lu_pivots": (lambda i: lax.linalg.lu_pivots_to_permutation(i, 5), integers(4, 3, 4)),
        "hessenberg": (lax.linalg.hessenberg, M),
        "schur": (lax.linalg.schur, M),
        "symmetric_product": (lax.linalg.symmetric_product, M, SPD),
        "householder": (
            lambda a: lax.linalg.householder_product(*lax.linalg.hessenberg(a)), M,
        ),
        "fft": (lambda x: (jnp.fft.fft(x), jnp.fft.rfft(x, axis=0), jnp.fft.fft2(x)), X3),
        "irfft": (lambda x: jnp.fft.irfft(jnp.fft.rfft(x)), X3),
        # Networks.
        "dense": (nn.Dense(5).apply, {"params": {"kernel": array(4, 5), "bias": array(5)}}, X),
        "layer norm": (lambda x: nn.LayerNorm(use_bias=False, use_scale=False).apply({}, x), X),
        "embedding": (nn.Embed(9, 5).apply, {"params": {"embedding": array(9, 5)}}, N1),
        "attention": (jax.nn.dot_product_attention, *(array(2, 3, 4, 5) for _ in range(3))),
        "grad of network": (
            jax.grad(lambda w, x: jax.nn.logsumexp(jnp.tanh(x @ w), -1).sum()), array(4, 5), X,
        ),
        "vmap grad": (jax.vmap(jax.grad(lambda x: (jnp.cumsum(x) ** 2).max())), X),
    }  # fmt: skip


def densities():
    unbatched = {
        "Normal": (dist.Normal, X, P),
        "Gamma": (dist.Gamma, P, Q),
        "Beta": (dist.Beta, P, Q),
        "StudentT": (dist.StudentT, P, X, Q),
        "VonMises": (dist.VonMises, X, P),
        "Dirichlet": (dist.Dirichlet, P),
        "Bernoulli": (lambda x: dist.Bernoulli(logits=x), X),
        "Categorical": (lambda x: dist.Categorical(logits=x), X),
        "Binomial": (lambda x: dist.Binomial(9, logits=x), X),
        "Multinomial": (lambda p: dist.Multinomial(9, probs=p), SIMPLEX),
        "Poisson": (dist.Poisson, P),
        "OrderedLogistic": (lambda x: dist.OrderedLogistic(x[:, 0], jnp.sort(x)), X),
        "TruncatedNormal": (lambda x, p: dist.TruncatedNormal(x, p, low=0.0), X, P),
        "MultivariateNormal": (
            lambda x, m: dist.MultivariateNormal(x, scale_tril=jnp.tril(m)), X, SPD,
        ),
        "MultivariateNormal, one covariance": (
            lambda x, m: dist.MultivariateNormal(x, covariance_matrix=m[0]), X, SPD,
        ),
        "LowRankMultivariateNormal": (
            lambda x, w, p: dist.LowRankMultivariateNormal(x, w, p), X, array(3, 4, 2), P,
        ),
        "Mixture": (
            lambda x, y, p: dist.MixtureSameFamily(
                dist.Categorical(logits=x), dist.Normal(y, p)), X, Y, P,
        ),
        "Masked": (lambda x, p, b: dist.Normal(x, p).mask(b), X, P, B),
        "Expanded": (lambda x, p: dist.Normal(x, p).expand((2, 3, 4)), X, P),
        "StickBreaking": (
            lambda x, p: dist.TransformedDistribution(
                dist.Normal(x, p).to_event(1), dist.transforms.StickBreakingTransform()), X, P,
        ),
    }  # fmt: skip
    return {f"density of {name}": case for name, case in unbatched.items()}


def log_prob(make, noise, *params):
    """The density somewhere in the support."""
    d = make(*params)
    noise = noise[: math.prod(d.shape())].reshape(d.shape())
    if d.support.is_discrete:
        return d.log_prob(d.support.feasible_like(noise))
    unconstrained = dist.biject_to(d.support).inverse_shape(d.shape())
    noise = noise.reshape(-1)[: math.prod(unconstrained)].reshape(unconstrained)
    return d.log_prob(dist.biject_to(d.support)(noise))


# Primitives that only newer releases have, with their maps.
NEWER = {
    "mulhi": (lambda i, j: lax.mulhi(i, j), (N1, N2), [[(0, 1), (0, 1)]]),
    "stack": (lambda x, y: lax.stack([x, y], axis=1), (X, Y), [[(0, 2), (0, 2)]]),
    "tile": (lambda x: lax.tile(x, (1, 2)), (X,), [[(0, None)]]),
    "unstack": (lambda x: lax.unstack(x, axis=1), (X[:, :2],), [[(0, None)]] * 2),
}
MISSING = {name for name in NEWER if not hasattr(lax, name)}

PROGRAMS = programs() | {
    name: (partial(log_prob, make), array(100), *params)
    for name, (make, *params) in densities().items()
}
PROGRAMS |= {f"new {name}": (fn, *xs) for name, (fn, xs, _) in NEWER.items() if name not in MISSING}


@cache
def traced(name):
    return trace(*PROGRAMS[name])


checked = set()  # equations recur; only indices make a difference


@pytest.mark.few(20)
@pytest.mark.parametrize("name", PROGRAMS)
def test_claims_survive_perturbation(name):
    for eqn, values, run in equations(traced(name), PROGRAMS[name][1:]):
        maps = axis_maps(eqn)
        check_form(eqn, maps)
        signature = f"{eqn.primitive} {[str(v.aval) for v in eqn.invars]} {eqn.params}"
        if eqn.primitive.name in INDEXED or signature not in checked:
            assert not violations(eqn, values, run, maps), eqn
        checked.add(signature)


def test_every_rule_has_a_program():
    def names(jaxpr):
        for eqn in jaxpr.eqns:
            yield eqn.primitive.name
            if call := inner(eqn):
                yield from names(call[0])

    seen = {primitive for name in PROGRAMS for primitive in names(traced(name).jaxpr)}
    assert set(axis_rules._RULES) - seen - VARIES == NOT_REACHED | MISSING


def first(primitive, fn, *args):
    """The first equation of a primitive, calls included."""

    def search(jaxpr):
        for eqn in jaxpr.eqns:
            call = inner(eqn)
            found = eqn if eqn.primitive.name == primitive else call and search(call[0])
            if found:
                return found
        return None

    return search(trace(fn, *args).jaxpr)


def gather_numbers(**changes):
    empty = dict.fromkeys(
        ("offset_dims", "collapsed_slice_dims", "start_index_map", "operand_batching_dims",
         "start_indices_batching_dims"), ())  # fmt: skip
    return lax.GatherDimensionNumbers(**(empty | changes))


_, S = None, ()  # nothing claimed; the map of a scalar
EXPECTED = [
    ("add", lax.add, (X, Y), [[(0, 1), (0, 1)]]),
    ("mul", lambda x: x * 2.0, (X,), [[(0, 1), S]]),
    ("select_n", lambda p, x, y: lax.select_n(p[0, 0], x, y), (B, X, Y), [[S, (0, 1), (0, 1)]]),
    ("clamp", lambda x: lax.clamp(0.0, x, 1.0), (X,), [[S, (0, 1), S]]),
    ("convert_element_type", lambda x: x.astype(int), (X,), [[(0, 1)]]),
    ("stop_gradient", lax.stop_gradient, (X,), [[(0, 1)]]),
    ("name", lambda x: checkpoint_name(x, "x"), (X,), [[(0, 1)]]),
    ("optimization_barrier", lambda *xs: lax.optimization_barrier(xs), (X, X[0]),
     [[(0, 1), (_,)], [(_, _), (0,)]]),
    ("bitcast_convert_type", lambda x: lax.bitcast_convert_type(x, jnp.uint8), (X,), [[(0, 1)]]),
    ("random_unwrap", jax.random.key_data, (K,), [[(0,)]]),
    ("random_bits", jax.vmap(jax.random.bits), (K,), [[(_,)]]),
    ("random_gamma", jax.vmap(jax.random.loggamma), (K, P), [[(_,), (0, 1)]]),
    ("broadcast_in_dim", lambda x: lax.broadcast_in_dim(x, (3, 2, 4), (0, 2)), (X,), [[(0, 2)]]),
    ("broadcast_in_dim", lambda x: jnp.broadcast_to(x, (5, 4)), (X[:1],), [[(_, 1)]]),
    ("reshape", lambda x: x.reshape(3, 20), (X3,), [[(0, _, _)]]),
    ("reshape", lambda x: x.reshape(12, 5), (X3,), [[(_, _, 1)]]),
    ("reshape", lambda x: x.reshape(3, 2, 2, 5), (X3,), [[(0, _, 3)]]),
    ("reshape", lambda x: x.reshape(4, 3), (X,), [[(_, _)]]),
    ("reshape", lambda x: x.reshape(1, 3, 1, 4, 1), (X[:, None],), [[(1, 2, 3)]]),
    ("reshape", lambda x: lax.reshape(x, (4, 3), (1, 0)), (X,), [[(_, _)]]),
    ("transpose", lambda x: x.transpose(2, 0, 1), (X3,), [[(1, 2, 0)]]),
    ("squeeze", lambda x: lax.squeeze(x, (1,)), (X[:, None],), [[(0, _, 1)]]),
    ("rev", lambda x: lax.rev(x, (1,)), (X3,), [[(0, _, 2)]]),
    ("reduce_sum", lambda x: x.sum(1), (X3,), [[(0, _, 1)]]),
    ("reduce_max", lambda x: x.max((0, 2)), (X3,), [[(_, 0, _)]]),
    ("reduce_and", lambda x: x.all(0), (B,), [[(_, 0)]]),
    ("argmax", lambda x: x.argmax(1), (X3,), [[(0, _, 1)]]),
    ("reduce", lambda x, y: lax.reduce((x, y), (0.0, 0.0), lambda a, b: (a[1], b[0]), (1,)),
     (X, Y), [[(0, _), (0, _), S, S]] * 2),
    ("cumsum", lambda x: jnp.cumsum(x, 1), (X3,), [[(0, _, 2)]]),
    ("cumlogsumexp", lambda x: lax.cumlogsumexp(x, 0), (X,), [[(_, 1)]]),
    ("sort", lambda *xs: lax.sort(xs, dimension=1, num_keys=1), (X, Y), [[(0, _)] * 2] * 2),
    ("top_k", lambda x: lax.top_k(x, 4), (X,), [[(0, _)]] * 2),
    ("dot_general", jnp.matmul, (X4, array(2, 3, 5, 6)), [[(0, 1, 2, _), (0, 1, _, 3)]]),
    ("dot_general", lambda x, y: lax.dot_general(x, y, (((1,), (2,)), ((2,), (0,)))),
     (X3, array(5, 2, 4)), [[(1, _, 0), (0, 2, _)]]),
    ("conv_general_dilated", lambda x, w: lax.conv_general_dilated(
        x, w, (1,), "SAME", dimension_numbers=("NCH", "OIH", "HNC")),
     (X3, array(6, 4, 3)), [[(1, _, _), (2, _, _)]]),
    ("conv_general_dilated", lambda x, w: lax.conv_general_dilated(
        x, w, (1,), "SAME", batch_group_count=2),
     (X4[0, :2], array(6, 4, 3)), [[(_, _, _), (1, _, _)]]),
    ("conv_general_dilated", lambda x, w: lax.conv_general_dilated(
        x, w, (1,), "SAME", feature_group_count=4),
     (X3, array(4, 1, 1)), [[(0, 1, 2), (1, _, _)]]),
    ("slice", lambda x: x[:, 1:3], (X3,), [[(0, _, 2)]]),
    ("slice", lambda x: lax.slice(x, (0, 0, 0), (3, 4, 4), (1, 2, 1)), (X3,), [[(0, _, _)]]),
    ("dynamic_slice", lambda x, i: lax.dynamic_slice(x, (i, i), (3, 2)), (X, 1), [[(0, _), S, S]]),
    ("dynamic_update_slice", lambda x, y, i: lax.dynamic_update_slice(x, y, (i, i)),
     (X, Y[:, :2], 1), [[(0, 1), (0, _), S, S]]),
    ("pad", lambda x: jnp.pad(x, ((0, 0), (1, 0))), (X,), [[(0, _), S]]),
    ("pad", lambda x: lax.pad(x, 0.0, [(0, 0, 0), (-1, 1, 0)]), (X,), [[(0, _), S]]),
    ("concatenate", lambda x, y: jnp.concatenate([x, y], 1), (X, Y), [[(0, _), (0, _)]]),
    ("split", lambda x: lax.split(x, (1, 3), 1), (X,), [[(0, _)]] * 2),
    ("iota", lambda: jnp.arange(3), (), [[]]),
    # x[i]: (3, 4, 5), (6,) -> (6, 4, 5), and so on
    ("gather", lambda x, i: x[i], (X3, ROWS), [[(_, 1, 2), (0, _)]]),
    ("gather", lambda x, i: x[:, i], (X3, COLS), [[(0, _, 2), (1, _)]]),
    ("gather", lambda x, i: x[:, 1:3].at[:, :, i].get(), (X3, COLS), [[(0, 1, _), (2, _)]]),
    ("gather", jax.vmap(lambda x, i: x[i]), (X3, integers(4, 3, 6)), [[(0, _, 2), (0, 1, _)]]),
    ("gather", jax.vmap(lambda x, i: x[:, i], (2, 1), 1), (X3, integers(4, 6, 5)),
     [[(0, 1, _), (0, 2, _)]]),  # vmap moves its axis to the front
    ("gather", lambda x, i: jnp.take_along_axis(x, i, 1), (X, integers(4, 3, 6)),
     [[(0, _), (0, 1, _)]]),
    # the whole of an indexed axis: (3, 4), (6, 2) -> (3, 6, 1), windows of (3, 1)
    ("gather", lambda x, i: lax.gather(
        x, i, gather_numbers(offset_dims=(0, 2), start_index_map=(0, 1)), (3, 1)),
     (X, integers(3, 6, 2)), [[(0, _), (1, _)]]),
    ("scatter-add", lambda x, i, u: x.at[i].add(u), (X3, ROWS, array(6, 4, 5)),
     [[(0, 1, 2), (_, _), (_, 1, 2)]]),
    ("scatter", lambda x, i, u: x.at[:, i].set(u), (X3, COLS, array(3, 6, 5)),
     [[(0, 1, 2), (_, _), (0, _, 2)]]),
    ("scatter-max", lambda x, i, u: x.at[i, :2].max(u), (X3, ROWS, array(6, 2, 5)),
     [[(0, 1, 2), (_, _), (_, _, 2)]]),
    ("scatter-add", jax.vmap(lambda x, i, u: x.at[i].add(u)),
     (X3, integers(4, 3, 6), array(3, 6, 5)), [[(0, 1, 2), (0, _, _), (0, _, 2)]]),
    ("cholesky", lambda m: lax.linalg.cholesky(m), (SPD,), [[(0, _, _)]]),
    ("eigh", jnp.linalg.eigh, (SPD,), [[(0, _, _)]] * 2),
    ("qr", jnp.linalg.qr, (X4,), [[(0, 1, _, _)]] * 2),
    ("lu", lax.linalg.lu, (M,), [[(0, _, _)]] * 3),
    ("triangular_solve", lambda m, b: lax.linalg.triangular_solve(m, b, left_side=True),
     (SPD, array(3, 4, 2)), [[(0, _, _), (0, _, 2)]]),
    ("triangular_solve", lambda m, b: lax.linalg.triangular_solve(m, b, left_side=False),
     (SPD, array(3, 2, 4)), [[(0, _, _), (0, 1, _)]]),
    ("tridiagonal_solve", lambda d, b: lax.linalg.tridiagonal_solve(d, d, d, b),
     (P, array(3, 4, 2)), [[(0, _)] * 3 + [(0, _, 2)]]),
    ("lu_pivots_to_permutation", lambda i: lax.linalg.lu_pivots_to_permutation(i, 5),
     (integers(4, 3, 4),), [[(0, _)]]),
    ("fft", jnp.fft.fft2, (X3,), [[(0, _, _)]]),
    ("reduce_window_max", lambda x: nn.max_pool(x, (2, 1)), (array(2, 4, 6, 3),),
     [[(0, _, 2, 3)]]),
    ("reduce_window_sum", lambda x: lax.reduce_window(
        x, 0.0, lax.add, (1, 1, 3), (2, 1, 1), [(0, 0), (1, -1), (1, 1)]),
     (X3,), [[(_, _, _)]]),
    ("select_and_scatter_add", jax.grad(lambda x: nn.max_pool(x, (2, 1)).sum()),
     (array(2, 4, 6, 3),), [[(0, _, 2, 3)] * 2]),
    ("scan", lambda x: lax.scan(lambda c, a: (c + a, c), x[0], x), (X,), [[(_,), (_, _)]] * 2),
    ("while", lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x), (X,),
     [[(_, _)]]),
    ("jit", jax.jit(jnp.sin), (X,), [[(_, _)]]),
    ("custom_jvp_call", jax.nn.relu, (X,), [[(_, _)]]),
    ("vipp_elementwise", elementwise.Elementwise(jnp.sin), (X,), [[(_, _)]]),
]  # fmt: skip
EXPECTED += [(name, *case) for name, case in NEWER.items() if name not in MISSING]


@pytest.mark.parametrize("case", EXPECTED, ids=lambda case: case[0])
def test_maps_are_exact(case):
    primitive, fn, args, maps = case
    eqn = first(primitive, fn, *args)
    assert axis_maps(eqn) == [[tuple(axis_map) for axis_map in row] for row in maps]
    check_form(eqn, maps)


# What a careless rule might claim; the test of soundness must notice.
FALSE = [
    ("cumsum", lambda x: jnp.cumsum(x, 1), (X,), [[(None, 1)]]),
    ("sort", lambda x: jnp.sort(x, 1), (X,), [[(None, 1)]]),
    ("rev", lambda x: lax.rev(x, (0,)), (X,), [[(0, None)]]),
    ("reshape", lambda x: x.reshape(4, 3), (X,), [[(1, 0)]]),
    ("transpose", jnp.transpose, (M[0],), [[(0, 1)]]),
    ("pad", lambda x: lax.pad(x, 0.0, [(0, 0, 0), (-1, 1, 0)]), (X,), [[(None, 1), ()]]),
    ("dot_general", jnp.matmul, (M[0], M[1]), [[(None, 1), (None, None)]]),
    ("gather", lambda x, i: x[i], (X, ROWS[:3]), [[(0, None), (None, None)]]),
    ("scatter-add", lambda x, i, u: x.at[i].add(u), (X, ROWS[:3], Y),
     [[(None, None), (None, None), (0, None)]]),
    ("cholesky", lax.linalg.cholesky, (SPD,), [[(None, None, 1)]]),
    ("conv_general_dilated", lambda x, w: lax.conv_general_dilated(x, w, (1,), "SAME"),
     (X3, array(4, 4, 3)), [[(None, None, 2), (None, None, None)]]),
    ("random_bits", jax.vmap(lambda k: jax.random.bits(k, (3,))), (K,), [[(1,)]]),
]  # fmt: skip


@pytest.mark.parametrize("case", FALSE, ids=lambda case: case[0])
def test_false_claims_are_refuted(case):
    primitive, fn, args, maps = case
    found = equations(trace(fn, *args), args)
    eqn, values, run = next(c for c in found if c[0].primitive.name == primitive)
    assert violations(eqn, values, run, maps)


# Random shapes. Small sizes make coincidences (equal sizes, ones, empty prefixes) likely.
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
examples = settings(derandomize=True, deadline=None, max_examples=60, database=None)
few_examples = settings(examples, max_examples=10)  # each compiles


def fresh(shape, high=None):
    """Floats, or integers below `high`; a failing example can be run again."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=shape) if high is None else rng.integers(0, high, shape)
    return jnp.asarray(values, jnp.float32 if high is None else jnp.int32)


def lanes_kept(source, a, b):
    """Whether slice k along b holds only elements from slice k along a.

    `source[position, axis]` is the index along `axis` of the operand element at `position`.
    """
    wanted = np.arange(source.shape[b]).reshape(-1, *(1,) * (source.ndim - 2 - b))
    return bool((source[..., a] == wanted).all())


def moves(shape, move):
    """Where numpy's `move` takes the elements of an array, as `lanes_kept` wants it."""
    return np.stack([move(index) for index in np.indices(shape)], axis=-1)


def check_moves(fn, shape, move):
    """Axes larger than one are claimed exactly where lanes are kept."""
    eqn = trace(fn, jax.ShapeDtypeStruct(shape, jnp.float32)).jaxpr.eqns[0]
    ((axis_map,),) = maps = axis_maps(eqn)
    check_form(eqn, maps)
    source = moves(shape, move)
    for a, size in enumerate(shape):
        for b in range(source.ndim - 1):
            if source.shape[b] == size > 1:
                assert (axis_map[a] == b) == lanes_kept(source, a, b)


@examples
@given(st.data())
def test_random_reshapes(data):
    factors = data.draw(st.lists(st.sampled_from([1, 2, 2, 3]), min_size=1, max_size=6))

    def grouped():
        cuts = [data.draw(st.booleans()) for _ in factors[1:]]
        shape = [factors[0]]
        for factor, cut in zip(factors[1:], cuts, strict=True):
            shape = [*shape, factor] if cut else [*shape[:-1], shape[-1] * factor]
        return (
            tuple(data.draw(st.permutations(shape))) if data.draw(st.booleans()) else tuple(shape)
        )

    src, out = grouped(), grouped()
    if src != out:
        check_moves(lambda x: lax.reshape(x, out), src, lambda index: index.reshape(out))


@examples
@given(st.data())
def test_random_transposes(data):
    shape = data.draw(shapes)
    order = tuple(data.draw(st.permutations(range(len(shape)))))
    check_moves(lambda x: lax.transpose_p.bind(x, permutation=order), shape,
                lambda index: index.transpose(order))  # fmt: skip


@examples
@given(st.data())
def test_random_broadcasts(data):
    out = data.draw(shapes)
    kept = sorted(data.draw(st.sets(st.integers(0, len(out) - 1), min_size=1)))
    src = tuple(data.draw(st.sampled_from([1, out[b]])) for b in kept)
    if src == out:
        return  # no equation
    aligned = [src[kept.index(b)] if b in kept else 1 for b in range(len(out))]
    check_moves(
        lambda x: lax.broadcast_in_dim_p.bind(
            x, shape=out, broadcast_dimensions=tuple(kept), sharding=None),
        src, lambda index: np.broadcast_to(index.reshape(aligned), out),
    )  # fmt: skip


@few_examples
@given(st.data())
def test_random_dot_generals(data):
    batch, contract, free_l, free_r = (
        data.draw(st.lists(st.integers(2, 3), max_size=2)) for _ in range(4)
    )
    roles = [[("b", j) for j in range(len(batch))] + [("c", j) for j in range(len(contract))]
             + [("f", j) for j in range(len(free))] for free in (free_l, free_r)]  # fmt: skip
    orders = [data.draw(st.permutations(role)) for role in roles]
    sizes = [{"b": batch, "c": contract, "f": free} for free in (free_l, free_r)]
    operands = [fresh([size[kind][j] for kind, j in order])
                for order, size in zip(orders, sizes, strict=True)]  # fmt: skip
    axes = [[[order.index((kind, j)) for order in orders] for j in range(count)]
            for kind, count in (("c", len(contract)), ("b", len(batch)))]  # fmt: skip
    numbers = tuple(tuple(zip(*pairs, strict=True)) or ((), ()) for pairs in axes)
    fn = partial(lax.dot_general, dimension_numbers=numbers)
    ((eqn, values, run),) = equations(trace(fn, *operands), operands)
    maps = axis_maps(eqn)
    check_form(eqn, maps)
    assert not violations(eqn, values, run, maps)
    for order, axis_map in zip(orders, maps[0], strict=True):  # all but contracted axes are kept
        assert [b is None for b in axis_map] == [kind == "c" for kind, _ in order]


@few_examples
@given(st.data())
def test_random_gathers_and_scatters(data):
    # What an operand axis is: batched, indexed and collapsed, part of a window, or a whole window
    # (indexed or not).
    kinds = ("batch", "collapsed", "part", "indexed whole", "whole")
    roles = data.draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=4))
    shape = [data.draw(st.integers(2, 4)) for _ in roles]
    axes = {kind: [a for a, role in enumerate(roles) if role == kind] for kind in kinds}
    indexed = data.draw(st.permutations(axes["collapsed"] + axes["part"] + axes["indexed whole"]))
    batching = axes["batch"]
    loops = list(data.draw(st.permutations([*(shape[a] for a in batching), 5])))
    positions, taken = [], set()
    for a in batching:
        positions.append(next(
            p for p, n in enumerate(loops) if n == shape[a] and p not in taken))  # fmt: skip
        taken.add(positions[-1])
    windows = [a for a in range(len(shape)) if roles[a] not in ("batch", "collapsed")]
    rank = len(loops) + len(windows)
    offsets = sorted(data.draw(st.permutations(range(rank)))[: len(windows)])
    sizes = [shape[a] - (roles[a] == "part") if a in windows else 1 for a in range(len(shape))]
    indices = fresh([*loops, len(indexed)], max(shape))
    numbers = gather_numbers(
        offset_dims=tuple(offsets), collapsed_slice_dims=tuple(axes["collapsed"]),
        start_index_map=tuple(indexed), operand_batching_dims=tuple(batching),
        start_indices_batching_dims=tuple(positions),
    )  # fmt: skip
    mode = data.draw(st.sampled_from(["clip", "fill"]))
    x = fresh(shape)
    looped = [b for b in range(rank) if b not in offsets]
    expected = [_] * len(shape)
    for a, b in zip(windows, offsets, strict=True):
        expected[a] = b if roles[a] != "part" else _
    for a, p in zip(batching, positions, strict=True):
        expected[a] = looped[p]

    def gathered(x, i):
        return lax.gather(x, i, numbers, tuple(sizes), mode=mode)

    closed = trace(gathered, x, indices)
    eqn, values, run = next(c for c in equations(closed, (x, indices)) if "gather" in str(c[0]))
    maps = axis_maps(eqn)
    check_form(eqn, maps)
    assert maps == [[tuple(expected), (*looped, _)]]
    assert not violations(eqn, values, run, maps)

    updates = fresh(eqn.outvars[0].aval.shape)
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=tuple(offsets), inserted_window_dims=tuple(axes["collapsed"]),
        scatter_dims_to_operand_dims=tuple(indexed), operand_batching_dims=tuple(batching),
        scatter_indices_batching_dims=tuple(positions),
    )  # fmt: skip
    scatter = partial(lax.scatter_add, dimension_numbers=numbers, mode=mode)
    closed = trace(scatter, x, indices, updates)
    eqn, values, run = equations(closed, (x, indices, updates))[-1]
    assert eqn.primitive.name == "scatter-add"
    maps = axis_maps(eqn)
    check_form(eqn, maps)
    inverse = {b: a for a, b in enumerate(expected) if b is not None}
    by_loop = dict(zip(positions, batching, strict=True))
    assert maps == [[
        tuple(range(len(shape))),
        (*(by_loop.get(p) for p in range(len(loops))), _),
        tuple(inverse.get(b) for b in range(rank)),
    ]]  # fmt: skip
    assert not violations(eqn, values, run, maps)


def test_unknown_primitives_claim_nothing():
    def never(x):
        return x

    eqn = first("pure_callback", lambda x: jax.pure_callback(never, x, x), X)
    assert axis_maps(eqn) == [[(None, None)]]


def test_empty_axes_and_operands():
    empty = jnp.zeros((0, 3))
    assert axis_maps(first("add", lax.add, empty, empty)) == [[(0, 1), (0, 1)]]
    reshape = first("reshape", lambda x: x.reshape(3, 0), empty)
    check_form(reshape, axis_maps(reshape))
    joined = first("concatenate", lambda x, y: lax.concatenate([x, y], 0), empty, jnp.ones((2, 3)))
    assert axis_maps(joined) == [[(None, 1), (0, 1)]]  # joined with nothing, axis 0 stays whole
    assert axis_maps(first("iota", lambda: jnp.arange(3))) == [[]]
