"""The biased estimators: how far off they are, and where that ends.

A program's last two parameters don't move the choice, so their gradient must be that of the program
at the choice whatever the estimator does. Where a draw decides all, the mean is exact.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipp
import vipp_transforms as vt

THETA = np.array([0.4, 1.3, -0.6])


def bernoulli(theta, rv):
    return 1.0 * rv("z", dist.Bernoulli(logits=theta[0]))


def one_hot(theta, rv):
    logits = jnp.stack([theta[0], 0.3 - theta[0], 0.5 * theta[0]])
    return rv("z", vipp.OneHotCategorical(logits=logits)) @ jnp.array([0.7, -0.4, 1.5])


def linear(x, theta):
    return theta[1] * x + theta[2]


def quadratic(x, theta):
    return theta[1] * x**2 + theta[2] * x


def cubic(x, theta):
    return theta[1] * x**3 + theta[2] * x**2


def both(choice, curve):
    """The mean gradient of the estimate as a function of the estimator, and the true one."""

    def program(theta, rv):
        return curve(choice(theta, rv), theta)

    return program


def gradients(exact, estimator, choice, curve):
    program, theta = both(choice, curve), jnp.asarray(THETA)
    got = exact.estimate(exact.staged(program, default=estimator), theta, orders=1)
    want = exact.expectation(program, theta)
    np.testing.assert_allclose(got.value, want.value, rtol=1e-6)
    return np.asarray(got.grad), np.asarray(want.grad)


# the degree of terms up to which each is exact, in one choice
EXACT_TO = {
    "straight-through": (vt.StraightThrough(), [linear], [quadratic, cubic]),
    "reinmax": (vt.ReinMax(), [linear, quadratic], [cubic]),
    "sparse-mixer": (vt.SparseMixer(), [linear, quadratic], [cubic]),
}


@pytest.mark.parametrize("choice", [bernoulli, one_hot])
@pytest.mark.parametrize("name", EXACT_TO)
def test_exact_up_to_a_degree_and_not_beyond(exact, x64, name, choice):
    estimator, exact_for, biased_for = EXACT_TO[name]
    for curve in exact_for:
        got, want = gradients(exact, estimator, choice, curve)
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)
    for curve in biased_for:
        got, want = gradients(exact, estimator, choice, curve)
        assert abs(got[0] - want[0]) > 0.02 * abs(want[0])
        np.testing.assert_allclose(got[1:], want[1:], rtol=1e-6, atol=1e-9)


def sampled(exact, estimator, choice, curve, draws):
    """Mean and standard error of the gradient, and the true one."""
    program, theta = both(choice, curve), jnp.asarray(THETA)
    _, drawn = exact.estimates(program, theta, default=estimator, batch=draws)(1)
    want = np.asarray(exact.expectation(program, theta).grad)
    return drawn.mean(0), drawn.std(0) / draws**0.5, want


@pytest.mark.few(1)
@pytest.mark.parametrize("choice", [bernoulli, one_hot])
@pytest.mark.parametrize("hard", [False, True])
def test_gumbel_softmax_is_unbiased_as_the_temperature_falls(exact, x64, choice, hard):
    curve = linear if hard else quadratic  # straight-through keeps a bias where terms are curved
    biases, errors = [], []
    for temperature in (2.0, 0.6, 0.05):
        estimator = vt.GumbelSoftmax(temperature=temperature, hard=hard)
        mean, error, want = sampled(exact, estimator, choice, curve, 150_000)
        biases.append(np.abs(mean - want).max())
        errors.append(error.max())
        if hard:
            assert (np.abs(mean - want)[1:] < 4.5 * error[1:] + 1e-9).all()
    assert biases[0] > 1.5 * biases[1] > 3 * biases[2], biases
    assert errors[2] < 0.03 and biases[2] < 0.02 + 4.5 * errors[2]


def test_the_bias_of_reste_for_linear_terms_falls_as_the_power_grows(exact, x64):
    """As the paper's power tends to infinity it vanishes; the variance is infinite from 2 on but for the limit."""
    biases = []
    for power in (1.0, 2.0, 3.0):
        estimator = vt.ReSTE(power=power, limit=1e3)
        mean, error, want = sampled(exact, estimator, bernoulli, linear, 400_000)
        biases.append(abs(mean[0] - want[0]))
        assert (np.abs(mean - want)[1:] < 4.5 * error[1:] + 1e-9).all()
    # by quadrature over the logistic noise
    np.testing.assert_allclose(biases, [0.3377, 0.1176, 0.0660], atol=0.018)
    assert biases[0] > 2 * biases[1] > 2.5 * biases[2], biases


def test_reste_of_power_one_is_half_the_identity(exact, x64):
    estimator = vt.ReSTE(power=1.0)
    mean, _, _ = sampled(exact, estimator, bernoulli, linear, 100)
    np.testing.assert_allclose(mean[0], 0.5 * THETA[1], rtol=1e-6)


def test_relaxed_values_lie_between_the_choices():
    for estimator in (vt.GumbelSoftmax(0.7), vt.GumbelSoftmax(0.7, hard=True), vt.ReSTE()):
        program = lambda key: vt.surrogate(
            lambda: (vt.sample(key, dist.Bernoulli(0.4), estimator, name="z"), None)
        )()[0]
        values = np.asarray(jax.vmap(program)(jax.random.split(jax.random.key(0), 200)))
        hard = set(np.unique(np.round(values, 5))) <= {0.0, 1.0}
        assert values.min() >= -1e-6 and values.max() <= 1 + 1e-6
        assert hard == (estimator != vt.GumbelSoftmax(0.7))
