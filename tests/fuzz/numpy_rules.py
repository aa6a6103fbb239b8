"""What single primitives do, by NumPy: rules of an equation's parameters and its operands."""

import string

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special


def _convert(p, x):
    kind = np.dtype(p["new_dtype"]).kind if p["new_dtype"] != jnp.bfloat16 else "f"
    if kind in "fc":
        return np.asarray(x, np.float64 if kind == "f" else np.complex128)
    x = np.trunc(x) if np.asarray(x).dtype.kind == "f" and kind != "b" else x
    return np.asarray(x).astype(p["new_dtype"])


def _div(p, x, y):
    if np.asarray(x).dtype.kind == "f":
        return np.divide(x, y)
    safe = np.where(y == 0, 1, y)
    quotient = np.trunc(np.asarray(x, np.float64) / safe)
    return np.where(y == 0, -1, quotient).astype(np.asarray(x).dtype)


def _rem(p, x, y):
    return np.fmod(x, np.where(y == 0, 1, y)) if np.asarray(x).dtype.kind != "f" else np.fmod(x, y)


def _logic(boolean, bitwise):
    return lambda p, *xs: (boolean if xs[0].dtype.kind == "b" else bitwise)(*xs)


def _select(p, which, *cases):
    which = np.asarray(which).astype(np.int64)
    return np.choose(which, cases) if len(cases) > 2 else np.where(which, cases[1], cases[0])


def _broadcast(p, x, *_):
    shape = [1] * len(p["shape"])
    for a, d in enumerate(p["broadcast_dimensions"]):
        shape[d] = np.shape(x)[a]
    return np.broadcast_to(np.reshape(x, shape), p["shape"])


def _iota(p, *_):
    shape, at = p["shape"], p["dimension"]
    x = np.arange(shape[at], dtype=dtype_of(p["dtype"]))
    return np.broadcast_to(x.reshape([-1 if a == at else 1 for a in range(len(shape))]), shape)


def dtype_of(dtype):
    """The type that NumPy computes a JAX type with."""
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return np.uint64
    return np.float64 if jnp.issubdtype(dtype, jnp.floating) else np.dtype(dtype)


def _slice(p, x):
    strides = p["strides"] or (1,) * x.ndim
    parts = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    return x[tuple(slice(*part) for part in parts)]


def _at(starts, sizes, shape):
    starts = (np.clip(int(s), 0, n - m) for s, m, n in zip(starts, sizes, shape, strict=True))
    return tuple(slice(s, s + m) for s, m in zip(starts, sizes, strict=True))


def _update_slice(p, x, update, *starts):
    x = x.copy()
    x[_at(starts, update.shape, x.shape)] = update
    return x


def _pad(p, x, value):
    config = p["padding_config"]
    for a, (low, high, interior) in enumerate(config):
        size = x.shape[a]
        spread = np.full(
            (*x.shape[:a], size + max(size - 1, 0) * interior, *x.shape[a + 1 :]), value
        )
        spread[(slice(None),) * a + (slice(None, None, interior + 1),)] = x
        width = [(0, 0)] * x.ndim
        width[a] = (max(low, 0), max(high, 0))
        x = np.pad(spread, width, constant_values=value)
        cut = slice(max(-low, 0), x.shape[a] - max(-high, 0))
        x = x[(slice(None),) * a + (cut,)]
    return x


def _dot(p, x, y):
    (cx, cy), (bx, by) = p["dimension_numbers"]
    letters = iter(string.ascii_letters)
    lx = [next(letters) for _ in range(x.ndim)]
    ly = [next(letters) for _ in range(y.ndim)]
    for a, b in [*zip(cx, cy, strict=True), *zip(bx, by, strict=True)]:
        ly[b] = lx[a]
    out = [lx[a] for a in bx]
    out += [l for a, l in enumerate(lx) if a not in bx and a not in cx]
    out += [l for a, l in enumerate(ly) if a not in by and a not in cy]
    return np.einsum(f"{''.join(lx)},{''.join(ly)}->{''.join(out)}", x, y)


def _cumulative(fn):
    def rule(p, x):
        x = np.flip(x, p["axis"]) if p["reverse"] else x
        y = fn(x, axis=p["axis"])
        return np.flip(y, p["axis"]) if p["reverse"] else y

    return rule


