"""Primitives evaluated by NumPy: a table of functions of arrays and an equation's parameters.

A key is one number here, of as many bytes as its data have: what moves numbers moves keys.
"""

from __future__ import annotations

import math
import operator
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import special

from vipp_transforms.threefry import hashed

Rule = Callable[..., Any]
MOST_PRODUCTS = 2**26  # multiplications of one product of matrices


class NoRuleError(Exception):
    """There is no rule for these operands."""


def _elementwise(ufunc: Callable[..., Any]) -> Rule:
    return lambda *operands, **params: ufunc(*operands)


def _shift(shift: Callable[..., Any]) -> Rule:
    """JAX's shifts by as many bits as there are, or more, leave nothing of a number."""

    def rule(x: Any, by: Any, **params: Any) -> Any:
        gone = (by < 0) | (by >= 8 * x.dtype.itemsize)
        return np.where(gone, x.dtype.type(0), shift(x, np.where(gone, by.dtype.type(0), by)))

    return rule


def _logical(x: Any, by: Any) -> Any:
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    return np.right_shift(x.view(unsigned), by.astype(unsigned)).view(x.dtype)


def _integer_pow(x: Any, *, y: int, **params: Any) -> Any:
    return x**y


def _divided(x: Any, y: Any, **params: Any) -> Any:
    return x / y if np.issubdtype(x.dtype, np.inexact) else _truncated(x, y)


def _truncated(x: Any, y: Any) -> Any:
    if np.any(y == 0):
        raise NoRuleError
    return ((x - np.fmod(x, y)) // y).astype(x.dtype)


def _remainder(x: Any, y: Any, **params: Any) -> Any:
    if np.issubdtype(x.dtype, np.integer) and np.any(y == 0):
        raise NoRuleError
    return np.fmod(x, y)


def _converted(x: Any, *, new_dtype: Any, **params: Any) -> Any:
    if np.issubdtype(new_dtype, np.integer) and not np.issubdtype(x.dtype, np.integer):
        if x.dtype != bool and not np.all(np.abs(x) < 2**30):  # and NaN: each machine in its way
            raise NoRuleError
    return x.astype(new_dtype)


def _bitcast(x: Any, *, new_dtype: Any, **params: Any) -> Any:
    if np.dtype(new_dtype).itemsize != x.dtype.itemsize:
        raise NoRuleError
    return x.view(new_dtype)


def _select(which: Any, *cases: Any, **params: Any) -> Any:
    if which.dtype != bool or len(cases) != 2:
        raise NoRuleError
    return np.where(which, cases[1], cases[0])


def _clamp(low: Any, x: Any, high: Any, **params: Any) -> Any:
    return np.minimum(np.maximum(x, low), high)


def _rounded(x: Any, *, rounding_method: Any, **params: Any) -> Any:
    if int(rounding_method) != 1:
        raise NoRuleError
    return np.rint(x)


def _iota(*, dtype: Any, shape: Any, dimension: int, **params: Any) -> Any:
    along = [-1 if i == dimension else 1 for i in range(len(shape))]
    return np.broadcast_to(np.arange(shape[dimension], dtype=dtype).reshape(along), shape)


def _counts(*, shape: Any, **params: Any) -> Any:
    """The numbers of all entries, in two halves."""
    numbers = np.arange(math.prod(shape), dtype=np.uint64).reshape(shape)
    return [(numbers >> np.uint64(32)).astype(np.uint32), numbers.astype(np.uint32)]


def _broadcast(x: Any, *, shape: Any, broadcast_dimensions: Any, **params: Any) -> Any:
    own = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, x.shape, strict=True):
        own[axis] = size
    return np.broadcast_to(x.reshape(own), shape)


def _reshaped(x: Any, *, new_sizes: Any, dimensions: Any, **params: Any) -> Any:
    return (x if dimensions is None else x.transpose(dimensions)).reshape(new_sizes)


def _sliced(x: Any, *, start_indices: Any, limit_indices: Any, strides: Any, **params: Any) -> Any:
    return x[tuple(map(slice, start_indices, limit_indices, strides or [1] * x.ndim))]


def _padded(x: Any, value: Any, *, padding_config: Any, **params: Any) -> Any:
    low, high, inside = (tuple(map(int, part)) for part in zip(*padding_config, strict=True))
    stretched = [max(n + (n - 1) * k, 0) for n, k in zip(x.shape, inside, strict=True)]
    start = [max(i, 0) for i in low]
    sizes = [i + n + max(j, 0) for i, n, j in zip(start, stretched, high, strict=True)]
    out = np.full(sizes, value, x.dtype)
    end = [i + n for i, n in zip(start, stretched, strict=True)]
    out[tuple(map(slice, start, end, [k + 1 for k in inside]))] = x
    left = [n + min(i, 0) for n, i in zip(sizes, high, strict=True)]
    return out[tuple(map(slice, [max(-i, 0) for i in low], left))]


