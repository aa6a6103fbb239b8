"""Antithetic and quasi-random noise draws from the distribution itself, or is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import transforms

import vipp
from vipp.distributions.answers import Answering
from vipp.distributions.lanes import lane_distribution

from .pathwise_scalars import mixtures, scalars, wrapped
from .pathwise_vectors import vectors

KEY, DRAWS = jax.random.key(1), 4096
TRIL = jnp.array([[1.0, 0.0], [0.5, 2.0]])
OTHERS = {
    "lanes of a batch": dist.Normal(jnp.zeros((3, 1)), jnp.ones((3, 1))).expand([3, 2]),
    "a batch of vectors": dist.MultivariateNormal(jnp.ones((3, 2)), TRIL @ TRIL.T).expand([2, 3]),
    "coordinates mixed": dist.TransformedDistribution(
        dist.Normal(jnp.zeros(2), 1.0).to_event(1),
        transforms.LowerCholeskyAffine(jnp.ones(2), TRIL),
    ),
    "GaussianCopula, independent": dist.GaussianCopula(dist.Exponential(jnp.ones(2)), jnp.eye(2)),
    "another shape": dist.TransformedDistribution(
        dist.Normal(jnp.zeros(2), 1.0).to_event(1), transforms.StickBreakingTransform()
    ),
}
ROWS = {**scalars(), **wrapped(), **mixtures(), **vectors()}
# of these nothing but their own sampler draws
REFUSED = {
    "GaussianCopula", "GaussianCopula, independent", "MultivariateStudentT", "another shape",
    "MixtureSameFamily", "MixtureGeneral", "Dirichlet", "Gamma", "Beta", "StudentT", "VonMises",
    "CAR", "MatrixNormal", "GaussianRandomWalk", "EulerMaruyama", "LKJ", "ZeroSumNormal",
}  # fmt: skip
DRAWN = {
    "Normal", "Uniform", "Pareto", "LogUniform", "RelaxedBernoulliLogits", "MultivariateNormal",
    "LowRankMultivariateNormal", "TwoSidedTruncatedDistribution", "DoublyTruncatedPowerLaw",
    "CirculantNormal", "flow", "lanes of a batch", "a batch of vectors", "coordinates mixed",
}  # fmt: skip


def made(name):
    return lane_distribution(
        OTHERS[name] if name in OTHERS else ROWS[name].make(*ROWS[name].params)
    )


@pytest.mark.few(5)
@pytest.mark.parametrize("name", [*ROWS, *OTHERS])
def test_uniform_numbers_make_draws(name):
    """Every marginal, and the correlation of ranks, against the distribution's own sampler."""
    answers = Answering(made(name))
    assert answers.has_quantile or name not in DRAWN
    assert not answers.has_quantile or name not in REFUSED
    if not answers.has_quantile:
        return
    shape = (DRAWS, *answers.batch_shape, *answers.event_shape)
    u = jax.random.uniform(KEY, shape, minval=1e-6, maxval=1 - 1e-6)
    got = np.asarray(jax.vmap(answers.quantile)(u)).reshape(DRAWS, -1)
    want = np.asarray(jax.vmap(answers.sample)(jax.random.split(KEY, DRAWS))).reshape(DRAWS, -1)
    levels = np.linspace(0.05, 0.95, 10)
    for x, y in zip(got.T, want.T):
        np.testing.assert_allclose(
            (x[:, None] <= np.quantile(y, levels)).mean(0), levels, atol=0.04
        )
    ranks = lambda z: np.corrcoef(z.argsort(0).argsort(0).T)
    np.testing.assert_allclose(ranks(got), ranks(want), atol=0.09)


@pytest.mark.parametrize(
    "estimator", [vipp.Pathwise(2, antithetic=True), vipp.Pathwise(2, quasi=True),
                  vipp.ScoreFunction(2, antithetic=True)],
)  # fmt: skip
@pytest.mark.parametrize("name", ["MultivariateStudentT", "GaussianCopula, independent"])
def test_a_distribution_without_is_refused(name, estimator):
    fn = OTHERS[name] if name in OTHERS else ROWS[name].make(*ROWS[name].params)
    draw = lambda: vipp.sample("x", fn, estimator).sum()
    with pytest.raises(vipp.SiteError, match=r"'x': .*quantile function, got \w+.*Fix: "):
        jax.eval_shape(vipp.expectation(draw), KEY)