def _windows(shape, ndim, window_dims, dropped, batching, index_map, indices, batch_dims, sizes):
    """Per axis of the operand its index, broadcast to ``shape``; and where all are in bounds."""
    outer = [a for a in range(len(shape)) if a not in window_dims]
    inner = [d for d in range(ndim) if d not in dropped and d not in batching]
    along = lambda x, axes: np.reshape(
        x, [x.shape[axes.index(a)] if a in axes else 1 for a in range(len(shape))]
    )
    starts, offsets = [], []
    for d in range(ndim):
        start = np.zeros((1,) * len(shape), np.int64)
        if d in index_map:
            start = along(indices[..., index_map.index(d)].astype(np.int64), outer)
        elif d in batching:
            axis = outer[batch_dims[batching.index(d)]]
            start = along(np.arange(shape[axis]), [axis])
        starts.append(start)
        offset = np.zeros((1,) * len(shape), np.int64)
        if d in inner:
            axis = window_dims[inner.index(d)]
            offset = along(np.arange(sizes[d]), [axis])
        offsets.append(offset)
    return starts, offsets


def _mode(p):
    return str(p["mode"]).rsplit(".", 1)[-1]


def _bounded(p, starts, offsets, sizes, shape):
    """Indices kept in bounds, and where nothing was out of them."""
    inside = np.bool_(True)
    for d, n in enumerate(shape):
        top = n - sizes[d]
        inside = inside & (starts[d] >= 0) & (starts[d] <= top)
        starts[d] = np.clip(starts[d], 0, top)
    index = tuple(s + o for s, o in zip(starts, offsets, strict=True))
    return index, np.bool_(True) if _mode(p) in ("CLIP", "0") else inside


def _gather(p, x, indices):
    d, sizes = p["dimension_numbers"], p["slice_sizes"]
    batch = list(indices.shape[:-1])
    window = [
        sizes[a]
        for a in range(x.ndim)
        if a not in (*d.collapsed_slice_dims, *d.operand_batching_dims)
    ]
    rank = len(batch) + len(window)
    shape = [window.pop(0) if a in d.offset_dims else batch.pop(0) for a in range(rank)]
    starts, offsets = _windows(
        shape, x.ndim, d.offset_dims, d.collapsed_slice_dims, d.operand_batching_dims,
        d.start_index_map, indices, d.start_indices_batching_dims, sizes,
    )  # fmt: skip
    index, inside = _bounded(p, starts, offsets, sizes, x.shape)
    fill = p["fill_value"]
    if fill is None:
        fill = (
            np.nan
            if x.dtype.kind == "f"
            else True
            if x.dtype.kind == "b"
            else np.iinfo(x.dtype).min
        )
    out = np.broadcast_to(x[index], shape)
    return out if np.all(inside) else np.where(inside, out, fill).astype(x.dtype)


def _scatter(combine):
    def rule(p, x, indices, updates):
        d = p["dimension_numbers"]
        inner = [
            a for a in range(x.ndim) if a not in (*d.inserted_window_dims, *d.operand_batching_dims)
        ]
        sizes = [1] * x.ndim
        for a, w in zip(inner, d.update_window_dims, strict=True):
            sizes[a] = updates.shape[w]
        starts, offsets = _windows(
            updates.shape, x.ndim, d.update_window_dims, d.inserted_window_dims,
            d.operand_batching_dims, d.scatter_dims_to_operand_dims, indices,
            d.scatter_indices_batching_dims, sizes,
        )  # fmt: skip
        index, inside = _bounded(p, starts, offsets, sizes, x.shape)
        index = [np.broadcast_to(i, updates.shape) for i in index]
        keep = np.broadcast_to(inside, updates.shape)
        out = np.array(x)
        where = tuple(i[keep] for i in index)
        if combine is None:
            out[where] = updates[keep]
        else:
            combine.at(out, where, updates[keep])
        return out

    return rule


def _bitcast(p, x):
    source = {"f": np.float32}.get(x.dtype.kind, x.dtype)
    if np.dtype(p["new_dtype"]).itemsize == 8 and x.dtype.kind == "f":
        source = np.float64
    y = np.asarray(x).astype(source).view(p["new_dtype"])
    return y.astype(np.float64) if y.dtype.kind == "f" else y


def _round(p, x):
    away = int(p.get("rounding_method", 1)) == 0
    return np.sign(x) * np.floor(np.abs(x) + 0.5) if away else np.rint(x)


def _top_k(p, x):
    axis, k = p.get("axis", -1) % x.ndim, p["k"]
    order = np.take(np.argsort(-x, axis=axis, kind="stable"), range(k), axis=axis)
    return [np.take_along_axis(x, order, axis), order.astype(p.get("index_dtype", np.int32))]


