"""Biased estimators: how far from the exact gradient, and that the bias goes where it should.

Where only a discrete choice is random the bias is exact, averaged over all choices.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipp
import vipp_transforms as vt
from contexts import after, before, eta, lanes, pair, program, scaled, three
from vipp_transforms.estimators import reste
from vipp_transforms.evaluation import Evaluation

THETA = np.array([0.3, 0.4, 0.7])
CHOICES = {  # from a number per lane; and the numbers that a term is made of
    "bernoulli": (lambda e: dist.Bernoulli(logits=e, validate_args=False), lambda z: z),
    "one-hot": (
        lambda e: vipp.OneHotCategorical(logits=three(e)),
        lambda z: z @ jnp.array([1.0, -0.7, 0.4]),
    ),
}
HARD = [vt.StraightThrough(), vt.ReinMax(), vt.SparseMixer()]
named = lambda e: type(e).__name__


def polynomial(theta, rv, choice, degree, together=False):
    """Of one degree in each of two choices, which are apart or multiplied."""
    make, feature = CHOICES[choice]
    z = feature(rv("z", make(eta(theta, 2))))
    powers = (z + 0.3) ** degree * jnp.array([1.0, -2.0])
    return theta[2] * (powers.prod() if together else powers.sum())


def bias(exact, fn, estimator, theta=THETA):
    """Relative to the largest entry of the exact gradient."""
    theta = jnp.asarray(theta)
    got = exact.estimate(exact.staged(fn, default=estimator), theta, orders=1)
    want = exact.expectation(fn, theta)
    np.testing.assert_allclose(got.value, want.value, rtol=1e-7)
    return (got.grad - want.grad) / jnp.abs(want.grad).max()


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(
    ("estimator", "degree", "together"),
    [(vt.StraightThrough(), 1, False), (vt.StraightThrough(), 1, True), (vt.ReinMax(), 1, False),
     (vt.ReinMax(), 2, False), (vt.ReinMax(), 2, True), (vt.SparseMixer(), 1, False),
     (vt.SparseMixer(), 2, False)],
)  # fmt: skip
def test_no_bias_up_to_a_degree(exact, x64, choice, estimator, degree, together):
    fn = lambda theta, rv: polynomial(theta, rv, choice, degree, together)
    np.testing.assert_allclose(bias(exact, fn, estimator), 0.0, atol=1e-7)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(
    ("estimator", "degree"), [(vt.StraightThrough(), 2), (vt.ReinMax(), 3), (vt.SparseMixer(), 3)]
)
def test_bias_beyond_it(exact, x64, choice, estimator, degree):
    off = bias(exact, lambda theta, rv: polynomial(theta, rv, choice, degree), estimator)
    assert jnp.abs(off).max() > 0.03


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(("estimator", "order"), list(zip(HARD, (1, 2, 2))), ids=str)
def test_bias_vanishes_with_the_size_of_the_step(exact, x64, choice, estimator, order):
    """Of a smooth function of ``h`` times the choice: as ``h`` to the order (relative)."""
    make, feature = CHOICES[choice]
    h = jnp.array([1.0, 0.02, 0.01])  # a choice and a logit of its own for each

    def fn(theta, rv):
        return (jnp.exp(h * feature(rv("z", make(theta)))) / h).sum()

    theta = jnp.full(3, 0.3)
    got = exact.estimate(exact.staged(fn, default=estimator), theta, orders=1).grad
    want = exact.expectation(fn, theta).grad
    large, two, one = jnp.abs(got / want - 1)
    assert large > 0.005
    np.testing.assert_allclose(two / one, 2.0**order, rtol=0.1)


@pytest.mark.parametrize("context", [pair, lanes, scaled, after, before])
@pytest.mark.parametrize("estimator", HARD, ids=named)
def test_no_other_gradient_is_touched(exact, x64, context, estimator):
    """The last parameter is the terms' alone; the choice "a" has an unbiased estimator."""
    theta = jnp.asarray(THETA)
    fn = program(context, "bernoulli-relaxed")
    staged = exact.staged(fn, {"a": vt.ScoreFunction()}, estimator)
    got, want = exact.estimate(staged, theta, orders=1), exact.expectation(fn, theta)
    np.testing.assert_allclose(got.value, want.value, rtol=1e-7)
    np.testing.assert_allclose(got.grad[2], want.grad[2], rtol=1e-7)
    assert jnp.abs(got.grad[0] - want.grad[0]) > 1e-3 * jnp.abs(want.grad).max()


