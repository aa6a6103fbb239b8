"""Training without an optimiser: posteriors with a known optimum, what it says, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import vipp
from vipp.training.windows import extrapolated, spread, symmetrised, to_come

KEY = jax.random.key(0)
SCALES = np.logspace(-3, 3, 7)
MEANS = jnp.array(3 * SCALES)


def fit(model, guide, num_steps, *args, objective=None, **kwargs):
    objective = objective or vipp.ELBO()
    return vipp.fit(
        KEY, objective, model, guide, None, num_steps, *args, progress_bar=False, **kwargs
    )


def normals(means, loc=0.0, scale=0.1):
    shape = means.shape
    m = numpyro.param("m", jnp.full(shape, loc))
    s = numpyro.param("s", jnp.full(shape, scale), constraint=dist.constraints.positive)
    numpyro.sample("z", dist.Normal(m, s).to_event(1))


def divergence(params, means, scales):
    """From the best normal to the one found."""
    q, p = dist.Normal(params["m"], params["s"]), dist.Normal(means, scales)
    return float(dist.kl_divergence(q, p).sum())


def test_scales_from_a_thousandth_to_a_thousand_compiled_once():
    runs = []

    def model(means):
        runs.append(means)
        numpyro.sample("z", dist.Normal(means, SCALES).to_event(1))

    result = fit(model, normals, 20_000, MEANS)
    assert divergence(result.params, MEANS, SCALES) < 0.03
    assert "not worth another round" in result.stopped
    found = result.automatic
    assert found.rounds[-1].step == len(result.losses) < 20_000
    assert found.rounds[-1].divergence < 0.05
    assert 0 < found.searched < found.rounds[0].step
    sizes = np.asarray(found.step_sizes["m"]) / SCALES
    assert sizes.max() / sizes.min() < 300  # they were equal, for scales a million apart
    traced = len(runs)
    again = fit(model, normals, 20_000, MEANS)
    assert len(runs) - traced == 1 < traced  # to initialise
    np.testing.assert_array_equal(again.losses, result.losses)


def test_minibatches_looks_and_the_largest_number_of_steps():
    x = np.random.default_rng(0).normal(2.0, 1.0, 200).astype(np.float32)

    def model(x):
        z = numpyro.sample("z", dist.Normal(0.0, 5.0).expand([1]).to_event(1))
        with numpyro.plate("data", 200, subsample_size=len(x)):
            numpyro.sample("x", dist.Normal(z[0], 1.0), obs=x)

    def guide(x):
        normals(jnp.zeros(1))

    looks = []
    result = fit(
        model, guide, 1_500, batches=[(part,) for part in x.reshape(4, 50)],
        log_every=500, validate=(x,), callback=looks.append,
    )  # fmt: skip
    precision = 200 + 1 / 25
    best = x.sum() / precision
    assert divergence(result.params, best, precision**-0.5) < 0.05
    assert len(result.losses) <= 1_500
    assert [look.step for look in looks][:2] == [500, 1_000]
    # what a look shows is the average, and so is the result of a run that is ended there
    ended = fit(model, guide, 1_500, x, callback=lambda _: True, log_every=1_000)
    assert divergence(ended.params, best, precision**-0.5) < 0.05
    assert ended.stopped.startswith("the callback")


def test_steps_that_lead_out_of_the_domain_are_taken_back():
    def model():
        numpyro.factor("f", jnp.sqrt(-numpyro.param("w", -1.0)) + 10 * numpyro.param("w", -1.0))

    result = fit(model, lambda: None, 5_000)
    np.testing.assert_allclose(result.params["w"], -1 / 400, atol=1e-3)
    assert np.isfinite(result.losses).all()


def test_a_bound_that_is_never_finite():
    def model():
        numpyro.factor("f", jnp.log(-numpyro.param("w", 1.0)))

    with pytest.raises(vipp.NonFiniteError, match="step 0.*'f'"):
        fit(model, lambda: None, 100)


@pytest.mark.parametrize(
    "asked",
    [{"stop": vipp.EarlyStopping()}, {"checkpoint": "run"}, {"num_restarts": 2}, {"init_state": 0}],
    ids=lambda asked: next(iter(asked)),
)
def test_what_does_not_go_without_an_optimiser(asked):
    (name,) = asked
    with pytest.raises(ValueError, match=rf"got {name}=.*optim=None.*Fix"):
        fit(lambda: None, lambda: None, 10, **asked)


def test_a_pure_function_needs_an_optimiser():
    with pytest.raises(TypeError, match=r"trainer: expected an optimiser, got None.*Fix"):
        vipp.trainer(vipp.ELBO(), lambda: None, lambda: None, None, 10)


def test_an_objective_that_moves():
    moving = vipp.ELBO(beta=optax.linear_schedule(0.0, 1.0, 100))
    with pytest.raises(ValueError, match=r"\['beta'\].*optim=None.*Fix"):
        fit(lambda: None, lambda: None, 10, objective=moving)


def test_estimates_of_a_quadratic():
    """Of averages whose distances from the optimum are known."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    hessian, best = root @ root.T, rng.normal(size=6)
    slope = lambda x: hessian @ (x - best)
    above = lambda x: 0.5 * (x - best) @ slope(x)
    found = []
    for _ in range(2_000):
        points = best + np.linalg.solve(root.T, rng.normal(size=(6, 4))).T
        found.append((spread(points, [*map(slope, points)]), above(points.mean(0))))
    ours, true = np.mean(found, 0)
    np.testing.assert_allclose(ours, true, rtol=0.1)
    # two points and the optimum in one plane with two others
    plane = [best + a * root[0] + b * root[1] for a, b in ((1, 2), (2, 1), (3, 3), (1, 4))]
    middle = np.mean(plane, 0)
    way, gain = extrapolated(plane, [*map(slope, plane)], slope(middle))
    np.testing.assert_allclose(middle + way, best, atol=1e-6)
    np.testing.assert_allclose(gain, above(middle), rtol=1e-6)
    a, b = plane[:2]
    np.testing.assert_allclose(
        symmetrised(a, b, slope(a), slope(b)), 0.5 * (a - b) @ hessian @ (a - b)
    )
    np.testing.assert_allclose(to_come([np.nan, 4.0, 2.0, 1.0]), 1.0)