def _dynamic_slice(x: Any, *starts: Any, slice_sizes: Any, **params: Any) -> Any:
    return x[_window(x.shape, starts, slice_sizes)]


def _dynamic_update_slice(x: Any, update: Any, *starts: Any, **params: Any) -> Any:
    out = x.copy()
    out[_window(x.shape, starts, update.shape)] = update
    return out


def _window(shape: Sequence[int], starts: Sequence[Any], sizes: Sequence[int]) -> Any:
    first = [min(max(int(i), 0), n - k) for i, n, k in zip(starts, shape, sizes, strict=True)]
    return tuple(slice(i, i + k) for i, k in zip(first, sizes, strict=True))


def _split(x: Any, *, sizes: Any, axis: int, **params: Any) -> Any:
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def _unstacked(x: Any, *, axis: int, **params: Any) -> Any:
    return list(np.moveaxis(x, axis, 0))


def _reduced(ufunc: Any) -> Rule:
    def rule(x: Any, *, axes: Any, **params: Any) -> Any:
        if not x.size:
            raise NoRuleError
        return ufunc(x, axis=tuple(axes))

    return rule


def _position(which: Any) -> Rule:
    def rule(x: Any, *, axes: Any, index_dtype: Any, **params: Any) -> Any:
        if not x.size:
            raise NoRuleError
        return which(x, axis=axes[0]).astype(index_dtype)

    return rule


def _cumulative(ufunc: Any) -> Rule:
    def rule(x: Any, *, axis: int, reverse: bool, **params: Any) -> Any:
        flip = (lambda y: np.flip(y, axis)) if reverse else (lambda y: y)
        return flip(ufunc.accumulate(flip(x), axis=axis, dtype=x.dtype))

    return rule


def _sorted(*operands: Any, dimension: int, num_keys: int, **params: Any) -> Any:
    if num_keys != 1:
        raise NoRuleError
    order = np.argsort(operands[0], axis=dimension, kind="stable")
    return [np.take_along_axis(x, order, dimension) for x in operands]


def _dot(x: Any, y: Any, *, dimension_numbers: Any, **params: Any) -> Any:
    (left, right), (left_batch, right_batch) = dimension_numbers
    names = iter(string.ascii_letters)
    x_names, y_names = [[next(names) for _ in z.shape] for z in (x, y)]
    for i, j in zip((*left, *left_batch), (*right, *right_batch), strict=True):
        y_names[j] = x_names[i]
    batch = [x_names[i] for i in left_batch]
    free = lambda names, taken: [n for i, n in enumerate(names) if i not in taken]
    rest = free(x_names, {*left, *left_batch}) + free(y_names, {*right, *right_batch})
    if x.size * math.prod(n for i, n in enumerate(y.shape) if i not in right) > MOST_PRODUCTS:
        raise NoRuleError
    text = f"{''.join(x_names)},{''.join(y_names)}->{''.join(batch + rest)}"
    return np.einsum(text, x, y, optimize=True)


def _gathered(x: Any, indices: Any, *, dimension_numbers: Any, slice_sizes: Any, **params: Any):
    at, there = _places(x.shape, indices, dimension_numbers, slice_sizes, params["mode"])
    if not there.all():
        raise NoRuleError
    found = x[at]
    batch = indices.ndim - 1
    gone = {*dimension_numbers.collapsed_slice_dims, *dimension_numbers.operand_batching_dims}
    found = np.squeeze(found, tuple(batch + i for i in gone))
    return np.moveaxis(found, range(batch, found.ndim), dimension_numbers.offset_dims)


def _scattered(put: Callable[..., None]) -> Rule:
    def rule(x: Any, indices: Any, updates: Any, *, dimension_numbers: Any, **params: Any) -> Any:
        windows, batch = dimension_numbers.update_window_dims, indices.ndim - 1
        gone = {*dimension_numbers.inserted_window_dims, *dimension_numbers.operand_batching_dims}
        kept = iter(updates.shape[i] for i in windows)
        sizes = [1 if i in gone else next(kept) for i in range(x.ndim)]
        at, there = _places(x.shape, indices, _Gather(dimension_numbers), sizes, params["mode"])
        moved = np.moveaxis(updates, windows, range(batch, updates.ndim))
        out = x.copy()
        moved = moved.reshape(*moved.shape[:batch], *sizes)
        put(out, tuple(i[there] for i in at), moved[there])
        return out

    return rule


