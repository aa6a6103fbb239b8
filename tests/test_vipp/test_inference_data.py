"""A fitted model in ArviZ's format."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer.svi import SVIState

import vipp

KEY = jax.random.key(0)
X = jnp.array([[0.3, -1.2, 2.0], [1.1, 0.2, -0.4]])


def model(x, minibatch=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
    numpyro.deterministic("twice", 2 * mean)
    numpyro.factor("f", 0.0 * mean)
    with numpyro.plate("rows", 2, subsample_size=minibatch) as i:
        c = numpyro.sample("c", dist.Bernoulli(0.3))
        z = numpyro.sample("z", dist.Normal(mean, 1.0))
        loc = jnp.stack([z, z + c, z], -1)
        numpyro.sample("x", dist.Normal(loc, 0.1).to_event(1), obs=x[i])

    def step(carry, y):
        numpyro.sample("y", dist.Normal(mean, 0.1), obs=y)
        return carry, None

    scan(step, 0.0, x[0])


def guide(x, minibatch=None):
    numpyro.sample("mean", dist.Normal(numpyro.param("m", 0.0), 0.5))
    with numpyro.plate("rows", 2, subsample_size=minibatch):
        numpyro.sample("z", dist.Normal(numpyro.param("l", 0.0), 1.0))


SUMMED = vipp.marginal(model, keep=["mean", "z"], exact=True)


def fitted(*args, program=SUMMED):
    params = {"m": jnp.array(0.2), "l": jnp.array(-0.3)}
    bound = jax.tree_util.Partial(guide, X, *args)
    return vipp.FitResult(params, jnp.zeros(0), SVIState(None, None, KEY), bound, program)


def test_groups_of_arviz():
    tree = fitted().to_arviz(jax.random.key(1), 400)
    groups = {name: tree[name].to_dataset() for name in tree.children}
    assert groups.keys() == {
        "posterior", "posterior_predictive", "log_likelihood", "observed_data"
    }  # fmt: skip
    drawn = {n: np.asarray(x) for n, x in groups["posterior"].items()}
    assert drawn.keys() == {"mean", "twice", "z", "c"}
    assert groups["posterior"]["z"].dims == ("chain", "draw", "rows")
    np.testing.assert_allclose(drawn["twice"], 2 * drawn["mean"], rtol=1e-6)
    assert set(np.unique(drawn["c"])) == {0, 1}

    data, likelihood = groups["observed_data"], groups["log_likelihood"]
    np.testing.assert_array_equal(data["x"], X)
    np.testing.assert_array_equal(data["y"], X[0])
    assert data["x"].dims == ("rows", "x_dim_1") and data["y"].dims == ("y_dim_0",)
    assert likelihood["x"].dims == ("chain", "draw", "rows")
    loc = drawn["z"][..., None] + drawn["c"][..., None] * np.array([0.0, 1.0, 0.0])
    exact = dist.Normal(loc, 0.1).log_prob(X).sum(-1)
    np.testing.assert_allclose(likelihood["x"], exact, rtol=1e-4)
    exact = dist.Normal(drawn["mean"][..., None], 0.1).log_prob(X[0])
    np.testing.assert_allclose(likelihood["y"], exact, rtol=1e-4)

    predicted = groups["posterior_predictive"]
    assert predicted["x"].dims == ("chain", "draw", "rows", "x_dim_1")
    for noise in (predicted["x"] - loc, predicted["y"] - drawn["mean"][..., None]):
        noise = np.asarray(noise) / 0.1
        assert abs(noise.mean()) < 4.5 / noise.size**0.5
        assert abs(noise.std() - 1.0) < 4.5 / (2 * noise.size) ** 0.5


def test_what_arviz_cannot_have(monkeypatch):
    result = fitted()
    with pytest.raises(ValueError, match="num_samples"):
        result.to_arviz(KEY, 0)
    with pytest.raises(ValueError, match="'c' is subsampled by plate 'rows'.*Fix"):
        fitted(1).to_arviz(KEY, 3)
    estimated = vipp.marginal(model, keep=["mean", "z"])
    with pytest.raises(ValueError, match="Marginal, whose density is an estimate"):
        fitted(program=estimated).to_arviz(KEY, 3)
    monkeypatch.setitem(sys.modules, "arviz_base", None)
    with pytest.raises(ImportError, match=r"pip install 'vipp\[arviz\]'"):
        result.to_arviz(KEY, 3)
