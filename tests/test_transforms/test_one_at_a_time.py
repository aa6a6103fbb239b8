"""Several choices with weak derivatives: changed one at a time, exact in expectation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipp_transforms as vt
from vipp.distributions.answers import Answering
from vipp_transforms.estimators.base import Axis
from vipp_transforms.one_at_a_time import blocks, one_at_a_time

THETA = jnp.array([0.4, -0.7, 0.9])
MEASURE = vt.MeasureValued()


def coin(logits):
    return dist.Bernoulli(logits=logits)


def chain(theta, rv):
    a = rv("a", coin(theta[0]))
    b = rv("b", coin(theta[1] + 0.8 * a))
    c = rv("c", coin(theta[2] * b - 0.3 * a))
    return jnp.cos(a + 2.0 * b * theta[0] + 3.0 * c) + theta[1] * a * c


def together(theta, rv):
    """Apart from each other, but for one term."""
    a, b, c = (rv(name, coin(theta[n])) for n, name in enumerate("abc"))
    return jnp.exp(0.3 * a - 0.5 * b * c) * (1.0 + theta[0] * c) + theta[2] * a


def in_pairs(theta, rv):
    """Lanes that nothing mixes."""
    b = rv("b", coin(theta[:2]))
    c = rv("c", coin(theta[1:] - b))
    return (jnp.sin(theta[0] + b + 2.0 * c) * jnp.array([1.0, 2.0])).sum()


def mixed_lanes(theta, rv):
    a = rv("a", coin(theta[:2]))
    b = rv("b", coin(theta[2] + a.sum()))
    return jnp.cos(a[0] + 2.0 * a[1] * b) * theta[1] + b * theta[0]


SAME = dict.fromkeys("abc", MEASURE)
ROWS = {
    "chain": (chain, SAME),
    "together": (together, SAME),
    "in pairs": (in_pairs, SAME),
    "mixed lanes": (mixed_lanes, SAME),
    "one is scored": (chain, {**SAME, "b": vt.ScoreFunction()}),
    "one is enumerated": (chain, {**SAME, "b": vt.Enumerate()}),
    "one by leave-one-out": (together, {**SAME, "b": vt.ScoreFunction(2, "leave_one_out")}),
    "the first by leave-one-out": (together, {**SAME, "a": vt.ScoreFunction(2, "leave_one_out")}),
    "one antithetic": (together, {**SAME, "c": vt.DisARM()}),
    "a local expectation": (chain, {**SAME, "c": vt.LocalExpectation()}),
    "a mixture": (together, {**SAME, "b": vt.Mix(MEASURE, vt.ScoreFunction(), 0.4)}),
    "slopes": (together, {**SAME, "b": vt.DoubleControlVariates(2)}),
    "first draws": (together, {**SAME, "b": vt.FittedControlVariates(3, differentiate="first")}),
}


@pytest.mark.parametrize("row", ROWS)
def test_expectations_are_exact(exact, row):
    program, estimators = ROWS[row]
    exact.check(program, THETA, estimators, orders=1)


def weak(program):
    def run(theta, key):
        at = lambda name, d: vt.sample(
            jax.random.fold_in(key, "abc".index(name)), d, MEASURE, name=name
        )
        return program(theta, at), None

    return run


def test_the_programs_are_such():
    for program in (chain, together, in_pairs, mixed_lanes):
        planned = vt.plan(weak(program), THETA, jax.random.key(0))
        assert len(one_at_a_time(planned)) >= 2


def before_a_loop(estimator, theta, key):
    """What is drawn in a loop depends on two such choices, and on the step before."""
    keys = jax.random.split(key, 7)
    a, b = (vt.sample(keys[n], coin(theta[n]), estimator, name="ab"[n]) for n in (0, 1))

    def step(state, key):
        z = vt.sample(key, coin(theta[2] * state - 0.5 * a * b), vt.ScoreFunction(), name="z")
        return jnp.tanh(z + state), z * state

    last, each = jax.lax.scan(step, 0.3, keys[2:])
    return last * (1.0 + a) + (each * jnp.arange(5)).sum() * b, None


@pytest.mark.few(1)
def test_choices_of_a_loop_behind_them():
    """As where both are enumerated: means of 2^15 estimates."""
    keys, found = jax.random.split(jax.random.key(0), 2**15), []
    for estimator in (MEASURE, vt.Enumerate()):
        estimate = vt.surrogate(functools.partial(before_a_loop, estimator))
        slope = jax.grad(lambda theta, key, of=estimate: of(theta, key)[0])
        found.append(np.asarray(jax.jit(jax.vmap(slope, (None, 0)))(THETA, keys), float))
    got, want = found
    error = np.sqrt((got.var(0) + want.var(0)) / len(keys))
    assert (error < 0.05 * np.abs(want.mean(0)).max()).all()
    assert (np.abs(got.mean(0) - want.mean(0)) < 4 * error).all()


def test_an_impossible_value_counts_nothing():
    """The term is not finite there, and every other value of the other choice sees it."""

    def program(theta, rv):
        a = rv("a", dist.Categorical(logits=jnp.array([-jnp.inf, 0.0])))
        b = rv("b", coin(theta[0] + a))
        return jnp.log(1.0 * a) * (1.0 + b) + theta[1] * b * a

    assert len(one_at_a_time(vt.plan(weak(program), THETA, jax.random.key(0)))) == 2
    value, slope = jax.value_and_grad(
        lambda t: vt.surrogate(weak(program))(t, jax.random.key(0))[0]
    )(THETA)
    p = jax.nn.sigmoid(THETA[0] + 1.0)
    assert float(value) in (0.0, float(THETA[1]))
    np.testing.assert_allclose(slope[0], THETA[1] * p * (1.0 - p), rtol=1e-5)


@pytest.mark.few(1)
def test_normals(x64):
    """E[x^2 y] of normals, the second given the first; 2^14 draws, whose error is below 2%."""

    def program(theta, rv):
        x = rv("a", dist.Normal(theta[0], jnp.exp(theta[1])))
        y = rv("b", dist.Normal(theta[2] + 0.5 * x, 1.0))
        return x**2 * y, None

    def value(theta, key):
        at = lambda name, d: vt.sample(
            jax.random.fold_in(key, "ab".index(name)), Answering(d), MEASURE, name=name
        )
        return vt.surrogate(lambda t: program(t, at))(theta)[0]

    def expected(theta):
        m, v = theta[0], jnp.exp(2 * theta[1])
        return theta[2] * (m**2 + v) + 0.5 * (m**3 + 3 * m * v)

    theta, keys = jnp.array([0.4, -0.3, 0.9]), jax.random.split(jax.random.key(3), 2**14)
    slopes = jax.jit(jax.vmap(jax.grad(value), (None, 0)))(theta, keys)
    error = np.std(slopes, 0) / np.sqrt(len(keys))
    want = jax.grad(expected)(theta)
    assert (error < 0.02 * np.abs(want).max()).all()
    assert (np.abs(slopes.mean(0) - want) < 4 * error).all()


def test_the_cost_is_a_sum_and_not_a_product():
    """Of a dear term of six coins: 13 evaluations of it, where each on its own axis has 729."""
    weights = jnp.ones((50, 50))

    def program(theta):
        keys = jax.random.split(jax.random.key(0), 6)
        drawn = [vt.sample(k, coin(theta), MEASURE, name=f"z{n}") for n, k in enumerate(keys)]
        x = sum(0.5**n * z for n, z in enumerate(drawn)) * jnp.ones(50)
        return (jnp.tanh(x @ weights) @ weights).sum(), None

    loss = lambda theta: vt.surrogate(program)(theta)[0]
    cost = jax.jit(jax.grad(loss)).lower(0.3).compile().cost_analysis()
    once = 2 * 2 * 50 * 50
    assert 10 * once < cost["flops"] < 40 * once


def test_axes_of_their_own_where_that_is_less():
    axes = {i: Axis(f"site:{i}", 3) for i in range(4)}
    apart = [frozenset({i}) for i in range(4)]
    assert blocks(axes, apart) == {}
    found = blocks(axes, [frozenset({0, 1}), frozenset({2})])
    assert set(found) == {0, 1} and found[0].joint.size == 5
    assert list(found[1].entries) == [0, 0, 0, 1, 2]
    assert blocks(axes, [*apart, *apart, frozenset({0, 1})]) == {}