class _Gather:
    """The dimension numbers of a scatter by the names of a gather."""

    def __init__(self, numbers: Any):
        self.start_index_map = numbers.scatter_dims_to_operand_dims
        self.operand_batching_dims = numbers.operand_batching_dims
        self.start_indices_batching_dims = numbers.scatter_indices_batching_dims


def _places(shape: Any, indices: Any, numbers: Any, sizes: Any, mode: Any) -> tuple[Any, Any]:
    """The entries that are read or written, an array of indices for each axis of ``shape``.

    Their axes are those of the indices but for the last, and one for each axis of ``shape``; and
    which of the former lie within the array.
    """
    batch, ndim = indices.shape[:-1], len(shape)
    at, there = [], np.full(batch, True)
    for axis, (size, width) in enumerate(zip(shape, sizes, strict=True)):
        inside = np.arange(width).reshape([-1 if i == axis else 1 for i in range(ndim)])
        first: Any = np.zeros(batch, np.int64)
        if axis in numbers.start_index_map:
            first = indices[..., numbers.start_index_map.index(axis)].astype(np.int64)
            if "clip" in str(mode).lower():
                first = np.clip(first, 0, size - width)
            there &= (first >= 0) & (first <= size - width)
        elif axis in numbers.operand_batching_dims:
            along = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(axis)]
            first = _iota(dtype=np.int64, shape=batch, dimension=along)
        at.append(first.reshape(batch + (1,) * ndim) + inside)
    return tuple(at), there


def _threefry(key1: Any, key2: Any, x1: Any, x2: Any, **params: Any) -> Any:
    return list(hashed(key1, key2, *np.broadcast_arrays(x1, x2)))


def _same(x: Any, **params: Any) -> Any:
    return x


_UFUNCS = {
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum,
    "min": np.minimum, "pow": np.power, "atan2": np.arctan2, "neg": np.negative, "abs": np.abs,
    "sign": np.sign, "floor": np.floor, "ceil": np.ceil, "square": np.square, "exp": np.exp,
    "exp2": np.exp2, "log": np.log, "log1p": np.log1p, "expm1": np.expm1, "sqrt": np.sqrt,
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "tanh": np.tanh, "sinh": np.sinh,
    "cosh": np.cosh, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan,
    "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh, "eq": np.equal,
    "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "is_finite": np.isfinite, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert, "nextafter": np.nextafter,
    "erf": special.erf, "erfc": special.erfc, "erf_inv": special.erfinv,
    "lgamma": special.gammaln, "digamma": special.digamma, "logistic": special.expit,
    "rsqrt": lambda x: 1 / np.sqrt(x), "cbrt": np.cbrt, "one_minus_square": lambda x: 1 - x * x,
}  # fmt: skip

RULES: dict[str, Rule] = {
    **{name: _elementwise(ufunc) for name, ufunc in _UFUNCS.items()},
    **dict.fromkeys(("copy", "copy_p", "stage", "stop_gradient"), _same),
    "div": _divided,
    "rem": _remainder,
    "integer_pow": _integer_pow,
    "shift_left": _shift(np.left_shift),
    "shift_right_logical": _shift(_logical),
    "convert_element_type": _converted,
    "bitcast_convert_type": _bitcast,
    "select_n": _select,
    "clamp": _clamp,
    "round": _rounded,
    "iota": _iota,
    "iota_2x32_shape": _counts,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshaped,
    "squeeze": lambda x, *, dimensions, **params: np.squeeze(x, tuple(dimensions)),
    "transpose": lambda x, *, permutation, **params: x.transpose(permutation),
    "rev": lambda x, *, dimensions, **params: np.flip(x, tuple(dimensions)),
    "concatenate": lambda *xs, dimension, **params: np.concatenate(xs, dimension),
    "stack": lambda *xs, axis, **params: np.stack(xs, axis),
    "slice": _sliced,
    "pad": _padded,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "split": _split,
    "unstack": _unstacked,
    "reduce_sum": _reduced(np.sum),
    "reduce_prod": _reduced(np.prod),
    "reduce_max": _reduced(np.max),
    "reduce_min": _reduced(np.min),
    "reduce_and": _reduced(np.all),
    "reduce_or": _reduced(np.any),
    "argmax": _position(np.argmax),
    "argmin": _position(np.argmin),
    "cumsum": _cumulative(np.add),
    "cumprod": _cumulative(np.multiply),
    "cummax": _cumulative(np.maximum),
    "cummin": _cumulative(np.minimum),
    "sort": _sorted,
    "dot_general": _dot,
    "gather": _gathered,
    "scatter-add": _scattered(np.add.at),
    "scatter": _scattered(operator.setitem),
    "threefry2x32": _threefry,
}
