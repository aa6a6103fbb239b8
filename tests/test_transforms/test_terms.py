"""The value as a sum of weighted leaves: always equal to it, and as fine as it should be."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import Literal

import vipp_transforms as vt
from vipp_transforms.dependence import Dependences
from vipp_transforms.lane import MIXED, Apart
from vipp_transforms.lifting import Axes, Lifted, evaluate
from vipp_transforms.staging import stage
from vipp_transforms.terms import split, weights

KEY = jax.random.key(0)
THETA = jnp.array([0.7, -1.3, 0.4])


def draw(name, *shape):
    d = dist.Bernoulli(logits=jnp.zeros(shape))
    return vt.sample(jax.random.fold_in(KEY, len(name)), d, vt.ScoreFunction(), name=name) * 1.0


def decomposed(fn, *args):
    """The value, the sum over leaves, and the leaves' dependences."""
    program = stage(lambda *xs: (fn(*xs), None), args, {})
    depends = Dependences(program)
    parts = split(program, depends)

    @jax.jit
    def both(env):
        env = {v: Lifted(x) for v, x in zip(program.env, env, strict=True)}
        atoms = [program.out, *parts.leaves, *(v for e, _ in parts.opened for v in e.invars)]
        evaluate(program.eqns, env, Axes(), {}, atoms, lambda _: frozenset())
        read = lambda v: jnp.asarray(v.val) if isinstance(v, Literal) else env[v].array
        each = weights(parts, program.out, read)
        total = sum(jnp.sum(w * read(v)) for w, v in zip(each, parts.leaves, strict=True))
        return read(program.out), total

    return *both(list(program.env.values())), [depends[v] for v in parts.leaves]


# Linear in the value, for any shape; `w` is a number that is not random.
LINEAR = {
    "neg": lambda x, w: -x,
    "scale": lambda x, w: x * w,
    "divide": lambda x, w: x / (w + 3),
    "add": lambda x, w: x + w,
    "subtract from": lambda x, w: w - x,
    "add a row": lambda x, w: x + w * jnp.arange(float(x.shape[-1])).reshape(_row(x)),
    "times a row": lambda x, w: x * (w * jnp.arange(float(x.shape[-1])).reshape(_row(x))),
    "sum": lambda x, w: x.sum(0, keepdims=True),
    "mean": lambda x, w: x.mean(-1, keepdims=True),
    "flatten": lambda x, w: x.reshape(1, -1),
    "transpose": lambda x, w: x.T,
    "reverse": lambda x, w: x[::-1],
    "head": lambda x, w: x[:1],
    "repeat": lambda x, w: jnp.broadcast_to(x[None], (2, *x.shape)).reshape(-1, x.shape[-1]),
    "to itself": lambda x, w: x + x * w,
    "stack": lambda x, w: jnp.stack([x, w * x], 1),
    "join": lambda x, w: jnp.concatenate([x, w * x[:1]]),
    "join constants": lambda x, w: jnp.concatenate([jnp.full_like(x, w), x], 1),
    "where": lambda x, w: jnp.where(np.arange(x.shape[1])[None] % 2 == 0, x, w * jnp.ones_like(x)),
    "dot": lambda x, w: (x @ (w * jnp.arange(1.0, x.shape[1] + 1)))[:, None],
    "dot on the left": lambda x, w: (jnp.full(x.shape[0], w) @ x)[None],
    "matrix": lambda x, w: x @ jnp.full((x.shape[1], 2), w),
    "literal": lambda x, w: 2.0 * x - 1.0,
    "not linear": lambda x, w: jnp.sin(w * x),
}


def _row(x):
    return (1,) * (x.ndim - 1) + (-1,)


@settings(max_examples=12)
@given(
    st.lists(st.sampled_from(sorted(LINEAR)), max_size=5),
    st.lists(st.sampled_from(sorted(LINEAR)), max_size=3),
    st.sampled_from([(3, 2), (1, 2), (2, 1), (1, 1)]),
    st.booleans(),
)
def test_weighted_leaves_add_up(first, second, shape, shared):
    def program(theta):
        x = draw("x", *shape)
        y = x if shared else draw("yy", 2, 2)
        for k, name in enumerate(first):
            x = LINEAR[name](x, theta[k % 3])
        for k, name in enumerate(second):
            y = LINEAR[name](y, theta[k % 3 - 1])
        return x.sum() * theta[0] + (y - theta[1]).sum()

    value, total, _ = decomposed(program, THETA)
    np.testing.assert_allclose(total, value, rtol=1e-5, atol=1e-4)


def sites(leaves):
    return sorted(tuple(sorted(d)) for d in leaves)


def test_terms_of_different_sites_part():
    *_, leaves = decomposed(
        lambda t: jnp.sin(draw("a", 3)).sum() - t[0] * (jnp.cos(draw("bb", 2)).sum() + t[1]), THETA
    )
    assert sites(leaves) == [(), (0,), (1,)]


def test_lanes_part():
    *_, leaves = decomposed(lambda t: 2.0 * (jnp.sin(draw("a", 3)) * t).sum(), THETA)
    assert [d for d in leaves if d] == [{0: (Apart(0),)}]


