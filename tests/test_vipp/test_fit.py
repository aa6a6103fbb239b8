"""Training: the loop, its result, going on from it, and stopping in time."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Predictive
from numpyro.infer.autoguide import AutoLaplaceApproximation, AutoNormal
from numpyro.infer.reparam import LocScaleReparam

import vipp
from vipp import fit as fit_function
from vipp.training.run import LONG
from vipp_transforms import packing

KEY = jax.random.key(0)
X = jnp.array([0.3, -1.2, 2.0, 1.1])


def model(x, *, scale=1.0):
    z = numpyro.sample("z", dist.Normal(0.0, 2.0))
    with numpyro.plate("N", len(x)):
        c = numpyro.sample("c", dist.Bernoulli(0.3))
        numpyro.sample("x", dist.Normal(z + c, scale), obs=x)


def guide(x, *, scale=1.0):
    sd = numpyro.param("sd", 0.7, constraint=dist.constraints.positive)
    numpyro.sample("z", dist.Normal(numpyro.param("m", 0.2), sd))
    with numpyro.plate("N", len(x)):
        probs = numpyro.param("p", jnp.full(4, 0.4), constraint=dist.constraints.unit_interval)
        numpyro.sample("c", dist.Bernoulli(probs))


def train(steps=60, key=KEY, objective=None, optim=None, **kwargs):
    objective = objective or vipp.ELBO()
    optim = optax.adam(0.03) if optim is None else optim
    return vipp.fit(key, objective, model, guide, optim, steps, X, progress_bar=False, **kwargs)


@pytest.fixture(scope="module")
def trained():
    return train()


def close(a, b, **kwargs):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, **kwargs), a, b)


def test_same_steps_as_svi(trained):
    svi = SVI(model, guide, optax.adam(0.03), vipp.ELBO())
    theirs = svi.run(KEY, 60, X, progress_bar=False)
    np.testing.assert_allclose(trained.losses, theirs.losses, rtol=2e-4)
    close(trained.params, theirs.params, atol=1e-5)


def test_result(trained):
    assert trained.losses.shape == (60,)
    assert set(trained.params) == {"m", "sd", "p"}
    assert trained.params["sd"] > 0 and (0 < trained.params["p"]).all()
    params, losses, state, _ = trained
    assert losses[-20:].mean() < losses[:20].mean()
    assert params is trained.params and state is trained.state


def test_the_progress_bar_changes_nothing(trained, capsys):
    shown = vipp.fit(KEY, vipp.ELBO(), model, guide, optax.adam(0.03), 60, X)
    np.testing.assert_allclose(shown.losses, trained.losses, rtol=1e-5)
    assert "60/60" in capsys.readouterr().err


def test_going_on_from_a_state(trained):
    half = train(30)
    rest = train(30, init_state=half.state)
    np.testing.assert_allclose(
        np.concatenate([half.losses, rest.losses]), trained.losses, rtol=2e-4
    )
    close(rest.params, trained.params, atol=1e-5)


def test_initial_values():
    start = {"m": jnp.array(-3.0), "sd": jnp.array(0.25), "p": jnp.full(4, 0.9)}
    one = train(1, optim=optax.sgd(0.0), init_params=start)
    close(one.params, start)


def test_keyword_arguments_reach_the_programs(trained):
    assert abs(train(1, scale=5.0).losses[0] - trained.losses[0]) > 0.5


def test_samples_of_the_posterior(trained):
    draws = trained.sample_posterior(jax.random.key(1), num_samples=500)
    assert draws["z"].shape == (500,) and draws["c"].shape == (500, 4)
    m, sd = trained.params["m"], trained.params["sd"]
    assert abs(draws["z"].mean() - m) < 4.5 * sd / 500**0.5
    assert trained.sample_posterior(KEY)["z"].shape == (1,)
    with pytest.raises(ValueError, match="num_samples must be a positive int, got 0"):
        trained.sample_posterior(KEY, num_samples=0)


def test_predictive_takes_the_parameters(trained):
    predict = Predictive(model, guide=guide, params=trained.params, num_samples=7)
    assert predict(KEY, X)["x"].shape == (7, 4)


def test_one_trace_however_many_steps():
    traces = 0

    def counted(x):
        nonlocal traces
        traces += 1
        model(x)

    def run(steps, rate):
        nonlocal traces
        traces = 0
        vipp.fit(KEY, vipp.ELBO(), counted, guide, optax.adam(rate), steps, X)
        return traces

    assert run(50, 0.03) == run(5, 0.02) > 2  # each is compiled


def test_what_was_looked_at_is_not_traced_again():
    """Once to begin, twice with 'm' moved either way, once to be looked at and compiled."""
    runs, optim = [], optax.adam(0.03)

    def counted(x):
        runs.append(x)
        numpyro.sample("x", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def its(x):
        numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))

    def run():
        vipp.fit(KEY, vipp.ELBO(), counted, its, optim, 5, X[0], progress_bar=False)
        return len(runs)

    assert run() == 4
    assert run() == 5  # compiled, it is only begun


@pytest.mark.parametrize("steps", [0, -1, 2.0, True])
def test_number_of_steps(steps):
    with pytest.raises(ValueError, match="num_steps must be a positive int"):
        train(steps)


@pytest.mark.parametrize("objective", [vipp.ELBO, "elbo", lambda p, q: 0.0])
def test_not_an_objective(objective):
    with pytest.raises(TypeError, match=r"must be an instance of vipp.Objective.*Fix"):
        train(objective=objective)


@pytest.mark.parametrize(
    "optim, fix",
    [
        (0.01, r"optax.adam\(0.01\)"),
        (optax.adam, r"optax.adam\(1e-3\)"),
        (optax.constant_schedule(0.1), r"optax.adam\(schedule\)"),
        (1_000, "before num_steps=1000"),
    ],
)
def test_not_an_optimiser(optim, fix):
    for call in (
        lambda: train(optim=optim),
        lambda: vipp.trainer(vipp.ELBO(), model, guide, optim, 5),
    ):
        with pytest.raises(TypeError, match=f"optim must be an optimiser.*Fix: .*{fix}"):
            call()


@pytest.mark.parametrize(
    "key, got",
    [
        (0, "got 0. Fix: jax.random.key"),
        (jax.random.split(jax.random.key(0)), r"shape \(2,\).*rng_key\[0\]"),
    ],
)
def test_not_a_key(key, got, trained):
    for call in (
        lambda: vipp.fit(key, vipp.ELBO(), model, guide, optax.sgd(0.1), 5, X),
        lambda: trained.sample_posterior(key),
        lambda: vipp.psis(key, trained),
    ):
        with pytest.raises(TypeError, match=f"rng_key must be one PRNG key, .*{got}"):
            call()


def test_a_module_is_started_with_all_of_its_arrays():
    def network(x):
        net = flax_module("net", flax.linen.Dense(1), input_shape=(1,))
        numpyro.sample("x", dist.Normal(net(x[:, None])[:, 0], 1.0).to_event(1), obs=x)

    run = lambda **kwargs: vipp.fit(
        jax.random.key(0), vipp.ELBO(), network, lambda x: None, optax.sgd(0.0), 1, X,
        progress_bar=False, **kwargs,
    )  # fmt: skip
    start = run().params
    close(run(init_params=start).params, start)
    del start["net$params"]["kernel"]
    with pytest.raises(
        vipp.CheckError, match=r"'net\$params': got nothing .*\['kernel'\].*\(1, 1\)"
    ):
        run(init_params=start)


def test_a_bad_step_stops_the_run():
    """With the step, the last good state, and the losses so far."""

    def exploding(x):
        w = numpyro.param("w", 1.0)
        numpyro.factor("f", jnp.where(w > 1.35, jnp.nan, w))

    with pytest.raises(vipp.NonFiniteError, match="step 4.*Fix") as caught:
        vipp.fit(
            KEY, vipp.ELBO(), exploding, lambda x: None, optax.sgd(0.1), 50, X, progress_bar=False
        )
    result = caught.value.result
    assert caught.value.step == 4 and len(result.losses) == 5
    assert caught.value.sites == ("f",) and caught.value.parameters == ()
    assert np.isfinite(result.params["w"]) and 1.35 < result.params["w"] < 1.45


def test_what_arises_at_some_step_is_told_by_site_and_parameter():
    """By a parameter that gets across an edge at step 137, with what the step itself drew."""

    def crossing(x):
        w = numpyro.param("w", 0.0)
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        edge = jnp.where(jnp.arange(4) == 2, jnp.sqrt(1.365 - w), 0.0)
        with numpyro.plate("N", len(x)):
            numpyro.sample("x", dist.Normal(z + edge, 1e3, validate_args=False), obs=x)
        numpyro.factor("f", w)

    def shifted(x):
        numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))

    found = r"step 137: the loss \(nan\).*'x' under the model is nan at index \(2,\).*for 'm', 'w'"
    with pytest.raises(vipp.NonFiniteError, match=found) as caught:
        vipp.fit(KEY, vipp.ELBO(), crossing, shifted, optax.sgd(0.01), LONG, X, progress_bar=False)
    assert caught.value.sites == ("x",) and caught.value.parameters == ("m", "w")


def test_data_that_are_not_a_number():
    """Are found before the first step, by site and index."""
    with pytest.raises(vipp.CheckError, match=r"'x'.*index \(1,\)"):
        fit_function(
            KEY, vipp.ELBO(), model, guide, optax.adam(0.1), 5, X.at[1].set(jnp.nan),
            progress_bar=False,
        )  # fmt: skip


SHIFT = 1.0


def no_sites(x):
    pass


def test_the_same_programs_are_compiled_once(monkeypatch):
    """Again, on other data of the same shapes, NumPy's as well, and from a state."""
    runs, optim = [], optax.sgd(0.1)

    def counted(x):
        runs.append(x)
        numpyro.sample("x", dist.Normal(numpyro.param("m", 0.0) + SHIFT, 1.0), obs=x)

    def train(x, **kwargs):
        before = len(runs)
        result = vipp.fit(
            KEY, vipp.ELBO(), counted, no_sites, optim, 3, x, progress_bar=False, **kwargs
        )
        return len(runs) - before, result

    first, result = train(X)
    for x in (X, X + 1.0, np.asarray(X)):
        again, _ = train(x)
        assert again == 1 < first  # to initialise
    assert train(X, init_state=result.state)[0] == 1
    assert train(X[:3])[0] == first
    close(train(X)[1].losses, result.losses)
    # what a program reads from its module is a part of it
    monkeypatch.setitem(globals(), "SHIFT", 2.0)
    assert train(X)[1].losses[0] != result.losses[0]


