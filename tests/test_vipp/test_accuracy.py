"""How near a guide is to the posterior: the tail of its weights, and the gap of two bounds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from jax.tree_util import Partial
from numpyro.infer.autoguide import AutoDelta
from numpyro.infer.svi import SVIState

import vipp
from vipp.diagnostics.pareto import fitted, smoothed

pytestmark = pytest.mark.uncompiled

KEY = jax.random.key(0)
X = jnp.array([0.5, -1.0, 2.0])


def model(x):
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    """The posterior is Normal(x / 2, 2 ** -0.5) of each row."""
    with numpyro.plate("rows", len(x)):
        scale = numpyro.param("scale", jnp.full(3, 0.5**0.5))
        numpyro.sample("z", dist.Normal(x / 2, scale))


def of_scale(scale, program=guide):
    params = {"scale": 0.5**0.5 * jnp.broadcast_to(jnp.asarray(scale), 3)}
    return vipp.FitResult(
        params, jnp.zeros(0), SVIState(None, None, KEY), Partial(program, X), model
    )


@pytest.mark.parametrize("shape", [-0.2, 0.3, 0.7])
def test_the_shape_of_exact_quantiles(shape):
    """Up to the prior, as which ten more would be of a shape of a half."""
    ranks = (np.arange(4000) + 0.5) / 4000
    excess = 3.0 * np.expm1(-shape * np.log1p(-ranks)) / shape
    found, scale = fitted(excess)
    assert abs(found - (4000 * shape + 5) / 4010) < 0.02 and abs(scale - 3.0) < 0.06


def test_smoothed_weights():
    log_w = np.random.default_rng(0).normal(size=1000)
    shape, smooth = smoothed(log_w)
    np.testing.assert_allclose(np.exp(smooth).sum(), 1.0, rtol=1e-12)
    body = np.argsort(log_w)[: 1000 - 95]
    np.testing.assert_allclose(np.ptp((smooth - log_w)[body]), 0.0, atol=1e-12)
    np.testing.assert_array_equal(np.argsort(smooth[np.argsort(log_w)]), np.arange(1000))
    assert 0.0 < shape < 0.7
    assert smoothed(np.zeros(100))[0] == -np.inf and smoothed(np.zeros(9))[0] == np.inf


def test_the_tail_of_a_guide_that_is_too_narrow():
    """Of weights under a normal guide of a fraction ``s`` of the scale it is ``1 - s ** 2``."""
    result, num_samples = of_scale([0.5, 0.8, 1.3]), 400_000
    found = vipp.psis(jax.random.key(1), result, num_samples, per_plate="rows")
    assert found.k_hat.shape == (3,) == found.effective_sample_size.shape
    exact = np.array([0.75, 0.36])
    error = (1 + exact) / (3 * num_samples**0.5) ** 0.5  # of a fit to as many tail weights
    np.testing.assert_array_less(np.abs(found.k_hat[:2] - exact), 4.5 * error)
    assert found.k_hat[2] < 0.1 and found.threshold == 0.7
    second_moment = 1.3 / np.sqrt(2 - 1.3**-2)  # of the weights under the wider guide
    sizes = found.effective_sample_size
    np.testing.assert_allclose(sizes[2], num_samples / second_moment, rtol=0.01)


def test_the_gap_is_the_divergence():
    """Less the bias of the importance weighted bound, half the weights' variance over ``K``."""
    s, particles = 1.3, 500
    found = vipp.bound_gap(jax.random.key(2), of_scale(s), particles, 200)
    divergence = 3 * (s**2 / 2 - 0.5 - np.log(s))
    variance = 3 * (s / np.sqrt(2 - s**-2) - 1)
    assert found.error < 0.02 * divergence
    assert abs(found.gap - divergence + variance / (2 * particles)) < 4.5 * found.error
    evidence = dist.Normal(0.0, 2**0.5).log_prob(X).sum()
    assert abs(found.iwae - evidence) < 0.01
    np.testing.assert_allclose(found.gap, found.iwae - found.elbo, rtol=1e-6)
    assert abs(vipp.bound_gap(KEY, of_scale(1.0), 10, 5).gap) < 1e-5
    together = vipp.psis(KEY, of_scale(s))  # of all elements: their sizes' product
    np.testing.assert_allclose(
        together.effective_sample_size, 1000 / (s / np.sqrt(2 - s**-2)) ** 3, rtol=0.13
    )
    assert together.k_hat < 0.5 and abs(together.threshold - 2 / 3) < 1e-9


def test_what_has_no_weights():
    with pytest.raises(ValueError, match="at least 25"):
        vipp.psis(KEY, of_scale(1.0), 24)
    with pytest.raises(ValueError, match="at least 2"):
        vipp.bound_gap(KEY, of_scale(1.0), 2, 1)
    point = AutoDelta(model)
    with numpyro.handlers.seed(rng_seed=0):
        point(X)
    with pytest.raises(ValueError, match="'z' being a point.*Fix"):
        vipp.psis(KEY, of_scale(1.0, point))


# -- calibration ---------------------------------------------------------------------------------


def test_coverage_of_guides_of_known_error():
    """The posterior's ranks are uniform, up to draws; a fraction of its scale covers less.

    Between the ends of an interval there are a hundred draws: it is off by up to one of them.
    """
    simulations = 2_000
    found = vipp.calibration(KEY, of_scale([1.0, 0.5, 2.0]), simulations, 99)
    assert found.ranks["z"].shape == (simulations, 3) and found.ranks["z"].max() <= 99
    covered = found.coverage(0.9)["z"]
    half = scipy.stats.norm.ppf(0.95)
    exact = np.array([2 * scipy.stats.norm.cdf(half * s) - 1 for s in (1.0, 0.5, 2.0)])
    error = np.sqrt(exact * (1 - exact) / simulations)
    np.testing.assert_array_less(np.abs(covered - exact), 4.5 * error + 0.01)
    fits, *fail = found.p_values()["z"]
    assert fits > 1e-4 and max(fail) < 1e-8


def test_uniform_ranks():
    found = vipp.Calibration({"z": np.arange(100)[:, None]}, 99)
    assert found.coverage(0.5)["z"] == 0.5 and found.p_values()["z"] == 1.0


def test_what_cannot_be_calibrated():
    fixed = of_scale(1.0, lambda x: guide(X))
    with pytest.raises(ValueError, match=r"does not read the data \(\['x'\]\).*Fix"):
        vipp.calibration(KEY, fixed, 5)
    with pytest.raises(ValueError, match="holds the data of site 'x', got .*'x'.*Fix"):
        vipp.calibration(KEY, of_scale(1.0), 5, data={"x": "y"})
    with pytest.raises(ValueError, match="at least 9"):
        vipp.calibration(KEY, of_scale(1.0), 5, 3)
    with pytest.raises(ValueError, match="between 0 and 1"):
        vipp.Calibration({}, 9).coverage(95)
    composed = dataclasses.replace(of_scale(1.0), model=vipp.marginal(model, keep=["z"]))
    with pytest.raises(TypeError, match=r"composed of others \(Marginal\)"):
        vipp.calibration(KEY, composed, 5)
