"""Dependences of whole programs: the claims are the expected ones, and they are true."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax
from jax.nn import logsumexp, relu, softmax

import vipp_transforms as vt
from vipp_transforms.dependence import Dependences, join, mixed, own, relabel, within
from vipp_transforms.lane import MIXED, Apart, Digits, Step, UpTo, carried, distinct
from vipp_transforms.reshaping import reshaped
from vipp_transforms.staging import stage

KEY = jax.random.key(0)
SCORE = vt.ScoreFunction()
WIDE, TALL = np.ones((2, 4), np.float32), np.ones((5, 3), np.float32)
TABLE = np.arange(10, dtype=np.float32).reshape(2, 5)
KEEP = np.array([True, False, True])[:, None]


UP_TO, FROM = UpTo(0, False), UpTo(0, True)


def lanes(*axes):
    """Axes for lanes apart along them, None for mixed ones."""
    return tuple(MIXED if a is None else Apart(a) if isinstance(a, int) else a for a in axes)


def on(**sites):
    return {int(site[1:]): lanes(*axes) for site, axes in sites.items()}


def steps(z):
    return lax.scan(lambda c, x: (c + x, jnp.sin(c * x)), jnp.zeros(2), z)


# What becomes of a value with lanes (3, 2), and the axes of the result that keep them apart.
CASES = {
    "elementwise": (jnp.sin, (0, 1)),
    "square of a sum": (lambda z: (z + z * 2) ** 2, (0, 1)),
    "with its transpose": (lambda z: z @ z.T, (None, None)),
    "outer": (lambda z: jnp.outer(z[:, 0], z[:, 1]), (None, None)),
    "shifted against itself": (lambda z: z + z[::-1], (None, 1)),
    "new axis": (lambda z: z[:, None], (0, 2)),
    "broadcast": (lambda z: jnp.broadcast_to(z, (4, 3, 2)), (1, 2)),
    "sum": (lambda z: z.sum(0), (None, 0)),
    "mean": (lambda z: z.mean(1), (0, None)),
    "transpose": (jnp.transpose, (1, 0)),
    "split in reshape": (lambda z: z.reshape(6), (None, None)),
    "merged and split": (lambda z: jnp.sin(z.reshape(6)).reshape(3, 2), (0, 1)),
    "merged and split in between": (lambda z: z.reshape(1, 6, 1).reshape(3, 1, 2, 1), (0, 2)),
    "merged and split otherwise": (lambda z: z.reshape(6).reshape(2, 3), (None, None)),
    "merged in another order": (lambda z: z.T.reshape(6).reshape(3, 2), (None, None)),
    "merged, mapped and split": (
        lambda z: jnp.tanh(z.reshape(6, 1) @ WIDE[:1]).reshape(3, 2, 4), (0, 1)),
    "merged, summed and split": (
        lambda z: (z.reshape(6)[:, None] * WIDE[:1] + z.sum()).reshape(3, 2, 4), (None, None)),
    "merged, reversed and split": (lambda z: z.reshape(6)[::-1].reshape(3, 2), (None, None)),
    "merged with a row between": (
        lambda z: jnp.broadcast_to(z[:, None], (3, 4, 2)).reshape(12, 2).reshape(3, 4, 2), (0, 2)),
    "merged, one part summed": (
        lambda z: jnp.broadcast_to(z[:, None], (3, 4, 2)).reshape(3, 8).sum(1), (0, None)),
    "merged with what splits a lane": (
        lambda z: jnp.broadcast_to(z[:, None], (3, 4, 2)).reshape(6, 4).reshape(3, 2, 4),
        (0, None)),
    "merged in a call": (
        lambda z: jax.jit(lambda x: x * 2)(z.reshape(6)).reshape(3, 2), (0, 1)),
    "merged against itself": (
        lambda z: (z.reshape(6) + z.reshape(3, 2)[::-1].reshape(6)).reshape(3, 2), (None, 1)),
    "merged, in a loop": (
        lambda z: lax.scan(
            lambda c, x: (c, x.reshape(2, 1) * c), 1.0, z.reshape(3, 2, 1))[1].reshape(3, 2), (0, 1)),
    "map in batches": (lambda z: lax.map(lambda x: jnp.sin(x) * 2, z.T, batch_size=1).T, (0, 1)),
    "map of all in batches": (
        lambda z: lax.map(jnp.sin, z.reshape(6), batch_size=2).reshape(3, 2), (0, 1)),
    "map of all in batches across": (
        lambda z: lax.map(jnp.sin, z.reshape(6), batch_size=3).reshape(3, 2), (None, None)),
    "map of all in batches and a rest": (
        lambda z: lax.map(jnp.sin, z.reshape(6), batch_size=4).reshape(3, 2), (None, None)),
    "map in batches, carried": (
        lambda z: lax.scan(
            lambda c, x: (c + x, c), jnp.zeros(2), z.reshape(6).reshape(3, 2))[1], (UP_TO, 1)),
    "steps of a merged axis, carried": (
        lambda z: lax.scan(lambda c, x: (c + x, c * x), 0.0, z.reshape(6))[1].reshape(3, 2),
        (None, None)),
    "solve": (
        lambda z: jnp.linalg.solve(4 * jnp.eye(2)[None] + z[:, None] * z[:, :, None], z[..., None]),
        (0, None)),
    "inverse": (lambda z: jnp.linalg.inv(4 * jnp.eye(2)[None] + z[:, None] * z[:, :, None]), (0, None)),
    "solve for each side": (
        lambda z: jnp.linalg.solve(jnp.ones((3, 3)) + jnp.eye(3), z), (None, 1)),
    "kept in reshape": (lambda z: z.reshape(3, 1, 2), (0, 2)),
    "softmax": (lambda z: softmax(z, -1), (0, None)),
    "logsumexp": (lambda z: logsumexp(z, 0), (None, 0)),
    "matrix on the right": (lambda z: z @ WIDE, (0, None)),
    "matrix on the left": (lambda z: TALL @ z, (None, 1)),
    "batched product": (lambda z: jnp.einsum("ij,ij->i", z, z), (0, None)),
    "gather by value": (lambda z: jnp.asarray(TABLE)[z.astype(int)], (0, 1)),
    "rows": (lambda z: z[np.array([2, 0])], (None, 1)),
    "one row": (lambda z: z[1], (None, 0)),
    "slice": (lambda z: z[:2], (None, 1)),
    "cumsum": (lambda z: jnp.cumsum(z, 0), (None, 1)),
    "concatenate": (lambda z: jnp.concatenate([z, z]), (None, 1)),
    "stack": (lambda z: jnp.stack([z, z * 2]), (1, 2)),
    "where": (lambda z: jnp.where(KEEP, z, jnp.exp(z)), (0, 1)),
    "where by value": (lambda z: jnp.where(z > 0, z, jnp.exp(z)), (0, 1)),
    "custom derivative": (relu, (0, 1)),
    "checkpoint": (jax.checkpoint(lambda z: jnp.sin(z).sum(1)), (0, None)),
    "jit": (jax.jit(lambda z: z.T * 2), (1, 0)),
    "scan, stacked": (lambda z: steps(z)[1], (UP_TO, 1)),
    "scan, reversed": (
        lambda z: lax.scan(lambda c, x: (c + x, c * x), jnp.zeros(2), z, reverse=True)[1],
        (FROM, 1)),
    "scan, carried": (lambda z: steps(z)[0], (None, 0)),
    "scan, constant": (lambda z: lax.scan(lambda c, _: (c * z, c), z, None, 3)[1], (1, 2)),
    "scan, mixing carry": (
        lambda z: lax.scan(lambda c, _: (c[::-1] + c, None), z, None, 3)[0], (None, 1)),
    "scan over a carry of both ways": (
        lambda z: lax.scan(
            lambda c, x: (c, jnp.sin(c + x)), jnp.zeros(2),
            lax.scan(lambda c, x: (c + x, c), jnp.zeros(2), z, reverse=True)[1])[1], (FROM, 1)),
    "scan there and back": (
        lambda z: lax.scan(lambda c, x: (c + x, c), jnp.zeros(2), steps(z)[1], reverse=True)[1],
        (None, 1)),
    "map": (lambda z: lax.map(jnp.sum, z), (0, None)),
    "map within a map": (
        lambda z: lax.map(lambda x: lax.map(lambda y: jnp.sin(y), x), z), (0, 1)),
    "map within a map of the other": (
        lambda z: lax.map(lambda x: lax.map(lambda y: x[0] * y, jnp.arange(3.0)), z), (0, None)),
    "map of every pair": (
        lambda z: lax.map(lambda x: lax.map(lambda y: x[0] * y[1], z), z), (None, None)),
    "scan over arange": (
        lambda z: lax.scan(lambda c, i: (c, z[i] * 2), 0.0, jnp.arange(3))[1], (0, 1)),
    "scan over arange, reversed": (
        lambda z: lax.scan(lambda c, i: (c, z[i] * 2), 0.0, jnp.arange(3), reverse=True)[1],
        (0, 1)),
    "scan by another's number": (
        lambda z: lax.map(lambda i: lax.map(lambda j: z[i] + j, jnp.arange(3.0)), jnp.arange(3)),
        (0, 2)),
    "scan backwards by a counter": (
        lambda z: lax.scan(lambda i, _: (i + 1, z[i]), 0, None, 3, reverse=True)[1], (None, 1)),
    "scan by a counter from one": (
        lambda z: lax.scan(lambda i, _: (i + 1, z[i]), 1, None, 3)[1], (None, 1)),
    "scan by a counter": (
        lambda z: lax.scan(lambda i, _: (i + 1, z[i]), 0, None, 3)[1], (0, 1)),
    "scan by a small counter": (
        lambda z: lax.scan(lambda i, _: (i + 1, z[i]), jnp.int8(0), None, 3)[1], (0, 1)),
    "scan by a counter that grows by two": (
        lambda z: lax.scan(lambda i, _: (i + 2, z[i]), 0, None, 3)[1], (None, 1)),
    "scan by a counter behind a counter": (
        lambda z: lax.scan(lambda c, _: ((c[0] + 1, c[0]), z[c[1]]), (0, 0), None, 3)[1],
        (None, 1)),
    "scan by a counter within a call": (
        lambda z: lax.scan(
            lambda i, _: (jax.jit(lambda i: i + 1)(i), jax.jit(lambda z, i: z[i])(z, i)),
            0, None, 3)[1], (0, 1)),
    "vmap of a loop by its counter": (
        lambda z: jax.vmap(
            lambda r: lax.scan(lambda i, _: (i + 1, r[i]), 0, None, 3)[1], 1, 1)(z), (0, 1)),
    "carry of another's step": (
        lambda z: lax.map(
            lambda x: lax.scan(lambda c, y: (c + y, c * x), jnp.zeros(2), jnp.ones((3, 2)))[1], z),
        (0, 2)),
    "gather at arange": (
        lambda z: jnp.broadcast_to(z[:, :, None], (3, 2, 4))[jnp.arange(3), jnp.array([1, 0, 1])], (0, None)),
    "gather of a diagonal": (
        lambda z: jnp.broadcast_to(z[:, :1], (3, 3))[jnp.arange(3), jnp.arange(3)], (0, None)),
    "gather at a shifted arange": (lambda z: z[jnp.arange(3) - 1], (None, 1)),
    "gather at a permutation": (lambda z: z[jnp.array([2, 0, 1])], (None, 1)),
    "fori_loop": (lambda z: lax.fori_loop(0, 3, lambda i, c: c * i + z, z), (0, 1)),
    "while_loop": (
        lambda z: lax.while_loop(lambda c: c.sum() < 9, lambda c: c + z + 1, z), (None, None)),
    "while_loop of fixed length": (
        lambda z: lax.while_loop(lambda c: c[0] < 9, lambda c: (c[0] + 1, c[1] + z), (0, z))[1],
        (0, 1)),
    "while_loop under vmap": (
        lambda z: jax.vmap(
            lambda r: lax.while_loop(lambda c: c.sum() < 9, lambda c: c + r + 1, r))(z),
        (0, None)),
    "while_loop under two vmaps": (
        lambda z: jax.vmap(jax.vmap(
            lambda x: lax.while_loop(lambda c: c < 9, lambda c: c + x + 1, x)), 1, 1)(z), (0, 1)),
    "cond": (lambda z: lax.cond(jnp.sum(TALL) > 0, jnp.sin, jnp.cos, z), (0, 1)),
    "cond, one branch mixes": (
        lambda z: lax.cond(jnp.sum(TALL) > 0, jnp.sin, lambda z: z[::-1], z), (None, 1)),
    "cond by value": (lambda z: lax.cond(z[0, 0] > 0, jnp.sin, jnp.cos, z), (None, None)),
    "vmap": (lambda z: jax.vmap(lambda r: r / r.sum(), out_axes=1)(z + 1), (1, None)),
    "cholesky": (
        lambda z: jnp.linalg.cholesky(jnp.eye(2)[None] + z[:, None] * z[:, :, None]), (0, None)),
}  # fmt: skip


def draw(name, *shape, logits=None):
    logits = jnp.zeros(shape) if logits is None else logits
    return vt.sample(KEY, dist.Bernoulli(logits=logits), SCORE, name=name) * 1.0


def dependence(fn):
    """Of the value that ``fn`` returns, whatever its shape."""

    def scalar():
        x = fn()
        return jnp.sum(x, dtype=jnp.float32), x

    program = stage(scalar, (), {})
    return Dependences(program)[program.aux[0]]


@pytest.mark.parametrize("case", CASES)
def test_axes_that_keep_lanes_apart(case):
    fn, expected = CASES[case]
    assert dependence(lambda: fn(draw("z", 3, 2))) == {0: lanes(*expected)}


@pytest.mark.parametrize("case", [c for c in CASES if CASES[c][1] != (None, None)])
def test_what_is_claimed_apart_is_apart(case):
    """Another lane's value never reaches an entry; at all eight patterns of a few lanes."""
    fn, axes = CASES[case]
    fn = jax.jit(fn)
    for lane, known in enumerate(lanes(*axes)):
        if known == MIXED:
            continue
        for bits in itertools.product((0.0, 1.0), repeat=3):
            z = np.zeros((3, 2), np.float32)
            z[0], z[1, 0], z[2, 1] = bits[0], bits[1], bits[2]
            for k in range(z.shape[lane]):
                to = slice(k, k + 1)
                if isinstance(known, UpTo):
                    to = slice(k, None) if known.reverse else slice(0, k + 1)
                other = 1 - z
                np.moveaxis(other, lane, 0)[to] = np.moveaxis(z, lane, 0)[to]
                a, b = (np.asarray(fn(v)).take(k, known.axis) for v in (z, other))
                np.testing.assert_allclose(a, b, rtol=1e-6)