def test_unknown_initial_values():
    with pytest.raises(ValueError, match=r"'sdd', which is no parameter.*mean 'sd'\?.*Fix"):
        train(1, init_params={"sdd": 1.0})


@pytest.mark.thorough
def test_a_mean_posterior_is_not_its_mode():
    """Of an autoguide that trains with something else than its posterior."""

    def normal(x):
        z = numpyro.sample("z", dist.Normal(0.0, 2.0))
        numpyro.deterministic("twice", 2 * z)
        numpyro.sample("x", dist.Normal(z, 1.0).expand([4]).to_event(1), obs=x)

    laplace = AutoLaplaceApproximation(normal)
    result = vipp.fit(
        KEY, vipp.ELBO(), normal, laplace, optax.adam(0.1), 300, X, progress_bar=False
    )
    draws = result.sample_posterior(KEY, 2_000)
    assert set(draws) == {"z", "twice"}
    np.testing.assert_allclose(draws["z"].std(), (4 + 1 / 4) ** -0.5, rtol=0.07)
    np.testing.assert_allclose(draws["twice"], 2 * draws["z"], rtol=1e-6)


def test_samples_have_the_models_own_names():
    """A reparameterised site is there, what only the guide has is not."""

    @numpyro.handlers.reparam(config={"z": LocScaleReparam(0.0)})
    def centred(x):
        z = numpyro.sample("z", dist.Normal(5.0, 2.0))
        numpyro.sample("x", dist.Normal(z, 1.0).expand([4]).to_event(1), obs=x)

    result = vipp.fit(
        KEY, vipp.ELBO(), centred, AutoNormal(centred), optax.adam(0.1), 5, X, progress_bar=False
    )
    draws = result.sample_posterior(KEY, 3)
    assert set(draws) == {"z", "z_decentered"}
    np.testing.assert_allclose(draws["z"], 5.0 + 2.0 * draws["z_decentered"], rtol=1e-5)


