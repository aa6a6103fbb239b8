"""Variance: each choice is credited with what it influenced, alone. Fixed keys throughout.

With 4,096 samples a standard deviation of a bounded summand is known to about 2%, so a factor of
1.25 between plate sizes is far outside the noise; without credit it would be 4 at each step.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipp_transforms as vt

pytestmark = pytest.mark.uncompiled

SAMPLES = 4096


def bernoulli(key, logits, estimator, name="z"):
    return vt.sample(key, dist.Bernoulli(logits=logits), estimator, name=name) * 1.0


def gradients(fn, theta, samples=SAMPLES, seed=0):
    """One gradient per key."""
    one = lambda key: jax.grad(lambda t: vt.surrogate(lambda t: (fn(key, t), None))(t)[0])(theta)
    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), samples))


def plate(estimator):
    def program(key, theta):
        z = bernoulli(key, theta, estimator)
        return ((z - 0.45) ** 2 + 0.5 * z).sum()

    return program


def vmapped(estimator):
    def program(key, theta):
        one = lambda k, t: bernoulli(k, t, estimator)
        z = jax.vmap(one)(jax.random.split(key, theta.size), theta)
        return ((z - 0.45) ** 2 + 0.5 * z).sum()

    return program


@functools.cache
def deviation(program, estimator, size):
    each = gradients(program(estimator), jnp.full(size, 0.3))
    return float(each.std(0).max()), float(jnp.abs(each.mean(0) - each.mean()).max())


SCORES = [vt.ScoreFunction(), vt.ScoreFunction(2, "leave_one_out")]


@pytest.mark.parametrize("size", [4, 16, 64])
@pytest.mark.parametrize("estimator", SCORES, ids=["score", "leave-one-out"])
@pytest.mark.parametrize("program", [plate, vmapped])
def test_deviation_does_not_grow_with_the_plate(program, estimator, size):
    alone, _ = deviation(program, estimator, 1)
    largest, spread = deviation(program, estimator, size)
    assert 0 < largest <= 1.25 * alone
    assert spread <= 5 * alone / np.sqrt(SAMPLES)  # all lanes have the same expected gradient


def test_deviation_does_not_grow_with_the_chain():
    """A site is not credited with what came before it."""

    def chain(length):
        def program(key, theta):
            keys = jax.random.split(key, length)
            z = [bernoulli(k, t, SCORES[0], f"z{i}") for i, (k, t) in enumerate(zip(keys, theta))]
            return sum(a * b for a, b in zip(z, z[1:], strict=False)) + z[0]

        return program

    short, long = (gradients(chain(n), jnp.full(n, 0.3)).std(0) for n in (4, 16))
    np.testing.assert_allclose(long[1:-1].max(), short[1:-1].max(), rtol=0.15)


@pytest.mark.parametrize("estimator", [*SCORES, vt.Enumerate()], ids=["score", "loo", "enumerate"])
def test_terms_of_other_sites_add_nothing(estimator):
    """Sample by sample, whatever the size of the other term."""

    def program(size):
        def run(key, theta):
            one, two = jax.random.split(key)
            a = bernoulli(one, theta[0], estimator, "a")
            b = bernoulli(two, theta[1], vt.ScoreFunction(), "b")
            return jnp.sin(a + theta[0]) + size * jnp.cos(b)

        return run

    theta = jnp.array([0.3, -0.2])
    small, large = (gradients(program(size), theta, 64) for size in (1.0, 1e6))
    np.testing.assert_array_equal(small[:, 0], large[:, 0])
    assert not np.allclose(small[:, 1], large[:, 1])


def test_terms_of_other_lanes_add_nothing():
    def program(size):
        def run(key, theta):
            z = bernoulli(key, theta, vt.ScoreFunction())
            return (jnp.array([1.0, size]) * jnp.exp(z)).sum()

        return run

    theta = jnp.array([0.3, -0.2])
    small, large = (gradients(program(size), theta, 64) for size in (1.0, 1e6))
    np.testing.assert_array_equal(small[:, 0], large[:, 0])


def test_a_constant_has_no_gradient():
    """Not even noise: a term that no choice influences is credited to none."""

    def program(key, theta):
        z = bernoulli(key, theta, vt.ScoreFunction())
        return 1e6 + z.sum() * 0.0 + theta.sum()

    np.testing.assert_allclose(gradients(program, jnp.zeros(3), 64), 1.0)


@pytest.mark.parametrize("mixing", [jnp.prod, lambda x: jnp.log(x.sum())])
def test_enumeration_has_no_variance(mixing):
    def program(key, theta):
        return mixing(1 + bernoulli(key, theta, vt.Enumerate()))

    each = gradients(program, jnp.array([0.3, -0.2, 0.1]), 16)
    np.testing.assert_array_equal(each, np.broadcast_to(each[:1], each.shape))


def test_a_baseline_removes_a_constant_exactly():
    """Leave-one-out: adding a number to what the site influences changes nothing."""

    def program(offset):
        return lambda key, theta: jnp.exp(offset + jnp.log1p(bernoulli(key, theta, SCORES[1])))

    def affine(key, theta):
        return jnp.maximum(bernoulli(key, theta, SCORES[1]) + 100.0, 0.0)

    without = lambda key, theta: jnp.maximum(bernoulli(key, theta, SCORES[1]), 0.0)
    theta = jnp.float32(0.3)
    np.testing.assert_allclose(
        gradients(affine, theta, 64), gradients(without, theta, 64), atol=1e-4
    )
    assert gradients(program(0.0), theta, 64).std() > 0


def test_more_samples_lower_the_variance():
    one, four = (
        gradients(plate(vt.ScoreFunction(n)), jnp.full(2, 0.3)).std(0).max() for n in (1, 4)
    )
    np.testing.assert_allclose(one / four, 2.0, rtol=0.1)