def test_lanes_of_vmap_come_first():
    def rows():
        return jax.vmap(lambda k: vt.sample(k, dist.Bernoulli(jnp.full(2, 0.5)), SCORE, name="z"))(
            jax.random.split(KEY, 3)
        )

    assert dependence(rows) == on(z0=(0, 1))
    assert dependence(lambda: rows().sum(1)) == on(z0=(0, None))


def test_a_lane_of_size_one_needs_no_axis():
    assert dependence(lambda: draw("z", 1, 2) * 2) == on(z0=(None, 1))


def test_event_axes_are_no_lanes():
    def program():
        d = dist.MultivariateNormal(jnp.zeros((3, 2)), jnp.eye(2))
        return vt.sample(KEY, d, SCORE, name="z")

    with jax.numpy_rank_promotion("allow"):
        assert dependence(program) == on(z0=(0,))
        assert dependence(lambda: program().T) == on(z0=(1,))


def test_two_sites_align_where_their_values_meet():
    def rows():
        a, b = draw("a", 3), draw("b", 3, 2)
        return a[:, None] * b

    assert dependence(rows) == on(z0=(0,), z1=(0, 1))
    assert dependence(lambda: rows().sum(0)) == on(z0=(None,), z1=(None, 0))


def test_a_drawn_value_is_its_own():
    """What its distribution depends on enters through the density."""

    def program():
        a = draw("a", 3, 2)
        b = draw("b", logits=a.sum(0))
        c = draw("c", logits=jnp.ones((3, 1)) * b[None])
        return c.sum(), c

    staged = stage(program, (), {})
    depends = Dependences(staged)
    a, b, c = staged.sites.values()
    assert depends[staged.aux[0]] == on(z2=(0, 1))
    assert depends.log_prob(a) == on(z0=(0, 1))
    assert depends.log_prob(b) == on(z0=(None, 0), z1=(0,))
    assert depends.log_prob(c) == on(z1=(1,), z2=(0, 1))
    assert own(c) == on(z2=(0, 1))


