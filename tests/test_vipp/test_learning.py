"""Estimators with parameters: learned baselines, baselines of values, and RELAX.

Nothing of the guide is trained here: what an estimator learns is compared with what is best there.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen as nn
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Predictive

import vipp

pytestmark = pytest.mark.uncompiled

KEY = jax.random.key(0)
X = jnp.array([3.0, -1.0, 0.5])
LOGITS = jnp.array([0.4, -0.7, 1.1])
fit = functools.partial(vipp.fit, progress_bar=False)


def model(x):
    w = numpyro.param("w", 2.0)
    with numpyro.plate("N", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("x", dist.Normal(w * z, 1.0), obs=x)


def guide(x, estimator=None):
    probs = jax.nn.sigmoid(numpyro.param("l", LOGITS))[: len(x)]
    with numpyro.plate("N", len(x)):
        vipp.sample("z", dist.Bernoulli(probs), estimator)


def contributions():
    """What a lane contributes at 0 and at 1, and the probabilities of the two: ``(2, 3)``."""
    z, p = jnp.array([[0.0], [1.0]]), jax.nn.sigmoid(LOGITS)
    q = jnp.where(z == 1, p, 1 - p)
    return jnp.log(jnp.where(z == 1, 0.3, 0.7) / q) + dist.Normal(2.0 * z, 1.0).log_prob(X), q


def only(*names):
    """Adam for these parameters, nothing for all others."""
    adam = optax.adam(optax.cosine_decay_schedule(0.1, 600))
    label = lambda params: {name: name in names for name in params}
    return optax.multi_transform({True: adam, False: optax.set_to_zero()}, label)


def tabled(x):
    values = numpyro.param("table", jnp.zeros(3))
    guide(x, vipp.ScoreFunction(baseline=vipp.Learned(values)))


def networked(x):
    one_hot = jnp.eye(3)
    return flax_module("net", nn.Dense(1, use_bias=False), input_shape=(3,))(one_hot)[:, 0]


def from_outside(baseline):
    return vipp.with_estimators(guide, {"z": vipp.ScoreFunction(baseline=baseline)})


# -- learned baselines ---------------------------------------------------------------------------


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("program", "name", "values"),
    [
        (tabled, "table", lambda params: params["table"]),
        (from_outside(vipp.Learned(networked)), "net$params",
         lambda params: params["net$params"]["kernel"][:, 0]),
    ],
    ids=["array", "network"],
)  # fmt: skip
def test_learned_baseline_becomes_the_best_predictor(program, name, values):
    """The best one is the expected contribution of the lane; no other one has as small an error."""
    result = fit(KEY, vipp.ELBO(), model, program, only(name), 600, X)
    f, q = contributions()
    best, got = (q * f).sum(0), values(result.params)
    error = lambda b: (q * jnp.square(f - b)).sum()
    assert error(got) < error(best) + 0.01 * (error(jnp.zeros(3)) - error(best))
    np.testing.assert_allclose(got, best, atol=0.4)
    draws = Predictive(model, guide=program, params=result.params, num_samples=4)(KEY, X)
    assert draws["x"].shape == (4, 3)
    assert result.sample_posterior(KEY, 4)["z"].shape == (4, 3)


def test_learning_touches_nothing_else(bound_and_grad):
    """Draw for draw: the bound and all other gradients are those of the same values unlearned."""
    params = {"w": 2.0, "l": LOGITS, "table": jnp.array([-3.0, 1.0, -2.0])}

    def unlearned(x):
        guide(x, vipp.ScoreFunction(baseline=numpyro.param("table", jnp.zeros(3))))

    (bound, learned), (same, plain) = (
        bound_and_grad(vipp.ELBO(), model, g, params, X, keys=5) for g in (tabled, unlearned)
    )
    np.testing.assert_array_equal(bound, same)
    for name in ("w", "l"):
        np.testing.assert_allclose(learned[name], plain[name], rtol=1e-6)
    assert (plain["table"] == 0).all()
    assert (learned["table"] != 0).all()


# -- baselines of values -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "estimator",
    [
        vipp.ScoreFunction(baseline=jnp.array([-6.0, 2.0, 1.0])),
        vipp.ScoreFunction(baseline=lambda x: -(x**2)),
        vipp.ScoreFunction(baseline=-2.0, coefficient=0.7),
    ],
    ids=["array", "function", "number"],
)
def test_any_values_are_unbiased(reference, estimator):
    """Summed over all draws."""
    params, program = {"w": 2.0, "l": LOGITS}, vipp.with_estimators(guide, {"z": estimator})
    value, grad = reference.mean(vipp.ELBO(), model, program, params, (X,))
    want, slope = jax.jit(jax.value_and_grad(reference.bound(model, guide, (X,))))(params)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), grad, slope)


def test_values_per_element_with_event_dimensions(reference):
    """One value for an element of the batch, whose event has lanes of its own."""

    def model(x):
        with numpyro.plate("N", 2):
            z = numpyro.sample("z", dist.Bernoulli(0.3).expand([2]).to_event(1))
            numpyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def program(x):
        logits = numpyro.param("l", jnp.array([[0.2, -0.4], [0.9, 0.3]]))
        with numpyro.plate("N", 2):
            baseline = jnp.array([-4.0, 3.0])
            fn = dist.Bernoulli(logits=logits).to_event(1)
            vipp.sample("z", fn, vipp.ScoreFunction(baseline=baseline))

    params = {"l": jnp.array([[0.2, -0.4], [0.9, 0.3]])}
    _, grad = reference.mean(vipp.ELBO(), model, program, params, (X[:2],))
    slope = jax.jit(jax.grad(reference.bound(model, program, (X[:2],))))(params)
    np.testing.assert_allclose(grad["l"], slope["l"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("shape", [(2,), (3, 1), (1, 3)])
def test_wrong_shapes(learned, shape):
    """One axis more than the batch has is not squeezed or summed away."""
    values = jnp.zeros(shape)
    program = from_outside(vipp.Learned(values) if learned else values)
    got, batch = (str(s).replace("(", r"\(").replace(")", r"\)") for s in (shape, (3,)))
    match = f"Site 'z'.*baseline has shape {got}, expected .*batch shape {batch}.*Fix: give one"
    with pytest.raises(vipp.SiteError, match=match):
        vipp.explain(vipp.ELBO(), model, program, X)


def test_function_where_the_arguments_are_not_at_hand():
    program = lambda x: guide(x, vipp.ScoreFunction(baseline=lambda x: x))
    with pytest.raises(vipp.SiteError, match=r"Site 'z'.*function.*Fix: .*vipp\.with_estimators"):
        vipp.explain(vipp.ELBO(), model, program, X)


def test_optimal_coefficient(bound_and_grad):
    """It undoes any scale of the values, and of one lane it is leaving one out."""
    params = {"w": 2.0, "l": LOGITS}

    def grads(x, **kwargs):
        estimator = vipp.ScoreFunction(num_samples=3, **kwargs)
        program = vipp.with_estimators(guide, {"z": estimator})
        return bound_and_grad(vipp.ELBO(), model, program, params, x, keys=2000)[1]["l"]

    values = jnp.array([-5.0, -1.0, -2.0])
    once, tenfold = (grads(X, baseline=c * values, coefficient="optimal") for c in (1, 10))
    np.testing.assert_allclose(once, tenfold, rtol=1e-3, atol=1e-4)
    alone = grads(X[:1], baseline=values[:1], coefficient="optimal")
    np.testing.assert_allclose(alone, grads(X[:1], baseline="leave_one_out"), rtol=1e-3, atol=1e-4)


# -- RELAX ---------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_relax_learns_to_vary_less(reference):
    """The lanes contribute differently. Unbiased before and after, in every parameter."""
    own, program = "z$estimator", vipp.with_estimators(guide, {"z": vipp.RELAX(4)})
    result = fit(KEY, vipp.ELBO(), model, program, only(own), 400, X)
    settings = {own: vipp.RELAX(4).init(jax.random.key(3), 1)}, {own: result.params[own]}
    for name in ("eta", "log_temperature", "out"):
        assert jnp.abs(settings[1][own][name] - settings[0][own][name]).max() > 0.05
    np.testing.assert_array_equal(result.params["l"], LOGITS)
    one, keys = vipp.value_and_grad(vipp.ELBO(), model, program), jax.random.split(KEY, 8000)
    draws = jax.jit(lambda params: jax.vmap(lambda key: one(key, params, X))(keys))
    trained = {"w": 2.0, "l": LOGITS}
    want, slope = jax.jit(jax.value_and_grad(reference.bound(model, guide, (X,))))(trained)
    variance = []
    for setting in settings:
        bound, grad = draws({**trained, **setting})
        variance.append(float(grad["l"].var(0).sum()))
        reference.check_unbiased((bound, {name: grad[name] for name in slope}), (want, slope))
    assert variance[1] < 0.9 * variance[0]
    predict = Predictive(program, params=result.params, num_samples=4)
    assert set(predict(KEY, X)) == {"z"}


@pytest.mark.thorough
def test_relax_under_svi():
    """Its parameters move with NumPyro's loop; and are made where none are given."""
    program = vipp.with_estimators(guide, {"z": vipp.RELAX(2)})
    result = SVI(model, program, optax.adam(0.1), vipp.ELBO()).run(KEY, 3, X, progress_bar=False)
    learned = result.params["z$estimator"]
    assert learned["eta"] != 1 and learned["log_temperature"] != jnp.log(0.5)
    evaluate = vipp.value_and_grad(vipp.ELBO(), model, program)
    _, grad = jax.eval_shape(lambda key: evaluate(key, {"w": 2.0, "l": LOGITS}, X), KEY)
    assert grad["l"].shape == (3,)


def test_relax_goes_on_with_parameters_of_its_own_size_only():
    program = vipp.with_estimators(guide, {"z": vipp.RELAX(2)})
    other = {"z$estimator": vipp.RELAX(3).init(KEY, 1)}
    with pytest.raises(vipp.SiteError, match=r"Site 'z'.*found.*\(3,\).*expected.*\(2,\).*Fix: "):
        vipp.explain(vipp.ELBO(), model, program, X, params=other)