def _triangular_solve(p, a, b):
    a = np.tril(a) if p["lower"] else np.triu(a)
    if p["unit_diagonal"]:
        a = a - a * np.eye(a.shape[-1]) + np.eye(a.shape[-1])
    swap = lambda x: np.swapaxes(x, -1, -2)
    a = swap(a) if p["transpose_a"] else a
    singular = (np.diagonal(a, axis1=-2, axis2=-1) == 0).any(-1)[..., None, None]
    a = np.where(singular, np.nan, a)  # no error, as in JAX
    return np.linalg.solve(a, b) if p["left_side"] else swap(np.linalg.solve(swap(a), swap(b)))


def _window(fn, start):
    """Reduction over sliding windows."""

    def rule(p, x):
        x = _pad(
            {
                "padding_config": [
                    (*pad, n - 1) for pad, n in zip(p["padding"], p["base_dilation"], strict=True)
                ]
            },
            x,
            start,
        )
        sizes = [
            (n - 1) * d + 1
            for n, d in zip(p["window_dimensions"], p["window_dilation"], strict=True)
        ]
        windows = np.lib.stride_tricks.sliding_window_view(x, sizes)
        at = tuple(slice(None, None, n) for n in (*p["window_strides"], *p["window_dilation"]))
        return fn(windows[at], axis=tuple(range(x.ndim, 2 * x.ndim)))

    return rule


def _conv(p, x, kernel):
    """A convolution, one product of matrices for each place of the window."""
    d, count = p["dimension_numbers"], len(p["window_strides"])
    x, kernel = np.transpose(x, d.lhs_spec), np.transpose(kernel, d.rhs_spec)
    config = [(0, 0, 0)] * 2 + [
        (*pad, n - 1) for pad, n in zip(p["padding"], p["lhs_dilation"], strict=True)
    ]
    x = _pad({"padding_config": config}, x, 0.0)
    features, batches = p["feature_group_count"], p["batch_group_count"]
    spread = [(n - 1) * m for n, m in zip(kernel.shape[2:], p["rhs_dilation"], strict=True)]
    out = [
        (n - m - 1) // s + 1
        for n, m, s in zip(x.shape[2:], spread, p["window_strides"], strict=True)
    ]
    groups = features * batches
    parts = np.split(x, features, 1) if features > 1 else np.split(x, batches, 0)
    total = 0.0
    for at in np.ndindex(*kernel.shape[2:]):
        first = [i * m for i, m in zip(at, p["rhs_dilation"], strict=True)]
        take = tuple(
            slice(f, f + (n - 1) * s + 1, s)
            for f, n, s in zip(first, out, p["window_strides"], strict=True)
        )
        each = zip(parts, np.split(kernel[(..., *at)], groups, 0), strict=True)
        total = total + np.concatenate(
            [np.einsum("bi...,oi->bo...", y[(..., *take)], k) for y, k in each], 1
        )
    assert total.ndim == 2 + count
    return np.transpose(total, np.argsort(d.out_spec))


def _reduced(fn):
    return lambda p, x: fn(x, axis=tuple(p["axes"]))


def _arg(fn):
    return lambda p, x: fn(x, axis=p["axes"][0]).astype(p["index_dtype"])


_plain = lambda fn: lambda p, *xs: fn(*xs)
_minus = lambda x: -x

