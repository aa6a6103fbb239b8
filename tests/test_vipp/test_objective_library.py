"""Every objective against its exactly computed expectation, in value and gradient."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp
from numpyro import handlers

import vipp
from labels import label

pytestmark = pytest.mark.uncompiled

X = jnp.array([0.3, 2.1])


def model(x=X):
    w = numpyro.param("w", 0.8)
    with numpyro.plate("N", 2):
        z = numpyro.sample("z", dist.Bernoulli(0.35))
        numpyro.sample("x", dist.Normal(2.0 * w * z, 1.0), obs=x)


def guide(x=X):
    with numpyro.plate("N", 2):
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("l", jnp.zeros(2))))


def scored(x=X):
    with numpyro.plate("N", 2):
        logits = numpyro.param("l", jnp.zeros(2))
        vipp.sample("z", dist.Bernoulli(logits=logits), vipp.ScoreFunction())


PARAMS = {"w": jnp.array(0.8), "l": jnp.array([1.1, -0.6])}


def log_mean_exp(x):
    return logsumexp(x, axis=0) - math.log(len(x))


def miwae(log_w):
    return (log_mean_exp(log_w[:2]) + log_mean_exp(log_w[2:])) / 2


def tvo(log_w):
    weighted = [(jax.nn.softmax(b * log_w, axis=0) * log_w).sum(0) for b in (0.0, 0.2)]
    return 0.2 * weighted[0] + 0.8 * weighted[1]


# objective, number of draws, the value as a formula of the log weights
BOUNDS = {
    "ELBO": (vipp.ELBO(num_particles=2), 2, lambda w: w.mean(0)),
    "IWAE": (vipp.IWAE(num_particles=2), 2, log_mean_exp),
    "MIWAE": (vipp.MIWAE(num_bounds=2, num_particles=2), 4, miwae),
    "CIWAE": (
        vipp.CIWAE(num_particles=2, beta=0.3), 2, lambda w: 0.3 * w.mean(0) + 0.7 * log_mean_exp(w)
    ),
    "Renyi(0.5)": (
        vipp.Renyi(alpha=0.5, num_particles=2), 2, lambda w: 2.0 * log_mean_exp(0.5 * w)
    ),
    "Renyi(-1)": (vipp.Renyi(alpha=-1.0, num_particles=2), 2, lambda w: log_mean_exp(2 * w) / 2),
    "Renyi(1)": (vipp.Renyi(alpha=1.0, num_particles=2), 2, lambda w: w.mean(0)),
    "Renyi(-inf)": (vipp.Renyi(alpha=-math.inf, num_particles=2), 2, lambda w: w.max(0)),
    "CUBO": (vipp.CUBO(num_particles=2), 2, lambda w: -log_mean_exp(2 * w) / 2),
    "CUBO(3)": (vipp.CUBO(num_particles=2, power=3.0), 2, lambda w: -log_mean_exp(3 * w) / 3),
    "TVO": (vipp.TVO(num_particles=2, partition=(0.0, 0.2)), 2, tvo),
}  # fmt: skip


@pytest.fixture(scope="module")
def expectation(reference):
    """The expected value of an objective of the table, and its gradient."""

    @functools.cache
    def of(name):
        _, particles, formula = BOUNDS[name]
        exact = reference.bound(model, guide, particles=particles, plates=("N",), formula=formula)
        return jax.jit(jax.value_and_grad(exact))(PARAMS)

    return of


@pytest.mark.parametrize("name", BOUNDS)
def test_bound_is_its_expectation(name, expectation, bound_and_grad):
    got = bound_and_grad(BOUNDS[name][0], model, guide, PARAMS)  # enumerated: exact itself
    close = lambda g, w: np.testing.assert_allclose(g, w, rtol=3e-4, atol=3e-5)
    jax.tree.map(close, got, expectation(name))


def impossible(x=X):
    w = numpyro.param("w", 0.8)
    with numpyro.plate("N", 2):
        z = numpyro.sample("z", dist.Categorical(probs=jnp.array([0.65, 0.35, 0.0])))
        numpyro.sample("x", dist.Normal(2.0 * w * z, 1.0), obs=x)


def never_drawn(x=X):
    p = jax.nn.sigmoid(numpyro.param("l", jnp.zeros(2)))
    with numpyro.plate("N", 2):
        fn = dist.Categorical(probs=jnp.stack([1 - p, p, 0 * p], -1))
        vipp.sample("z", fn, vipp.Enumerate())


@pytest.mark.few(3)
@pytest.mark.parametrize("name", BOUNDS)
def test_a_choice_that_is_never_made_counts_nothing(name, expectation, bound_and_grad):
    """Of what is enumerated, what has probability 0 in guide and model: no gradient is NaN."""
    got = bound_and_grad(BOUNDS[name][0], impossible, never_drawn, PARAMS)
    close = lambda g, w: np.testing.assert_allclose(g, w, rtol=3e-4, atol=3e-5)
    jax.tree.map(close, got, expectation(name))


@pytest.mark.few(3)
@pytest.mark.parametrize("name", BOUNDS)
def test_bound_from_draws_is_unbiased(name, expectation, check_bound):
    check_bound(expectation(name), BOUNDS[name][0], model, scored, PARAMS, most=60_000)


@pytest.mark.parametrize("name", ["CIWAE", "Renyi(0.5)", "TVO"])
def test_one_bound_over_everything(name, reference, bound_and_grad):
    objective, particles, formula = BOUNDS[name]
    objective = type(objective)(**{**objective.config, "per_plate": None})
    exact = reference.bound(model, guide, particles=particles, formula=formula)
    got = bound_and_grad(objective, model, guide, PARAMS)
    wanted = jax.jit(jax.value_and_grad(exact))(PARAMS)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=3e-4, atol=3e-5), got, wanted)


# -- those whose gradient is not that of their value -----------------------------------------------


def constant_draws(reference, params, particles, f):
    """The gradient of ``E[f(log p, log q of the draws)]``, the draws' distribution constant."""
    values, log_q0 = jax.jit(lambda p: reference.outcomes(guide, p))(params)

    def densities(params, z):
        parts = []
        for program in (model, guide):
            record = handlers.trace(
                handlers.seed(handlers.substitute(program, data={**params, "z": z}), 0)
            ).get_trace()
            sites = [s for s in record.values() if s["type"] == "sample"]
            parts.append(sum(s["fn"].log_prob(s["value"]) for s in sites))
        return parts

    count = len(log_q0)
    picks = np.stack(np.meshgrid(*[np.arange(count)] * particles, indexing="ij"), -1)
    picks = picks.reshape(-1, particles)
    probability = jnp.exp(jax.lax.stop_gradient(log_q0)[picks].sum(1))

    def mean(params):
        log_p, log_q = jax.vmap(lambda z: densities(params, z))(values["z"])
        return (probability * jax.vmap(f)(log_p[picks], log_q[picks])).sum()

    return jax.jit(jax.grad(mean))(params)