@pytest.mark.parametrize("axis", [0, 1])
def test_joined_lanes_part(axis):
    def program():
        return jnp.concatenate([jnp.sin(draw("a", 2, 2)), jnp.cos(draw("bb", 2, 2))], axis).sum()

    *_, leaves = decomposed(program)
    apart = (Apart(0), Apart(1))
    assert leaves in ([{0: apart}, {1: apart}], [{1: apart}, {0: apart}])


def test_what_mixes_does_not_part():
    *_, leaves = decomposed(lambda: jnp.exp(draw("a", 3).sum()) * 2.0)
    assert [d for d in leaves if d] == [{0: (MIXED,)}]


def test_a_literal_used_twice_counts_twice():
    value, total, _ = decomposed(lambda: (draw("a", 3) + 1.5).sum() + (draw("bb", 2) + 1.5).sum())
    np.testing.assert_allclose(total, value, rtol=1e-6)


def _loop(step):
    return jax.lax.scan(step, 0.0, jax.random.split(KEY, 3))


def _choice(theta, key=KEY):
    return vt.sample(key, dist.Bernoulli(logits=theta), vt.Enumerate(), name="z") * 1.0


NUMBERS = {  # what depends on no choice: the value and slope at 0.4
    "a number": (2.0, 0.0, lambda t: (_choice(t), 2.0)[1]),
    "in a jit": (2.0, 0.0, lambda t: jax.jit(lambda: (_choice(t), 2.0)[1])()),
    "in a checkpoint": (2.0, 0.0, lambda t: jax.checkpoint(lambda t: (_choice(t), 2.0)[1])(t)),
    "an argument": (0.4, 1.0, lambda t: (_choice(t), t)[1]),
    "a derivative of a constant": (
        0.0, 0.0, lambda t: jax.grad(lambda x: vt.constant(x * _choice(t)))(1.0),
    ),
    "a loop's last": (2.0, 0.0, lambda t: _loop(lambda c, k: ((_choice(t, k), 2.0)[1], None))[0]),
    "a loop's steps": (6.0, 0.0, lambda t: _loop(lambda c, k: (_choice(t, k), 2.0))[1].sum()),
    "a loop's total": (
        1.2, 3.0, lambda t: _loop(lambda c, k: (c + t, _choice(t, k)))[0],
    ),
    "a loop's recursion": (
        0.624, 2.28, lambda t: _loop(lambda c, k: ((_choice(t, k), c * t + t)[1], None))[0],
    ),
}  # fmt: skip


def test_a_value_that_depends_on_no_choice():
    rows = [fn for *_, fn in NUMBERS.values()]
    both = lambda fn: jax.value_and_grad(lambda t: vt.surrogate(lambda t: (fn(t), None))(t)[0])
    got = np.array(jax.jit(lambda t: [both(fn)(t) for fn in rows])(0.4))
    for name, (*expected, _), found in zip(NUMBERS, NUMBERS.values(), got, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=name)


def test_terms_part_through_lower_precision():
    half = lambda x: x.astype(jnp.float16).astype(jnp.float32)
    value, total, leaves = decomposed(lambda: half(jnp.sin(draw("a", 3)).sum() + draw("bb")) * 2.0)
    np.testing.assert_allclose(total, value, rtol=1e-3)
    assert sites(leaves) == [(0,), (1,)]


# -- masks: what a mask hides counts nothing, whatever it is ---------------------------------


def gradient(fn, theta):
    estimate = lambda t: vt.surrogate(lambda t: (fn(t), None))(t)[0]
    return jax.jit(jax.value_and_grad(estimate))(theta)


def enumerated(shape):
    return vt.sample(KEY, dist.Bernoulli(jnp.full(shape, 0.3)), vt.Enumerate(), name="z") * 1.0


MASK = np.array([True, False, True])


@pytest.mark.parametrize("hidden", [jnp.nan, jnp.inf])
def test_hidden_entries_count_nothing(hidden):
    def program(theta):
        rows = (theta[:, None] * jnp.exp(enumerated((3, 2)))).sum(1)
        return jnp.where(MASK, rows + jnp.where(MASK, 0.0, hidden), 0.0).sum()

    value, grad = gradient(program, THETA)
    expected = 2 * (0.7 + 0.3 * np.e) * MASK
    np.testing.assert_allclose(value, (expected * THETA).sum(), rtol=1e-5)
    np.testing.assert_allclose(grad, expected, rtol=1e-5)


def test_a_hidden_factor_that_is_not_a_number_leaves_the_value_alone():
    """Missing data enter a log likelihood as a factor; plain JAX gives the value, too."""

    def program(theta):
        rows = enumerated((3, 2)).sum(1) * jnp.array([1.0, jnp.nan, 2.0])
        return jnp.where(MASK, rows, 0.0).sum() + theta.sum()

    np.testing.assert_allclose(gradient(program, THETA)[0], 1.8 + THETA.sum(), rtol=1e-5)


def test_a_weight_of_zero_still_has_a_gradient():
    """Zero-initialised coefficients of a term, next to a mask on another."""

    def program(theta):
        rows = jnp.sin(enumerated((3, 2))).sum(1)
        return (theta * rows).sum() + jnp.where(MASK, rows, 0.0).sum()

    _, grad = gradient(program, jnp.zeros(3))
    np.testing.assert_allclose(grad, np.full(3, 0.6 * np.sin(1.0)), rtol=1e-5)
