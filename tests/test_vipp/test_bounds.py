"""What bounds do with logits of zero, subsampled plates, particles, and plates of their own."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp
from numpyro import handlers
from numpyro.infer import RenyiELBO

import vipp

pytestmark = pytest.mark.uncompiled

X4 = jnp.array([0.3, -1.2, 2.0, 1.1])


def agree(got, want, **tolerance):
    tolerance = {"rtol": 2e-4, "atol": 2e-5, **tolerance}
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, **tolerance), got, want)


def subsampled_model(x, size=2):
    with numpyro.plate("N", len(x), subsample_size=size):
        batch = numpyro.subsample(x, event_dim=0)
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=batch)


def subsampled_guide(x, size=2):
    with numpyro.plate("N", len(x), subsample_size=size):
        logits = numpyro.param("l", jnp.zeros(4), event_dim=0)
        numpyro.sample("z", dist.Bernoulli(logits=logits))


PARAMS = {"l": jnp.array([1.4, -0.9, -1.2, 0.5])}


# -- logits of exactly zero ----------------------------------------------------------------------


def at_zero(objective, model_logit, estimator, bound_and_grad, prior=0.0):
    """Bound and slope at logits 0 of a one-coin model whose log density is ``model_logit * z``."""

    def model():
        z = numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("prior", prior)))
        numpyro.factor("f", model_logit * z)

    def guide():
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("l", 0.0)), infer=estimator)

    return bound_and_grad(objective, model, guide, {"l": jnp.zeros(()), "prior": jnp.zeros(())})


def test_zero_logits_in_model_and_guide(bound_and_grad):
    """The slopes of log(1 + e^3) - log 2 - KL at q = p = 1/2, by hand."""
    infer = {"estimator": vipp.Enumerate()}
    bound, slope = at_zero(vipp.ELBO(), 3.0, infer, bound_and_grad)
    agree((bound, slope), (1.5, {"l": 0.25 * 3.0, "prior": 0.0}))


def test_zero_logits_under_iwae(bound_and_grad):
    infer = {"estimator": vipp.Enumerate()}
    got = at_zero(vipp.IWAE(num_particles=2), 3.0, infer, bound_and_grad)

    def exact(l, prior):
        q = jnp.stack([1 - jax.nn.sigmoid(l), jax.nn.sigmoid(l)])
        p = jnp.stack([1 - jax.nn.sigmoid(prior), jax.nn.sigmoid(prior)])
        w = jnp.log(p) - jnp.log(q) + 3.0 * jnp.arange(2)
        pairs = [
            q[i] * q[j] * (jnp.logaddexp(w[i], w[j]) - math.log(2))
            for i, j in itertools.product(range(2), repeat=2)
        ]
        return sum(pairs)

    value, (l, prior) = jax.jit(jax.value_and_grad(exact, argnums=(0, 1)))(0.0, 0.0)
    agree(got, (value, {"l": l, "prior": prior}))


def test_zero_logits_of_an_observed_bernoulli(bound_and_grad):
    """The likelihood's own gradient, through a vector of pixels."""
    pixels = jnp.array([0.0, 1.0, 1.0])

    def model():
        logits = numpyro.param("w", jnp.zeros(3))
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=pixels)

    got = bound_and_grad(vipp.ELBO(), model, lambda: None, {"w": jnp.zeros(3)})
    agree(got, (-3 * math.log(2), {"w": pixels - 0.5}))


@pytest.mark.parametrize("count", [1, 3])
def test_zero_logits_of_a_binomial(count, bound_and_grad):
    def model():
        numpyro.sample("x", dist.Binomial(count, logits=numpyro.param("w", 0.0)), obs=1)

    got = bound_and_grad(vipp.ELBO(), model, lambda: None, {"w": jnp.zeros(())})
    agree(got, (math.log(count * 0.5**count), {"w": 1 - 0.5 * count}))


def test_zero_logits_of_a_binomial_guide(bound_and_grad):
    """E[z] = 3 sigmoid(l), whatever is enumerated."""

    def guide():
        z = vipp.sample("z", dist.Binomial(3, logits=numpyro.param("l", 0.0)), vipp.Enumerate())
        return z

    @vipp.objective
    def mean(p, q):
        return 1.0 * q()

    got = bound_and_grad(mean(), guide, guide, {"l": jnp.zeros(())})
    agree(got, (1.5, {"l": 0.75}))