sg = jax.lax.stop_gradient


def iwae_for_model(log_p, log_q):
    return log_mean_exp(log_p - sg(log_q)).sum()


@pytest.mark.thorough
def test_piwae_trains_model_and_guide_by_their_own_bounds(reference, check_bound):
    objective = vipp.PIWAE(num_bounds=2, num_particles=2)
    tight = reference.bound(model, guide, particles=4, plates=("N",), formula=log_mean_exp)
    several = reference.bound(model, guide, particles=4, plates=("N",), formula=miwae)
    value, of_model = jax.jit(jax.value_and_grad(tight))(PARAMS)
    wanted = value, {"w": of_model["w"], "l": jax.jit(jax.grad(several))(PARAMS)["l"]}
    check_bound(wanted, objective, model, scored, PARAMS, most=300_000)
    check_bound(wanted, objective, model, guide, PARAMS, most=60_000)


def test_vimco_is_iwae(reference, check_bound):
    exact = reference.bound(model, guide, particles=3, plates=("N",))
    wanted = jax.jit(jax.value_and_grad(exact))(PARAMS)
    check_bound(wanted, vipp.VIMCO(num_particles=3), model, guide, PARAMS, most=60_000)


def test_vimco_has_less_variance_than_the_score_function(bound_and_grad):
    def spread(objective, guide):
        _, gradient = bound_and_grad(objective, model, guide, PARAMS, keys=10_000)
        return np.asarray(gradient["l"]).var(0).sum()

    plain = spread(vipp.IWAE(num_particles=3), scored)
    assert spread(vipp.VIMCO(num_particles=3), guide) < 0.5 * plain


