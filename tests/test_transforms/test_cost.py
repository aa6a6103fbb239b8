"""Each estimator costs as many evaluations of the program as it says."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipp_transforms as vt
from vipp.distributions.answers import Answering

KEY = jax.random.key(0)
WIDE = np.random.default_rng(0).normal(size=(3, 256)).astype(np.float32)
DEEP = np.random.default_rng(1).normal(size=(256, 256)).astype(np.float32)


def bernoulli(theta):
    return dist.Bernoulli(logits=theta)


def normal(theta):
    return dist.Normal(theta, 1.0)


def apart(z, scale):
    """Dear, lane by lane: three lanes are three rows. The scale keeps XLA from folding it away."""
    return jnp.tanh(jnp.tanh(scale * z[:, None] * WIDE) @ DEEP).sum()


def together(z, scale):
    """Dear, and in need of all lanes at once."""
    return jnp.tanh(jnp.tanh(scale * (z @ WIDE)) @ DEEP).sum()


def operations(make, f, estimator):
    """Floating-point operations of value and gradient, as XLA counts them."""

    def loss(theta, scale):
        if estimator is None:
            return f(make(theta).mean, scale)
        draw = lambda: 1.0 * vt.sample(KEY, Answering(make(theta), "z"), estimator, name="z")
        return vt.surrogate(lambda: (f(draw(), scale), None))()[0]

    lowered = jax.jit(jax.value_and_grad(loss)).lower(jnp.zeros(3), jnp.float32(1.0))
    analysis = lowered.compile().cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]


RELAX = vt.RELAX(4, vt.RELAX(4).init(KEY, 3))
ROWS = {  # evaluations where lanes are apart, and together
    "score": (bernoulli, vt.ScoreFunction(), 1, 1),
    "score4": (bernoulli, vt.ScoreFunction(4, "leave_one_out"), 4, 4),
    "score4-antithetic": (bernoulli, vt.ScoreFunction(4, antithetic=True), 4, 4),
    "score-baseline": (bernoulli, vt.ScoreFunction(baseline=jnp.float32(2.0)), 1, 1),
    "enumerate": (bernoulli, vt.Enumerate(), 2, 8),
    "local": (bernoulli, vt.LocalExpectation(), 2, 6),
    "measure": (bernoulli, vt.MeasureValued(), 3, 7),
    "measure-normal": (normal, vt.MeasureValued(), 5, 13),
    "arm": (bernoulli, vt.ARM(), 2, 2),
    "disarm": (bernoulli, vt.DisARM(), 2, 2),
    "rebar": (bernoulli, vt.REBAR(), 3, 3),
    "double": (bernoulli, vt.DoubleControlVariates(2), 2, 2),
    "mix": (bernoulli, vt.Mix(vt.DisARM(), vt.ScoreFunction(), 0.5), 3, 3),
    "pathwise": (normal, vt.Pathwise(), 1, 1),
    "pathwise4": (normal, vt.Pathwise(4), 4, 4),
    "pathwise4-antithetic": (normal, vt.Pathwise(4, antithetic=True), 4, 4),
    "pathwise4-quasi": (normal, vt.Pathwise(4, quasi=True), 4, 4),
    "gumbel": (bernoulli, vt.GumbelSoftmax(), 1, 1),
    "straight-through": (bernoulli, vt.StraightThrough(), 1, 1),
    "reinmax": (bernoulli, vt.ReinMax(), 1, 1),
    "reste": (bernoulli, vt.ReSTE(), 1, 1),
    "sparse-mixer": (bernoulli, vt.SparseMixer(), 3, 3),
}
# A program differentiated once costs this many evaluations without a gradient.
BACKWARD = {"pathwise", "rebar", "double", "gumbel", "straight", "reinmax", "reste", "sparse"}
SUMS_APART = {"double"}  # no derivative in the draw where lanes are apart


@pytest.mark.few(4)
@pytest.mark.parametrize("name", ROWS)
def test_operations_are_those_of_the_evaluations(name):
    make, estimator, *counts = ROWS[name]
    for f, evaluations in zip((apart, together), counts, strict=True):
        once = operations(make, lambda z, scale: f(jax.lax.stop_gradient(z), scale), None)
        both = operations(make, f, None)
        backward = name.split("-")[0].rstrip("4") in BACKWARD or "straight" in name
        unit = both if backward and not (f is apart and name in SUMS_APART) else once
        got = operations(make, f, estimator) / unit
        assert got <= 1.15 * evaluations, f"{got:.2f} evaluations of {evaluations}"
        assert got >= 0.6 * evaluations, f"{got:.2f} evaluations of {evaluations}"


def test_learning_on_the_variance_costs_a_few_gradients_more():
    unit = operations(bernoulli, together, None)
    assert operations(bernoulli, together, RELAX) < 12 * unit


def test_a_taylor_expansion_costs_a_few_gradients_more():
    unit = operations(normal, together, None)
    assert operations(normal, together, vt.Pathwise(control_variate="taylor")) < 12 * unit