# -- subsampling ---------------------------------------------------------------------------------


PAIRS = [jnp.array(pair) for pair in itertools.combinations(range(4), 2)]


def on_minibatch(objective, guide):
    """``(params, indices) -> bound, gradient`` with the subsample given from outside."""

    def evaluate(params, index):
        model = handlers.substitute(subsampled_model, {"N": index})
        fixed = handlers.substitute(guide, {"N": index})
        return vipp.value_and_grad(objective, model, fixed)(jax.random.key(0), params, X4)

    return jax.jit(evaluate)


@pytest.mark.few(1)
@pytest.mark.parametrize("particles", [None, 2])
def test_subsampled_plate_on_every_minibatch(particles, reference):
    """Exact on each of the 6 index sets; their average is the bound on all data."""
    objective = vipp.IWAE(num_particles=particles) if particles else vipp.ELBO()
    plates, programs = ("N",) if particles else (), (subsampled_model, subsampled_guide)

    def bound(params, index):
        fixed = {"N": index}
        exact = reference.bound(*programs, (X4,), particles=particles, plates=plates, fixed=fixed)
        return exact(params)

    exact = jax.jit(jax.value_and_grad(bound))
    enumerated = on_minibatch(objective, with_z(vipp.Enumerate()))
    results = [enumerated(PARAMS, index) for index in PAIRS]
    for index, result in zip(PAIRS, results, strict=True):
        agree(result, exact(PARAMS, index))
    whole = reference.bound(*programs, (X4, 4), particles=particles, plates=plates)
    average = jax.tree.map(lambda *xs: sum(xs) / 6, *results)
    agree(average, jax.jit(jax.value_and_grad(whole))(PARAMS))
    fixed = {"N": PAIRS[4]}
    mean = reference.mean(
        objective,
        handlers.substitute(subsampled_model, fixed),
        handlers.substitute(with_z(vipp.ScoreFunction()), fixed),
        PARAMS,
        (X4,),
        draws=particles or 1,
        fixed=fixed,
    )
    agree(mean, exact(PARAMS, PAIRS[4]))


def with_z(estimator):
    return vipp.with_estimators(subsampled_guide, {"z": estimator})


@pytest.mark.parametrize("objective", [vipp.ELBO(), vipp.IWAE(num_particles=2)])
def test_minibatches_are_drawn_once_and_uniformly(objective, bound_and_grad):
    """Each key's bound is that of one minibatch, the same for model, guide and all particles."""
    guide = with_z(vipp.Enumerate())
    evaluate = on_minibatch(objective, guide)
    exact = np.array([evaluate(PARAMS, index)[0] for index in PAIRS])
    drawn = np.asarray(bound_and_grad(objective, subsampled_model, guide, PARAMS, X4, keys=3000)[0])
    distance = np.abs(drawn[:, None] - exact[None])
    assert distance.min(1).max() < 1e-4
    counts = np.bincount(distance.argmin(1), minlength=6)
    assert np.abs(counts - 500).max() < 4.5 * math.sqrt(500)


def test_plates_in_one_program_only_are_independent_of_the_others(bound_and_grad):
    """Rows are drawn by the model, columns by the guide: all four pairs, equally often."""
    table = jnp.array([[1.0, 10.0], [100.0, 1000.0]])

    def model():
        rows = numpyro.plate("rows", 2, subsample_size=1, dim=-2)
        columns = numpyro.plate("columns", 2, subsample_size=1, dim=-1)
        with columns as j:
            numpyro.sample("z", dist.Normal())
            with rows as i:
                numpyro.factor("f", table[i[:, None], j[None]])

    def guide():
        with numpyro.plate("columns", 2, subsample_size=1, dim=-1):
            numpyro.sample("z", dist.Normal())

    bounds = np.asarray(bound_and_grad(vipp.ELBO(), model, guide, {}, keys=400)[0])
    values, counts = np.unique(np.round(bounds / 4).astype(int), return_counts=True)
    assert values.tolist() == [1, 10, 100, 1000]
    assert np.abs(counts - 100).max() < 4.5 * 10