@pytest.mark.parametrize("log_evidence", [None, "log_z"])
def test_vargrad_is_the_elbo_in_expectation(log_evidence, reference, check_bound):
    def with_evidence(x=X):
        numpyro.param("log_z", -3.0)
        guide(x)

    exact = reference.bound(model, guide)
    value, gradient = jax.jit(jax.value_and_grad(exact))(PARAMS)
    params, program = PARAMS, guide
    if log_evidence:
        params, program = {**PARAMS, "log_z": jnp.array(-3.0)}, with_evidence
        # (log Z - log w)^2 / 2 falls along the mean of log w - log Z
        gradient = {**gradient, "log_z": value + 3.0}
    objective = vipp.VarGrad(num_particles=2, log_evidence=log_evidence)
    check_bound((value, gradient), objective, model, program, params, most=60_000)


def test_wake_sleep(reference, check_bound):
    def wake(log_p, log_q):
        weight = sg(jax.nn.softmax(log_p - log_q, axis=0))
        return iwae_for_model(log_p, log_q) + 0.7 * (weight * log_q).sum()

    value = reference.bound(model, guide, particles=3, plates=("N",))(PARAMS)
    wanted = value, constant_draws(reference, PARAMS, 3, wake)
    objective = vipp.ReweightedWakeSleep(num_particles=3, wake=0.7)
    check_bound(wanted, objective, model, guide, PARAMS, X, most=60_000)


def test_sleep_phase(reference, bound_and_grad):
    """The guide follows what the model dreams: its prior, as this guide sees no data."""
    objective = vipp.ReweightedWakeSleep(num_particles=1, wake=0.0, sleep=0.5)
    value, drawn = bound_and_grad(objective, model, guide, PARAMS, X, keys=60_000)
    wanted = 0.5 * (0.35 - jax.nn.sigmoid(PARAMS["l"]))
    reference.check_unbiased((value, drawn["l"]), (value.mean(), wanted))


def test_sleep_phase_gives_the_guide_what_was_dreamt(bound_and_grad, reference):
    def amortised(x):
        a, b = numpyro.param("a", 0.2), numpyro.param("b", 0.3)
        with numpyro.plate("N", 2):
            numpyro.sample("z", dist.Bernoulli(logits=a * x + b))

    params = {"w": jnp.array(0.8), "a": jnp.array(0.2), "b": jnp.array(0.3)}
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)

    def dreams(params):
        total = 0.0
        for z, prior in ((0.0, 0.65), (1.0, 0.35)):
            x = 1.6 * z + nodes
            log_q = dist.Bernoulli(logits=params["a"] * x + params["b"]).log_prob(z)
            total += prior * (weights * log_q).sum() / weights.sum()
        return 2 * total

    exact = jax.jit(jax.grad(dreams))(params)
    args_of = lambda data, x: (data["x"],)
    for dreamt in (None, args_of):
        objective = vipp.ReweightedWakeSleep(num_particles=1, wake=0.0, sleep=1.0, dreamt=dreamt)
        value, drawn = bound_and_grad(objective, model, amortised, params, X, keys=40_000)
        drawn = {n: drawn[n] for n in ("a", "b")}
        wanted = {n: exact[n] for n in ("a", "b")}
        reference.check_unbiased((value, drawn), (value.mean(), wanted))