@pytest.mark.parametrize("estimator", [vt.ReSTE(), vt.GumbelSoftmax(0.7, hard=True)], ids=named)
@pytest.mark.parametrize("context", [pair, after, before])
def test_no_other_gradient_is_touched_by_noise(exact, context, estimator):
    theta = jnp.asarray(THETA, jnp.float32)
    fn = program(context, "bernoulli-relaxed")
    value, grad = exact.estimates(fn, theta, {"a": vt.Enumerate()}, estimator, 60_000)(0)
    want = exact.expectation(fn, theta)
    exact.check_mean(value, want.value)
    exact.check_mean(grad[:, 2:], want.grad[2:])
    assert abs(grad[:, 0].mean() - want.grad[0]) > 4 * grad[:, 0].std() / len(grad) ** 0.5


TEMPERATURES = (1.0, 0.5, 0.1, 0.03)


def biases(exact, choice, degree, hard):
    """Relative bias at each temperature, and its standard error: one choice and logit for each."""
    make, feature = CHOICES[choice]
    fn = lambda theta, rv: ((feature(rv("z", make(theta))) + 0.3) ** degree).sum()
    theta = jnp.full(len(TEMPERATURES), 0.4, jnp.float32)
    temperature = jnp.array(TEMPERATURES, jnp.float32)[:, None]  # the last axis: the categories
    want = exact.expectation(fn, theta).grad
    estimator = vt.GumbelSoftmax(temperature, hard)
    _, grad = exact.estimates(fn, theta, None, estimator, 300_000)(0)
    return np.abs(grad.mean(0) / want - 1), grad.std(0) / len(grad) ** 0.5 / np.abs(want)


@pytest.mark.parametrize(
    ("choice", "degree", "hard"),
    [("bernoulli", 3, False), ("one-hot", 3, False), ("bernoulli", 2, True), ("one-hot", 2, True)],
)
def test_bias_of_gumbel_softmax_falls_with_the_temperature(exact, choice, degree, hard):
    (first, second, third, last), errors = biases(exact, choice, degree, hard)
    print(choice, degree, hard, first, second, third, last, errors)
    assert max(errors) < 0.02
    assert first > second + 0.05
    assert second > third + 0.05
    assert last < 4 * errors[-1]


def test_bias_of_hard_gumbel_softmax_stays_for_cubic_terms(exact):
    """Its limit is the mean of the slopes at both values in place of their difference."""
    off, errors = biases(exact, "bernoulli", 3, True)
    slopes, difference = 1.5 * (0.3**2 + 1.3**2), 1.3**3 - 0.3**3
    assert abs(off[-1] - (slopes / difference - 1)) < 4 * errors[-1]
    assert off[-1] > 8 * errors[-1]


def logistic(logit, z):
    return jax.nn.sigmoid(z - logit) * jax.nn.sigmoid(logit - z)


def reste_slope(monkeypatch, estimator, logit):
    """The expected slope of a linear term, the noise integrated over a grid of logarithms."""
    log_size, step = np.linspace(-350.0, 6.0, 20_001, retstep=True)
    size = np.exp(log_size)

    def slope(z):
        noisy = jnp.stack([jnp.zeros_like(z), z])
        pinned = lambda _, logits, drawn: noisy + (logits - jax.lax.stop_gradient(logits))
        monkeypatch.setattr(reste, "gumbel_behind", pinned)

        def estimate(t):
            make = lambda t: (
                vt.sample(jax.random.key(0), dist.Bernoulli(logits=t), estimator, name="z"),
                None,
            )
            forced = lambda site, shape: (z > 0).astype(site.var.aval.dtype)
            return Evaluation(vt.plan(make, t), forced).value()

        return jax.grad(estimate)(logit)

    both = jnp.concatenate([size, -size])
    weights = logistic(logit, both) * jnp.abs(both) * step
    return float(weights @ jax.jit(jax.vmap(slope))(both))


def test_bias_of_reste_vanishes_with_the_power(x64, monkeypatch):
    logit, p = jnp.asarray(0.4), 1 / (1 + np.exp(-0.4))
    want = p * (1 - p)
    powers = (1.0, 2.0, 5.0, 40.0)
    off = [
        abs(reste_slope(monkeypatch, vt.ReSTE(power, limit=1e300), logit) / want - 1)
        for power in powers
    ]
    assert off == sorted(off, reverse=True)
    assert off[0] > 0.5
    assert off[-1] < 0.02
    assert abs(reste_slope(monkeypatch, vt.ReSTE(40.0, limit=1.0), logit) / want - 1) > 0.3


def test_reste_draws_the_noise_that_the_limit_assumes(exact, monkeypatch):
    theta = jnp.array([0.4], jnp.float32)
    estimator = vt.ReSTE(1.5)
    linear = lambda theta, rv: rv("z", CHOICES["bernoulli"][0](theta[0]))
    _, grad = exact.estimates(linear, theta, None, estimator, 50_000)(0)
    exact.check_mean(grad[:, 0], reste_slope(monkeypatch, estimator, theta[0]))
