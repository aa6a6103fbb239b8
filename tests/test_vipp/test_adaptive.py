"""Estimators with state: a moving-average baseline, a mixture's weight, a schedule.

Those with parameters to train are in test_learning.py. Draws are certain or enumerated wherever a
number is compared, so that the comparison is exact.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.infer import SVI, Predictive

import vipp
import vipp_transforms as vt

pytestmark = pytest.mark.uncompiled

KEY = jax.random.key(0)
STATE = "z$estimator"
MOVING = vipp.MovingAverage(0.8)
ADAM = optax.adam(0.05)
fit = functools.partial(vipp.fit, progress_bar=False)


def model():
    """The evidence is far from either value: a large constant in the objective."""
    z = numpyro.sample("z", dist.Bernoulli(0.3))
    numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=9.0)


def guided(estimator):
    """In probabilities, every part of whose log density depends on the draw."""

    def guide():
        probs = jax.nn.sigmoid(numpyro.param("l", 0.2))
        vipp.sample("z", dist.Bernoulli(probs), estimator)

    return guide


def debiased(costs, decay):
    """The exponentially weighted sum, newest first, and the sum of its weights."""
    powers = (1 - decay) * decay ** np.arange(len(costs))[::-1]
    return (powers * np.asarray(costs)).sum(), powers.sum()


def used(guide, params, site="z", *args):
    """The estimator that a guide gives a site, under these parameters and state."""
    program = handlers.trace(handlers.seed(handlers.substitute(guide, data=params), 0))
    return program.get_trace(*args)[site]["infer"]["estimator"]


# -- moving averages -----------------------------------------------------------------------------


def check_average(state, costs, guide=None):
    total, weight = debiased(costs, 0.8)
    np.testing.assert_allclose(state[STATE]["sum"], total, rtol=1e-4)
    np.testing.assert_allclose(state[STATE]["weight"], weight, rtol=1e-5)
    if guide is not None:
        np.testing.assert_allclose(used(guide, state).baseline.mean, total / weight, rtol=1e-4)


@pytest.mark.parametrize(
    ("objective", "samples", "share"),
    [
        (vipp.ELBO(), 1, 1),
        (vipp.ELBO(), 4, 1),
        (vipp.ELBO(num_particles=3), 1, 3),  # a particle contributes a third of its weight
        (vipp.IWAE(num_particles=3), 2, 1),  # every particle contributes the whole bound
    ],
    ids=str,
)
def test_moving_average_under_svi(objective, samples, share):
    """One site, on which everything depends: what it contributes is the bound."""
    guide = guided(vipp.ScoreFunction(samples, baseline=MOVING))
    result = SVI(model, guide, ADAM, objective).run(KEY, 7, progress_bar=False)
    check_average(result.state.mutable_state, -result.losses / share, guide)


def test_moving_average_under_update_without_a_second_trace():
    runs = []
    inner = guided(vipp.ScoreFunction(baseline=MOVING))

    def guide():
        runs.append(0)
        inner()

    svi = SVI(model, guide, ADAM, vipp.ELBO())
    state, update, losses, counts = svi.init(KEY), jax.jit(svi.update), [], []
    for _ in range(4):
        state, loss = update(state)
        losses.append(-loss)
        counts.append(len(runs))
    check_average(state.mutable_state, losses)
    assert counts[0] == counts[-1]
    stable, loss = jax.jit(svi.stable_update)(state)
    check_average(stable.mutable_state, [*losses, -loss])


def test_moving_average_under_fit_and_further():
    """Going on from a state is one longer training, also from one that had no average yet."""
    guide = guided(vipp.ScoreFunction(baseline=MOVING))
    first = fit(KEY, vipp.ELBO(), model, guide, ADAM, 5)
    check_average(first.state.mutable_state, -first.losses, guide)
    second = fit(KEY, vipp.ELBO(), model, guide, ADAM, 4, init_state=first.state)
    check_average(second.state.mutable_state, -jnp.concatenate([first.losses, second.losses]))
    bare = first.state._replace(mutable_state=None)
    afresh = fit(KEY, vipp.ELBO(), model, guide, ADAM, 4, init_state=bare)
    check_average(afresh.state.mutable_state, -afresh.losses)


X = jnp.array([4.0, -3.0])


def two_sites(x):
    a = numpyro.sample("a", dist.Bernoulli(0.4))
    with numpyro.plate("N", 2):
        b = numpyro.sample("b", dist.Bernoulli(0.2).expand([3]).to_event(1))
        numpyro.sample("x", dist.Normal(a + b.sum(-1), 1.0), obs=x)


@pytest.mark.parametrize("outside", [False, True], ids=["vipp.sample", "with_estimators"])
def test_moving_averages_of_several_sites(outside):
    """Certain draws: every lane contributes its own prior, and what it shares with others.

    The site ``a`` is credited with its prior and both likelihoods, a lane of ``b`` with its prior
    and the likelihood of its own row.
    """
    estimators = {n: vipp.ScoreFunction(baseline=vipp.MovingAverage(d)) for n, d in
                  {"a": 0.5, "b": 0.8}.items()}  # fmt: skip
    chosen = {} if outside else estimators
    bits = jnp.array([[1.0, 1, 0], [0, 0, 1]])

    def guide(x):
        vipp.sample("a", dist.Bernoulli(1.0), chosen.get("a"))
        with numpyro.plate("N", 2):
            vipp.sample("b", dist.Bernoulli(bits).to_event(1), chosen.get("b"))

    guide = vipp.with_estimators(guide, estimators) if outside else guide
    result = SVI(two_sites, guide, ADAM, vipp.ELBO()).run(KEY, 3, X, progress_bar=False)
    rows = dist.Normal(1 + bits.sum(-1), 1.0).log_prob(X)
    costs = {
        "a": jnp.log(0.4) + rows.sum(),
        "b": (jnp.log(jnp.where(bits == 1, 0.2, 0.8)) + rows[:, None]).mean(),
    }
    state = result.state.mutable_state
    assert set(state) == {"a$estimator", "b$estimator"}
    for name, decay in {"a": 0.5, "b": 0.8}.items():
        total, weight = debiased([costs[name]] * 3, decay)
        np.testing.assert_allclose(state[f"{name}$estimator"]["sum"], total, rtol=1e-4)
        np.testing.assert_allclose(state[f"{name}$estimator"]["weight"], weight, rtol=1e-5)


def plated_model(x):
    with numpyro.plate("N", 2):
        z = numpyro.sample("z", dist.Bernoulli(0.3).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(z @ jnp.array([1.0, 2.0]), 1.0), obs=x)


def plated_guide(estimator):
    def guide(x):
        logits = numpyro.param("l", jnp.array([[0.2, -0.4], [0.9, -0.1]]))
        with numpyro.plate("N", 2):
            vipp.sample("z", dist.Bernoulli(logits=logits).to_event(1), estimator)

    return guide


PARAMS = {"l": jnp.array([[0.2, -0.4], [0.9, -0.1]])}


def test_unbiased_at_any_average(reference):
    """Summed over all draws; and the state is not a parameter of the objective."""
    state = {"sum": jnp.float32(-3.7), "weight": jnp.float32(0.5)}
    guide = plated_guide(vipp.ScoreFunction(baseline=MOVING))
    value, grad = reference.mean(vipp.ELBO(), plated_model, guide, {**PARAMS, STATE: state}, (X,))
    bound = reference.bound(plated_model, guide, (X,))
    want, slope = jax.jit(jax.value_and_grad(bound))(PARAMS)
    np.testing.assert_allclose(value, want, rtol=1e-4)
    np.testing.assert_allclose(grad["l"], slope["l"], rtol=1e-3, atol=1e-4)
    assert jax.tree.all(jax.tree.map(lambda x: x == 0, grad[STATE]))


def test_variance_falls_against_no_baseline(bound_and_grad):
    """The objective is -20 or -40 or so: without its mean, at most a tenth of the variance."""
    guide = guided(vipp.ScoreFunction(baseline=MOVING))
    trained = fit(KEY, vipp.ELBO(), model, guide, optax.sgd(0.0), 100)
    params = {**trained.params, **trained.state.mutable_state}
    variance = [
        float(bound_and_grad(vipp.ELBO(), model, guide, p, keys=2000)[1]["l"].var())
        for p in (trained.params, params)  # without its state a moving average is zero
    ]
    assert 0 < variance[1] < 0.1 * variance[0]


def test_value_and_grad_starts_at_the_start(bound_and_grad):
    """Without state: a moving average is nothing yet, a mixture half of each, a schedule at 0."""
    got, want = (
        bound_and_grad(vipp.ELBO(), model, guided(vipp.ScoreFunction(baseline=b)), {"l": 0.2})
        for b in (MOVING, None)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), got, want)
    assert used(guided(vipp.Mix(vipp.ARM(), vipp.DisARM())), {}).best == 0.5
    assert used(guided(vipp.REBAR(lambda step: 0.75 + step)), {}).temperature == 0.75


# -- the weight of a mixture ---------------------------------------------------------------------


@pytest.mark.thorough
def test_mixture_finds_the_best_weight(bound_and_grad):
    r"""Two score functions on one draw, ``g_a = f s`` and ``g_b = (f - c) s``.

    With ``s = z - p``, the weight is ``1 - E[f s^2] / (c E[s^2])``: the mixture has the best of all
    constant baselines, which none of the two has.
    """
    first, second = vipp.ScoreFunction(), vipp.ScoreFunction(baseline=-60.0)
    guide = guided(vipp.Mix(first, second, decay=0.999))
    result = fit(KEY, vipp.ELBO(), model, guide, optax.sgd(0.0), 2000)
    z, p = jnp.array([0.0, 1.0]), jax.nn.sigmoid(0.2)
    q = jnp.where(z == 1, p, 1 - p)
    prior = jnp.log(jnp.where(z == 1, 0.3, 0.7))
    f, s = prior + dist.Normal(2 * z, 1.0).log_prob(9.0) - jnp.log(q), z - p
    best = 1 - (q * f * s**2).sum() / (-60.0 * (q * s**2).sum())
    assert 0.2 < best < 0.8
    each = jnp.stack([f - 1, f - 1 + 60.0]) * s  # less s, the gradient of log q where it stands
    variance = (q * each**2).sum(1) - (q * each).sum(1) ** 2
    params = {**result.params, **result.state.mutable_state}
    np.testing.assert_allclose(used(guide, params).best, best, atol=0.01)
    mixed = bound_and_grad(vipp.ELBO(), model, guide, params, keys=2000)[1]["l"].var()
    assert 0 <= mixed < 0.02 * variance.min()


# -- schedules -----------------------------------------------------------------------------------


@vt.estimator
class Echo(vt.Estimator):
    """Its value is its parameter, which an objective of the value then reports."""

    number: float = 0.0
    traits = vt.Traits(relaxed=True)

    def axis(self, lot):
        return None

    def expand(self, lot, source):
        return vt.Expansion(
            source.map(lambda here, z: 0 * z + here.estimator.number, source.draw())
        )

    def contract(self, term):
        return term.value


@vipp.objective
def drawn(p, q):
    return q.simulate()[0]["z"] * 1.0


@pytest.mark.filterwarnings("ignore::vipp.NoGradientWarning")
def test_a_schedule_is_used_step_by_step():
    """Under fit, going on, and under SVI: step ``t`` has ``schedule(t)``, and traces once."""
    schedule, seen = optax.exponential_decay(3.0, 2, 0.5), []

    def spied(step):
        seen.append(step)
        return schedule(step)

    guide = guided(Echo(spied))
    result = fit(KEY, drawn(), model, guide, ADAM, 6)
    traces = len(seen)
    assert traces < 6
    np.testing.assert_allclose(-result.losses, schedule(jnp.arange(6)), rtol=1e-6)
    more = fit(KEY, drawn(), model, guide, ADAM, 3, init_state=result.state)
    np.testing.assert_allclose(-more.losses, schedule(jnp.arange(6, 9)), rtol=1e-6)
    run = SVI(model, guide, ADAM, drawn()).run(KEY, 6, progress_bar=False)
    np.testing.assert_allclose(-run.losses, schedule(jnp.arange(6)), rtol=1e-6)


@pytest.mark.parametrize(
    "estimator",
    [
        vipp.GumbelSoftmax(lambda t: 2.0 / (1 + t)),
        vipp.REBAR(lambda t: 2.0 / (1 + t), eta=lambda t: 0.25 * t),
        vipp.ReinMax(lambda t: 1 + 0.5 * t),
        vipp.ReSTE(lambda t: 1.5 + t),
    ],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.filterwarnings("ignore::vipp.BiasedEstimatorWarning")
def test_every_parameter_may_be_scheduled(estimator):
    guide, fields = guided(estimator), vars(estimator)
    for step in (0, 3):
        filled = used(guide, {STATE: {"step": jnp.array(step)}})
        for name, schedule in fields.items():
            if callable(schedule):
                np.testing.assert_allclose(getattr(filled, name), schedule(step), rtol=1e-6)
    assert any(callable(x) for x in fields.values())
    result = fit(KEY, vipp.ELBO(), model, guide, ADAM, 2)
    assert result.state.mutable_state[STATE]["step"] == 2


# -- what users see ------------------------------------------------------------------------------


def test_predictive_takes_the_parameters_as_they_are():
    def guide():
        logits = numpyro.param("l", jnp.zeros(2))
        with numpyro.plate("N", 2):
            vipp.sample("b", dist.Bernoulli(logits=logits), vipp.ScoreFunction(baseline=MOVING))
        vipp.sample("z", dist.Bernoulli(logits=logits[0]), vipp.REBAR(lambda t: 1.0 / (1 + t)))

    def both():
        model()
        with numpyro.plate("N", 2):
            numpyro.sample("b", dist.Bernoulli(0.3))

    result = fit(KEY, vipp.ELBO(), both, guide, ADAM, 2)
    assert set(result.params) == {"l"}
    assert set(result.state.mutable_state) == {"b$estimator", STATE}
    predict = Predictive(guide, params=result.params, num_samples=5)
    for draws in (predict(KEY), result.sample_posterior(KEY, 5)):
        assert jax.tree.map(jnp.shape, draws) == {"b": (5, 2), "z": (5,)}
    predict = Predictive(both, guide=guide, params=result.params, num_samples=5)
    assert jnp.shape(predict(KEY)["x"]) == (5,)


@pytest.mark.parametrize(
    ("estimator", "match"),
    [
        (
            vipp.ScoreFunction(baseline=MOVING),
            r"MovingAverage\(decay=0.8\) has parameters or state",
        ),
        (vipp.ScoreFunction(baseline=vipp.Learned(lambda: 0.0)), "has parameters or state"),
        (vipp.ScoreFunction(baseline=lambda: 0.0), "has parameters or state"),
        (vipp.RELAX(2), "RELAX has parameters"),
        (vipp.Mix(vipp.DisARM(), vipp.ARM()), "weight='optimal'.*has state"),
        (vipp.REBAR(optax.constant_schedule(0.5)), "REBAR has a schedule for 'temperature'"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_infer_alone_has_no_state(estimator, match):
    def guide():
        numpyro.sample("z", dist.Bernoulli(0.4), infer={"estimator": estimator})

    with pytest.raises(vipp.SiteError, match=f"Site 'z'.*{match}.*Fix: .*vipp.with_estimators"):
        vipp.explain(vipp.ELBO(), model, guide)


def test_state_of_a_site_in_a_scope():
    """The state is named as the site is, whoever names the estimator."""
    estimator = vipp.ScoreFunction(baseline=MOVING)
    scoped = lambda program: handlers.scope(program, prefix="outer")
    plain = guided(None)
    for guide in (
        scoped(guided(estimator)),
        vipp.with_estimators(scoped(plain), {"outer/z": estimator}),
        scoped(vipp.with_estimators(plain, {"z": estimator})),
    ):
        svi = SVI(scoped(model), guide, ADAM, vipp.ELBO())
        state, loss = svi.update(svi.init(KEY))
        assert set(state.mutable_state) == {"outer/z$estimator"}
        np.testing.assert_allclose(state.mutable_state["outer/z$estimator"]["sum"], -0.2 * loss)


def test_one_site_has_one_state():
    """A model's and a guide's estimator of the same site share what they keep, or refuse to."""
    averaged = vipp.ScoreFunction(baseline=MOVING)
    same = vipp.with_estimators(model, {"z": averaged})
    vipp.explain(vipp.ELBO(), same, guided(averaged))
    other = vipp.with_estimators(model, {"z": vipp.REBAR(lambda t: 1.0 + t)})
    with pytest.raises(vipp.SiteError, match=r"Site 'z'.*found.*expected.*Fix: give the site the"):
        vipp.explain(vipp.ELBO(), other, guided(averaged))