def test_forward_kl_by_weights(reference, bound_and_grad):
    def inclusive(log_p, log_q):
        return (sg(jax.nn.softmax(log_p - log_q, axis=0)) * log_q).sum()

    wanted = constant_draws(reference, PARAMS, 3, inclusive)
    objective = vipp.ForwardKL(num_particles=3)
    value, drawn = bound_and_grad(objective, model, guide, PARAMS, keys=60_000)
    assert (drawn["w"] == 0).all()
    reference.check_unbiased((value, drawn["l"]), (value.mean(), wanted["l"]))


def test_forward_kl_by_samples(bound_and_grad):
    z = jnp.array([[0, 1], [1, 1], [0, 0], [0, 1]])
    objective = vipp.ForwardKL(samples={"z": z})
    value, gradient = bound_and_grad(objective, model, guide, PARAMS)
    log_q = lambda logits: dist.Bernoulli(logits=logits).log_prob(z).sum(1).mean()
    wanted = jax.jit(jax.value_and_grad(log_q))(PARAMS["l"])
    np.testing.assert_allclose(value, wanted[0], rtol=1e-5)
    np.testing.assert_allclose(gradient["l"], wanted[1], rtol=1e-5)


# -- analytic divergences, beta --------------------------------------------------------------------


def continuous(x=X):
    scale = numpyro.param("w", 0.8)
    with numpyro.plate("N", 2):
        z = numpyro.sample("z", dist.Normal(0.5, 1.5))
        y = numpyro.sample("y", dist.Normal(z, 1.0))
        numpyro.sample("x", dist.Normal(y, scale), obs=x)


def normal(x=X):
    m = numpyro.param("m", jnp.zeros(2))
    with numpyro.plate("N", 2):
        z = numpyro.sample("z", dist.Normal(m, 0.7))
        numpyro.sample("y", dist.Normal(0.5 * z, 0.6))


NORMAL = {"w": jnp.array(0.8), "m": jnp.array([0.4, -1.0])}


@pytest.mark.few(1)
@pytest.mark.parametrize("kl", ["analytic", ["y"], ("z", "y")])
def test_analytic_divergence_is_right_in_expectation(kl, bound_and_grad, check_bound):
    plain = bound_and_grad(vipp.ELBO(), continuous, normal, NORMAL, keys=200_000)
    wanted = jax.tree.map(lambda x: x.mean(0), plain)
    check_bound(wanted, vipp.ELBO(kl=kl), continuous, normal, NORMAL, most=40_000)


def test_analytic_divergence_alone_has_no_variance(bound_and_grad):
    objective = vipp.ELBO(kl="analytic")
    prior = lambda: numpyro.sample("z", dist.Normal(0.5, 1.5))
    single = lambda: numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 0.7))
    value, gradient = bound_and_grad(objective, prior, single, {"m": jnp.array(0.4)}, keys=10)
    wanted = -dist.kl_divergence(dist.Normal(0.4, 0.7), dist.Normal(0.5, 1.5))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    assert gradient["m"].std() < 1e-6


def test_beta(reference, bound_and_grad):
    def free(params):
        p = jax.nn.sigmoid(params["l"])
        both = jnp.stack([1 - p, p])
        log_x = dist.Normal(2 * params["w"] * jnp.array([[0.0], [1.0]]), 1.0).log_prob(X)
        kl = (both * jnp.log(both / jnp.array([[0.65], [0.35]]))).sum()
        return (both * log_x).sum() - 2.5 * kl

    wanted = jax.jit(jax.value_and_grad(free))(PARAMS)
    for kl in ("monte_carlo", "analytic"):
        got = bound_and_grad(vipp.ELBO(beta=2.5, kl=kl), model, guide, PARAMS)
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4), got, wanted)


