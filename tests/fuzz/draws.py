"""Averages over everything that a program draws, exactly.

A discrete draw is the primitive ``fuzz_draw`` of a key and a table of log probabilities. The
evaluation (in NumPy, see `jaxpr_in_numpy`) reads off the key which draw it is: draws from different
keys are independent, draws from one key are one. It goes through all joint values, each weighted by
its probability. So nothing about the program under test needs to be known, whether it is an
estimator with many draws of its own or plain code.

Continuous noise is made of uniform numbers, and these are the middles of a few equal parts: for
reparameterised draws that is another noise, and no approximation.

A key is a 64-bit code: the number of the joint value in the upper 12 bits, a hash of how the key was
derived in the others.
"""

import math
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxpr_in_numpy import Interpreter, primitives

BATCH = 256  # joint values at a time
MOST = 4096  # joint values
LOW = np.uint64(2**52 - 1)
LEVELS = 4  # a uniform number is the middle of one of so many equal parts


class TooMany(Exception):
    """More joint values than are averaged over."""


class Unlawful(Exception):
    """Draws that are neither independent nor one: two distributions drawn from with one key."""


# -- draws in the program under test ---------------------------------------------------------------


def _primitive(name, impl):
    """``(key, table, ...) -> index`` into the last axis of the table."""
    primitive = Primitive(name)
    primitive.def_impl(impl)
    primitive.def_abstract_eval(
        lambda key, *tables: jax.core.ShapedArray(tables[0].shape[:-1], np.dtype(np.int32))
    )

    def batch(operands, dims):
        size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
        moved = [
            x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(operands, dims, strict=True)
        ]
        full = [
            jnp.broadcast_to(x, (size, *x.shape)) if d is None else x
            for x, d in zip(moved, dims, strict=True)
        ]
        return primitive.bind(*full), 0

    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(impl, multiple_results=False))
    return primitive


def _at_random(key, table, *_):
    one = jax.random.categorical
    for _ in range(key.ndim):
        one = jax.vmap(one)
    return one(key, table).astype(np.int32)


draw_p = _primitive("fuzz_draw", _at_random)
counted_p = _primitive("fuzz_counted", _at_random)  # its probability counts in the derivative
counted_jvp_p = _primitive("fuzz_counted_jvp", _at_random)


def _no_slope(index):
    return ad.Zero(jax.core.ShapedArray(index.shape, jax.dtypes.float0))


def _draw_jvp(primals, tangents):
    index = draw_p.bind(*primals)
    return index, _no_slope(index)


def _counted_jvp(primals, tangents):
    (key, table), (_, slope) = primals, tangents
    index = counted_jvp_p.bind(key, table, ad.instantiate_zeros(slope))
    return index, _no_slope(index)


ad.primitive_jvps[draw_p] = _draw_jvp
ad.primitive_jvps[counted_p] = _counted_jvp


def drawn(key, table, counted):
    """Indices into the last axis of a table of log probabilities."""
    return (counted_p if counted else draw_p).bind(_typed(key), table)


def plain(key, d, batch=None):
    """A draw whose probability counts, or a Normal one that moves with its parameters."""
    batch = d.batch_shape if batch is None else batch
    if isinstance(d, dist.Normal):
        return d.loc + d.scale * jax.random.normal(_typed(key), batch)
    table = log_table(d)
    return drawn(key, jnp.broadcast_to(table, (*batch, table.shape[-1])), counted=True)


def _typed(key):
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key if typed else jax.random.wrap_key_data(key)


def log_table(d):
    """The log probabilities of a finite distribution, values along the last axis."""
    if isinstance(d, dist.BernoulliLogits):
        return jnp.stack([jax.nn.log_sigmoid(-d.logits), jax.nn.log_sigmoid(d.logits)], -1)
    if isinstance(d, dist.BernoulliProbs):
        return jnp.stack([jnp.log1p(-d.probs), jnp.log(d.probs)], -1)
    if isinstance(d, dist.CategoricalLogits):
        return jax.nn.log_softmax(d.logits)
    assert isinstance(d, dist.CategoricalProbs)
    return jnp.log(d.probs)