def test_a_categorical_value_keeps_its_lanes_apart_from_its_parents():
    def program():
        a = draw("a", 3)
        logits = a[:, None] * jnp.arange(4.0)[None]
        k = vt.sample(KEY, dist.Categorical(logits=logits), SCORE, name="k")
        return jnp.sum(k * 1.0), None

    depends = Dependences(staged := stage(program, (), {}))
    assert depends.log_prob(list(staged.sites.values())[1]) == on(z0=(0,), z1=(0,))


def test_what_is_not_random_depends_on_nothing():
    def program(theta):
        z = draw("z", 3)
        return jnp.sum(z * theta), jnp.sin(theta)

    staged = stage(program, (jnp.ones(3),), {})
    assert Dependences(staged)[staged.aux[0]] == {}


def test_algebra():
    assert join([on(z0=(0, 1)), on(z0=(0, 2), z1=(3,))]) == on(z0=(0, None), z1=(3,))
    assert join([on(z0=(0, UP_TO)), on(z0=(UP_TO, UP_TO))]) == on(z0=(UP_TO, UP_TO))
    assert join([on(z0=(1, UP_TO)), on(z0=(UP_TO, FROM))]) == on(z0=(None, None))
    assert join([]) == {}
    assert relabel(on(z0=(0, None, 1)), (2, None)) == on(z0=(2, None, None))
    assert relabel(on(z0=(UP_TO, 1)), (1, 0)) == on(z0=(UpTo(1, False), 0))
    assert mixed(on(z0=(0, 1), z3=(2,))) == on(z0=(None, None), z3=(None,))


