"""Programs with estimated densities: the two laws of unbiasedness, bounds, exact sums, errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.scipy.special import logsumexp
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import Predictive
from numpyro.infer.util import log_density

import vipp

pytestmark = pytest.mark.uncompiled

# q(z) = sum_uv q(u) q(v) q(z | u, v): two auxiliary coins, a kept one
U, V = 0.3, 0.6
Z = np.array([[0.2, 0.5], [0.7, 0.9]])
ENUMERATE = vipp.Enumerate()


def coins(estimator=ENUMERATE):
    u = vipp.sample("u", dist.Bernoulli(U), estimator)
    v = vipp.sample("v", dist.Bernoulli(V), estimator)
    vipp.sample("z", dist.Bernoulli(jnp.asarray(Z)[u, v]), estimator)


def reverse(kept, estimator=ENUMERATE):
    """A proposal of the auxiliary coins that is not the posterior."""
    u = vipp.sample("u", dist.Bernoulli(0.25 + 0.5 * kept["z"]), estimator)
    vipp.sample("v", dist.Bernoulli(0.4 + 0.2 * u), estimator)


def density_of_z(z):
    p_one = sum(
        (U if u else 1 - U) * (V if v else 1 - V) * Z[u, v]
        for u, v in itertools.product((0, 1), repeat=2)
    )
    return p_one if z else 1 - p_one


KINDS = {
    "default, K=1": {},
    "default, K=3": {"num_particles": 3},
    "proposal, K=1": {"proposal": reverse},
    "proposal, K=2": {"proposal": reverse, "num_particles": 2},
    "exact": {"exact": True},
}


def exact_mean(fn):
    """The expectation of a value that finite choices decide: every site is enumerated."""
    return float(jax.jit(vipp.expectation(fn))(jax.random.key(0)))


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("z", [0, 1])
def test_density_is_unbiased(kind, z):
    p = vipp.marginal(vipp.Program(coins, {}), ["z"], **KINDS[kind])
    got = exact_mean(lambda: jnp.exp(p.log_density(vipp.Trace({"z": jnp.array(z)}))))
    np.testing.assert_allclose(got, density_of_z(z), rtol=1e-5)


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("z", [0, 1])
def test_inverse_density_is_unbiased_given_the_draw(kind, z):
    p = vipp.marginal(vipp.Program(coins, {}), ["z"], **KINDS[kind])

    def weighted():  # E[1(z) / w] = P(z) / density(z) = 1
        drawn, log_w = p.simulate()
        return jnp.where(drawn["z"] == z, jnp.exp(-log_w), 0.0)

    np.testing.assert_allclose(exact_mean(weighted), 1.0, rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["default, K=3", "proposal, K=2"])
def test_more_particles_estimate_better(kind):
    def second_moment(**config):
        p = vipp.marginal(vipp.Program(coins, {}), ["z"], **config)
        log_density = lambda: p.log_density(vipp.Trace({"z": jnp.array(1)}))
        return exact_mean(lambda: jnp.exp(2 * log_density()))

    one = {**KINDS[kind], "num_particles": 1}
    ratio = (second_moment(**KINDS[kind]) - density_of_z(1) ** 2) / (
        second_moment(**one) - density_of_z(1) ** 2
    )
    np.testing.assert_allclose(ratio, 1 / KINDS[kind]["num_particles"], rtol=1e-3)


def inner(**config):
    return vipp.marginal(coins, ["z", "v"], **config)


NESTED = {
    "both by default": (inner(), {}),
    "inner proposal": (
        inner(proposal=lambda kept: numpyro.sample("u", dist.Bernoulli(0.2 + 0.5 * kept["v"]))), {}
    ),
    "outer proposal": (
        inner(num_particles=2),
        {"proposal": lambda kept: numpyro.sample("v", dist.Bernoulli(0.3 + 0.5 * kept["z"]))},
    ),
    "outer proposal of an exact one": (
        inner(exact=True),
        {
            "proposal": lambda kept: numpyro.sample("v", dist.Bernoulli(0.3 + 0.5 * kept["z"])),
            "num_particles": 2,
        },
    ),
}  # fmt: skip


@pytest.mark.few(1)
@pytest.mark.parametrize("case", NESTED)
def test_marginals_of_marginals(case):
    program, config = NESTED[case]
    nested = vipp.marginal(program, ["z"], **config)
    p = nested.bind(vipp.programs.composed.Binding({}))
    for z in (0, 1):
        got = exact_mean(lambda: jnp.exp(p.log_density(vipp.Trace({"z": jnp.array(z)}))))
        np.testing.assert_allclose(got, density_of_z(z), rtol=1e-5)

        def weighted():
            drawn, log_w = p.simulate()
            return jnp.where(drawn["z"] == z, jnp.exp(-log_w), 0.0)

        np.testing.assert_allclose(exact_mean(weighted), 1.0, rtol=1e-5)


# -- plates ----------------------------------------------------------------------------------------

X = jnp.array([0.3, 2.1, -0.8])


def mixture(x=X):
    """Global means, a component for each observation."""
    m = numpyro.sample("m", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with numpyro.plate("N", 3):
        c = vipp.sample("c", dist.Bernoulli(0.3), vipp.Enumerate())
        numpyro.sample("x", dist.Normal(m[c], 1.0), obs=x)


def log_joint(m, x=X):
    log_p = dist.Normal(0.0, 2.0).log_prob(m).sum()
    parts = [jnp.log(w) + dist.Normal(mean, 1.0).log_prob(x) for w, mean in zip((0.7, 0.3), m)]
    return log_p + jnp.logaddexp(*parts).sum()


@pytest.mark.few(1)
@pytest.mark.parametrize("config", [{"exact": True}, {}, {"num_particles": 2}], ids=str)
def test_a_plate_has_weights_of_its_own(config):
    m = jnp.array([0.5, -0.7])
    p = vipp.marginal(vipp.Program(mixture, {}), ["m"], **config)
    density = lambda: jnp.exp(p.log_density(vipp.Trace({"m": m})))
    np.testing.assert_allclose(exact_mean(density), jnp.exp(log_joint(m)), rtol=1e-4)


@pytest.mark.thorough
def test_plates_lower_the_variance():
    """Each element averages its own weights: K = 50 joint draws of 30 coins would be hopeless."""
    x = jnp.linspace(-2, 2, 30)

    def many(x):
        m = numpyro.sample("m", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
        with numpyro.plate("N", 30):
            c = vipp.sample("c", dist.Bernoulli(0.3), vipp.ScoreFunction())
            numpyro.sample("x", dist.Normal(m[c], 1.0), obs=x)

    m = jnp.array([1.5, -1.7])
    p = vipp.marginal(vipp.Program(many, {}, (x,)), ["m"], num_particles=200)
    one = vipp.expectation(lambda: p.log_density(vipp.Trace({"m": m})))
    drawn = jax.vmap(one)(jax.random.split(jax.random.key(0), 200))
    assert abs(float(drawn.mean() - log_joint(m, x))) < 0.15
    assert drawn.std() < 0.5


def test_exact_gradient():
    p = lambda m: vipp.marginal(vipp.Program(mixture, {}), ["m"], exact=True).log_density(
        vipp.Trace({"m": m})
    )
    m = jnp.array([0.5, -0.7])
    with handlers.seed(rng_seed=0):
        got = jax.jit(jax.grad(p))(m)
    np.testing.assert_allclose(got, jax.jit(jax.grad(log_joint))(m), rtol=1e-4)


def test_subsampled_mixture_is_scaled():
    def model(x):
        with numpyro.plate("N", 3, subsample_size=2):
            batch = numpyro.subsample(x, event_dim=0)
            c = numpyro.sample("c", dist.Bernoulli(0.3))
            numpyro.sample("x", dist.Normal(2.0 * c, 1.0), obs=batch)

    each = jnp.logaddexp(
        jnp.log(0.7) + dist.Normal(0, 1).log_prob(X), jnp.log(0.3) + dist.Normal(2, 1).log_prob(X)
    )
    for config in ({"exact": True}, {"num_particles": 1}):
        p = vipp.marginal(vipp.Program(model, {}, (X,)), [], **config)
        index = jnp.array([0, 2])
        at = vipp.Trace({}, {"N": index})
        run = vipp.expectation(lambda: jnp.exp(p.log_density(at, per_plate="N")).prod())
        got = run(jax.random.key(0))
        np.testing.assert_allclose(got, jnp.exp(each[index]).prod(), rtol=1e-5)
    exact = vipp.marginal(vipp.Program(model, {}, (X,)), [], exact=True)
    run = vipp.expectation(lambda: exact.log_density(at))
    np.testing.assert_allclose(run(jax.random.key(0)), 1.5 * each[index].sum(), rtol=1e-5)


def test_one_bound_per_element_with_a_marginal_guide(bound_and_grad):
    """Only local sites: IWAE finds the plate through the marginal, and is exact by enumeration."""

    def model():
        with numpyro.plate("N", 2):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=X[:2])

    def guide():
        with numpyro.plate("N", 2):
            u = numpyro.sample("u", dist.Bernoulli(0.5))
            numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("l", 0.0) + u - 0.5))

    params = {"l": jnp.array(0.3)}

    def wanted(l):
        q = jnp.mean(jax.nn.sigmoid(l + jnp.array([-0.5, 0.5])))
        q = jnp.stack([1 - q, q])
        p = jnp.stack([0.6 * jnp.exp(dist.Normal(0, 1).log_prob(X[:2])),
                       0.4 * jnp.exp(dist.Normal(2, 1).log_prob(X[:2]))])  # fmt: skip
        total = 0.0
        for a, b in itertools.product((0, 1), repeat=2):
            total += q[a] * q[b] * jnp.log((p[a] / q[a] + p[b] / q[b]) / 2).sum()
        return total

    guide = vipp.marginal(guide, ["z"], exact=True)
    got = bound_and_grad(vipp.IWAE(num_particles=2), model, guide, params)
    value, slope = jax.jit(jax.value_and_grad(wanted))(params["l"])
    np.testing.assert_allclose(got[0], value, rtol=1e-4)
    np.testing.assert_allclose(got[1]["l"], slope, rtol=1e-3, atol=1e-5)


# -- sequences -------------------------------------------------------------------------------------

A = jnp.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
FIRST, MEANS = jnp.array([0.5, 0.3, 0.2]), jnp.array([-1.0, 0.0, 2.0])
SERIES = jax.random.normal(jax.random.key(3), (9,))


def hidden_markov(xs):
    means = numpyro.param("means", MEANS)

    def step(z, x):
        z = numpyro.sample("z", dist.Categorical(probs=A[z]))
        numpyro.sample("x", dist.Normal(means[z], 1.0), obs=x)
        return z, None

    scan(step, numpyro.sample("z0", dist.Categorical(probs=FIRST)), xs)


def forward_algorithm(means):
    alpha = jnp.log(FIRST)
    for x in SERIES:
        alpha = logsumexp(alpha[:, None] + jnp.log(A), axis=0) + dist.Normal(means, 1).log_prob(x)
    return logsumexp(alpha)


def test_hidden_markov_model_is_the_forward_algorithm(bound_and_grad):
    model = vipp.marginal(hidden_markov, [], exact=True)
    got = bound_and_grad(vipp.ELBO(), model, lambda xs: None, {"means": MEANS}, SERIES)
    value, slope = jax.jit(jax.value_and_grad(forward_algorithm))(MEANS)
    np.testing.assert_allclose(got[0], value, rtol=1e-5)
    np.testing.assert_allclose(got[1]["means"], slope, rtol=1e-4, atol=1e-5)


def test_hidden_markov_model_with_continuous_parameters(bound_and_grad):
    def model(xs):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.3))

        def step(z, x):
            z = numpyro.sample("z", dist.Categorical(probs=A[z]))
            numpyro.sample("x", dist.Normal(MEANS[z], scale), obs=x)
            return z, None

        scan(step, numpyro.sample("z0", dist.Categorical(probs=FIRST)), xs)

    guide = lambda xs: numpyro.sample("scale", dist.Delta(1.0))
    marginal = vipp.marginal(model, ["scale"], exact=True)
    value, _ = bound_and_grad(vipp.ELBO(), marginal, guide, {}, SERIES)
    wanted = forward_algorithm(MEANS) + dist.LogNormal(0.0, 0.3).log_prob(1.0)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


# -- normalize -------------------------------------------------------------------------------------


def coin_model(x=1.3):
    z = numpyro.sample("z", dist.Bernoulli(0.35))
    y = numpyro.sample("y", dist.Bernoulli(0.2 + 0.5 * z))
    numpyro.sample("x", dist.Normal(1.0 * z + 2.0 * y, 1.0), obs=x)


def coin_guide(x=1.3):
    z = vipp.sample("z", dist.Bernoulli(logits=numpyro.param("a", 0.2)), vipp.Enumerate())
    vipp.sample("y", dist.Bernoulli(logits=numpyro.param("b", -0.4) + z), vipp.Enumerate())


AB = {"a": jnp.array(0.2), "b": jnp.array(-0.4)}


@pytest.mark.parametrize("particles", [1, 2, 3])
def test_elbo_of_a_normalized_guide_is_iwae(particles, bound_and_grad):
    """The gradient too, exactly: all choices are enumerated, the index included."""
    guide = vipp.normalize(coin_model, coin_guide, particles)
    got = bound_and_grad(vipp.ELBO(), coin_model, guide, AB)
    want = bound_and_grad(vipp.IWAE(num_particles=particles), coin_model, coin_guide, AB)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5), got, want)


@pytest.mark.few(1)
@pytest.mark.parametrize("estimator", [None, vipp.ScoreFunction()], ids=repr)
def test_elbo_of_a_normalized_guide_on_plates(estimator, reference, check_bound):
    def model():
        with numpyro.plate("N", 2):
            z = numpyro.sample("z", dist.Bernoulli(0.35))
            numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=X[:2])

    def guide():
        with numpyro.plate("N", 2):
            logits = numpyro.param("l", jnp.zeros(2))
            vipp.sample("z", dist.Bernoulli(logits=logits), vipp.ScoreFunction())

    params = {"l": jnp.array([0.4, -0.9])}
    exact = reference.bound(model, guide, particles=3, plates=("N",))
    normalized = vipp.normalize(model, guide, 3, estimator)
    wanted = jax.jit(jax.value_and_grad(exact))(params)
    check_bound(wanted, vipp.ELBO(), model, normalized, params, most=250_000)


@pytest.mark.few(1)
@pytest.mark.parametrize("z, y", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_laws_of_normalize(z, y):
    bound = vipp.normalize(coin_model, coin_guide, 2).bind(vipp.programs.composed.Binding(AB))
    here = lambda drawn: (drawn["z"] == z) & (drawn["y"] == y)

    def inverse():
        drawn, log_w = bound.simulate()
        return jnp.where(here(drawn), jnp.exp(-log_w), 0.0)

    np.testing.assert_allclose(exact_mean(inverse), 1.0, rtol=1e-4)
    at = vipp.Trace({"z": jnp.array(z), "y": jnp.array(y)})
    density = exact_mean(lambda: jnp.exp(bound.log_density(at)))
    frequency = exact_mean(lambda: here(bound.simulate()[0]) * 1.0)
    np.testing.assert_allclose(density, frequency, rtol=1e-4)


def coin_flips(flips):
    p = numpyro.sample("p", dist.Beta(10, 10))
    with numpyro.plate("N", 10):
        numpyro.sample("flip", dist.Bernoulli(p), obs=flips)


def coin_prior(flips):
    numpyro.sample("p", dist.Beta(10, 10))


FLIPS = jnp.array([1, 1, 1, 1, 1, 1, 0, 0, 0, 0])


@pytest.mark.thorough
def test_coin_posterior():
    posterior = vipp.normalize(coin_flips, coin_prior, 100)
    predictive = Predictive(posterior, num_samples=6_000, parallel=True)
    draws = predictive(jax.random.key(0), FLIPS)["p"]
    np.testing.assert_allclose(draws.mean(), 0.5333, atol=0.003)
    np.testing.assert_allclose(draws.std(), 0.0896, atol=0.003)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["normalize", "IWAE"])
def test_coin_evidence(kind):
    guide, objective = coin_prior, vipp.IWAE(num_particles=300)
    if kind == "normalize":
        guide, objective = vipp.normalize(coin_flips, coin_prior, 300), vipp.ELBO()
    one = lambda key: -objective.loss(key, {}, coin_flips, guide, FLIPS)
    drawn = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 2_000))
    np.testing.assert_allclose(drawn.mean(), -7.0694, atol=0.002)


def test_fit_and_predict_with_composed_programs():
    """A hierarchical guide, its proposal and itself trained together."""

    def model(x=1.0):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def hierarchical(x=1.0):
        u = numpyro.sample("u", dist.Normal(0.0, 1.0))
        loc, slope = numpyro.param("loc", 0.0), numpyro.param("slope", 0.5)
        numpyro.sample("z", dist.Normal(loc + slope * u, 0.5))

    def backwards(kept, x=1.0):
        back, shift = numpyro.param("back", 0.1), numpyro.param("shift", 0.0)
        spread = numpyro.param("spread", 1.0, constraint=dist.constraints.positive)
        numpyro.sample("u", dist.Normal(shift + back * kept["z"], spread))

    guide = vipp.marginal(hierarchical, ["z"], proposal=backwards, num_particles=4)
    result = vipp.fit(
        jax.random.key(0),
        vipp.ELBO(),
        model,
        guide,
        optax.adam(optax.cosine_decay_schedule(0.1, 4_000)),
        4_000,
        progress_bar=False,
    )
    assert set(result.params) == {"loc", "slope", "back", "shift", "spread"}
    draws = result.sample_posterior(jax.random.key(1), 20_000)
    assert set(draws) == {"z"}
    np.testing.assert_allclose(draws["z"].mean(), 0.5, atol=0.05)
    np.testing.assert_allclose(draws["z"].var(), 0.5, atol=0.05)
    evidence = dist.Normal(0.0, 2**0.5).log_prob(1.0)
    np.testing.assert_allclose(-result.losses[-300:].mean(), evidence, atol=0.02)


# -- mistakes --------------------------------------------------------------------------------------


def run(objective, model, guide, *args):
    return objective.loss(jax.random.key(0), AB, model, guide, *args)


def target():
    z = numpyro.sample("z", dist.Bernoulli(0.5))
    numpyro.factor("f", 1.0 * z)


def half_normal_auxiliary():
    u = numpyro.sample("u", dist.HalfNormal(1.0))
    numpyro.sample("z", dist.Bernoulli(u / (1 + u)))


def misses(kept):
    numpyro.sample("u", dist.Bernoulli(0.5))


def too_many(kept):
    reverse(kept)
    numpyro.sample("w", dist.Bernoulli(0.5))


def other_support(kept):
    numpyro.sample("u", dist.Normal())


ELBO = vipp.ELBO()
REFUSED = {
    "keep in a guide": (
        lambda: run(ELBO, target, vipp.marginal(coins, ["zz"])), "no latent site 'zz', got .'u'"
    ),
    "keep in a model": (
        lambda: run(ELBO, vipp.marginal(coins, ["zz"]), target), "site 'zz' is kept but was given"
    ),
    "keep, exactly": (
        lambda: run(ELBO, target, vipp.marginal(coins, ["zz"], exact=True)), "no latent site 'zz'"
    ),
    "a value integrated out": (
        lambda: run(ELBO, vipp.marginal(coins, ["z"]), coins), "site 'u' has a value but is integ"
    ),
    "a value summed out": (
        lambda: run(ELBO, vipp.marginal(coins, ["z"], exact=True), coins), "site 'u' has a value but"
    ),
    "proposal misses a site": (
        lambda: run(ELBO, target, vipp.marginal(coins, ["z"], misses)),
        "its proposal must draw.*'v' has a value but the program has no such",
    ),
    "proposal misses a site of a model": (
        lambda: run(ELBO, vipp.marginal(coins, ["z"], misses), target),
        "its proposal must draw.*'v' is latent here but was given no value",
    ),
    "proposal has a site too many": (
        lambda: run(ELBO, target, vipp.marginal(coins, ["z"], too_many)),
        "its proposal must draw.*'w' is latent here",
    ),
    "proposal of another support": (
        lambda: run(ELBO, target, vipp.marginal(half_normal_auxiliary, ["z"], other_support)),
        "site 'u' has the support of Normal .*expected that of HalfNormal",
    ),
    "continuous site summed out": (
        lambda: run(ELBO, target, vipp.marginal(half_normal_auxiliary, ["z"], exact=True)),
        "site 'u' cannot be summed out, as HalfNormal has no finite support",
    ),
    "exact with a proposal": (
        lambda: vipp.marginal(coins, ["z"], reverse, exact=True), "sums the other sites out"
    ),
    "proposal of nothing kept": (
        lambda: vipp.marginal(coins, ["z"], lambda *, kept: None), "takes no positional argument"
    ),
    "no particles": (lambda: vipp.marginal(coins, ["z"], num_particles=0), "positive int"),
    "no particles to resample": (lambda: vipp.normalize(coins, coins, 0), "positive int"),
    "under a handler": (
        lambda: run(ELBO, target, handlers.scale(vipp.marginal(coins, ["z"]), 2.0)),
        "vipp.marginal.* runs inside another program",
    ),
    "with_estimators outside": (
        lambda: run(ELBO, target, vipp.with_estimators(vipp.marginal(coins, ["z"]), {})),
        "vipp.marginal.* runs inside another program",
    ),
    "constant draws": (
        lambda: run(vipp.VIMCO(num_particles=2), target, vipp.marginal(coins, ["z"])),
        "needs the guide's exact density",
    ),
    "beta": (
        lambda: run(vipp.ELBO(beta=0.5), target, vipp.marginal(coins, ["z"])),
        "needs the density of each site",
    ),
    "normalize, other sites": (
        lambda: run(ELBO, target, vipp.normalize(target, coins, 2)), "'u' has a value but"
    ),
    "normalize, other support": (
        lambda: run(
            ELBO, target,
            vipp.normalize(
                lambda: numpyro.sample("z", dist.HalfNormal()),
                lambda: numpyro.sample("z", dist.Normal()), 2),
        ),
        "site 'z' has the support of Normal",
    ),
    "marginal of normalize": (
        lambda: run(ELBO, target, vipp.marginal(vipp.normalize(coins, coins, 2), ["z"])),
        "cannot be drawn given others",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    mistake, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        mistake()


# -- handlers around an exact marginal -----------------------------------------------------------------


def clusters():
    c = numpyro.sample("c", dist.Bernoulli(0.25))
    z = numpyro.sample("z", dist.Normal(2.0 * c, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=0.7)


def clusters_in_a_scan():
    def step(c, _):
        c = numpyro.sample("c", dist.Bernoulli(jnp.where(c == 1, 0.6, 0.25)))
        numpyro.sample("x", dist.Normal(2.0 * c, 1.0), obs=0.7)
        return c, None

    z = numpyro.sample("z", dist.Normal())
    scan(step, jnp.where(z > 0, 1, 0), None, length=2)


GIVING = {
    "condition": lambda p, data: numpyro.handlers.condition(p, data=data),
    "substitute": lambda p, data: numpyro.handlers.substitute(p, data=data),
    "replay": lambda p, data: numpyro.handlers.replay(
        p, {n: {"name": n, "type": "sample", "is_observed": False, "value": x, "infer": {}} for n, x in data.items()}
    ),
}  # fmt: skip


@pytest.mark.parametrize("where", ["around", "inside"])
@pytest.mark.parametrize("how", GIVING)
@pytest.mark.parametrize("program", [clusters, clusters_in_a_scan])
def test_a_value_given_for_what_is_summed_out_wins(program, how, where):
    value = {"c": jnp.array(1) if program is clusters else jnp.array([1, 0])}
    z = {"z": jnp.array(0.4)}
    if where == "around":
        changed = GIVING[how](vipp.marginal(program, keep=["z"], exact=True), value)
    elif how == "condition":
        changed = vipp.marginal(GIVING[how](program, value), keep=["z"], exact=True)
    else:
        return
    got, _ = log_density(numpyro.handlers.seed(changed, 0), (), {}, z)
    want, _ = log_density(program, (), {}, {**z, **value})
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_what_handlers_around_cannot_do_to_what_is_hidden():
    summed = vipp.marginal(clusters, keep=["z"], exact=True)
    with pytest.raises(ValueError, match="Site 'c' is summed out .*do intervenes.*Fix: "):
        log_density(numpyro.handlers.seed(numpyro.handlers.do(summed, {"c": 1}), 0), (), {}, {})
    with pytest.raises(ValueError, match="Site 'x' is observed, and hidden.*Fix: "):
        numpyro.handlers.seed(numpyro.handlers.condition(
            vipp.marginal(in_the_factor, keep=["z"], exact=True), data={"x": 1.0}), 0)()  # fmt: skip


def in_the_factor():
    c = numpyro.sample("c", dist.Bernoulli(0.25))
    numpyro.sample("z", dist.Normal())
    numpyro.sample("x", dist.Normal(2.0 * c, 1.0), obs=0.7)