def test_beta_follows_its_schedule():
    import optax

    schedule = optax.linear_schedule(0.0, 1.0, 4)
    result = vipp.fit(
        jax.random.key(0), vipp.ELBO(beta=schedule), model, guide, optax.sgd(0.0), 6,
        init_params=PARAMS, progress_bar=False,
    )  # fmt: skip
    bound = lambda beta: -vipp.ELBO(beta=beta).loss(jax.random.key(0), PARAMS, model, guide)
    wanted = [bound(b) for b in (0.0, 0.25, 0.5, 0.75, 1.0, 1.0)]
    np.testing.assert_allclose(-result.losses, jnp.stack(wanted), rtol=1e-5)
    more = vipp.fit(
        jax.random.key(0), vipp.ELBO(beta=schedule), model, guide, optax.sgd(0.0), 1,
        init_state=result.state, progress_bar=False,
    )  # fmt: skip
    np.testing.assert_allclose(-more.losses, wanted[-1:], rtol=1e-5)


def test_a_schedule_needs_its_count_of_steps():
    import optax

    svi = numpyro.infer.SVI(model, guide, optax.sgd(0.1), vipp.ELBO(beta=lambda step: 0.1 * step))
    state = svi.init(jax.random.key(0))
    with pytest.raises(ValueError, match="init_state"):
        svi.update(state)
    state = state._replace(mutable_state=svi.loss.init_state())
    state, _ = svi.update(state)
    assert state.mutable_state["objective$estimator"]["step"] == 1


# -- doubly reparameterised -----------------------------------------------------------------------


@pytest.mark.thorough
def test_double_reparameterisation_is_unbiased(bound_and_grad, check_bound):
    plain = bound_and_grad(vipp.IWAE(num_particles=3), continuous, normal, NORMAL, keys=200_000)
    objective = vipp.IWAE(num_particles=3, doubly_reparameterised=True)
    wanted = jax.tree.map(lambda x: x.mean(0), plain)
    check_bound(wanted, objective, continuous, normal, NORMAL, most=40_000)


@pytest.mark.thorough
def test_double_reparameterisation_has_less_variance(bound_and_grad):
    def wide(x=X):
        m = numpyro.param("m", jnp.zeros(2))
        with numpyro.plate("N", 2):
            z = numpyro.sample("z", dist.Normal(m, 1.2))
            numpyro.sample("y", dist.Normal(z, 1.2))

    params = {"w": jnp.array(0.8), "m": jnp.array([0.4, 1.5])}

    def spread(**config):
        objective = vipp.IWAE(num_particles=32, **config)
        _, gradient = bound_and_grad(objective, continuous, wide, params, keys=4_000)
        return np.asarray(gradient["m"]).var(0).sum()

    assert spread(doubly_reparameterised=True) < 0.3 * spread()


def test_double_reparameterisation_with_one_particle_sticks_the_landing(bound_and_grad):
    one = bound_and_grad(
        vipp.IWAE(num_particles=1, doubly_reparameterised=True), continuous, normal, NORMAL, keys=50
    )
    other = bound_and_grad(vipp.ELBO(stick_the_landing=True), continuous, normal, NORMAL, keys=50)
    for g, w in zip(jax.tree.leaves(one[1]), jax.tree.leaves(other[1])):
        assert g.shape == w.shape


# -- identities: the same key gives the same number, the same guide the same gradient ----------------

SAME = [
    (vipp.Renyi(alpha=0.0, num_particles=3), vipp.IWAE(num_particles=3)),
    (vipp.Renyi(alpha=1.0, num_particles=3), vipp.ELBO(num_particles=3)),
    (vipp.CIWAE(num_particles=3, beta=1.0), vipp.ELBO(num_particles=3)),
    (vipp.CIWAE(num_particles=3, beta=0.0), vipp.IWAE(num_particles=3)),
    (vipp.MIWAE(num_bounds=1, num_particles=3), vipp.IWAE(num_particles=3)),
    (vipp.MIWAE(num_bounds=3, num_particles=1), vipp.ELBO(num_particles=3)),
    (vipp.TVO(num_particles=3, partition=(0.0,)), vipp.ELBO(num_particles=3)),
    (vipp.CUBO(num_particles=3, power=1.0), -1.0 * vipp.IWAE(num_particles=3)),
    (vipp.ELBO(num_particles=3, beta=jnp.array(1.0)), vipp.ELBO(num_particles=3)),
]