def _enumerable(base):
    """``base``, whose draws are :func:`drawn`; of the same name, as the engine may go by it."""

    def sample(self, key, sample_shape=()):
        table = log_table(self)
        index = drawn(key, jnp.broadcast_to(table, (*sample_shape, *table.shape)), counted=False)
        return index.astype(jnp.result_type(int))

    listed = base.enumerate_support  # said again, as it has a sampler of its own
    return type(base.__name__, (base,), {"sample": sample, "enumerate_support": listed})


BernoulliProbs = _enumerable(dist.BernoulliProbs)
CategoricalLogits = _enumerable(dist.CategoricalLogits)
CategoricalProbs = _enumerable(dist.CategoricalProbs)


class BernoulliLogits(_enumerable(dist.BernoulliLogits)):
    """With a log density of few operations, whose derivative is right at 0, too."""

    def log_prob(self, value, intermediates=None):
        return value * self.logits - jnp.log1p(jnp.exp(self.logits))


# -- their evaluation ------------------------------------------------------------------------------


def _mix(x):
    """A hash of 64-bit integers (splitmix64)."""
    x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def derived(key, number):
    """The key derived from ``key`` as number ``number``: the same joint value, another draw."""
    number = np.asarray(number).astype(np.int64).astype(np.uint64)
    path = _mix((key & LOW) ^ _mix(number + np.uint64(1) + (np.uint64(1) << np.uint64(40))))
    return (key & ~LOW) | (path & LOW)


