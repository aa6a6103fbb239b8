"""Terms that are held constant count in the value and have no gradient, whatever the estimator."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipp_transforms as vt

ESTIMATORS = [
    vt.Enumerate(),
    vt.ScoreFunction(),
    vt.ScoreFunction(num_samples=2, baseline="leave_one_out"),
    vt.ScoreFunction(baseline=1.5),
    vt.LocalExpectation(),
    vt.MeasureValued(),
    vt.ARM(),
    vt.DisARM(),
    vt.REBAR(),
    vt.GumbelSoftmax(0.5),
    vt.StraightThrough(),
]


def value_and_slope(objective, estimator, draws=40_000):
    """The mean value of ``objective(z, t, w)``, ``z ~ Bernoulli(sigmoid(t))``, and its slopes."""

    def f(t, w, key):
        z = vt.sample(key, dist.Bernoulli(jax.nn.sigmoid(t)), estimator, name="z")
        return objective(z * 1.0, t, w), None

    def one(key):
        estimate = lambda t, w: vt.surrogate(f)(t, w, key)[0]
        return jax.value_and_grad(estimate, (0, 1))(0.3, 2.0)

    value, slopes = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), draws))
    return value, *slopes


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_a_constant_counts_and_has_no_gradient(estimator):
    value, slope, of_weight = value_and_slope(
        lambda z, t, w: w * vt.constant(3.0 * z + t) + 5.0 * t, estimator
    )
    p = jax.nn.sigmoid(0.3)
    np.testing.assert_allclose(value.mean(), 2.0 * (3 * p + 0.3) + 1.5, rtol=0.02)
    np.testing.assert_array_equal(slope, 5.0)  # never a draw's worth of score
    np.testing.assert_allclose(of_weight.mean(), 3 * p + 0.3, rtol=0.02)


@pytest.mark.few(4)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_a_term_less_its_constant_is_its_gradient_alone(estimator):
    term = lambda z, t, w: w * jnp.square(z - t)
    value, *slopes = value_and_slope(lambda z, t, w: term(z, t, w), estimator)
    same, *same_slopes = value_and_slope(
        lambda z, t, w: term(z, t, w) - vt.constant(term(z, t, w)), estimator
    )
    np.testing.assert_allclose(same, 0.0, atol=1e-5)
    for a, b in zip(slopes, same_slopes):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_lanes_and_several_sites():
    def f(t, key):
        keys = jax.random.split(key)
        x = vt.sample(keys[0], dist.Bernoulli(jax.nn.sigmoid(t)), vt.ScoreFunction(), name="x")
        y = vt.sample(keys[1], dist.Bernoulli(0.2 + 0.5 * x), vt.Enumerate(), name="y")
        cost = jnp.square(x + 2.0 * y)
        return (cost + t).sum() - vt.constant(cost.sum()), None

    logits = jnp.array([0.3, -0.8])

    def one(key):
        return jax.value_and_grad(lambda t: vt.surrogate(f)(t, key)[0])(logits)

    _, slopes = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 40_000))
    p = jax.nn.sigmoid(logits)
    low, high = 0.2 * 4.0, 0.3 * 1.0 + 0.7 * 9.0  # E[cost | x]
    np.testing.assert_allclose(slopes.mean(0), 1 + p * (1 - p) * (high - low), rtol=0.02)


def test_a_baseline_does_not_watch_constants():
    asked = vt.ScoreFunction(baseline=vt.MovingAverage(0.0))
    start = asked.learning.init(None, None)

    def f(t):
        z = vt.sample(
            jax.random.key(0), dist.Bernoulli(jax.nn.sigmoid(t)), asked.learning.fill(start),
            name="z",
        )  # fmt: skip
        return z + vt.constant(100.0 * (1.0 + z)), None

    value, _, updates = vt.estimate(f, 0.3)
    seen = updates["z"](start)
    cost = float(seen["sum"] / seen["weight"])
    assert (float(value), cost) in ((100.0, 0.0), (201.0, 1.0))


X = jnp.array([1.0, 2.0])


def _in_custom_jvp(z):
    @jax.custom_jvp
    def call(z):
        return vt.constant(3.0 * z)

    call.defjvp(lambda primals, tangents: (call(*primals), 0.0 * tangents[0]))
    return call(z)


# what is held constant within, of the value 3 z
INSIDE = {
    "plain": lambda z: vt.constant(3.0 * z),
    "jit": jax.jit(lambda z: vt.constant(3.0 * z)),
    "checkpoint": jax.checkpoint(lambda z: vt.constant(3.0 * z)),
    "checkpoint of a jit": jax.checkpoint(jax.jit(lambda z: 2.0 * vt.constant(1.5 * z))),
    "custom derivative": _in_custom_jvp,
    "map": lambda z: jax.lax.map(lambda x: vt.constant(x * z), X).sum(),
    "map in a map": lambda z: jax.lax.map(
        lambda x: jax.lax.map(lambda y: vt.constant(x * y * z), X).sum() / 3.0, X).sum(),
    "long map of maps": lambda z: jax.lax.map(
        lambda x: 2.0 - jax.lax.map(lambda y: -vt.constant(0.005 * y * z), X).sum() - vt.constant(
            2.0 + 0.0 * z), jnp.zeros(200)).sum(),
    "long map": lambda z: jax.lax.map(
        lambda x: vt.constant(0.01 * z) + 0.0 * x, jnp.zeros(100)).sum() * 3.0,
    "longest map": lambda z: jax.lax.map(
        lambda x: vt.constant(0.01 * z), jnp.zeros(300)).sum(),
    "carry": lambda z: jax.lax.fori_loop(
        0, 3, lambda i, c: c + vt.constant(1.0 * z), jnp.float32(0.0)),
    "vmap": lambda z: jax.vmap(lambda x: vt.constant(x * z))(X).sum(),
    "branch": lambda z: jax.lax.cond(
        z > -1, lambda z: vt.constant(3.0 * z), lambda z: 0.0 * z, z),
    "branch not taken": lambda z: jax.lax.cond(
        z > 2, lambda z: vt.constant(z), lambda z: vt.constant(3.0 * z), z),
    "branch that is known": lambda z: jax.lax.cond(
        X.sum() > 0, lambda z: 1.0 + vt.constant(3.0 * z), lambda z: 0.0 * z, z) - 1.0,
    "branch in a loop": lambda z: jax.lax.map(
        lambda x: jax.lax.cond(x > 0, lambda: vt.constant(x * z), lambda: 0.0), X).sum(),
}  # fmt: skip


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("estimator", [vt.Enumerate(), vt.ScoreFunction()], ids=repr)
def test_inside_calls_loops_and_branches(name, estimator):
    value, slope, _ = value_and_slope(lambda z, t, w: INSIDE[name](z) + 5.0 * t, estimator, 4_000)
    np.testing.assert_allclose(value.mean(), 3.0 * jax.nn.sigmoid(0.3) + 1.5, rtol=0.05)
    np.testing.assert_allclose(slope, 5.0, rtol=1e-6)  # never a draw's worth of score


def test_next_to_draws_in_a_loop():
    """What each step holds constant is held outside; the loop stays one."""

    def f(t, key):
        def step(before, k):
            z = 1.0 * vt.sample(k, dist.Bernoulli(logits=t), vt.ScoreFunction(), name="z")
            return z, (z * before, vt.constant(jnp.square(z + before)))

        costs, held = jax.lax.scan(step, 0.5, jax.random.split(key, 3))[1]
        return costs.sum() + held.sum() - vt.constant(held.sum()), None

    (site,) = vt.plan(f, 0.3, jax.random.key(0)).program.sites.values()
    assert site.lane_shape == (3,)
    slopes = jax.vmap(jax.grad(lambda t, k: vt.surrogate(f)(t, k)[0]), (None, 0))
    slopes = jax.jit(slopes)(0.3, jax.random.split(jax.random.key(1), 40_000))
    p = jax.nn.sigmoid(0.3)
    np.testing.assert_allclose(slopes.mean(), p * (1 - p) * (0.5 + 4 * p), rtol=0.03)


REFUSED = {
    "while": lambda z: jax.lax.while_loop(lambda c: c < 3, lambda c: c + vt.constant(z) + 1.0, z),
    "long loop": lambda z: jax.lax.fori_loop(0, 200, lambda i, c: c + vt.constant(z), z),
    "formula in a branch": lambda z: jax.lax.cond(
        z > 0, lambda: jnp.exp(vt.constant(z)), lambda: z),
    "formula in a loop": lambda z: jax.lax.map(lambda x: jnp.exp(vt.constant(x * z)), X).sum(),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_seen_is_refused(name):
    def f(t):
        z = vt.sample(jax.random.key(0), dist.Bernoulli(t), vt.Enumerate(), name="z")
        return REFUSED[name](1.0 * z), None

    with pytest.raises(ValueError, match=r"(?s)constant\(x\) .*Fix: "):
        vt.surrogate(f)(0.3)


def test_inside_a_formula_is_refused():
    def f(t):
        z = vt.sample(jax.random.key(0), dist.Bernoulli(t), vt.Enumerate(), name="z")
        return jnp.exp(vt.constant(z * 1.0)), None

    with pytest.raises(ValueError, match="inside the formula of a term"):
        vt.surrogate(f)(0.3)
