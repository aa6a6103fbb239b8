"""``stop_gradient`` of what was drawn: refused, but where the result does not depend on it."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import paramax
import pytest

import vipp_transforms as vt

KEY = jax.random.key(0)
stop = jax.lax.stop_gradient


def estimate(objective, estimator):
    """Of ``E[objective(z, t)]``, with ``z ~ Bernoulli(sigmoid(t))``."""

    def f(t):
        z = vt.sample(KEY, dist.Bernoulli(logits=t), estimator, name="z")
        return objective(1.0 * z, t), None

    return lambda t: vt.surrogate(f)(t)[0]


REFUSED = {
    "of the choice": lambda z, t: stop(z) ** 2,
    "of a function of it": lambda z, t: z * stop(jnp.sin(z * t)),
    "its own idea of a step": lambda z, t: z + stop(jnp.round(z) - z),
    "under vmap": lambda z, t: jax.vmap(lambda x: stop(x * z))(jnp.arange(2.0)).sum(),
    "under grad": lambda z, t: jax.grad(lambda x: x * stop(x * z))(2.0),
    "in a jit": lambda z, t: jax.jit(stop)(z),
    "handed to a map": lambda z, t: jax.lax.map(stop, jnp.stack([z, t])).sum(),
    "of a tree": lambda z, t: jax.tree.map(stop, [z])[0],
    "in a checkpoint": lambda z, t: jax.checkpoint(lambda z: stop(z) * z)(z),
    "in a loop": lambda z, t: jax.lax.fori_loop(0, 3, lambda i, c: c + stop(c) + z, 0.0),
    "in a branch": lambda z, t: jax.lax.cond(t > 0, lambda: stop(z), lambda: z),
    "handed to vmap": lambda z, t: jax.vmap(stop)(z[None])[0],
    "handed to vmap by vmap": lambda z, t: jax.vmap(jax.vmap(stop))(z[None, None])[0, 0],
    "handed to vectorize": lambda z, t: jnp.vectorize(stop)(z),
    "handed to a checkpoint": lambda z, t: jax.checkpoint(stop)(z),
    "handed to a scan": lambda z, t: jax.lax.scan(lambda c, x: (stop(c), x), z, None, length=2)[0],
    "handed to a branch, under vmap": lambda z, t: jax.vmap(
        lambda x: jax.lax.cond(x > 0, stop, jnp.sin, x * z)
    )(jnp.array([-1.0, 2.0])).sum(),
    "handed to a tree": lambda z, t: jax.tree_util.tree_map(stop, {"a": z})["a"],
    "in part": lambda z, t: functools.partial(stop)(z),
    "handed to another library": lambda z, t: eqx.filter_jit(stop)(z),
    "as a layer": lambda z, t: eqx.nn.Sequential([eqx.nn.Lambda(stop)])(z[None])[0],
    "a library's own word": lambda z, t: paramax.unwrap(paramax.non_trainable(z)),
    "an argument without a derivative": lambda z, t: _without_derivative(z, t),
    "in another's parameter": lambda z, t: (
        1.0 * vt.sample(KEY, dist.Bernoulli(logits=stop(z)), vt.Enumerate(), name="y")
    ),
}


def _without_derivative(z, t):
    times = jax.custom_jvp(lambda a, b: a * b, nondiff_argnums=(0,))
    times.defjvp(lambda a, primals, tangents: (a * primals[0], a * tangents[0]))
    return times(z, t)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize(
    "estimator", [vt.Enumerate(), vt.ScoreFunction(), vt.MeasureValued()], ids=repr
)
def test_of_a_choice_is_refused(name, estimator):
    with pytest.raises(vt.SiteError, match="Site 'z': jax.lax.stop_gradient .*Fix: use vipp.cons"):
        jax.eval_shape(estimate(REFUSED[name], estimator), 0.3)


def test_in_a_loop_that_draws_is_refused():
    def f(t):
        def step(c, k):
            z = vt.sample(k, dist.Bernoulli(logits=t), vt.ScoreFunction(), name="z")
            return c + stop(1.0 * z), None

        return jax.lax.scan(step, 0.0, jax.random.split(KEY, 3))[0], None

    with pytest.raises(vt.SiteError, match="Site 'z': jax.lax.stop_gradient"):
        jax.eval_shape(lambda t: vt.surrogate(f)(t)[0], 0.3)


MATRIX = jnp.array([[2.0, 0.3], [0.1, 1.0]])
ALLOWED = {
    "of a parameter": lambda z, t: z * stop(t),
    "next to the choice": lambda z, t: z * t + stop(t * t),
    "logsumexp": lambda z, t: jax.nn.logsumexp(jnp.stack([z, t])),
    "softmax": lambda z, t: jax.nn.softmax(jnp.stack([z, t, 0.5 * z]))[2],
    "log_softmax": lambda z, t: jax.nn.log_softmax(jnp.stack([z, t]))[0],
    "solve": lambda z, t: jnp.linalg.solve(MATRIX + z * t, jnp.stack([z, t])).sum(),
    "logsumexp, handed to vmap": lambda z, t: jax.vmap(jax.nn.logsumexp)(
        jnp.stack([z, t, 2 * z, t])[:, None]).sum(),
    "logsumexp, handed to another library": lambda z, t: eqx.filter_jit(jax.nn.logsumexp)(
        jnp.stack([z, t])),
    "logaddexp": lambda z, t: jnp.logaddexp(z, t),
    "a mixture's density": lambda z, t: dist.MixtureSameFamily(
        dist.Categorical(logits=jnp.stack([z, t])), dist.Normal(jnp.stack([t, z]), 1.0)
    ).log_prob(0.4),
    "branch under vmap": lambda z, t: jax.vmap(
        lambda x: jax.lax.cond(x * z > 0, jnp.exp, jnp.sin, x * t))(jnp.array([-1.0, 2.0])).sum(),
    "a truncated draw": lambda z, t: t * jax.random.truncated_normal(KEY, z, z + 1e-6),
    "a density": lambda z, t: dist.Beta(1.0 + z, 2.0).log_prob(jax.nn.sigmoid(t)),
}  # fmt: skip


@pytest.mark.few(3)
@pytest.mark.parametrize("name", ALLOWED)
def test_what_a_result_does_not_depend_on_may_be_stopped(name):
    got = jax.jit(jax.value_and_grad(estimate(ALLOWED[name], vt.Enumerate())))(0.3)

    def exact(t):
        p, f = jax.nn.sigmoid(t), ALLOWED[name]
        return p * f(jnp.float32(1.0), t) + (1 - p) * f(jnp.float32(0.0), t)

    for a, b in zip(got, jax.jit(jax.value_and_grad(exact))(0.3)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


class Odds(dist.BernoulliLogits):
    """A distribution of the user's own."""

    def sample(self, key, sample_shape=()):
        """Of an index there is no derivative."""
        return dist.BernoulliLogits(stop(self.logits)).sample(key, sample_shape)


@pytest.mark.parametrize("estimator", [vt.ScoreFunction(), vt.Enumerate()], ids=repr)
def test_a_distribution_may_stop_where_it_draws(estimator):
    """In a loop that stays one, the draw's own operations are the program's."""

    def f(t):
        def step(c, k):
            return 1.0 * vt.sample(k, Odds(logits=c + t), estimator, name="z"), None

        return jax.lax.scan(step, 0.0, jax.random.split(KEY, 3))[0], None

    assert jax.eval_shape(lambda t: vt.surrogate(f)(t)[0], 0.3).shape == ()


def test_of_a_pathwise_value_it_is_jaxs():
    def f(m):
        return stop(vt.sample(KEY, dist.Normal(m, 1.0), vt.Pathwise(), name="z")) ** 2, None

    assert float(jax.jit(jax.grad(lambda m: vt.surrogate(f)(m)[0]))(1.0)) == 0.0