SEVERAL = {
    "top_k": _top_k,
    "eigh": lambda p, x: list(np.linalg.eigh((x + np.swapaxes(x, -1, -2)) / 2))[::-1],
}  # of several results
RULES = {
    **{n: _plain(getattr(np, n)) for n in (
        "sin cos tan tanh exp exp2 log log1p expm1 sqrt cbrt square abs sign floor ceil sinh cosh "
        "arcsinh nextafter").split()},
    "add": _plain(np.add), "sub": _plain(np.subtract), "mul": _plain(np.multiply),
    "neg": _plain(_minus), "div": _div, "rem": _rem, "pow": _plain(np.power),
    "add_any": _plain(np.add), "max": _plain(np.maximum), "min": _plain(np.minimum),
    "atan": _plain(np.arctan), "asin": _plain(np.arcsin), "acos": _plain(np.arccos), "atanh": _plain(np.arctanh),
    "acosh": _plain(np.arccosh), "bessel_i0e": _plain(special.i0e), "bessel_i1e": _plain(special.i1e),
    "polygamma": _plain(special.polygamma), "igamma": _plain(special.gammainc), "real": _plain(np.real),
    "imag": _plain(np.imag), "population_count": lambda p, x: np.bitwise_count(x).astype(x.dtype),
    "reduce_xor": _reduced(np.bitwise_xor.reduce),
    "atan2": _plain(np.arctan2), "asinh": _plain(np.arcsinh),
    "rsqrt": _plain(lambda x: 1 / np.sqrt(x)), "logistic": _plain(special.expit),
    "integer_pow": lambda p, x: np.power(x, p["y"]) if p["y"] >= 0 else 1 / np.power(x, -p["y"]),
    "erf": _plain(special.erf), "erfc": _plain(special.erfc), "erf_inv": _plain(special.erfinv),
    "lgamma": _plain(special.gammaln), "digamma": _plain(special.digamma), "round": _round,
    "is_finite": _plain(np.isfinite), "not": _logic(np.logical_not, np.bitwise_not),
    "and": _logic(np.logical_and, np.bitwise_and), "or": _logic(np.logical_or, np.bitwise_or),
    "xor": _logic(np.logical_xor, np.bitwise_xor),
    "eq": _plain(np.equal), "ne": _plain(np.not_equal), "lt": _plain(np.less),
    "le": _plain(np.less_equal), "gt": _plain(np.greater), "ge": _plain(np.greater_equal),
    "eq_to": _plain(np.equal), "lt_to": _plain(np.less), "le_to": _plain(np.less_equal),
    "cholesky": _plain(np.linalg.cholesky), "triangular_solve": _triangular_solve, "conv_general_dilated": _conv,
    "reduce_window_sum": _window(np.sum, 0.0), "reduce_window_max": _window(np.max, -np.inf),
    "reduce_window_min": _window(np.min, np.inf),
    "vipp_order": lambda p, y, *_: y, "vipp_slope": _plain(lambda x: x),
    "vipp_constant": _plain(lambda x: x), "vipp_settled": _plain(lambda x: x),
    "tile": lambda p, x: np.tile(x, p["reps"]),
    "shift_left": _plain(np.left_shift),
    "shift_right_logical": lambda p, x, y: np.right_shift(
        x.view(f"u{x.dtype.itemsize}"), np.asarray(y).astype(f"u{x.dtype.itemsize}")).view(x.dtype),
    "shift_right_arithmetic": _plain(np.right_shift),
    "select_n": _select, "clamp": lambda p, low, x, high: np.minimum(np.maximum(x, low), high),
    "convert_element_type": _convert, "bitcast_convert_type": _bitcast,
    "reduce_precision": lambda p, x: x, "stop_gradient": _plain(lambda x: x),
    "copy": _plain(lambda x: x), "copy_p": _plain(lambda x: x), "pvary": _plain(lambda x: x),
    "broadcast_in_dim": _broadcast, "iota": _iota, "rev": lambda p, x: np.flip(x, p["dimensions"]),
    "reshape": lambda p, x, *_: np.reshape(
        x if p["dimensions"] is None else np.transpose(x, p["dimensions"]), p["new_sizes"]),
    "squeeze": lambda p, x: np.squeeze(x, p["dimensions"]),
    "expand_dims": lambda p, x: np.expand_dims(x, p["dimensions"]),
    "transpose": lambda p, x: np.transpose(x, p["permutation"]),
    "slice": _slice, "dynamic_slice": lambda p, x, *s: x[_at(s, p["slice_sizes"], x.shape)],
    "dynamic_update_slice": _update_slice, "pad": _pad,
    "concatenate": lambda p, *xs: np.concatenate(xs, p["dimension"]),
    "dot_general": _dot, "gather": _gather, "scatter": _scatter(None),
    "scatter-add": _scatter(np.add), "scatter_add": _scatter(np.add),
    "scatter_mul": _scatter(np.multiply), "scatter-mul": _scatter(np.multiply),
    "scatter_max": _scatter(np.maximum), "scatter-max": _scatter(np.maximum),
    "scatter_min": _scatter(np.minimum), "scatter-min": _scatter(np.minimum),
    "psum": lambda p, x: np.sum(x, axis=p["axes"]),
    "reduce_sum": _reduced(np.sum), "reduce_prod": _reduced(np.prod), "reduce_max": _reduced(np.max),
    "reduce_min": _reduced(np.min), "reduce_and": _reduced(np.all), "reduce_or": _reduced(np.any),
    "argmax": _arg(np.argmax), "argmin": _arg(np.argmin),
    "cumsum": _cumulative(np.cumsum), "cumprod": _cumulative(np.cumprod),
    "cummax": _cumulative(np.maximum.accumulate), "cummin": _cumulative(np.minimum.accumulate),
    "cumlogsumexp": _cumulative(np.logaddexp.accumulate),
}  # fmt: skip