@pytest.mark.few(2)
@pytest.mark.parametrize("q", [normal, guide])
@pytest.mark.parametrize("one, other", SAME, ids=repr)
def test_identities(one, other, q, bound_and_grad):
    p, params = (continuous, NORMAL) if q is normal else (model, PARAMS)
    got = bound_and_grad(one, p, q, params)
    want = bound_and_grad(other, p, q, params)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5), got, want)


# -- annealed importance sampling -----------------------------------------------------------------


@pytest.mark.thorough
def test_annealed_bound_tightens(bound_and_grad):
    """Towards the log evidence from below, with a gradient that lifts it."""
    p = lambda: numpyro.sample("x", dist.Normal(numpyro.sample("z", dist.Normal()), 0.5), obs=2.0)
    q = lambda: numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))
    evidence = float(dist.Normal(0.0, 1.25**0.5).log_prob(2.0))
    reached = []
    for steps in (4, 16, 64):
        objective = vipp.AnnealedBound(num_steps=steps, step_size=0.3)
        value, slope = bound_and_grad(objective, p, q, {"m": jnp.array(0.0)}, keys=20_000)
        error = float(value.std()) / 20_000**0.5
        assert value.mean() < evidence + 3 * error
        assert slope["m"].mean() > 0
        reached.append(float(value.mean()))
    plain = float(bound_and_grad(vipp.ELBO(), p, q, {"m": jnp.array(0.0)}, keys=20_000)[0].mean())
    assert plain + 1 < reached[0] < reached[1] - 1 < reached[2] - 2
    assert evidence - reached[2] < 0.8


@pytest.mark.thorough
def test_annealed_weights_are_unbiased_for_the_evidence(bound_and_grad):
    """Constrained sites move in unconstrained coordinates, and the volume is accounted for."""

    def p():
        rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0))
        mix = numpyro.sample("mix", dist.Dirichlet(jnp.array([2.0, 1.0, 3.0])))
        numpyro.sample("x", dist.Poisson(rate), obs=2)
        numpyro.sample("y", dist.Categorical(mix), obs=jnp.array(2))

    def q():
        numpyro.sample("rate", dist.Gamma(4.0, 2.5))
        numpyro.sample("mix", dist.Dirichlet(jnp.array([2.0, 1.5, 3.0])))

    objective = vipp.AnnealedBound(num_steps=3, step_size=0.1)
    value, _ = bound_and_grad(objective, p, q, {}, keys=40_000)
    weights = np.exp(np.asarray(value, np.float64))
    evidence = float(dist.GammaPoisson(3.0, 2.0).log_prob(2)) + np.log(0.5)
    error = weights.std() / 40_000**0.5
    assert error < 0.01 * np.exp(evidence)
    assert abs(weights.mean() - np.exp(evidence)) < 4 * error


# -- sums of objectives ----------------------------------------------------------------------------


def test_sums_of_objectives(bound_and_grad):
    mine = vipp.objective(lambda p, q: jnp.square(p.log_density(q.simulate()[0])))()
    parts = [vipp.ELBO(), mine, vipp.IWAE(num_particles=2)]
    values = [bound_and_grad(o, model, guide, PARAMS) for o in parts]
    total = parts[0] + 0.1 * parts[1] - parts[2] * 0.5
    wanted = jax.tree.map(lambda a, b, c: a + 0.1 * b - 0.5 * c, *values)
    got = bound_and_grad(total, model, guide, PARAMS)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5), got, wanted)
    assert repr(vipp.ELBO() + 0.1 * vipp.VIMCO(num_particles=2)) == (
        "ELBO() + 0.1 * VIMCO(num_particles=2)"
    )


# -- mistakes --------------------------------------------------------------------------------------