def test_two_lane_axes_of_a_choice_never_lie_at_one_place():
    assert distinct(lanes(0, 0, 1)) == lanes(0, None, 1)
    assert distinct(lanes(1, UP_TO, 0)) == lanes(1, UP_TO, None)
    assert relabel(on(z0=(0, 1)), (Step("t"), Step("t"))) == on(z0=(Step("t"), None))


def test_a_step_of_one_loop_is_none_of_another():
    one, other = Step("one"), Step("other")
    assert carried(one, one, False) == UpTo(one, False)
    assert carried(UpTo(one, False), one, False) == UpTo(one, False)
    assert carried(UpTo(one, True), one, False) == MIXED
    assert carried(one, other, False) == one
    assert join([{0: (one,)}, {0: (other,)}]) == {0: (MIXED,)}


def test_digits_of_a_lane():
    """Every entry of every way from one shape to another and on, against its number."""
    shapes = [(12,), (3, 4), (4, 3), (2, 6), (3, 2, 2), (2, 2, 3), (1, 12, 1), (6, 1, 2)]
    for start, *way in itertools.product(shapes, repeat=3):
        for axis, size in enumerate(start):
            lane, shape = Apart(axis), start
            for to in way if size > 1 else ():
                lane, shape = reshaped(lane, shape, to), to
                if lane == MIXED:
                    break
                digits = lane.digits if isinstance(lane, Digits) else ((lane.axis, 1, size),)
                index, found = np.indices(shape), 0
                for place, stride, count in digits:
                    found = found * count + index[place] // stride % count
                np.testing.assert_array_equal(
                    np.ravel(found), np.indices(start)[axis].ravel(), err_msg=f"{start} {way}"
                )


def test_a_dependence_within_another():
    density = on(z0=(0, 1), z1=(UP_TO, None))
    assert within(density, lanes(1, 0)) == on(z0=(1, 0), z1=(UpTo(1, False), None))
    assert within(density, lanes(UP_TO, None)) == on(z0=(UP_TO, None), z1=(UP_TO, None))
    assert within(density, lanes(FROM, 1)) == on(z0=(FROM, 1), z1=(None, None))