class Draws:
    """The draws of one program, found as they are met, and their joint values."""

    def __init__(self):
        self.column, self.sizes = {}, []  # draws from one key of different sizes are independent
        self.first = 0

    @property
    def total(self):
        return math.prod(self.sizes)

    def begin(self, first):
        """A batch of joint values, from number ``first`` on."""
        self.first = first
        self.log_weight, self.slope = np.zeros(BATCH), np.zeros(BATCH)
        self.seen, self.tables = {}, {}

    def _digits(self, keys, size):
        """For each key, the number of the case that it draws, 0..size-1, and its joint value."""
        path, rows = keys & LOW, (keys >> np.uint64(52)).astype(np.int64)
        unique, inverse = np.unique(path, return_inverse=True)
        columns = []
        for h in unique.tolist():
            if (h, size) not in self.column:
                self.column[h, size] = len(self.sizes)
                self.sizes.append(size)
            columns.append(self.column[h, size])
        if self.first is None:
            return np.zeros(len(keys), np.int64), rows
        strides = np.cumprod([1, *self.sizes])
        stride = np.array([strides[c] for c in columns])[inverse.reshape(path.shape)]
        return (self.first + rows) % self.total // stride % size, rows

    def _fresh(self, keys, size):
        """The positions of keys that were not met before."""
        _, firsts = np.unique(keys, return_index=True)
        seen = self.seen.setdefault(size, set())
        fresh = [i for i in firsts.tolist() if keys[i] not in seen]
        seen.update(keys[fresh].tolist())
        return fresh

    def _salted(self, keys, size, table):
        """The keys, changed where another distribution was drawn from with the same key before.

        One key and one distribution are one draw, wherever it is made again; of one key and two
        distributions (those of two branches) the draws are not needed together.
        """
        order = np.lexsort((keys, keys & LOW))
        unique, starts = np.unique((keys & LOW)[order], return_index=True)
        salted = keys.copy()
        for h, members in zip(unique.tolist(), np.split(order, starts[1:]), strict=True):
            rows, known = table[members], self.tables.setdefault((h, size), [])
            same = (x.shape == rows.shape and np.allclose(x, rows, atol=1e-6) for x in known)
            number = next((i for i, equal in enumerate(same) if equal), len(known))
            if number == len(known):
                known.append(rows)
            if number:
                salted[members] = derived(keys[members], 7_000_000 + number)
        return salted

    def draw(self, eqn, keys, table, slope=None):
        """A draw's values; each counts once however often it is met."""
        size, shape = table.shape[-1], table.shape[:-1]
        lanes = np.arange(math.prod(shape[np.ndim(keys) :]))
        keys = derived(np.reshape(keys, (-1, 1)), lanes[None]).reshape(-1)
        table = table.reshape(-1, size)
        unique, counts = np.unique(keys, return_counts=True)
        if (counts > 1).any():
            assert slope is None
            return [self._coupled(keys, table, unique, counts).reshape(shape)]
        keys = self._salted(keys, size, table)
        digits, rows = self._digits(keys, size)
        fresh = self._fresh(keys, size)
        take = lambda x: x[fresh, digits[fresh]]
        np.add.at(self.log_weight, rows[fresh], take(table))
        if slope is not None:
            np.add.at(self.slope, rows[fresh], take(slope.reshape(-1, size)))
        return [digits.reshape(shape).astype(np.int32)]

    def _coupled(self, keys, table, unique, counts):
        """Draws from one key with several distributions: all from one uniform number.

        It lies in one of the parts into which the distributions' cumulative probabilities cut the
        unit interval; all that matters is in which.
        """
        values = np.zeros(len(keys), np.int32)
        order = np.argsort(keys, kind="stable")
        starts = np.cumsum([0, *counts[:-1]])
        for count in np.unique(counts).tolist():
            chosen = counts == count
            members = order[starts[chosen][:, None] + np.arange(count)]  # (groups, count)
            steps = np.cumsum(np.exp(table[members]), -1)[..., :-1]
            edges = np.sort(steps.reshape(len(members), -1), -1)
            edges = np.pad(edges, ((0, 0), (1, 1)))
            edges[:, -1] = 1.0
            size = edges.shape[1] - 1
            each = self._salted(unique[chosen], size, edges)
            digits, rows = self._digits(each, size)
            at = np.arange(len(members))
            low, high = edges[at, digits], edges[at, digits + 1]
            values[members] = (steps <= (low + high)[:, None, None] / 2).sum(-1)
            fresh = self._fresh(each, size)
            np.add.at(self.log_weight, rows[fresh], np.log(high - low)[fresh])
        return values

    def _uniform_index(self, keys, shape, size):
        lanes = np.arange(math.prod(shape))
        keys = derived(np.reshape(keys, (-1, 1)), lanes[None] + 2000003)
        digits, rows = self._digits(keys.reshape(-1), size)
        fresh = self._fresh(keys.reshape(-1), size)
        np.add.at(self.log_weight, rows[fresh], -math.log(size))
        return digits

    def bits(self, eqn, keys):
        """Random bits of a uniform number that is the middle of a part of the unit interval."""
        width, shape = eqn.params["bit_width"], eqn.params["shape"]
        digits = self._uniform_index(keys, shape, LEVELS)
        middle = (2 * digits + 1).astype(np.uint64) << np.uint64(width - 1 - int(math.log2(LEVELS)))
        return [middle.reshape((*np.shape(keys), *shape)).astype(f"u{width // 8}")]

    def integer(self, eqn, keys, low, high, *_):
        """A uniform integer, ``jax.random.randint``."""
        spans = np.unique(np.asarray(high) - np.asarray(low))
        if len(spans) > 1:
            raise Unlawful("random integers of several ranges at once")
        shape = eqn.outvars[0].aval.shape
        digits = self._uniform_index(keys, shape[np.ndim(keys) :], int(spans[0]))
        each = np.reshape(low, np.shape(low) + (1,) * (len(shape) - np.ndim(low)))
        return [(digits.reshape(shape) + each).astype(np.int32)]

    def rules(self):
        """The interpreter's special rules."""
        return {
            "fuzz_draw": self.draw, "fuzz_counted": self.draw, "fuzz_counted_jvp": self.draw,
            "random_bits": self.bits, "_randint": self.integer, "random_wrap": _wrap, "random_unwrap": _unwrap,
            "random_fold_in": lambda eqn, k, n: [derived(k, n)],
            "random_split": _split, "random_clone": lambda eqn, k: [k],
            "vipp_lane_key": lambda eqn, k, *_: [k],  # the engine's mark of a key
            "random_seed": lambda eqn, x: [derived(np.uint64(1), x)],
        }  # fmt: skip


