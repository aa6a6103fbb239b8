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
    def f(t):
        z = vt.sample(
            jax.random.key(0), dist.Bernoulli(jax.nn.sigmoid(t)),
            vt.ScoreFunction(baseline=0.0), name="z",
        )  # fmt: skip
        return z + vt.constant(100.0 * z), None

    value, _, report = vt.estimate(f, 0.3)
    assert float(report["z"]) in (0.0, 1.0)
    assert float(value) in (0.0, 101.0)


def test_inside_a_formula_is_refused():
    def f(t):
        z = vt.sample(jax.random.key(0), dist.Bernoulli(t), vt.Enumerate(), name="z")
        return jnp.exp(vt.constant(z * 1.0)), None

    with pytest.raises(ValueError, match="inside the formula of a term"):
        vt.surrogate(f)(0.3)
