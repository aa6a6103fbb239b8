"""Minibatches: distinct indices, every sequence of them equally probable."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer.autoguide import AutoNormal

import vipp
from vipp.language.subsample import subsample

pytestmark = pytest.mark.uncompiled

DRAWS = 20_000


def spread(counts):
    """Chi squared over its degrees of freedom, which is 1 give or take ``sqrt(2 / cells)``."""
    expected = counts.sum() / counts.size
    return ((counts - expected) ** 2 / expected).sum() / (counts.size - 1)


@pytest.mark.parametrize("size, count", [(9, 2), (200, 20)], ids=["permuted", "drawn"])
def test_every_sequence_of_distinct_indices_is_equally_probable(size, count):
    draw = jax.jit(jax.vmap(lambda key: subsample(key, size, count)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), DRAWS)))
    assert (np.diff(np.sort(drawn, axis=1), axis=1) > 0).all()
    assert drawn.min() == 0 and drawn.max() == size - 1
    limit = lambda cells: 1 + 5 * (2 / cells) ** 0.5
    for position in (0, count // 2, count - 1):
        assert spread(np.bincount(drawn[:, position], minlength=size)) < limit(size)
    pairs = np.bincount(drawn[:, 0] * size + drawn[:, -1], minlength=size**2)
    pairs = pairs.reshape(size, size)[~np.eye(size, dtype=bool)]
    assert spread(pairs) < limit(size * (size - 1))


@pytest.mark.parametrize("size, count", [(1, 1), (5, 5), (10**6, 10**6 // 4), (10**9, 3)])
def test_of_any_size(size, count):
    drawn = np.asarray(subsample(jax.random.key(1), size, count))
    assert drawn.shape == (count,) == np.unique(drawn).shape
    assert 0 <= drawn.min() and drawn.max() < size


def test_model_and_guide_see_one_minibatch_at_no_cost_of_the_whole():
    """Under an objective a plate's indices are drawn so, and not by a shuffle of all."""

    def model():
        with numpyro.plate("N", 10**6, subsample_size=4) as i:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=i / 1e6)

    def guide():
        with numpyro.plate("N", 10**6, subsample_size=4) as i:
            numpyro.sample("z", dist.Normal(numpyro.param("a", 0.0) * i / 1e6, 1.0))

    loss = lambda a: vipp.ELBO().loss(jax.random.key(0), {"a": a}, model, guide)
    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss))(jnp.float32(0.3))
    assert "1000000]" not in str(jaxpr)


DATA = np.array([0.3, -1.0, 2.0, 0.5, 1.0, -0.2], np.float32)


def local(size):
    def model():
        with numpyro.plate("N", 6, subsample_size=size) as i:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=jnp.asarray(DATA)[i])

    def guide():
        slope = numpyro.param("slope", 0.1)
        with numpyro.plate("N", 6, subsample_size=size) as i:
            numpyro.sample("z", dist.Normal(slope * jnp.asarray(DATA)[i], 1.0))

    return model, guide


local_model, local_guide = local(2)


def global_model():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("N", 6, subsample_size=2) as i:
        numpyro.sample("x", dist.Normal(z, 1.0), obs=jnp.asarray(DATA)[i])


def global_guide():
    numpyro.sample("z", dist.Normal(numpyro.param("slope", 0.1), 1.0))


def log_weight(p, q):
    z, log_q = q.simulate()
    return p.log_density(z) - log_q


def of(value):
    """One's own objective, of two log weights."""

    @vipp.objective
    def own(p, q):
        return value(jnp.stack([log_weight(p, q), log_weight(p, q)]))

    return own()


NOT_LINEAR = {
    "average of weights": lambda w: jax.nn.logsumexp(w) - jnp.log(2.0),
    "largest": jnp.max,
    "median": jnp.median,
    "square": lambda w: (w**2).sum(),
    "variance": jnp.var,
    "product": lambda w: w[0] * w[1],
    "ratio": lambda w: 1.0 / w[0],
    "choice": lambda w: jnp.where(w > 0.0, w, 0.0).sum(),
    "branch": lambda w: jax.lax.cond(w[0] > 0.0, lambda: 1.0, lambda: 2.0),
    "in a map": lambda w: jax.lax.map(jnp.exp, w).sum(),
    "in a loop": lambda w: jax.lax.scan(lambda c, x: (c * x, None), 1.0, w)[0],
    "in a custom derivative": lambda w: jax.nn.relu(w).sum(),
    "of a derivative": lambda w: jax.jvp(jnp.exp, (w[0],), (w[1],))[1],
}
LINEAR = {
    "mean": jnp.mean,
    "multiple": lambda w: 3.0 * w[0] - w[1] / 2.0,
    "product with constants": lambda w: jnp.array([0.3, 0.7]) @ w,
    "in a map": lambda w: jax.lax.map(lambda x: 2.0 * x, w).sum(),
    "in a loop": lambda w: jax.lax.scan(lambda c, x: (c + x, None), 0.0, w)[0],
    "in a branch": lambda w: jax.lax.cond(len(w) > 1, jnp.sum, jnp.mean, w),
    "in a call": lambda w: jax.jit(jnp.sum)(w),
}
PROGRAMS = {"local": (local_model, local_guide), "global": (global_model, global_guide)}


@pytest.mark.few(5)
@pytest.mark.parametrize("programs", PROGRAMS)
@pytest.mark.parametrize("value", NOT_LINEAR)
def test_what_is_not_linear_in_a_minibatch_density_is_refused(value, programs):
    """An average over minibatches of ``exp(log p)`` is no average of densities."""
    with pytest.raises(vipp.SiteError, match="is subsampled by plate 'N', so that its log density"):
        jax.eval_shape(
            lambda slope: of(NOT_LINEAR[value]).loss(
                jax.random.key(0), {"slope": slope}, *PROGRAMS[programs]
            ),
            jnp.float32(0.1),
        )