def _split(eqn, keys):
    shape = eqn.params["shape"]
    number = np.arange(math.prod(shape)).reshape(shape) + 500009
    return [derived(np.reshape(keys, (*np.shape(keys), *(1 for _ in shape))), number)]


def _wrap(eqn, data):
    data = np.asarray(data).astype(np.uint64)
    return [(data[..., 0] << np.uint64(32)) | data[..., 1]]


def _unwrap(eqn, keys):
    low = keys & np.uint64(0xFFFFFFFF)
    return [np.stack([keys >> np.uint64(32), low], -1).astype(np.uint32)]


class Mean(NamedTuple):
    """The expected values of a function's results, and what was met on the way."""

    values: Any
    joint: int  # values averaged over
    primitives: Any
    fallbacks: Any


def trace(fn, *args):
    """The jaxpr of ``fn(key, *args)`` for a batch of keys."""
    keys = jax.random.split(jax.random.key(0), BATCH)
    with mock.patch("vipp.language.keys.subsample", shuffled):
        return jax.make_jaxpr(lambda k: jax.vmap(lambda k: fn(k, *args))(k))(keys)


def shuffled(rng_key, size, subsample_size):
    """A minibatch by uniform integers, drawn in a loop, which the engine leaves as it is."""

    keys = jax.random.split(rng_key, subsample_size)

    def swap(carry):
        i, indices = carry
        j = jax.random.randint(keys[i], (), i, size)
        return i + 1, indices.at[jnp.array([i, j])].set(indices[jnp.array([j, i])])

    start = jnp.int32(0), jnp.arange(size)
    return jax.lax.while_loop(lambda carry: carry[0] < subsample_size, swap, start)[1][
        :subsample_size
    ]


def mean(closed, slope_from=None):
    """The expectations of a traced function's results (one array each) over all its draws.

    Args:
      closed: the jaxpr, from :func:`trace`.
      slope_from: of two results, a value and its derivative along a direction; to the latter the
        derivative of the counted draws' probabilities is added.
    """
    draws, rows = Draws(), np.arange(BATCH, dtype=np.uint64) << np.uint64(52)
    interpreter = Interpreter(draws.rules())
    run = lambda: interpreter.run(closed, [rows | np.uint64(1)])
    with np.errstate(all="ignore"):
        draws.begin(None)
        run()
        while True:
            known = draws.total
            if known > MOST:
                raise TooMany(f"{known} joint values")
            total, mass = _total(draws, run, slope_from)
            if draws.total == known:
                break
    if abs(mass - 1) > 1e-6:
        raise Unlawful(f"the probabilities of all joint values add up to {mass}")
    return Mean(total, known, primitives(closed), interpreter.fallbacks)


def _total(draws, run, slope_from):
    total, mass = None, 0.0
    for first in range(0, draws.total, BATCH):
        draws.begin(first)
        out = run()
        count = min(BATCH, draws.total - first)
        weight = np.exp(draws.log_weight[:count])
        if slope_from is not None:
            value, slope = out
            out = [value, slope + value * draws.slope]
        part = [_weighted(weight, np.asarray(x)[:count]) for x in out]
        total = part if total is None else [a + b for a, b in zip(total, part, strict=True)]
        mass += weight.sum()
    return total, mass


def _weighted(weight, x):
    """The weighted sum along the first axis; what has probability 0 counts nothing."""
    weight = weight.reshape((-1,) + (1,) * (x.ndim - 1))
    return np.where(weight > 0, weight * x, 0.0).sum(0)