def test_minibatch_likelihood_under_a_global_latent(reference, bound_and_grad):
    """The model alone is subsampled: its sum over the data is unbiased, gradient included."""

    def model(size):
        m = numpyro.sample("m", dist.Bernoulli(0.5))
        with numpyro.plate("N", 4, subsample_size=size) as index:
            numpyro.sample("x", dist.Normal(1.0 * m, 1.0), obs=X4[index])

    def guide(size):
        numpyro.sample("m", dist.Bernoulli(logits=numpyro.param("l", 0.0)))

    params = {"l": jnp.array(2.0)}
    exact = jax.jit(jax.value_and_grad(reference.bound(model, guide, (4,))))(params)
    drawn = bound_and_grad(vipp.ELBO(), model, guide, params, 2, keys=20_000)
    reference.check_unbiased(drawn, exact)


def test_iwae_refuses_subsampling_inside_the_logarithm():
    def model():
        numpyro.sample("m", dist.Normal())
        with numpyro.plate("N", 4, subsample_size=2):
            numpyro.sample("x", dist.Normal(), obs=jnp.zeros(2))

    def guide():
        numpyro.sample("m", dist.Normal())

    grad = vipp.value_and_grad(vipp.IWAE(num_particles=2), model, guide)
    with pytest.raises(ValueError, match="Site 'x' is subsampled by plate 'N'.*Fix"):
        grad(jax.random.key(0), {})
    grad = vipp.value_and_grad(vipp.IWAE(num_particles=2, per_plate=None), model, guide)
    with pytest.raises(ValueError, match="'N'"):
        grad(jax.random.key(0), {})
    assert jnp.isfinite(vipp.value_and_grad(vipp.ELBO(), model, guide)(jax.random.key(0), {})[0])


# -- one bound per element -----------------------------------------------------------------------


def plated_model():
    with numpyro.plate("N", 4):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=X4)


def plated_guide():
    with numpyro.plate("N", 4):
        logits = numpyro.param("l", jnp.zeros(4))
        numpyro.sample("z", dist.Bernoulli(logits=logits), infer={"estimator": vipp.Enumerate()})


def one_element_bound(x, l, particles):
    """The IWAE bound of one data point, by hand."""
    q = jnp.stack([1 - jax.nn.sigmoid(l), jax.nn.sigmoid(l)])
    p = jnp.log(jnp.array([0.7, 0.3])) - 0.5 * (x - 2 * jnp.arange(2.0)) ** 2
    log_w = p - 0.5 * math.log(2 * math.pi) - jnp.log(q)
    picks = np.array(list(itertools.product(range(2), repeat=particles)))
    weight = q[picks].prod(1)
    return (weight * (logsumexp(log_w[picks], axis=1) - math.log(particles))).sum()


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("per_plate", ["auto", "N", ("N",)])
def test_per_plate_is_a_sum_of_bounds(per_plate, particles, bound_and_grad):
    """Also where there are as many particles as data."""

    def exact(params):
        each = jax.vmap(lambda x, l: one_element_bound(x, l, particles))
        return each(X4, params["l"]).sum()

    objective = vipp.IWAE(num_particles=particles, per_plate=per_plate)
    got = bound_and_grad(objective, plated_model, plated_guide, PARAMS)
    agree(got, jax.jit(jax.value_and_grad(exact))(PARAMS))


def test_one_global_bound(reference, bound_and_grad):
    exact = jax.value_and_grad(reference.bound(plated_model, plated_guide, particles=2))
    objective = vipp.IWAE(num_particles=2, per_plate=None)
    got = bound_and_grad(objective, plated_model, plated_guide, PARAMS)
    agree(got, jax.jit(exact)(PARAMS))


@pytest.mark.parametrize("named, site", [("N", "g"), (("N",), "g"), ("M", "g")])
def test_site_outside_the_named_plate(named, site):
    def model():
        g = numpyro.sample("g", dist.Bernoulli(0.5))
        with numpyro.plate("N", 4):
            numpyro.sample("x", dist.Normal(1.0 * g, 1.0), obs=X4)

    def guide():
        numpyro.sample("g", dist.Bernoulli(0.5))

    objective = vipp.IWAE(num_particles=2, per_plate=named)
    with pytest.raises(ValueError, match=f"Site '{site}' is outside plate"):
        vipp.value_and_grad(objective, model, guide)(jax.random.key(0), {})


