"""Where each operand axis of an equation goes in each of its outputs.

`axis_maps(eqn)[o][i][a] == b` is the claim that output `o` of `eqn` keeps the lanes of axis `a` of
operand `i` apart along its axis `b`: for every index k,

    outputs[o][..., k, ...] (k on axis b) depends on operand i only through
    operands[i][..., k, ...] (k on axis a),

whatever the values of the operands and up to rounding (a kernel may iterate until the whole batch
has converged). Both axes then have the same size. `None` claims nothing: the lanes may be mixed,
summed away or cut. That is always sound and only costs precision, so a primitive without a rule
(every higher-order one, for instance) gets `None` throughout.

Claims are about one operand and one axis at a time: two axes of one operand may both be claimed,
and a claim about one operand says nothing about another. What they are worth in a whole program,
where operands share sites, is for the caller to work out.

Rules find primitives by name and read only the shapes and parameters of the equation.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

Eqn = Any  # a `jax.extend.core.JaxprEqn`
AxisMap = tuple[int | None, ...]  # per operand axis: the output axis, or None
Shape = tuple[int, ...]
Claims = dict[int, int]  # the same as an AxisMap while it is being made: only what is claimed
Rule = Callable[[Eqn, list[Shape], list[Shape]], list[list[Claims]]]


def axis_maps(eqn: Eqn) -> list[list[AxisMap]]:
    """The axis map of every operand in every output of a first-order equation.

    Args:
        eqn: an equation of a jaxpr; literal operands have (empty) maps like any other operand.

    Returns:
        `maps[output][operand][operand axis]`, an output axis or `None`; see the module.
    """
    ins, outs = _shapes(eqn.invars), _shapes(eqn.outvars)
    rule = _RULES.get(eqn.primitive.name)
    claims = rule(eqn, ins, outs) if rule else [[{} for _ in ins] for _ in outs]
    return [
        [_axis_map(claim, src, out) for claim, src in zip(row, ins, strict=True)]
        for row, out in zip(claims, outs, strict=True)
    ]


def _shapes(atoms: Iterable) -> list[Shape]:
    return [tuple(getattr(atom.aval, "shape", ())) for atom in atoms]  # a token has no shape


def _axis_map(claims: Claims, src: Shape, out: Shape) -> AxisMap:
    """Drops claims between axes of different size: part of the axis was cut, repeated or padded."""
    targets = ((size, claims.get(axis)) for axis, size in enumerate(src))
    return tuple(None if b is None or out[b] != size else int(b) for size, b in targets)


def _aligned(src: Shape, out: Shape, lost: Iterable[int] = ()) -> Claims:
    """Every axis stays where it is, except those that are `lost`."""
    if len(src) != len(out):
        return {}
    return {axis: axis for axis in range(len(src)) if axis not in lost}


def _axes(eqn: Eqn, param: str, rank: int) -> set[int]:
    """A parameter that is an axis or a sequence of axes, counted from the front."""
    value = eqn.params[param]
    axes = value if isinstance(value, Iterable) else (value,)
    return {int(axis) % rank for axis in axes}


# Rules where axes keep their places.


def _elementwise(eqn: Eqn, ins: list[Shape], outs: list[Shape]) -> list[list[Claims]]:
    """Out[k] is made from in[k] along every axis of full size.

    This also covers slice, dynamic_slice, tile, concatenate, split and the update of
    dynamic_update_slice: an output axis of equal size means that the axis was taken whole (then a
    dynamic start is clamped to 0), repeated once, or joined only with empty arrays. And the operand
    of dynamic_update_slice either stays at its place or is overwritten.
    """
    return [[_aligned(src, out) for src in ins] for out in outs]


def _one_to_one(eqn: Eqn, ins: list[Shape], outs: list[Shape]) -> list[list[Claims]]:
    """Output i is operand i."""
    return [
        [_aligned(src, out) if i == o else {} for i, src in enumerate(ins)]
        for o, out in enumerate(outs)
    ]


def _leading(eqn: Eqn, ins: list[Shape], outs: list[Shape]) -> list[list[Claims]]:
    """One element becomes or was a block of trailing axes: bits, the words of a random key."""
    return [[{a: a for a in range(min(len(src), len(out)))} for src in ins] for out in outs]


def _all_but(param: str) -> Rule:
    """Along `params[param]` the lanes mix or move, though the axis may keep its size."""

    def rule(eqn: Eqn, ins: list[Shape], outs: list[Shape]) -> list[list[Claims]]:
        lost = _axes(eqn, param, len(ins[0]))
        return [[_aligned(src, out, lost) for src in ins] for out in outs]

    return rule


def _top_k(eqn: Eqn, ins: list[Shape], outs: list[Shape]) -> list[list[Claims]]:
    lost = {eqn.params.get("axis", -1) % len(ins[0])}  # older JAX knows only the last axis
    return [[_aligned(ins[0], out, lost)] for out in outs]


def _pad(eqn: Eqn, ins: list[Shape], outs: list[Shape]) -> list[list[Claims]]:
    # Equal size is not enough here: (-1, 1, 0) shifts the axis by one.
    config = eqn.params["padding_config"]
    lost = [axis for axis, padding in enumerate(config) if any(padding)]
    return [[_aligned(ins[0], outs[0], lost), {}]]


def _window(eqn: Eqn, ins: list[Shape], outs: list[Shape]) -> list[list[Claims]]:
    """Reductions over sliding windows, and their derivatives.

    A window of one element is that element. The initial values are scalars: no axes to claim.
    """
    params = eqn.params
    windows = params["window_dimensions"]
    ones = (1,) * len(windows)
    settings = (params.get("window_strides"), params.get("base_dilation"))
    strides, dilation = (ones if setting is None else setting for setting in settings)
    steps = zip(windows, strides, dilation, params["padding"], strict=True)
    lost = [axis for axis, (*step, pad) in enumerate(steps) if step != [1, 1, 1] or any(pad)]
    return [[_aligned(src, out, lost) for src in ins] for out in outs]


def _fft(eqn: Eqn, ins: list[Shape], outs: list[Shape]) -> list[list[Claims]]:
    batch = len(ins[0]) - len(eqn.params["fft_lengths"])  # the last axes are transformed
    return [[{axis: axis for axis in range(batch)}]]


def _random_gamma(eqn: Eqn, ins: list[Shape], outs: list[Shape]) -> list[list[Claims]]:
    # One draw per concentration, each with a key of its own. Nothing is claimed about the keys:
    # some key types derive the bits of a whole batch from its first key.
    return [[{}, _aligned(ins[1], outs[0])]]


# Rules where axes move, appear or disappear.


def _without(param: str) -> Rule:
    """The axes `params[param]` disappear, the others close up."""

    def rule(eqn: Eqn, ins: list[Shape], outs: list[Shape]) -> list[list[Claims]]:
        rank = len(ins[0])
        if rank == 0:
            return [[{} for _ in ins] for _ in outs]
        lost = _axes(eqn, param, rank)
        kept = {a: b for b, a in enumerate(axis for axis in range(rank) if axis not in lost)}
        return [[kept if len(src) == rank else {} for src in ins] for _ in outs]  # else: scalars

    return rule


def _broadcast_in_dim(eqn: Eqn, ins: list[Shape], outs: list[Shape]) -> list[list[Claims]]:
    claims: list[Claims] = [{} for _ in ins]  # operands after the first are dynamic sizes
    claims[0] = dict(enumerate(eqn.params["broadcast_dimensions"]))
    return [claims]


def _stack(eqn: Eqn, ins: list[Shape], outs: list[Shape]) -> list[list[Claims]]:
    (axis,) = _axes(eqn, "axis", len(outs[0]))
    return [[{a: a + (a >= axis) for a in range(len(src))} for src in ins]]


def _transpose(eqn: Eqn, ins: list[Shape], outs: list[Shape]) -> list[list[Claims]]:
    return [[{a: b for b, a in enumerate(eqn.params["permutation"])}]]


def _reshape(eqn: Eqn, ins: list[Shape], outs: list[Shape]) -> list[list[Claims]]:
    """In row-major order an axis survives iff its size and the number of elements before it do."""
    if eqn.params.get("dimensions") is not None:
        return [[{} for _ in ins]]
    src, out = ins[0], outs[0]
    claims: Claims = {}
    for a, size in enumerate(src):
        for b in range(len(out)):
            before = math.prod(src[:a]) == math.prod(out[:b])
            if before and out[b] == size and b not in claims.values():  # axes of size 1: in order
                claims[a] = b
                break
    return [[claims, *({} for _ in ins[1:])]]


# Contractions.


def _dot_general(eqn: Eqn, ins: list[Shape], outs: list[Shape]) -> list[list[Claims]]:
    contract, batch = eqn.params["dimension_numbers"]
    row = []
    next_free = len(batch[0])  # output axes: batch, free axes of the left, free axes of the right
    for side, src in enumerate(ins):
        claims = {axis: b for b, axis in enumerate(batch[side])}
        for axis in range(len(src)):
            if axis not in batch[side] and axis not in contract[side]:
                claims[axis] = next_free
                next_free += 1
        row.append(claims)
    return [row]


def _conv(eqn: Eqn, ins: list[Shape], outs: list[Shape]) -> list[list[Claims]]:
    params = eqn.params
    lhs, rhs, out = params["dimension_numbers"]  # (batch or out feature, feature, *space)
    image, kernel = {}, {rhs[0]: out[1]}
    if params["batch_group_count"] == 1:  # otherwise blocks of the batch become features
        image[lhs[0]] = out[0]
        if params["feature_group_count"] == ins[0][lhs[1]] == outs[0][out[1]]:  # one per channel
            image[lhs[1]] = out[1]
    steps = zip(params["window_strides"], params["lhs_dilation"], params["padding"], strict=True)
    for axis, (stride, dilation, pad) in enumerate(steps, start=2):
        if ins[1][rhs[axis]] == stride == dilation == 1 and not any(pad):
            image[lhs[axis]] = out[axis]
    return [[image, kernel]]


# Indexing. The coordinates of one index are on the last axis of `indices`; its other axes, in
# order, are those axes of the output (gather) or of the updates (scatter) that no window fills.


def _gather(eqn: Eqn, ins: list[Shape], outs: list[Shape]) -> list[list[Claims]]:
    """A window as wide as its axis can start only at 0: lanes stay, even where the axis is indexed.

    An index out of bounds is clamped to that, or the window is replaced as a whole.
    """
    numbers = eqn.params["dimension_numbers"]
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    gone = (*numbers.collapsed_slice_dims, *batching)
    window = [axis for axis in range(len(ins[0])) if axis not in gone]
    looped = [axis for axis in range(len(outs[0])) if axis not in numbers.offset_dims]
    operand = dict(zip(window, numbers.offset_dims, strict=True))
    loops = getattr(numbers, "start_indices_batching_dims", ())
    operand |= {axis: looped[loop] for axis, loop in zip(batching, loops, strict=True)}
    return [[operand, dict(enumerate(looped))]]


def _scatter(eqn: Eqn, ins: list[Shape], outs: list[Shape]) -> list[list[Claims]]:
    """The operand stays at its place, whatever is written there.

    As in gather, a window of updates as wide as its axis can start only at 0; out of bounds it is
    dropped as a whole.
    """
    numbers = eqn.params["dimension_numbers"]
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    gone = (*numbers.inserted_window_dims, *batching)
    window = [axis for axis in range(len(ins[0])) if axis not in gone]
    looped = [axis for axis in range(len(ins[2])) if axis not in numbers.update_window_dims]
    updates: Claims = dict(zip(numbers.update_window_dims, window, strict=True))
    loops = getattr(numbers, "scatter_indices_batching_dims", ())
    indices: Claims = dict(zip(loops, batching, strict=True))
    updates |= {looped[loop]: axis for loop, axis in indices.items()}
    return [[_aligned(ins[0], outs[0]), indices, updates]]


# Linear algebra: leading axes are batches.


def _batched(core_rank: int) -> Rule:
    """`core_rank`: the rank of the first operand without batch axes."""

    def rule(eqn: Eqn, ins: list[Shape], outs: list[Shape]) -> list[list[Claims]]:
        batch = {axis: axis for axis in range(len(ins[0]) - core_rank)}
        return [[batch for _ in ins] for _ in outs]

    return rule


def _solve(core_rank: int) -> Rule:
    """Solves with many right-hand sides (the last operand): each has its own solution."""

    def rule(eqn: Eqn, ins: list[Shape], outs: list[Shape]) -> list[list[Claims]]:
        ((*matrix, _),) = _batched(core_rank)(eqn, ins, outs)
        side = len(ins[-1]) - (1 if eqn.params.get("left_side", True) else 2)
        return [[*matrix, matrix[0] | {side: side}]]

    return rule


# One entry of each operand makes one of the result, whatever the shape.
_ENTRY_BY_ENTRY = """
    add add_any sub mul mulhi div rem neg abs sign max min pow integer_pow square sqrt rsqrt cbrt
    exp exp2 expm1 log log1p logistic floor ceil round nextafter is_finite clamp select_n
    sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh
    erf erfc erf_inv lgamma digamma polygamma zeta regularized_incomplete_beta
    igamma igammac igamma_grad_a random_gamma_grad bessel_i0e bessel_i1e
    and or not xor shift_left shift_right_arithmetic shift_right_logical population_count clz
    eq ne lt le gt ge eq_to le_to lt_to real imag complex conj
    convert_element_type reduce_precision stop_gradient copy copy_p