REFUSED = [
    (lambda: vipp.CIWAE(num_particles=2, beta=1.2), "CIWAE: beta must be within"),
    (lambda: vipp.CIWAE(num_particles=2, beta=-0.1), "CIWAE: beta must be within"),
    (lambda: vipp.ELBO(beta=-1.0), "ELBO: beta must not be negative"),
    (lambda: vipp.ELBO(kl="exact"), "ELBO: kl must be"),
    (lambda: vipp.ELBO(kl="analytic", stick_the_landing=True), "stick_the_landing"),
    (lambda: vipp.Renyi(alpha=math.inf, num_particles=2), "Renyi: alpha"),
    (lambda: vipp.Renyi(alpha=math.nan, num_particles=2), "Renyi: alpha"),
    (lambda: vipp.CUBO(num_particles=2, power=0.5), "CUBO: power"),
    (lambda: vipp.VIMCO(num_particles=1), "VIMCO: num_particles must be at least 2"),
    (lambda: vipp.VarGrad(num_particles=1), "VarGrad: num_particles must be at least 2"),
    (lambda: vipp.TVO(num_particles=2, partition=(0.1, 0.2)), "TVO: partition"),
    (lambda: vipp.TVO(num_particles=2, partition=(0.0, 0.2, 0.1)), "TVO: partition"),
    (lambda: vipp.MIWAE(num_bounds=0, num_particles=2), "MIWAE: num_bounds"),
    (lambda: vipp.ReweightedWakeSleep(num_particles=2, sleep=-1.0), "sleep must not be"),
    (lambda: vipp.AnnealedBound(num_steps=0), "AnnealedBound: num_steps"),
    (lambda: vipp.AnnealedBound(num_steps=1, step_size=0.0), "step_size must be positive"),
    (lambda: vipp.AnnealedBound(num_steps=1, persistence=1.0), "persistence must be"),
]


@pytest.mark.parametrize("make, message", REFUSED, ids=[m for _, m in REFUSED])
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


REFUSED_WHEN_RUN = [
    (vipp.ELBO(kl=["z", "nonsense"]), normal, "no latent site 'nonsense'"),
    (vipp.IWAE(num_particles=2, doubly_reparameterised=True), guide, "site 'z' is drawn with"),
    (vipp.VarGrad(num_particles=2, log_evidence="log_z"), guide, "numpyro.param\\('log_z'"),
    (vipp.AnnealedBound(num_steps=2), guide, "site 'z' is discrete"),
]


@pytest.mark.parametrize(
    "objective, q, message", REFUSED_WHEN_RUN, ids=[m for *_, m in REFUSED_WHEN_RUN]
)
def test_refused_when_run(objective, q, message):
    p, params = (continuous, NORMAL) if q is normal else (model, PARAMS)
    with pytest.raises(ValueError, match=message):
        objective.loss(jax.random.key(0), params, p, q)


class Shifted(dist.Normal):
    """With a law of its own."""

    def sample(self, key, sample_shape=()):
        return 3.0 + super().sample(key, sample_shape)

    def log_prob(self, x):
        return super().log_prob(x - 3.0)


@dist.kl_divergence.register(Shifted, dist.StudentT)
def _known(p, q):
    return jnp.full((), 7.0)


class Renamed(dist.Normal):
    """With the law that it inherits."""