def test_named_inner_plate_of_two(reference, bound_and_grad):
    """Of two enclosing plates one is named, the other inside the logarithm."""
    x = jnp.array([[0.5, -0.4, 1.1], [2.0, 0.1, -0.7]])

    def model():
        with numpyro.plate("A", 2, dim=-2), numpyro.plate("B", 3, dim=-1):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)

    def guide():
        logits = numpyro.param("l", jnp.zeros(3))
        with numpyro.plate("A", 2, dim=-2), numpyro.plate("B", 3, dim=-1):
            vipp.sample("z", dist.Bernoulli(logits=logits[None]), vipp.Enumerate())

    params = {"l": jnp.array([1.4, -0.9, -1.2])}
    for names in [("A",), ("B",), ("A", "B"), ("B", "A")]:
        exact = jax.value_and_grad(reference.bound(model, guide, particles=2, plates=names))
        objective = vipp.IWAE(num_particles=2, per_plate=names)
        agree(bound_and_grad(objective, model, guide, params), jax.jit(exact)(params))


# -- particles and data --------------------------------------------------------------------------


@pytest.mark.few(1)
@pytest.mark.parametrize("particles, data", [(2, 2), (2, 3), (3, 2)])
@pytest.mark.parametrize("outer", ["particles", "data"])
def test_particles_times_data(particles, data, outer, bound_and_grad):
    """Written as an objective, nested both ways; equal sizes are no special case."""
    x = X4[:data]

    def model(x):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)

    def guide(x):
        logits = numpyro.param("l", 0.0) + 0.5 * x
        numpyro.sample("z", dist.Bernoulli(logits=logits), infer={"estimator": vipp.Enumerate()})

    def pair(p, q, x):
        p, q = (vipp.Program(r.fn, r.params, (x,), {}) for r in (p, q))
        z, log_q = q.simulate()
        return p.log_density(z) - log_q

    @vipp.objective
    def nested(p, q):
        over = lambda fn: jax.vmap(lambda k, x: handlers.seed(fn, rng_seed=k)(x))
        keys = lambda: jax.random.split(numpyro.prng_key(), data)
        if outer == "particles":
            log_w = vipp.replicate(lambda: over(lambda x: pair(p, q, x))(keys(), x), particles)
        else:
            several = lambda x: vipp.replicate(lambda: pair(p, q, x), particles)
            log_w = over(several)(keys(), x).T
        return (logsumexp(log_w, axis=0) - math.log(particles)).sum()

    def exact(params):
        each = jax.vmap(lambda x: one_element_bound(x, params["l"] + 0.5 * x, particles))
        return each(x).sum()

    params = {"l": jnp.array(1.4)}
    got = bound_and_grad(nested(), model, guide, params, x[0])
    agree(got, jax.jit(jax.value_and_grad(exact))(params))


@pytest.mark.parametrize("estimator", [vipp.Enumerate(), vipp.ScoreFunction()], ids=str)
def test_one_particle_iwae_is_the_elbo(estimator, bound_and_grad):
    """Draw for draw in value; in gradient where there is no variance."""
    guide = vipp.with_estimators(plated_guide, {"z": estimator})
    one, other = (
        bound_and_grad(o, plated_model, guide, PARAMS)
        for o in (vipp.IWAE(num_particles=1), vipp.ELBO())
    )
    agree(one[0], other[0])
    if isinstance(estimator, vipp.Enumerate):
        agree(one, other)


def test_renyi_elbo_of_numpyro(reference, bound_and_grad):
    """A pathwise model: the same bound as NumPyro's, and quadrature is the judge."""
    x, m, s = 1.1, jnp.array(1.8), 0.7

    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide():
        numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), s))

    def exact(params):
        z = params["m"] + s * jnp.linspace(-7, 7, 801)
        q = dist.Normal(params["m"], s).log_prob(z)
        log_w = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 0.5).log_prob(x) - q
        both = jnp.logaddexp(log_w[:, None], log_w[None]) - math.log(2)
        return (jnp.exp(q[:, None] + q[None]) * both).sum() * (z[1] - z[0]) ** 2

    params = {"m": m}
    exact = jax.jit(jax.value_and_grad(exact))(params)
    drawn = bound_and_grad(vipp.IWAE(num_particles=2), model, guide, params, keys=20_000)
    reference.check_unbiased(drawn, exact)
    renyi = RenyiELBO(alpha=0, num_particles=2)
    loss = jax.vmap(jax.value_and_grad(lambda p, k: -renyi.loss(k, p, model, guide)), (None, 0))
    theirs = jax.jit(loss)(params, jax.random.split(jax.random.key(3), 20_000))
    reference.check_unbiased(theirs, exact)
