"""The operations of random programs: a table of source templates with the shapes they take.

A shape is written ``f2`` (floats with two axes), ``i0`` (an integer), ``b1`` (truth values with one
axis); every axis has the same size ``N``. ``fX`` is any shape, the same throughout a row. In a
template ``{0}`` is the first operand and

- ``{N}`` the size of all axes, ``{r}`` a random number, ``{i}`` an index, ``{j}`` another one,
- ``{ax}`` an axis of the first operand, ``{rev}`` a truth value,
- ``{idx}`` a list of N indices, ``{perm}`` one without repetition, ``{row}`` a list of N numbers,
- ``{tab}`` N lists of N numbers,
- ``{ramp}`` small distinct numbers of the first operand's shape, against ties.

Values stay moderate: what could grow is squashed.
"""

from typing import NamedTuple

ELEMENTWISE = [
    "jnp.sin({0} + {r})", "jnp.cos({0})", "jnp.tanh({0})", "jnp.exp(0.2 * jnp.sin({0}))",
    "jnp.log1p({0} ** 2)", "jnp.sqrt(1.3 + {0} ** 2)", "jnp.abs({0} - 0.137)",
    "jax.nn.sigmoid({0})", "jax.nn.softplus({0})", "jnp.square(jnp.sin({0}))",
    "jax.nn.relu({0} - 0.0371)", "jnp.expm1(0.3 * jnp.tanh({0}))", "jnp.tanh({0}) ** 3",
    "jax.scipy.special.erf({0})", "jax.lax.rsqrt(1.1 + {0} ** 2)", "jnp.arctan({0})",
    "1 / (1.2 + {0} ** 2)", "-{0}", "{r} * {0}", "jnp.clip({0}, -0.713, 0.837)",
    "jnp.floor(2.3 * {0} + 0.137)", "jnp.sign({0} - 0.0713)", "jnp.round(1.7 * {0} + 0.0137)",
    "jnp.cbrt(1.5 + {0} ** 2)", "jnp.sinh(0.4 * jnp.tanh({0}))", "jax.nn.gelu({0})",
    "jax.scipy.special.gammaln(1.7 + jnp.tanh({0}))", "jnp.nan_to_num({0})",
    "jax.nn.log_sigmoid({0})", "jax.nn.swish({0})", "jax.nn.elu({0} - 0.0213)",
    "jnp.log(1.5 + jnp.sin({0}))", "jax.lax.exp2(0.3 * jnp.sin({0}))", "soft({0})", "soft_vjp({0})",
    "jnp.where(jnp.isfinite({0}), {0}, 0.0)", "jnp.power(1.2 + {0} ** 2, 0.3)",
    "jax.lax.reduce_precision({0}, 8, 23)", "jnp.arcsinh({0})", "jax.lax.stop_gradient(0.0) + {0}",
    "jax.jit(jnp.sin)({0})", "jax.checkpoint(lambda x: jnp.sin(x) * x)({0})",
    "jax.lax.rem(1.0 * {0}, 0.731)", "jax.scipy.special.digamma(2.1 + jnp.tanh({0}))",
    "jax.numpy.sinc(0.5 * {0})", "jax.lax.clamp(-0.61, {0}, 0.93)", "jnp.arcsin(0.6 * jnp.tanh({0}))",
    "jnp.arctanh(0.6 * jnp.tanh({0}))", "jnp.arccosh(1.3 + {0} ** 2)", "jnp.cosh(0.4 * jnp.tanh({0}))",
    "jnp.tan(0.5 * jnp.tanh({0}))", "jax.scipy.special.erfc({0})", "jnp.ceil(1.9 * {0} + 0.0171)",
    "jax.scipy.special.erfinv(0.6 * jnp.tanh({0}))", "jax.scipy.special.polygamma(1, 1.7 + jnp.tanh({0}))",
    "jax.scipy.special.i0e({0})", "jax.scipy.special.gammainc(1.3, 1.2 + {0} ** 2)", "jnp.cos({0} * 1j).real / 3",
]  # fmt: skip
BINARY = [
    "{0} + {1}", "{0} - {1}", "{0} * jnp.tanh({1})", "jnp.maximum({0}, {1} + 0.0137)",
    "jnp.minimum({0}, {1} - 0.0171)", "{0} / (1.2 + {1} ** 2)", "jnp.logaddexp({0}, {1})",
    "jnp.arctan2({0}, 1.3 + {1} ** 2)", "jnp.where({0} > {1} + 0.0131, {0}, {1})",
    "jnp.hypot(0.3 + {0} ** 2, 0.7 + {1} ** 2)", "jnp.power(1.2 + {0} ** 2, 0.4 * jnp.sin({1}))",
    "jax.vmap(jnp.add)({0}, {1}) if jnp.ndim({0}) else {0} * {1}",
    "jax.lax.select({0} > 0.131, {0}, {1})", "({0} - {1}) ** 2",
    "jax.jvp(jnp.sin, ({0},), ({1},))[1]", "jax.lax.select_n({0} > 0.0411, {0}, {1})",
    "jnp.where(jnp.abs({0}) < 0.3, {1}, {0} * {1})",
]  # fmt: skip
ROWS = [
    # comparisons and integers
    ("{0} > {r}", "fX", "bX"), ("{0} < {1} + 0.0137", "fX fX", "bX"),
    ("jnp.where({0}, {1}, {2})", "bX fX fX", "fX"), ("({0} & {1}) | ~{0}", "bX bX", "bX"),
    ("{0} ^ {1}", "bX bX", "bX"), ("1.0 * {0}", "bX", "fX"), ("{0}.astype(float) - 0.31", "bX", "fX"),
    ("({0} > 0.137).astype(int) + ({0} > 0.81)", "fX", "iX"), ("jnp.clip({0}, 0, {N} - 1)", "iX", "iX"),
    ("({0} + {i}) % {N}", "iX", "iX"), ("({0} * {1} + 1) % {N}", "iX iX", "iX"),
    ("({0} == {1})", "iX iX", "bX"), ("0.4 * {0}", "iX", "fX"), ("jnp.array({row})[{0}]", "iX", "fX"),
    ("jnp.where({0} >= {i}, {1}, {2})", "iX fX fX", "fX"), ("jax.nn.one_hot({0}, {N})", "i0", "f1"),
    ("jax.nn.one_hot({0}, {N})", "i1", "f2"), ("jnp.where({0}, {i}, {j})", "bX", "iX"),
    ("jax.lax.population_count({0})", "iX", "iX"), ("({0} << 1) % {N}", "iX", "iX"), ("({0} >> 1) + {1} // 2", "iX iX", "iX"),
    ("({0} ^ {1}) % {N}", "iX iX", "iX"), ("jnp.where({0} < {1}, {2}, {3})", "iX iX fX fX", "fX"), ("({0} - {1}) % {N}", "iX iX", "iX"),
    # reductions
    ("jax.lax.reduce_xor({0}, axes=(0,))", "i1", "i0"), ("jnp.linalg.norm({0} + 0.31, axis={ax})", "f2", "f1"), ("jnp.ptp({0} + {ramp})", "f1", "f0"),
    ("jnp.average({0}, weights=jax.nn.sigmoid({1}))", "f1 f1", "f0"), ("jnp.quantile({0} + {ramp}, 0.3)", "f1", "f0"), ("{0}.sum((0, 1, 2))", "f3", "f0"),
    ("{0}.sum()", "f1", "f0"), ("{0}.sum()", "f2", "f0"), ("{0}.mean()", "f2", "f0"),
    ("jnp.prod(1.0 + 0.3 * jnp.tanh({0}))", "f1", "f0"), ("({0} + {ramp}).max()", "f1", "f0"),
    ("({0} + {ramp}).min()", "f2", "f0"), ("jax.nn.logsumexp({0})", "f1", "f0"),
    ("{0}.var()", "f1", "f0"), ("jnp.linalg.norm({0} + 0.31)", "f1", "f0"),
    ("{0}.any()", "b1", "b0"), ("{0}.all()", "b1", "b0"), ("({0} + {ramp}).argmax()", "f1", "i0"),
    ("({0} + {ramp}).argmin()", "f1", "i0"), ("{0}.sum()", "b1", "i0"),
    ("{0}.sum({ax})", "f2", "f1"), ("{0}.mean({ax})", "f2", "f1"), ("{0}.sum({ax})", "f3", "f2"),
    ("jnp.prod(1.0 + 0.3 * jnp.tanh({0}), {ax})", "f2", "f1"), ("({0} + {ramp}).max({ax})", "f2", "f1"),
    ("({0} + {ramp}).min({ax})", "f2", "f1"), ("jax.nn.logsumexp({0}, {ax})", "f2", "f1"),
    ("{0}.var({ax})", "f2", "f1"), ("{0}.any({ax})", "b2", "b1"), ("{0}.all({ax})", "b2", "b1"),
    ("({0} + {ramp}).argmax({ax})", "f2", "i1"), ("({0} + {ramp}).argmin({ax})", "f2", "i1"),
    ("{0}.sum({ax})", "b2", "i1"), ("jax.nn.softmax({0}, {ax})", "f2", "f2"),
    ("jax.nn.softmax({0})", "f1", "f1"), ("jax.nn.log_softmax({0}, {ax})", "f2", "f2"),
    ("{0} - {0}.mean({ax}, keepdims=True)", "f2", "f2"), ("{0}.sum((0, 2))", "f3", "f1"),
    ("{0} / (1.1 + ({0} ** 2).sum({ax}, keepdims=True))", "f2", "f2"), ("{0}.sum((0, 1))", "f3", "f1"),
    ("jnp.median({0} + {ramp})", "f1", "f0"), ("jax.nn.standardize({0} + {ramp})", "f1", "f1"),
    # cumulative
    ("jnp.cumsum({0})", "f1", "f1"), ("jnp.cumsum({0}, {ax})", "f2", "f2"),
    ("jnp.cumprod(1.0 + 0.2 * jnp.tanh({0}), {ax})", "f2", "f2"),
    ("jax.lax.cumsum({0}, 0, reverse={rev})", "f1", "f1"),
    ("jax.lax.cumsum({0}, {ax}, reverse={rev})", "f2", "f2"),
    ("jax.lax.cummax({0} + {ramp}, {ax}, reverse={rev})", "f2", "f2"),
    ("jax.lax.cummin({0} + {ramp}, 0, reverse={rev})", "f1", "f1"),
    ("jax.lax.cumlogsumexp({0}, {ax}, reverse={rev})", "f2", "f2"),
    ("jax.lax.cumprod(1.0 + 0.2 * jnp.tanh({0}), 0, reverse={rev})", "f1", "f1"),
    ("jax.lax.associative_scan(lambda x, y: jnp.tanh(x) * y, {0}, reverse={rev})", "f1", "f1"),
    ("jax.lax.associative_scan(jnp.add, {0}, axis={ax})", "f2", "f2"),
    ("jnp.apply_along_axis(jnp.cumsum, {ax}, {0})", "f2", "f2"), ("jnp.cumsum({0}, {ax}) - {0}", "f2", "f2"), ("jnp.cumsum({0}, {ax})", "f3", "f3"),
    # shapes
    ("jnp.transpose({0}, (2, 0, 1))", "f3", "f3"), ("{0}.reshape({N} ** 2, {N}).T.reshape({N}, {N}, {N})", "f3", "f3"),
    ("jnp.stack([{0}, {0}.T], 1).reshape({N}, -1)[:, :{N}]", "f2", "f2"), ("jnp.insert({0}, {i}, {r})[:{N}]", "f1", "f1"), ("jnp.unstack({0})[{i}]", "f2", "f1"),
    ("jax.lax.pad({0}, 0.0, [(-1, 1, 0)])", "f1", "f1"), ("jax.lax.pad({0}, 0.0, [(1, -1, 0), (-1, 1, 0)])", "f2", "f2"), ("jax.lax.pad({0}, 0.3, [(0, 0, 1)])[::2]", "f1", "f1"),
    ("jnp.block([[{0}, {1}], [{1}, {0}]])[1:{N} + 1, 1:{N} + 1]", "f2 f2", "f2"), ("jnp.zeros(({N}, {N}, {N})) + jnp.expand_dims({0}, {ax})", "f2", "f3"),
    ("{0}.T", "f2", "f2"), ("{0}.T", "b2", "b2"), ("{0}.T", "i2", "i2"), ("jnp.swapaxes({0}, 0, {ax})", "f3", "f3"),
    ("jnp.moveaxis({0}, {ax}, -1)", "f3", "f3"), ("{0}.T.reshape(-1).reshape({N}, {N})", "f2", "f2"),
    ("jnp.tanh({0}.reshape(-1) * jnp.arange({N} ** 2)).reshape({N}, {N})", "f2", "f2"),
    ("{0}.reshape({N}, -1)[:, :{N}]", "f3", "f2"), ("{0}.reshape(-1, {N})[{i}::{N}]", "f3", "f2"),
    ("{0}.reshape(-1)[{i}::{N}][:{N}]", "f2", "f1"), ("{0}.reshape(-1)[:{N}]", "f2", "f1"),
    ("{0}[::-1]", "f1", "f1"), ("{0}[::-1]", "f2", "f2"), ("{0}[:, ::-1]", "f2", "f2"),
    ("jnp.roll({0}, 1)", "f1", "f1"), ("jnp.roll({0}, 1, {ax})", "f2", "f2"), ("jnp.flip({0}, {ax})", "f2", "f2"),
    ("jnp.tile({0}, 2)[1:{N} + 1]", "f1", "f1"), ("jnp.repeat({0}, 2)[:{N}]", "f1", "f1"),
    ("jnp.concatenate([{0}, {1}])[1:{N} + 1]", "f1 f1", "f1"),
    ("jnp.concatenate([{0}, {1}], {ax}).sum({ax})", "f2 f2", "f1"),
    ("jnp.stack([{0}] * {N})", "f1", "f2"), ("jnp.stack([{0}] + [{1}] * ({N} - 1), 1)", "f1 f1", "f2"),
    ("jnp.stack([{0}] + [{1}] * ({N} - 1))", "f0 f0", "f1"), ("jnp.pad({0}, (1, 0))[:{N}]", "f1", "f1"),
    ("jnp.pad({0}, ((0, 1), (1, 0)))[1:, :{N}]", "f2", "f2"), ("jnp.diag({0})", "f1", "f2"),
    ("jnp.diagonal({0})", "f2", "f1"), ("jnp.diag({0}, 1)[1:, 1:]", "f1", "f2"), ("jnp.tril({0})", "f2", "f2"),
    ("jnp.triu({0}, 1)", "f2", "f2"), ("jnp.trace({0})", "f2", "f0"), ("{0}[:, None] * {1}[None, :]", "f1 f1", "f2"),
    ("{0}[:, None] + {1}", "f1 f2", "f2"), ("{0}[None, :] * jnp.tanh({1})", "f1 f2", "f2"),
    ("{0}[:, None, None] * {1}[None]", "f1 f2", "f3"), ("{0}[:, :, None] + {1}[:, None, :]", "f2 f2", "f3"),
    ("{0} * jnp.tanh({1})", "f0 f1", "f1"), ("{0} + {1}", "f0 f2", "f2"), ("jnp.full({N}, {0})", "f0", "f1"),
    ("jnp.broadcast_to({0}, ({N}, {N}))", "f1", "f2"), ("jnp.broadcast_to({0}[:, None], ({N}, {N}))", "f1", "f2"),
    ("{0}[:{N} - 1].sum()", "f1", "f0"), ("{0}[1:] @ {0}[:-1]", "f1", "f0"), ("jnp.rot90({0})", "f2", "f2"),
    ("jnp.squeeze({0}[{i}:{i} + 1], 0)", "f2", "f1"), ("jnp.split({0}, {N}, {ax})[{i}].reshape(-1)", "f2", "f1"),
    ("jnp.ravel({0}, order='F').reshape({N}, {N})", "f2", "f2"), ("jnp.diff(jnp.append({0}, {r}))", "f1", "f1"),
    ("jnp.kron({0}, {1})[:{N}, -{N}:]", "f2 f2", "f2"), ("jnp.meshgrid({0}, {1})[{i} % 2]", "f1 f1", "f2"),
    # gathers
    ("jnp.interp({0}, jnp.arange({N}.0) - 0.0137, {1})", "f1 f1", "f1"), ("{0}[{1} - 1]", "f1 i1", "f1"), ("{0}[{1} - {2}]", "f2 i1 i1", "f2"),
    ("{0}.at[{1} + 1].get(mode='fill', fill_value=0.2)", "f1 i1", "f1"), ("jnp.take({0}, {1} + 1, mode='wrap')", "f1 i1", "f1"), ("{0}[-1 - {1}]", "f2 i0", "f1"),
    ("jnp.take_along_axis({0}, {1}[:, None], 1, mode='clip')[:, 0]", "f2 i1", "f1"), ("jax.vmap(lambda x, i: x[i], (1, 0), 1)({0}, {1})", "f2 i2", "f2"),
    ("jax.vmap(lambda x, i: x[i, i])({0}, {1})", "f3 i1", "f1"), ("jax.vmap(jax.vmap(lambda x, i: x[i], (0, None)), (0, 0))({0}, {1})", "f3 i1", "f2"),
    ("jax.vmap(lambda n: jax.lax.while_loop(lambda c: c * c < n + 2, lambda c: c + 1, 0))({0})", "i1", "i1"),
    ("jax.lax.while_loop(lambda c: c.sum() < 5, lambda c: c + {0} + 1, {0}) % {N}", "i1", "i1"),
    ("{0}[{i}]", "f1", "f0"), ("{0}[{i}]", "f2", "f1"), ("{0}[:, {i}]", "f2", "f1"), ("{0}[{i}, {j}]", "f2", "f0"),
    ("{0}[{i}]", "f3", "f2"), ("{0}[:, {i}]", "f3", "f2"), ("{0}[..., {i}]", "f3", "f2"),
    ("{0}[jnp.array({idx})]", "f1", "f1"), ("{0}[jnp.array({idx})]", "f2", "f2"),
    ("{0}[:, jnp.array({perm})]", "f2", "f2"), ("{0}[jnp.array({idx}), jnp.array({perm})]", "f2", "f1"),
    ("{0}[jnp.arange({N}), jnp.array({idx})]", "f2", "f1"), ("{0}[jnp.array({idx})][:, jnp.array({perm})]", "f2", "f2"),
    ("{0}[jnp.array({idx})[:, None], jnp.array({perm})[None]]", "f2", "f2"),
    ("{0}[{1}]", "f1 i0", "f0"), ("{0}[{1}]", "f2 i0", "f1"), ("{0}[:, {1}]", "f2 i0", "f1"),
    ("{0}[{1}]", "f1 i1", "f1"), ("{0}[{1}]", "f2 i1", "f2"), ("{0}[{i}, {1}]", "f2 i0", "f0"),
    ("{0}[{1}, {i}]", "f2 i1", "f1"), ("{0}[jnp.arange({N}), {1}]", "f2 i1", "f1"), ("{0}[{1}, {2}]", "f2 i0 i0", "f0"),
    ("{0}[{1}, {2}]", "f2 i1 i1", "f1"), ("{0}[{1}]", "f1 i2", "f2"), ("{0}[{1}, {2}]", "f3 i0 i1", "f2"),
    ("jnp.take_along_axis({0}, {1}, {ax}, mode='clip')", "f2 i2", "f2"), ("jnp.take({0}, {1}, axis={ax}, mode='clip')", "f2 i1", "f2"),
    ("{0}.at[{1}].get(mode='fill', fill_value=0.3)", "f1 i1", "f1"),
    ("jax.lax.dynamic_index_in_dim({0}, {1}, {ax}, keepdims=False)", "f2 i0", "f1"),
    ("jax.lax.dynamic_slice({0}, ({1}, {i}), (1, {N}))[0]", "f2 i0", "f1"),
    ("jax.lax.dynamic_slice({0}, ({1},), (2,)).sum()", "f1 i0", "f0"),
    ("jax.vmap(lambda x, i: x[i])({0}, {1})", "f2 i1", "f1"), ("jax.vmap(lambda x, i: x[i], (1, 0))({0}, {1})", "f2 i1", "f1"),
    ("jax.vmap(lambda i: {0}[i, {i}])({1})", "f2 i1", "f1"), ("jax.nn.one_hot({1}, {N}) @ {0}", "f1 i1", "f1"),
    ("jnp.array({row})[{0}]", "i1", "f1"), ("jnp.outer(jnp.array({row}), jnp.arange({N}))[{i}, {0}]", "i0", "f0"),
    ("jnp.take({0}, jnp.array({idx}), axis={ax})", "f2", "f2"), ("jnp.take({0}, jnp.array({perm}), axis={ax})", "f3", "f3"),
    ("jnp.searchsorted(jnp.array([-0.513, 0.271, 0.899])[:{N}], {0})", "f1", "i1"),
    ("jnp.select([{0} > 0.431, {0} > -0.177], [{0}, {1}], 0.21)", "fX fX", "fX"),
    ("jnp.piecewise({0}, [{0} > 0.237], [jnp.sin, lambda x: 0.3 * x])", "f1", "f1"),
    ("jnp.array({tab})[{0}, {1}]", "i0 i0", "f0"), ("jnp.array({tab})[{0}]", "i0", "f1"), ("jnp.array({tab})[{0}, {i}]", "i1", "f1"),
    ("jnp.array({tab})[{1}, {0}]", "i1 i0", "f1"), ("jnp.array({tab})[{0}, {1}]", "i1 i1", "f1"), ("jnp.array({tab})[jnp.arange({N}), {0}]", "i1", "f1"),
    ("jax.lax.dynamic_slice(jnp.array({tab}), ({0}, {1}), (1, 1))[0, 0]", "i0 i0", "f0"), ("{0}[{1}] * {0}[{2}]", "f1 i0 i0", "f0"),
    ("jax.lax.dynamic_index_in_dim(jnp.array({tab}), {0}, {i} % 2, keepdims=False) @ {1}", "i0 f1", "f0"),
    ("jax.lax.while_loop(lambda c: c * c < {0} + 2, lambda c: c + 1, 0)", "i0", "i0"),
    # scatters
    ("{0}.at[{2} + 1].add({1}, mode='drop')", "f1 f1 i1", "f1"), ("{0}.at[{2} - 1].add({1})", "f1 f1 i1", "f1"), ("{0}.at[{2}, {2}].add({1})", "f2 f1 i1", "f2"),
    ("jnp.zeros(({N}, {N})).at[jnp.arange({N}), {1}].set({0})", "f1 i1", "f2"), ("jax.vmap(lambda x, i, u: x.at[i].add(u))({0}, {2}, {1})", "f2 f1 i1", "f2"),
    ("jax.vmap(lambda x, i, u: x.at[i].set(u), (1, 0, 0), 1)({0}, {2}, {1})", "f2 f1 i1", "f2"), ("{0}.at[jnp.array({perm})].min({1} - {ramp})", "f1 f1", "f1"),
    ("{0}.at[jnp.array({perm}), {2}].multiply(jnp.tanh({1}), unique_indices=True)", "f2 f1 i1", "f2"),
    ("{0}.at[{i}].set({1})", "f1 f0", "f1"), ("{0}.at[{i}].add({1})", "f2 f1", "f2"), ("{0}.at[:, {i}].set({1})", "f2 f1", "f2"),
    ("{0}.at[{2}].set({1})", "f1 f0 i0", "f1"), ("{0}.at[{2}].add({1})", "f1 f1 i1", "f1"), ("{0}.at[{2}].add({1})", "f2 f2 i1", "f2"),
    ("{0}.at[:, {2}].add({1})", "f2 f1 i0", "f2"), ("{0}.at[jnp.array({idx})].add({1})", "f1 f1", "f1"),
    ("{0}.at[jnp.array({perm})].set({1})", "f1 f1", "f1"), ("{0}.at[jnp.array({perm})].set({1})", "f2 f2", "f2"),
    ("{0}.at[jnp.arange({N}), jnp.array({perm})].add({1})", "f2 f1", "f2"), ("{0}.at[jnp.array({idx})].multiply(0.7)", "f1", "f1"),
    ("{0}.at[jnp.arange({N}), {2}].set({1})", "f2 f1 i1", "f2"), ("{0}.at[jnp.array({perm})].multiply(jnp.tanh({1}), unique_indices=True)", "f1 f1", "f1"),
    ("jnp.zeros({N}).at[{1}].add({0})", "f1 i1", "f1"), ("jnp.zeros(({N}, {N})).at[{1}, {2}].add({0})", "f1 i1 i1", "f2"),
    ("jax.ops.segment_sum({0}, jnp.array({idx}), {N})", "f1", "f1"), ("jax.ops.segment_sum({0}, {1} % {N}, {N})", "f2 i1", "f2"),
    ("jax.lax.dynamic_update_slice({0}, {1}[None], ({2}, 0))", "f2 f1 i0", "f2"),
    ("jax.lax.dynamic_update_index_in_dim({0}, {1}, {2}, {ax})", "f2 f1 i0", "f2"),
    ("{0}.at[{i}:].set({1}[{i}:])", "f1 f1", "f1"), ("{0}.at[jnp.array({perm})].max({1} + {ramp})", "f1 f1", "f1"),
    # sorts
    ("jnp.sort({0} + {ramp})", "f1", "f1"), ("jnp.sort({0} + {ramp}, {ax})", "f2", "f2"), ("jnp.argsort({0} + {ramp})", "f1", "i1"),
    ("jnp.argsort({0} + {ramp}, {ax})", "f2", "i2"), ("jax.lax.sort(({0} + {ramp}, {1}), num_keys=1)[1]", "f1 f1", "f1"),
    ("jax.lax.sort(({0} + {ramp}, {1}), dimension={ax}, num_keys=1)[1]", "f2 f2", "f2"),
    ("jax.lax.top_k({0} + {ramp}, {N})[0]", "f1", "f1"), ("jax.lax.top_k({0} + {ramp}, 1)[0][..., 0]", "f2", "f1"),
    ("{1}[jnp.argsort({0} + {ramp})]", "f1 f2", "f2"),
    ("jnp.lexsort(({0} + {ramp}, jnp.round({1})))", "f1 f1", "i1"), ("jax.lax.top_k({0} + {ramp}, {N})[1]", "f1", "i1"),
    ("jnp.argsort({0} + {ramp}, descending=True)", "f1", "i1"), ("jnp.sort({0} + {ramp}, {ax})", "f3", "f3"),
    # products of matrices
    ("jax.lax.dot_general({0}, {1}, (((1,), (0,)), ((0,), (2,))))", "f3 f3", "f3"), ("jnp.einsum('ij,jk,ki->i', {0}, {1}, {0})", "f2 f2", "f1"),
    ("jnp.einsum('iji->j', {0})", "f3", "f1"), ("jnp.einsum('i,j,k->kij', {0}, {1}, {0})", "f1 f1", "f3"), ("jnp.matmul({0}, {1}.mT)", "f3 f3", "f3"),
    ("jnp.einsum('ij,ij->j', {0}, {1})", "f2 f2", "f1"), ("jnp.einsum('ijk,ikj->i', {0}, {1})", "f3 f3", "f1"), ("jnp.tensordot({0}, {1}, 1)", "f2 f3", "f3"),
    ("{0} @ {1}", "f1 f1", "f0"), ("{0} @ {1}", "f2 f1", "f1"), ("{0} @ {1}", "f1 f2", "f1"), ("{0} @ {1}", "f2 f2", "f2"),
    ("{0} @ {1}.T", "f2 f2", "f2"), ("{0} @ {0}.T", "f2", "f2"), ("{0} @ {1}", "f3 f1", "f2"), ("{0} @ {1}", "f3 f2", "f3"),
    ("jnp.einsum('ij,ij->i', {0}, {1})", "f2 f2", "f1"), ("jnp.einsum('ij,ji->i', {0}, {1})", "f2 f2", "f1"),
    ("jnp.einsum('ij,ik->jk', {0}, {1})", "f2 f2", "f2"), ("jnp.einsum('ij,j->ji', {0}, {1})", "f2 f1", "f2"),
    ("jnp.einsum('ii->i', {0})", "f2", "f1"), ("jnp.einsum('bij,bjk->bik', {0}, {1})", "f3 f3", "f3"),
    ("jnp.einsum('bij,bj->bi', {0}, {1})", "f3 f2", "f2"), ("jnp.einsum('ijk,jk->i', {0}, {1})", "f3 f2", "f1"),
    ("jnp.einsum('ijk,kj->ji', {0}, {1})", "f3 f2", "f2"), ("jnp.tensordot({0}, {1}, ((0, 1), (1, 0)))", "f2 f2", "f0"),
    ("jnp.vdot({0}, {1})", "f2 f2", "f0"), ("jnp.array({row}) @ {0}", "f2", "f1"), ("jnp.linalg.matrix_power(0.5 * {0}, 2)", "f2", "f2"),
    ("jax.vmap(jnp.dot)({0}, {1})", "f2 f2", "f1"), ("jax.vmap(jnp.dot, (1, 0))({0}, {1})", "f2 f2", "f1"),
    ("jax.vmap(jnp.dot, (None, 1))({0}, {1})", "f2 f2", "f2"),
    # convolutions and windows
    ("jnp.convolve({0}, jnp.array({row}), mode='same')", "f1", "f1"), ("jnp.convolve({0}, {1}, mode='same')", "f1 f1", "f1"),
    ("jax.lax.conv({0}[None, None], {1}[None, None], (1, 1), 'SAME')[0, 0]", "f2 f2", "f2"),
    ("jax.lax.conv({0}[:, None], jnp.array({row})[None, None], (1,), 'SAME')[:, 0]", "f2", "f2"),
    ("jax.lax.conv({0}[None], jnp.stack([{1}] * {N}), (1,), 'SAME')[0]", "f2 f2", "f2"),
    ("jax.lax.reduce_window({0}, 0.0, jax.lax.add, (2,), (1,), 'SAME')", "f1", "f1"),
    ("jax.lax.reduce_window({0} + {ramp}, -jnp.inf, jax.lax.max, (1, 2), (1, 1), 'SAME')", "f2", "f2"),
    ("jax.lax.conv_general_dilated({0}[None], {1}[:, None], (1,), 'SAME', feature_group_count={N})[0]", "f2 f2", "f2"),
    ("jax.lax.conv_general_dilated({0}[:, None], {1}[:, None], (1,), 'SAME', batch_group_count={N})[0]", "f2 f2", "f2"),
    ("jax.lax.conv_general_dilated({0}[:, None], jnp.array({row})[None, None], (1,), 'SAME', rhs_dilation=(2,))[:, 0]", "f2", "f2"),
    ("jax.lax.conv_general_dilated({0}[None], {1}[:, :, None], (1,), 'VALID')[0]", "f2 f2", "f2"),
    ("jax.lax.reduce_window({0} - {ramp}, jnp.inf, jax.lax.min, (2, 1), (1, 1), 'SAME')", "f2", "f2"),
    ("jax.grad(lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2,), (1,), 'SAME') @ {1})({0} + {ramp})", "f1 f1", "f1"),
    # linear algebra
    ("jnp.linalg.eigvalsh(jnp.diag(jnp.arange({N}.0)) + 0.2 * jnp.tanh({0} + {0}.T))", "f2", "f1"), ("jax.lax.linalg.lu({N} * jnp.eye({N}) + 0.3 * jnp.tanh({0}))[0]", "f2", "f2"),
    ("jnp.linalg.svd(jnp.diag(1.0 + jnp.arange({N}.0)) + 0.2 * jnp.tanh({0}), compute_uv=False)", "f2", "f1"), ("jnp.fft.fft({0}, axis={ax}).real", "f2", "f2"),
    ("jax.vmap(lambda x, y: jax.scipy.linalg.cho_solve((2 * jnp.eye({N}) + jnp.diag(x ** 2), True), y))({0}, {1})", "f2 f2", "f2"),
    ("jnp.linalg.solve({N} * jnp.eye({N}) + 0.3 * jnp.tanh({0}), {1})", "f2 f1", "f1"),
    ("jnp.linalg.solve({N} * jnp.eye({N}) + 0.3 * jnp.tanh({0}), {1})", "f2 f2", "f2"),
    ("jnp.linalg.inv({N} * jnp.eye({N}) + 0.3 * jnp.tanh({0}))", "f2", "f2"), ("jnp.linalg.det(jnp.eye({N}) + 0.3 * jnp.tanh({0}))", "f2", "f0"),
    ("jnp.linalg.slogdet({N} * jnp.eye({N}) + 0.3 * jnp.tanh({0}))[1]", "f2", "f0"),
    ("jnp.linalg.cholesky({N} * jnp.eye({N}) + jnp.tanh({0}) @ jnp.tanh({0}).T)", "f2", "f2"),
    ("jax.scipy.linalg.solve_triangular({N} * jnp.eye({N}) + jnp.tril(jnp.tanh({0})), {1}, lower=True)", "f2 f1", "f1"),
    ("jax.vmap(lambda x: jnp.linalg.solve(2.0 * jnp.eye({N}) + jnp.outer(jnp.tanh(x), jnp.tanh(x)), x))({0})", "f2", "f2"),
    ("jnp.linalg.qr({N} * jnp.eye({N}) + 0.3 * jnp.tanh({0}))[1]", "f2", "f2"),
    # derivatives inside
    ("jax.grad(lambda x: (jnp.sin(x) * {1}).sum())({0})", "fX fX", "fX"), ("jax.jacfwd(lambda x: jnp.sin(x) * x.sum())({0})", "f1", "f2"),
    ("jax.hessian(lambda x: jnp.sin(x.sum()) + (x ** 3 / 6).sum())({0})", "f1", "f2"), ("jax.vmap(jax.grad(lambda x: jnp.sin(x).prod()))({0})", "f2", "f2"),
]  # fmt: skip


class Operation(NamedTuple):
    """A template, the types of its operands and of its result."""

    template: str
    operands: tuple[str, ...]
    result: str


def _table():
    for template in ELEMENTWISE:
        yield Operation(template, ("fX",), "fX")
    for template in BINARY:
        yield Operation(template, ("fX", "fX"), "fX")
    for template, operands, result in ROWS:
        yield Operation(template, tuple(operands.split()), result)


TABLE = list(_table())
