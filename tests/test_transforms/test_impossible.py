"""Values of probability 0 whose term is not finite count nothing, whatever the estimator."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

import vipp
import vipp_transforms as vt

THETA = jnp.array([0.3, -0.7, 0.4], jnp.float32)
COSTS = jnp.array([0.5, 1.0, -jnp.inf])
ESTIMATORS = {
    "enumerate": vt.Enumerate(),
    "automatic": vt.Automatic(max_samples=2),
    "local": vt.LocalExpectation(),
    "measure": vt.MeasureValued(),
    "score": vt.ScoreFunction(),
    "mix": vt.Mix(vt.MeasureValued(), vt.ScoreFunction(), 0.4),
    "mix-nested": vt.Mix(vt.Mix(vt.Enumerate(), vt.LocalExpectation(), 0.3), vt.ScoreFunction(), 2),
}


def probs(theta, rv):
    return COSTS[rv("z", dist.Categorical(probs=jnp.append(jax.nn.softmax(theta[:2]), 0.0)))]


def logits(theta, rv):
    z = rv("z", dist.Categorical(logits=jnp.append(theta[:2], -jnp.inf)))
    return COSTS[z] + theta[2] * z


def together(theta, rv):
    """Two lanes that the term mixes; both may be impossible."""
    each = jnp.stack([theta[:2], -theta[:2]])
    each = jnp.concatenate([each, jnp.full((2, 1), -jnp.inf)], 1)
    z = rv("z", dist.Categorical(logits=each))
    return (COSTS[z].sum() - theta[2] * z.sum()) * (1.0 + z[0])


def clipped(theta, rv):
    """NumPyro clips the probability to a number that is not zero."""
    z = rv("z", dist.Bernoulli(probs=jnp.zeros(())))
    return jnp.where(z == 1, jnp.inf, theta[2] ** 2)


@pytest.mark.few(4)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("program", [probs, logits, together, clipped], ids=lambda f: f.__name__)
def test_nothing_comes_of_what_cannot_be(exact, program, estimator):
    values = jnp.arange(1 if program is clipped else 2)
    grids = {"z": exact.Grid(values, jnp.zeros(len(values)))}
    exact.check(program, THETA, default=ESTIMATORS[estimator], grids=grids, orders=1)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "estimator",
    [vt.REBAR(), vt.GumbelSoftmax(), vt.GumbelSoftmax(5.0), vt.ReinMax(), vt.SparseMixer(),
     vt.StraightThrough()],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_a_category_that_cannot_be_is_no_part_of_a_relaxation(estimator):
    """Values and gradients are those of the choice without it, but for the noise drawn."""

    def program(theta):
        d = vipp.OneHotCategorical(logits=jnp.append(theta[:2], -jnp.inf))
        z = vt.sample(jax.random.key(0), d, estimator, name="z")
        return theta[2] * z[0] + 2.0 * z[2], None

    value, grad = jax.jit(jax.value_and_grad(lambda theta: vt.surrogate(program)(theta)[0]))(THETA)
    assert jnp.isfinite(value) and jnp.isfinite(grad).all()
    assert 0 <= value <= THETA[2] + 1e-6  # nothing of the last one


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "estimator",
    [vt.DisARM(), vt.ARM(), vt.ARMS(3), vt.REBAR(), vt.ReSTE(), vt.MeasureValued(),
     vt.DoubleControlVariates(3), vt.FittedControlVariates(3)],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_certain_lanes(estimator):
    """Of infinite logits: one is 0, one is 1, and neither has a gradient."""

    def term(theta):
        logits = jnp.concatenate([theta[:1], jnp.array([-jnp.inf, jnp.inf])])
        z = vipp.sample("z", dist.Bernoulli(logits=logits), estimator)
        return 2.0 * z[1] + z[2] + 0.0 * z[0]

    value, grad = jax.jit(jax.value_and_grad(vipp.expectation(term), 1))(jax.random.key(0), THETA)
    assert jnp.allclose(value, 1.0, atol=1e-6)
    assert jnp.allclose(grad, 0.0, atol=1e-6)