@pytest.mark.parametrize(
    ("of_q", "of_p", "closed"),
    [
        (dist.Normal(0.0, 1.0), dist.StudentT(3.0), None),
        (Shifted(0.0, 1.0), dist.Normal(0.0, 1.0), None),
        (dist.Normal(0.0, 1.0), Shifted(0.0, 1.0), None),
        (Shifted(0.0, 1.0).expand([3]).to_event(1), dist.Normal().expand([3]).to_event(1), None),
        (Shifted(jnp.zeros(3), 1.0).to_event(1), dist.Normal().expand([3]).to_event(1), None),
        (dist.Normal(0.0, 1.0).expand([2]), Shifted(jnp.zeros(2), 1.0), None),
        (Shifted(0.0, 1.0), dist.StudentT(3.0), 7.0),
        (Renamed(1.0, 1.0), dist.Normal(0.0, 1.0), 0.5),
        (
            dist.Normal(1.0, 1.0).expand([2]).to_event(1),
            Renamed(jnp.zeros(2), 1.0).to_event(1),
            1.0,
        ),
    ],
)
def test_an_analytic_divergence_without_formula_is_refused(of_q, of_p, closed):
    """Whose law a formula is of counts, and not what else a class inherits."""
    p, q = (lambda: numpyro.sample("z", of_p)), (lambda: numpyro.sample("z", of_q))
    loss = lambda kl: vipp.ELBO(kl=kl).loss(jax.random.key(0), {}, p, q)
    if closed is not None:
        assert loss(["z"]) == loss("analytic") == closed
        return
    with pytest.raises(ValueError, match=r"site 'z' .\w+ from \w+. has no closed form"):
        loss(["z"])
    np.testing.assert_allclose(loss("analytic"), loss("monte_carlo"), rtol=1e-5)


def test_an_analytic_divergence_given_later_draws_is_refused():
    def p():
        y = numpyro.sample("y", dist.Normal())
        numpyro.sample("z", dist.Normal(y, 1.0))

    def q():
        z = numpyro.sample("z", dist.Normal())
        numpyro.sample("y", dist.Normal(z, 1.0))

    with pytest.raises(ValueError, match="may depend in the model on 'y'"):
        vipp.ELBO(kl=["z"]).loss(jax.random.key(0), {}, p, q)


# -- derivatives of a higher order ------------------------------------------------------------------

SURROGATES = [
    vipp.VIMCO(num_particles=2), vipp.VarGrad(num_particles=2), vipp.ELBO(stick_the_landing=True),
    vipp.VarGrad(num_particles=2, log_evidence="log_z"), vipp.ReweightedWakeSleep(num_particles=2),
    vipp.ELBO(stick_the_landing=True, beta=0.5), vipp.ELBO() + 2.0 * vipp.VIMCO(num_particles=2),
    vipp.IWAE(num_particles=2, doubly_reparameterised=True),
]  # fmt: skip
WHOLE = [vipp.ELBO(), vipp.IWAE(num_particles=2), vipp.TVO(num_particles=2)]
# in the guide's m and the model's w
ONCE = {
    "reverse": lambda f: jax.grad(f, (0, 1)),
    "forward": lambda f: jax.jacfwd(f, (0, 1)),
    "compiled": lambda f: jax.grad(jax.jit(f)),
    "mapped": lambda f: lambda m, w: jax.vmap(jax.grad(f), (0, None))(m[None], w),
    "twice in the model": lambda f: jax.hessian(f, 1),
}
TWICE = {
    "twice": lambda f: jax.hessian(f),
    "a compiled gradient": lambda f: jax.grad(lambda m, w: jax.jit(jax.grad(f))(m, w).sum()),
    "forward twice": lambda f: jax.jacfwd(jax.jacfwd(f)),
    "of both": lambda f: jax.hessian(f, (0, 1)),
}


@pytest.mark.few(8)
@pytest.mark.parametrize(
    ("objective", "how"),
    [(o, how) for o in SURROGATES for how in (*ONCE, *TWICE)] + [(o, "twice") for o in WHOLE],
    ids=label,
)
def test_orders(objective, how):
    """Traced, not run: what is refused is so before anything is compiled."""

    def loss(m, w):
        params = {"m": m, "w": w, "log_z": jnp.float32(0.0)}
        return objective.loss(jax.random.key(0), params, continuous, normal)

    take = lambda: jax.eval_shape({**ONCE, **TWICE}[how](loss), NORMAL["m"], NORMAL["w"])
    if how in ONCE or objective in WHOLE:
        take()
        return
    with pytest.raises(vipp.SiteError, match=r"order 1 without bias, got one of order 2.*Fix: "):
        take()
