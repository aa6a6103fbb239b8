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

pytestmark = pytest.mark.uncompiled

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


def regression(x, group, size=3, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("groups", size):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(x)):
        e = numpyro.sample("e", dist.Normal(0.0, 1.0))
        mean = numpyro.deterministic("mean", x @ w + a[group] + e)
        numpyro.sample("y", dist.Normal(mean, 0.1), obs=y)


def of_regression(x, group, size=3, y=None):
    numpyro.sample("w", dist.Normal(numpyro.param("w_", jnp.ones(2)), 0.3).to_event(1))
    with numpyro.plate("groups", size):
        numpyro.sample("a", dist.Normal(numpyro.param("a_", jnp.arange(3.0)), 0.3))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("e", dist.Normal(numpyro.param("e_", jnp.full(len(x), 5.0)), 0.3))


ROWS, GROUP = np.arange(10.0, dtype=np.float32).reshape(5, 2), np.array([0, 1, 2, 0, 1])
PARAMS = {"w_": jnp.ones(2), "a_": jnp.arange(3.0), "e_": jnp.full(5, 5.0)}


def predicting(new):
    bound = jax.tree_util.Partial(of_regression, ROWS, GROUP, y=jnp.zeros(5))
    state = SVIState(None, None, KEY)
    result = vipp.FitResult(PARAMS, jnp.zeros(0), state, bound, regression)
    tree = result.to_arviz(jax.random.key(2), 400, predictions=new)
    groups = {name: tree[name].to_dataset() for name in tree.children}
    values = lambda name: {n: np.asarray(x)[0] for n, x in groups[name].items()}
    return groups, values("posterior"), values("predictions")


def standard_normal(x):
    assert abs(x.mean()) < 4.5 / x.size**0.5
    assert abs(x.std() - 1.0) < 4.5 / (2 * x.size) ** 0.5


def test_predictions_at_other_arguments():
    """With the posterior's values, but of the elements that it does not have."""
    new, group = ROWS[:4] + 1, np.array([2, 2, 0, 1])
    groups, drawn, there = predicting({"x": new, "group": group, "y": None})
    known = drawn["w"] @ new.T + drawn["a"][:, group]
    standard_normal(there["mean"] - known)  # e is of other rows
    standard_normal((there["y"] - there["mean"]) / 0.1)
    for name in ("y", "mean"):
        assert groups["predictions"][name].dims == ("chain", "draw", "rows")
    assert groups["posterior"]["mean"].dims == ("chain", "draw", "rows")
    for name, x in (("constant_data", ROWS), ("predictions_constant_data", new)):
        np.testing.assert_array_equal(groups[name]["x"], x)
        assert groups[name].keys() == {"x", "group"}
        assert groups[name]["x"].dims == ("rows", "x_dim_1")
    # of as many rows, data given: these rows, and other data
    _, drawn, there = predicting((ROWS + 1, GROUP))
    known = drawn["w"] @ (ROWS + 1).T + drawn["a"][:, GROUP] + drawn["e"]
    np.testing.assert_allclose(there["mean"], known, rtol=1e-5)
    standard_normal((there["y"] - known) / 0.1)


def nested(data, *more, sizes, **named):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    with numpyro.plate("columns", sizes[1], dim=-2), numpyro.plate("rows", sizes[0], dim=-1):
        numpyro.deterministic("both", w * jnp.ones((sizes[1], sizes[0], 4)))
        numpyro.deterministic("number", w)
        numpyro.deterministic("square", w * jnp.ones((2, 3, 2, 3)))
        numpyro.sample("y", dist.Normal(w, 1.0), obs=jnp.asarray(data["of"]["y"]))

    def rows(carry, _):
        with numpyro.plate("rows", 3):
            numpyro.deterministic("later", carry * jnp.ones(3))
        return carry, None

    scan(rows, w, None, length=3)


