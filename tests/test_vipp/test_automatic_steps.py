"""Training without an optimiser: posteriors with a known optimum, what it says, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import vipp
from vipp.training.windows import extrapolated, spread, still_to_go, symmetrised

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


def two_peaks(x):
    z = numpyro.sample("z", dist.Normal(0.0, 3.0))
    numpyro.sample("x", dist.Normal(z**2 + z, 1.0).expand([4]).to_event(1), obs=x)


def somewhere(x):
    loc = numpyro.param("loc", lambda key: 3.0 * jax.random.normal(key))
    numpyro.sample("z", dist.Normal(loc, numpyro.param("s", 0.2, constraint=POSITIVE)))


POSITIVE = dist.constraints.positive
X = jnp.full(4, 6.0)  # z is 2 or -3
LONG_RUN = 3_000


def peaks(key=KEY, steps=LONG_RUN, **kwargs):
    return vipp.fit(
        key, vipp.ELBO(), two_peaks, somewhere, None, steps, X, progress_bar=False, **kwargs
    )


def same(one, other):
    np.testing.assert_array_equal(one.losses, other.losses)
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    np.testing.assert_array_equal(one.automatic.rounds, other.automatic.rounds)
    assert one.stopped == other.stopped


class Killed(Exception):
    pass


def test_a_run_that_was_killed_goes_on_bit_by_bit(tmp_path):
    """At every stage: while it searches, while gradients are measured, within rounds."""
    whole, often = peaks(), {"checkpoint": str(tmp_path / "run"), "checkpoint_every": 40}
    deaths = iter([150, 480, 530, 750, 1_190, 1_210])
    death = next(deaths)

    def callback(progress):
        if progress.step >= death:
            raise Killed

    for _ in range(100):
        try:
            again = peaks(**often, log_every=10, callback=callback)
            break
        except Killed:
            death = next(deaths, LONG_RUN + 1)
    same(again, whole)
    same(peaks(**often), whole)  # nothing is left to do


def test_starts_without_an_optimiser_are_the_runs_of_their_keys(tmp_path):
    keys = jax.random.split(KEY, 3)
    alone = [peaks(key) for key in keys]
    saved = {"checkpoint": str(tmp_path / "run"), "checkpoint_every": 500}

    def callback(progress):
        seen.append(progress.step)
        if len(seen) == 30:
            raise Killed

    seen = []
    with pytest.raises(Killed) as error:
        peaks(num_restarts=3, **saved, log_every=50, callback=callback)
    assert error.value.result.restarts.losses.shape[0] == 2
    for several in (peaks(num_restarts=3), peaks(num_restarts=3, **saved)):
        best = several.restarts.best
        same(several, alone[best])
        tails = [one.losses[-(len(one.losses) // 10) :] for one in alone]
        np.testing.assert_allclose(several.restarts.bounds, [-x.mean() for x in tails], rtol=1e-5)
        assert best == several.restarts.bounds.argmax()
        for losses, one in zip(several.restarts.losses, alone):
            np.testing.assert_array_equal(losses[: len(one.losses)], one.losses)
            assert np.isnan(losses[len(one.losses) :]).all()
    held_out = peaks(num_restarts=3, validate=(X + 1,), stop=vipp.EarlyStopping())
    assert held_out.restarts.best == held_out.restarts.bounds.argmax()


def test_more_steps_than_a_checkpoint_or_state_was_asked_for(tmp_path):
    """It searches on, from the parameters and step sizes that it had come to."""
    folder = str(tmp_path / "run")
    short = peaks(steps=300, checkpoint=folder)
    longer = peaks(steps=LONG_RUN, checkpoint=folder)
    np.testing.assert_array_equal(longer.losses[: len(short.losses)], short.losses)
    onward = peaks(init_state=short.state)
    best = peaks()
    for more in (longer, onward):
        assert "not worth another round" in more.stopped or len(more.losses) == LONG_RUN
        assert len(more.losses) > 300
        np.testing.assert_allclose(more.params["loc"], best.params["loc"], atol=0.01)
    np.testing.assert_allclose(onward.losses[:100].mean(), short.losses[-100:].mean(), rtol=0.1)


def test_early_stopping_counts_each_average_once():
    looks = []
    stop = vipp.EarlyStopping(patience=3)
    kept = peaks(stop=stop, validate=(X,), log_every=10, callback=lambda p: looks.append(p))
    assert "the bound had not improved" in kept.stopped or "not worth" in kept.stopped
    best = max(look.metrics["validation"] for look in looks)
    at = [look.result() for look in looks if look.metrics["validation"] == best]
    assert kept.metrics["validation"].max() == best and at
    averages = len(kept.automatic.rounds)
    assert len(looks) > 3 * averages  # most are of an average that was looked at before
    worse = peaks(stop=stop, validate=(X + 100.0,), log_every=50)
    assert worse.stopped == "the bound had not improved for 3 looks"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"init_state": "adam"}, "init_state is the state of a run with another optimiser.*Fix"),
        ({"batches": iter([(X,)]), "num_restarts": 2}, "can be gone through once.*one after.*Fix"),
    ],
    ids=["init_state", "iterator"],
)
def test_what_does_not_go_without_an_optimiser(asked, says):
    if asked.get("init_state"):
        adam = optax.adam(0.1)
        run = vipp.fit(KEY, vipp.ELBO(), two_peaks, somewhere, adam, 2, X, progress_bar=False)
        asked = {"init_state": run.state}
    with pytest.raises(ValueError, match=says):
        peaks(**asked)


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
    # middles each half as far from the optimum as the one before, averages with noise
    away = [0.5**i * best for i in range(4)]
    above = [0.5 * x @ hessian @ x for x in away]
    noise = [0.4, 0.2, 0.1, 0.05]
    moved = [symmetrised(a, b, hessian @ a, hessian @ b) for a, b in zip(away, away[1:])]
    changes = [np.nan, *(m + a + b for m, a, b in zip(moved, noise, noise[1:]))]
    np.testing.assert_allclose(still_to_go(changes, noise), above[-1])
    np.testing.assert_allclose(still_to_go(changes[:2], noise[:2]), above[1] + noise[0])
    assert still_to_go(changes[:1], noise[:1]) == np.inf