@pytest.mark.thorough
def test_many_sites_are_packed():
    """A guide of many scalar sites trains packed as it does unpacked, under SVI as well."""

    def many(x):
        z = [numpyro.sample(f"z{i}", dist.Normal(0.1 * i, 1.0)) for i in range(14)]
        numpyro.sample("x", dist.Normal(sum(z), 1.0).expand([4]).to_event(1), obs=x)

    autoguide, optim = AutoNormal(many), optax.adam(0.03)
    packed = vipp.fit(KEY, vipp.ELBO(), many, autoguide, optim, 5, X, progress_bar=False)
    svi = SVI(many, autoguide, optim, vipp.ELBO())
    first = state = svi.init(KEY, X)
    with packing.apart():  # as it stands
        closed = jax.make_jaxpr(lambda state: svi.update(state, X))(state)
        step = jax.jit(lambda state: svi.update(state, X))
        for loss in packed.losses:
            state, theirs = step(state)
            np.testing.assert_allclose(loss, theirs, rtol=2e-4)
    close(packed.params, svi.get_params(state), atol=1e-5)
    assert packing.pays(packing.flatten(closed, final=True))
    update = jax.make_jaxpr(lambda state: svi.update(state, X))(first)
    assert len(update.eqns) < len(closed.eqns) - 500
    _, loss = jax.jit(lambda state: svi.update(state, X))(first)
    np.testing.assert_allclose(loss, packed.losses[0], rtol=2e-4)