def test_arrays_within_arguments_and_deterministic_sites_have_their_names():
    """By their path; a site whose axes might be those of its plates in two ways has no plate's."""
    data = {"of": {"y": np.zeros((2, 3)), "x": np.ones(3)}, "z": [jnp.ones(2), "text"]}
    guide = lambda *args, **kwargs: numpyro.sample("w", dist.Normal(0.0, 1.0))
    bound = jax.tree_util.Partial(
        guide, data, np.arange(3), KEY, sizes=(3, 2), extra=np.ones(1), flag=True
    )
    result = vipp.FitResult({}, jnp.zeros(0), SVIState(None, None, KEY), bound, nested)
    tree = result.to_arviz(KEY, 4)
    constants = tree["constant_data"].to_dataset()
    assert {n: constants[n].dims for n in constants} == {
        "data.of.x": ("rows",), "data.z.0": ("columns",), "more.0": ("rows",),
        "extra": ("extra_dim_0",),
    }  # fmt: skip
    np.testing.assert_array_equal(constants["more.0"], np.arange(3))
    dims = {n: x.dims[2:] for n, x in tree["posterior"].to_dataset().items()}
    assert dims == {
        "w": (),
        "number": (),
        "both": ("columns", "rows", "both_dim_2"),
        "square": tuple(f"square_dim_{i}" for i in range(4)),
        "later": ("later_dim_0", "later_dim_1"),
    }
    drawn = np.asarray(tree["posterior"]["w"])
    np.testing.assert_array_equal(tree["posterior"]["both"][..., 1, 2, 3], drawn)


def test_a_plate_with_a_name_of_arvizs_own_names_no_axis():
    def model(x):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        with numpyro.plate("chain", 3):
            numpyro.deterministic("shifted", w + x)
            numpyro.sample("y", dist.Normal(w, 1.0), obs=jnp.zeros(3))

    guide = lambda x: numpyro.sample("w", dist.Normal(0.0, 1.0))
    bound = jax.tree_util.Partial(guide, np.arange(3.0))
    tree = vipp.FitResult({}, jnp.zeros(0), SVIState(None, None, KEY), bound, model).to_arviz(
        KEY, 4
    )
    posterior = tree["posterior"].to_dataset()
    assert dict(posterior.sizes) == {"chain": 1, "draw": 4, "shifted_dim_0": 3}
    assert posterior["shifted"].dims == ("chain", "draw", "shifted_dim_0")
    assert tree["constant_data"]["x"].dims == ("x_dim_0",)


WRONG = {
    "a list": ([ROWS], TypeError, "must be a tuple of arguments or a dict.*got list.*Fix"),
    "a name": (
        {"gruop": ROWS},
        ValueError,
        r"'gruop', which is no argument.*did you mean 'group'.*Fix",
    ),
    "too many": (
        (ROWS, GROUP, 1, 2, 3),
        ValueError,
        "'regression': got a model, for predictions=, called with 5.*Fix",
    ),
    "columns": ((ROWS[:, :1], GROUP), ValueError, r"'w' is of shape \(1,\) at.*\(2,\) in.*Fix"),
}


@pytest.mark.parametrize(("new", "error", "says"), WRONG.values(), ids=WRONG)
def test_arguments_to_predict_at(new, error, says):
    with pytest.raises(error, match=says):
        predicting(new)


def test_data_that_are_not_drawn_where_there_are_none():
    def model(x, y=None):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        if y is not None:
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    guide = lambda x, y=None: numpyro.sample("z", dist.Normal(0.0, 1.0))
    bound = jax.tree_util.Partial(guide, ROWS, jnp.array(1.0))
    result = vipp.FitResult({}, jnp.zeros(0), SVIState(None, None, KEY), bound, model)
    with pytest.raises(ValueError, match="no site 'y', which was data in training.*Fix"):
        result.to_arviz(KEY, 3, predictions=(ROWS,))


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