"""
ENTRY_BY_ENTRY = frozenset(_ENTRY_BY_ENTRY.split())

_TABLE: dict[str, Rule] = {
    _ENTRY_BY_ENTRY: _elementwise,
    """
    name tie sharding_constraint layout_constraint reshard random_clone threefry2x32
    slice dynamic_slice dynamic_update_slice tile concatenate split vipp_constant vipp_order
    vipp_settled
    """: _elementwise,
    "optimization_barrier device_put pvary": _one_to_one,
    "bitcast_convert_type to_edtype from_edtype random_wrap random_unwrap": _leading,
    "cumsum cumprod cummax cummin cumlogsumexp": _all_but("axis"),
    "top_k": _top_k,
    "sort": _all_but("dimension"),
    "rev": _all_but("dimensions"),
    "pad": _pad,
    """
    reduce_window reduce_window_sum reduce_window_max reduce_window_min
    select_and_scatter_add select_and_gather_add
    """: _window,
    "fft": _fft,
    "random_gamma": _random_gamma,
    """
    reduce_sum reduce_prod reduce_max reduce_min reduce_and reduce_or reduce_xor argmax argmin
    """: _without("axes"),
    "reduce squeeze": _without("dimensions"),
    "unstack": _without("axis"),
    "stack": _stack,
    "broadcast_in_dim": _broadcast_in_dim,
    "transpose": _transpose,
    "reshape": _reshape,
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    "gather": _gather,
    """
    scatter scatter-add scatter-sub scatter-mul scatter-min scatter-max
    scatter_add scatter_sub scatter_mul scatter_min scatter_max
    """: _scatter,
    "lu_pivots_to_permutation": _batched(1),
    """
    cholesky eig eigh svd qr geqrf geqp3 householder_product ormqr lu schur hessenberg tridiagonal
    symmetric_product
    """: _batched(2),
    "triangular_solve": _solve(2),
    "tridiagonal_solve": _solve(1),
}

_RULES = {name: rule for names, rule in _TABLE.items() for name in names.split()}