PRODUCTS = {
    "a local value": lambda p, z: p.log_density(z) * z["z"].mean(),
    "a whole number": lambda p, z: p.log_density(z) * (1.0 + jnp.floor(z["z"]).sum()),
    "a choice by a local value": lambda p, z: jnp.where(z["z"][0] > 0, p.log_density(z), 0.0),
    "a quotient": lambda p, z: p.log_density(z) / (1.0 + z["z"].mean() ** 2),
    "a branch": lambda p, z: jax.lax.cond(
        z["z"][0] > 0, lambda x: x, lambda x: -x, p.log_density(z)
    ),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("case", PRODUCTS)
def test_what_depends_on_the_minibatch_is_no_factor_of_its_density(case):
    """Averages over minibatches of a product: 9 standard errors off where this was not refused."""

    @vipp.objective
    def own(p, q):
        z, _ = q.simulate()
        return PRODUCTS[case](p, z)

    loss = lambda size: own().loss(jax.random.key(0), {"slope": jnp.float32(0.1)}, *local(size))
    loss(6)
    with pytest.raises(vipp.SiteError, match="by what does not depend on the minibatch"):
        loss(2)


@pytest.mark.few(3)
@pytest.mark.parametrize("value", LINEAR)
def test_what_is_linear_in_a_minibatch_density_is_not(value):
    at = jax.random.key(0), {"slope": jnp.float32(0.1)}, local_model, local_guide
    each = [-of(lambda w, k=k: w[k]).loss(*at) for k in (0, 1)]
    got = -of(LINEAR[value]).loss(*at)
    np.testing.assert_allclose(got, LINEAR[value](jnp.stack(each)), rtol=1e-5)


def test_a_bound_per_element_of_a_minibatch_is_scaled():
    """One's own IWAE over a plate is vipp's own."""

    @vipp.objective
    def own(p, q, *, num_particles=3):
        def weight():
            z, log_q = q.simulate(per_plate="N")
            return p.log_density(z, per_plate="N") - log_q

        w = vipp.replicate(weight, num_particles)
        return 3.0 * (jax.nn.logsumexp(w, axis=0) - jnp.log(num_particles)).sum()

    state = {"slope": jnp.float32(0.1)}
    both = [
        objective.loss(jax.random.key(2), state, local_model, local_guide)
        for objective in (own(), vipp.IWAE(num_particles=3))
    ]
    np.testing.assert_allclose(*both, rtol=1e-5)


def test_draws_of_a_minibatch_say_whose_they_are():
    def model():
        with numpyro.plate("N", 6, subsample_size=2) as i:
            numpyro.deterministic("twice", 2.0 * jnp.asarray(DATA)[i])
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=jnp.asarray(DATA)[i])

    def guide():
        means = numpyro.param("means", jnp.asarray(DATA))
        with numpyro.plate("N", 6, subsample_size=2) as i:
            numpyro.sample("z", dist.Normal(means[i], 1e-6))

    optim = optax.sgd(1e-8)
    result = vipp.fit(jax.random.key(0), vipp.ELBO(), model, guide, optim, 1, progress_bar=False)
    drawn = result.sample_posterior(jax.random.key(1), 50)
    np.testing.assert_allclose(drawn["z"], DATA[drawn["N"]], atol=1e-3)
    np.testing.assert_allclose(drawn["twice"], 2 * DATA[drawn["N"]])
    assert set(np.unique(drawn["N"])) == set(range(6))


@pytest.mark.thorough
def test_what_was_summed_out_of_a_minibatch_is_drawn_back_for_it():
    def model():
        m = numpyro.sample("m", dist.Normal(1.0, 0.1))
        with numpyro.plate("N", 6, subsample_size=2) as i:
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(jnp.where(z == 1, m, -m), 1e-2), obs=signs[i])

    def guide():
        numpyro.sample("m", dist.Normal(numpyro.param("loc", 1.0), 1e-4))

    signs = jnp.sign(jnp.asarray(DATA))
    summed, optim = vipp.marginal(model, ["m"], exact=True), optax.sgd(1e-8)
    result = vipp.fit(jax.random.key(0), vipp.ELBO(), summed, guide, optim, 1, progress_bar=False)
    drawn = result.sample_posterior(jax.random.key(1), 20, discrete=True)
    assert (drawn["z"] == (signs[drawn["N"]] > 0)).all()
    given = {n: drawn[n] for n in ("m", "N")}
    assert (vipp.infer_discrete(jax.random.key(2), summed, given)["z"] == drawn["z"]).all()
    with pytest.raises(ValueError, match="plate 'N' is subsampled, expected to be told of which"):
        vipp.infer_discrete(jax.random.key(2), summed, {"m": drawn["m"]})


def test_a_second_fit_of_minibatches_compiles_nothing():
    """NumPyro's shuffle, a loop over all indices that is compiled anew in each call, is not run."""
    count = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: count.append(event) if "backend_compile" in event else None
    )

    def model(x):
        loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", 50, subsample_size=5) as i:
            numpyro.sample("x", dist.Normal(loc, 1.0), obs=x[i])

    guide, optim = AutoNormal(model), optax.adam(0.1)
    compiled = []
    for key in (0, 1):
        count.clear()
        vipp.fit(
            jax.random.key(key), vipp.ELBO(), model, guide, optim, 3, jnp.arange(50.0),
            progress_bar=False,
        )  # fmt: skip
        compiled.append(len(count))
    assert compiled[0] > compiled[1] == 0
