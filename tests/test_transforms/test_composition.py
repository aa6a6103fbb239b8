"""The estimate is a JAX function like any other."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipp_transforms as vt

pytestmark = pytest.mark.uncompiled

ESTIMATORS = [vt.Enumerate(), vt.ScoreFunction(), vt.ScoreFunction(2, "leave_one_out")]
IDS = ["enumerate", "score", "leave-one-out"]
KEYS = jax.random.split(jax.random.key(0), 4)
THETA = jnp.array([0.3, -0.2])


def estimator_of(estimator):
    def estimate(theta, key):
        def program(theta):
            one, two, three = jax.random.split(key, 3)
            z = vt.sample(one, dist.Bernoulli(logits=theta), estimator, name="z") * 1.0
            x = vt.sample(two, dist.Normal(theta[0], 1.0), vt.Pathwise(), name="x")
            y = vt.sample(three, dist.Categorical(logits=theta * x), estimator, name="y")
            return jnp.prod(1 + z) * jnp.sin(x) + jnp.cos(1.0 * y) * z.sum()

        return vt.surrogate(lambda t: (program(t), None))(theta)[0]

    return estimate


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-4), a, b)


@pytest.fixture(params=ESTIMATORS, ids=IDS, scope="module")
def estimate(request):
    return estimator_of(request.param)


@pytest.fixture(scope="module")
def plain(estimate):
    """Value and gradient for each key, one by one."""
    one = jax.jit(jax.value_and_grad(estimate))
    return [one(THETA, k) for k in KEYS]


@pytest.mark.thorough
def test_jit(estimate, plain):
    close(jax.jit(jax.value_and_grad(estimate))(THETA, KEYS[0]), plain[0])


def test_vmap_over_keys(estimate, plain):
    got = jax.jit(jax.vmap(jax.value_and_grad(estimate), (None, 0)))(THETA, KEYS)
    close(got, jax.tree.map(lambda *x: jnp.stack(x), *plain))


def test_vmap_over_parameters_and_keys(estimate, plain):
    thetas = jnp.stack([THETA, THETA, -THETA, THETA])
    got = jax.jit(jax.vmap(jax.value_and_grad(estimate)))(thetas, KEYS)
    close(jax.tree.map(lambda x: x[1], got), plain[1])
    close(jax.tree.map(lambda x: x[3], got), plain[3])


def test_gradient_of_a_mean_over_keys(estimate, plain):
    mean = lambda t: jax.vmap(estimate, (None, 0))(t, KEYS).mean()
    close(jax.jit(jax.grad(mean))(THETA), jnp.stack([g for _, g in plain]).mean(0))


def test_checkpoint_around(estimate, plain):
    close(jax.jit(jax.value_and_grad(jax.checkpoint(estimate)))(THETA, KEYS[0]), plain[0])


def test_forward_and_reverse_mode_agree(estimate, plain):
    close(jax.jit(jax.jacfwd(estimate))(THETA, KEYS[0]), plain[0][1])


@pytest.mark.few(1)
def test_gradient_of_gradient(estimate):
    reverse = jax.jit(jax.jacrev(jax.grad(estimate)))(THETA, KEYS[0])
    close(reverse, jax.jit(jax.hessian(estimate))(THETA, KEYS[0]))
    close(reverse, reverse.T)
    assert np.abs(reverse).max() > 0 or estimate is None


def test_a_training_loop_in_scan(estimate):
    def step(theta, key):
        value, grad = jax.value_and_grad(estimate)(theta, key)
        return theta - 0.1 * grad, value

    end, values = jax.jit(lambda t: jax.lax.scan(step, t, KEYS))(THETA)
    theta, one, each = THETA, jax.jit(step), []
    for key in KEYS:
        theta, value = one(theta, key)
        each.append(value)
    close((end, values), (theta, jnp.stack(each)))


def test_cond_around(estimate, plain):
    either = lambda t, k: jax.lax.cond(t[0] > 0, estimate, lambda t, _: t.sum(), t, k)
    close(jax.jit(jax.value_and_grad(either))(THETA, KEYS[0]), plain[0])


def test_no_retracing_across_steps(estimate):
    traces = 0

    def counted(theta, key):
        nonlocal traces
        traces += 1
        return estimate(theta, key)

    step = jax.jit(jax.grad(counted))
    for key in KEYS:
        step(THETA, key)
    assert traces == 1


@pytest.mark.check_leaks
def test_no_tracer_leaks():
    slope = jax.jit(jax.grad(estimator_of(vt.Enumerate())))(THETA, KEYS[0])
    assert np.isfinite(slope).all()


def test_an_estimate_inside_a_program(exact):
    """Nested: the inner expectation is a term like any other."""

    def inner(t, key):
        program = lambda t: (
            vt.sample(key, dist.Bernoulli(logits=t), vt.Enumerate(), name="y") * 1.0,
            None,
        )
        return vt.surrogate(program)(t)[0]

    def outer(theta):
        z = vt.sample(KEYS[0], dist.Bernoulli(logits=theta[0]), vt.ScoreFunction(), name="z")
        return inner(theta[1] + z, KEYS[1]) ** 2, None

    def truth(theta):
        p = jax.nn.sigmoid(theta[0])
        f = lambda z: jax.nn.sigmoid(theta[1] + z) ** 2
        return (1 - p) * f(0) + p * f(1)

    got = exact.estimate(outer, THETA, orders=1)
    close((got.value, got.grad), jax.jit(jax.value_and_grad(truth))(THETA))


# -- lanes of vmap are independent, whatever the estimator and whatever was mapped ------------


def lane_draws(estimator, in_axes, shape):
    """Draws of a Normal under one or two vmaps, keys and locations mapped or not."""

    def one(key, loc):
        return vt.sample(key, dist.Normal(loc, 1.0), estimator, name="z")

    keys_mapped = in_axes == "keys"
    keys = jax.random.split(jax.random.key(1), shape) if keys_mapped else jax.random.key(1)
    locs = jnp.zeros(()) if in_axes == "keys" else jnp.zeros(shape)
    axes = (0, None) if keys_mapped else (None, 0)
    for _ in shape:
        one = jax.vmap(one, in_axes=axes)
    return one(keys, locs)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("in_axes", ["keys", "locations"])
@pytest.mark.parametrize("estimator", [vt.Pathwise(), vt.ScoreFunction()])
def test_lanes_are_drawn_independently(estimator, in_axes, shape):
    draws = lane_draws(estimator, in_axes, shape)
    assert draws.shape == shape
    assert np.unique(draws).size == draws.size


@pytest.mark.parametrize("estimator", [vt.Pathwise(), vt.ScoreFunction()])
def test_a_key_mapped_inside_and_a_location_outside(estimator):
    def one(key, loc):
        return vt.sample(key, dist.Normal(loc, 1.0), estimator, name="z")

    keys = jax.random.split(jax.random.key(1), 3)
    draws = jax.vmap(jax.vmap(one, (0, None)), (None, 0))(keys, jnp.zeros(4))
    assert draws.shape == (4, 3)
    assert np.unique(draws).size == draws.size


@pytest.mark.parametrize("estimator", [vt.Pathwise(), vt.ScoreFunction()])
def test_lanes_are_independent_inside_a_program(estimator):
    """The same under staging, and through a compiled inner function."""

    def program(locs):
        one = jax.jit(lambda loc: vt.sample(KEYS[0], dist.Normal(loc, 1.0), estimator, name="z"))
        draws = jax.vmap(one)(locs)
        coin = vt.sample(KEYS[1], dist.Bernoulli(0.5), vt.Enumerate(), name="coin")
        return draws.sum() * coin, draws

    _, draws = vt.surrogate(program)(jnp.zeros(6))
    assert np.unique(draws).size == 6


def test_lane_key_leaves_a_single_key_alone():
    key = jax.random.key(3)
    assert vt.lane_key(key, dist.Normal(jnp.zeros(4), 1.0)) == key
    draws = vt.sample(key, dist.Normal(0.0, 1.0), vt.Pathwise(), name="z")
    assert draws == dist.Normal(0.0, 1.0).sample(key)


def test_pathwise_costs_nothing():
    """A program of pathwise choices alone is its own estimate: equation by equation."""

    def program(theta):
        x = vt.sample(KEYS[0], dist.Normal(theta, 1.0), vt.Pathwise(), name="x")
        return jnp.sin(x).sum()

    names = lambda fn: [e.primitive.name for e in jax.make_jaxpr(fn)(THETA).eqns]
    estimate = lambda t: vt.surrogate(lambda t: (program(t), None))(t)[0]
    count = lambda found: {n: found.count(n) for n in ("sin", "reduce_sum", "add", "mul")}
    assert count(names(estimate)) == count(names(program))
