"""Existing NumPyro programs under ``SVI(loss=vipp.ELBO())`` do what they do under NumPyro's own."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen as nn
from flax import nnx
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.contrib.module import flax_module, nnx_module, random_flax_module
from numpyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, autoguide
from numpyro.infer.reparam import LocScaleReparam, TransformReparam
from numpyro.primitives import mutable

import vipp

pytestmark = pytest.mark.uncompiled

KEY = jax.random.key(0)
EFFECTS = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
X4 = jnp.array([0.3, -1.2, 2.0, 1.1])


def eight_schools():
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(5.0))
    with numpyro.plate("schools", 8), handlers.reparam(config={"theta": LocScaleReparam(0.0)}):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, ERRORS), obs=EFFECTS)


def trained(loss, model, guide, *args, steps=1000, rate=0.03):
    svi = SVI(model, guide, optax.adam(optax.cosine_decay_schedule(rate, steps)), loss)
    return svi, svi.run(KEY, steps, *args, progress_bar=False)


def bound(svi, result, model, guide, *args, particles=4000):
    loss = Trace_ELBO(num_particles=particles)
    value = jax.jit(lambda p: -loss.loss(jax.random.key(5), p, model, guide, *args))
    return float(value(result.params))


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [autoguide.AutoNormal, autoguide.AutoMultivariateNormal])
def test_eight_schools_reaches_the_bound_of_trace_elbo(kind):
    guide = kind(eight_schools)
    bounds = [
        bound(*trained(loss, eight_schools, guide), eight_schools, guide)
        for loss in (vipp.ELBO(num_particles=4), Trace_ELBO(num_particles=4))
    ]
    assert abs(bounds[0] - bounds[1]) < 0.1
    assert -33.0 < bounds[0] < -30.0


# -- neural networks -----------------------------------------------------------------------------

PIXELS = (jax.random.uniform(jax.random.key(1), (24, 6)) < jnp.linspace(0.1, 0.9, 6)).astype(float)


def vae(decoder, encoder, size=12):
    def minibatch(x):
        return numpyro.plate("N", len(x), subsample_size=size)

    def model(x):
        decode = decoder()
        with minibatch(x) as index:
            z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x[index])

    def guide(x):
        encode = encoder()
        with minibatch(x) as index:
            loc, scale = jnp.split(encode(x[index]), 2, axis=-1)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(scale)).to_event(1))

    return model, guide


def flax_vae():
    return vae(
        lambda: flax_module("decoder", nn.Dense(6), input_shape=(2,)),
        lambda: flax_module("encoder", nn.Dense(4), input_shape=(6,)),
    )


def nnx_vae():
    decoder, encoder = (nnx.Linear(*s, rngs=nnx.Rngs(0)) for s in ((2, 6), (6, 4)))
    return vae(lambda: nnx_module("decoder", decoder), lambda: nnx_module("encoder", encoder))


@pytest.mark.thorough
@pytest.mark.parametrize("make", [flax_vae, nnx_vae])
def test_vae_reaches_the_bound_of_trace_elbo(make):
    model, guide = make()
    bounds = [
        bound(*trained(loss, model, guide, PIXELS, steps=600), model, guide, PIXELS, particles=500)
        for loss in (vipp.ELBO(num_particles=2), Trace_ELBO(num_particles=2))
    ]
    assert abs(bounds[0] - bounds[1]) < 0.02 * abs(bounds[1])
    _, result = trained(vipp.IWAE(num_particles=3), model, guide, PIXELS, steps=600)
    assert result.losses[-100:].mean() < result.losses[:50].mean() - 5


# -- discrete latents ----------------------------------------------------------------------------


def test_bernoulli_latents_equal_trace_enum_elbo():
    """Both sum over the values of every site, so both are exact: value, gradient, and training."""

    def model():
        w = numpyro.param("w", 1.0)
        s = numpyro.sample("s", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
        with numpyro.plate("N", 4):
            z = numpyro.sample("z", dist.Bernoulli(0.2 + 0.5 * s), infer={"enumerate": "parallel"})
            numpyro.sample("x", dist.Normal(w * z, 1.0), obs=X4)

    def guide():
        a = numpyro.param("a", 0.3)
        s = numpyro.sample("s", dist.Bernoulli(logits=a), infer={"enumerate": "parallel"})
        logits = numpyro.param("b", jnp.full(4, 0.2)) + 0.3 * s
        with numpyro.plate("N", 4):
            numpyro.sample("z", dist.Bernoulli(logits=logits), infer={"enumerate": "parallel"})

    theirs = TraceEnum_ELBO(max_plate_nesting=1)
    params = {
        "w": 1.3,
        "a": 0.3,
        "b": jnp.array([0.5, -0.4, 1.0, 0.1]),
    }  # no logit of 0: NumPyro is wrong there
    losses = [
        jax.jit(jax.value_and_grad(lambda p: loss.loss(KEY, p, model, guide)))(params)
        for loss in (vipp.ELBO(), theirs)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *losses)
    ends = [trained(loss, model, guide, steps=100)[1].losses for loss in (vipp.ELBO(), theirs)]
    np.testing.assert_allclose(*ends, rtol=1e-3)


# -- features, in expectation at the initial parameters ------------------------------------------


def features():
    """Deterministic, factor, constrained param, mask, scale, a subsampled local latent."""
    sd = numpyro.param("sd", 0.8, constraint=dist.constraints.positive)
    m = numpyro.sample("m", dist.Normal(0.0, 2.0))
    twice = numpyro.deterministic("twice", 2 * m)
    numpyro.factor("f", -0.1 * twice**2)
    with numpyro.plate("N", 4), handlers.scale(scale=0.5):
        z = numpyro.sample("z", dist.Normal(m, 1.0))
        with handlers.mask(mask=jnp.array([True, False, True, True])):
            numpyro.sample("x", dist.Normal(z, sd), obs=X4)


def reparametrised():
    m = numpyro.sample("m", dist.Normal(0.0, 2.0))
    affine = dist.transforms.AffineTransform(m, 2.0)
    config = {"a": LocScaleReparam(0), "b": LocScaleReparam(), "c": TransformReparam()}
    with numpyro.plate("N", 4), handlers.reparam(config=config):
        a = numpyro.sample("a", dist.Normal(m, 1.5))
        b = numpyro.sample("b", dist.Normal(m, 0.5))
        c = numpyro.sample("c", dist.TransformedDistribution(dist.Normal(), affine))
        numpyro.sample("x", dist.Normal(a + b + c, 1.0), obs=X4)


def partly_observed():
    m = numpyro.sample("m", dist.Normal(0.0, 2.0))
    with numpyro.plate("N", 4):
        seen = jnp.array([True, False, True, True])
        numpyro.sample("x", dist.Normal(m, 1.0), obs=X4, obs_mask=seen)


def random_walk():
    def step(state, x):
        state = numpyro.sample("z", dist.Normal(state, 0.5))
        numpyro.sample("x", dist.Normal(state, 1.0), obs=x)
        return state, None

    scan(step, 0.0, X4)


def scanned_guide():
    w = numpyro.param("w", 0.5)

    def step(state, x):
        state = numpyro.sample("z", dist.Normal(w * state + 0.3 * x, 0.6))
        return state, None

    scan(step, 0.0, X4)


def mean_field_walk():
    loc = numpyro.param("loc", X4 / 2)
    with numpyro.plate("T", 4):
        numpyro.sample("z", dist.Normal(loc, 0.6))


def bayesian_layer():
    layer = random_flax_module("net", nn.Dense(1), dist.Normal(), input_shape=(2,))
    inputs = jnp.stack([X4, X4**2], axis=-1)
    with numpyro.plate("N", 4):
        numpyro.sample("x", dist.Normal(layer(inputs)[..., 0], 1.0), obs=X4)


def wide():
    """Local latents with an event dimension, for the batched autoguides."""
    with numpyro.plate("N", 4):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=X4)


FEATURES = {
    "AutoNormal": (features, autoguide.AutoNormal(features)),
    "AutoDelta": (features, autoguide.AutoDelta(features)),
    "AutoLaplaceApproximation": (features, autoguide.AutoLaplaceApproximation(features)),
    "AutoLowRank": (features, autoguide.AutoLowRankMultivariateNormal(features)),
    "AutoIAFNormal": (wide, autoguide.AutoIAFNormal(wide, hidden_dims=[8])),
    "AutoBNAFNormal": (wide, autoguide.AutoBNAFNormal(wide, hidden_factors=[2])),
    "AutoDAIS": (features, autoguide.AutoDAIS(features, K=2)),
    "AutoBatched": (wide, autoguide.AutoBatchedMultivariateNormal(wide)),
    "reparam": (reparametrised, autoguide.AutoNormal(reparametrised)),
    "obs_mask": (partly_observed, autoguide.AutoNormal(partly_observed)),
    "scan, AutoNormal": (random_walk, autoguide.AutoNormal(random_walk)),
    "scan, mean field": (random_walk, mean_field_walk),
    "scan in both": (random_walk, scanned_guide),
    "random_flax_module": (bayesian_layer, autoguide.AutoNormal(bayesian_layer)),
}


@pytest.mark.few(2)
@pytest.mark.filterwarnings("ignore:Found plate statements in guide but not model")
@pytest.mark.parametrize("name", FEATURES)
def test_same_bound_and_gradient_as_trace_elbo(name):
    """Draw for draw: programs seeded from within draw the same values whoever runs them."""
    model, guide = FEATURES[name]
    svi = SVI(model, guide, optax.adam(0.1), Trace_ELBO())
    params = svi.get_params(svi.init(KEY))

    def evaluate(loss, params, key):
        return loss.loss(KEY, params, handlers.seed(model, key), handlers.seed(guide, key))

    ours, theirs = (
        jax.jit(jax.value_and_grad(lambda p, k: evaluate(loss, p, k)))
        for loss in (vipp.ELBO(), Trace_ELBO())
    )
    for key in jax.random.split(KEY, 3):
        pair = ours(params, key), theirs(params, key)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), *pair)


# -- mutable state -------------------------------------------------------------------------------


def count(name):
    state = mutable(name, {"n": jnp.array(0)})
    state["n"] = state["n"] + 1
    return state["n"]


def counting_model():
    n = count("c")
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=0.1 * n)


def counting_guide():
    numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))


def counting_both():
    count("c")
    count("d")
    counting_guide()


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False)(nn.Dense(4)(x))


def batch_norm():
    encoder = lambda: flax_module("net", Normalised(), mutable=["batch_stats"], input_shape=(12, 6))
    decoder = lambda: flax_module("decoder", nn.Dense(6), input_shape=(2,))
    return vae(decoder, encoder, size=24)


@pytest.mark.few(1)
@pytest.mark.parametrize("loss", [vipp.ELBO(), vipp.IWAE(num_particles=1)], ids=str)
@pytest.mark.parametrize("guide", [counting_guide, counting_both])
def test_mutable_counters(loss, guide):
    ours, theirs = (trained(o, counting_model, guide, steps=5) for o in (loss, Trace_ELBO()))
    assert jax.tree.all(
        jax.tree.map(jnp.equal, *(r.state.mutable_state for _, r in (ours, theirs)))
    )
    svi, result = ours
    assert jnp.isfinite(svi.evaluate(result.state))
    stable, value = jax.jit(svi.stable_update)(result.state)
    assert jnp.isfinite(value)
    expected = result.state.mutable_state["c"]["n"] + (2 if guide is counting_both else 1)
    assert stable.mutable_state["c"]["n"] == expected


@pytest.mark.thorough
def test_batch_norm_statistics():
    """One step from equal parameters: the running statistics do not depend on what is drawn."""
    model, guide = batch_norm()
    states = []
    for loss in (vipp.ELBO(), Trace_ELBO()):
        svi = SVI(model, guide, optax.adam(0.1), loss)
        state, _ = jax.jit(svi.update)(svi.init(KEY, PIXELS), PIXELS)
        states.append((state.mutable_state, svi.init(KEY, PIXELS).mutable_state))
    (ours, start), (theirs, _) = states
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs)
    assert not jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b), ours, start))


@pytest.mark.parametrize("objective", [vipp.ELBO, vipp.IWAE])
def test_mutable_state_has_one_particle(objective):
    svi = SVI(counting_model, counting_guide, optax.adam(0.1), objective(num_particles=2))
    with pytest.raises(ValueError, match="'c'.*num_particles=1"):
        svi.update(svi.init(KEY))


# -- the rest of SVI's interface -----------------------------------------------------------------


@pytest.mark.thorough
def test_interface_of_svi():
    guide = autoguide.AutoNormal(eight_schools)
    svi = SVI(eight_schools, guide, optax.adam(0.1), vipp.ELBO(num_particles=3))
    state = svi.init(KEY)
    once, loss = jax.jit(svi.update)(state)
    assert jnp.isfinite(loss)
    assert jnp.isfinite(svi.evaluate(once))
    more = svi.run(KEY, 2, init_state=state, progress_bar=False, stable_update=True)
    np.testing.assert_allclose(more.losses[0], loss, rtol=1e-5)
    forward, same = jax.jit(partial(svi.update, forward_mode_differentiation=True))(state)
    np.testing.assert_allclose(loss, same, rtol=1e-5)
    pair = svi.get_params(forward), svi.get_params(once)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), *pair)
    draws = guide.sample_posterior(KEY, more.params, sample_shape=(5,))
    assert draws["theta"].shape == (5, 8)
    predict = Predictive(eight_schools, guide=guide, params=more.params, num_samples=7)
    assert predict(KEY)["theta"].shape == (7, 8)
    assert guide.median(more.params)["tau"] > 0


def test_numpy_arguments_of_svi():
    """Read at the indices of a minibatch, and by Python, which decides by their values."""

    def model(x, group):
        with numpyro.plate("G", len(np.unique(group))):
            a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        with numpyro.plate("N", len(x), subsample_size=2) as i:
            numpyro.sample("x", dist.Normal(a[group[i]], 1.0), obs=x[i])

    x, group = np.arange(4, dtype=np.float32), np.array([0, 0, 1, 1])
    svi = SVI(model, autoguide.AutoNormal(model), optax.sgd(0.01), vipp.ELBO())
    losses = svi.run(jax.random.key(0), 3, x, group, progress_bar=False).losses
    same = svi.run(jax.random.key(0), 3, jnp.asarray(x), group, progress_bar=False).losses
    np.testing.assert_array_equal(losses, same)


def test_static_and_positional_arguments_of_svi():
    def model(x, scale=None, *, kind):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        if kind == "normal" and scale is None:
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, scale=None, *, kind):
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("l", 0.0)))

    svi = SVI(model, guide, optax.adam(0.1), vipp.ELBO(), kind="normal")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPyro warns of discrete latents elsewhere
        losses = svi.run(KEY, 200, 1.5, progress_bar=False).losses
    evidence = jnp.logaddexp(
        jnp.log(0.7) + dist.Normal(0, 1).log_prob(1.5),
        jnp.log(0.3) + dist.Normal(1, 1).log_prob(1.5),
    )
    assert abs(losses[-1] + evidence) < 1e-2


def test_auxiliary_sites_of_a_guide():
    """Accepted as NumPyro does, unlike other extra sites."""

    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(infer):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0), infer=infer)
        numpyro.sample("z", dist.Delta(2 * a, log_density=-jnp.log(2.0)))

    drawn = jax.vmap(
        lambda k: vipp.ELBO().loss(k, {}, model, lambda: guide({"is_auxiliary": True}))
    )(jax.random.split(KEY, 4000))
    kl = -jnp.log(2.0) + (4.0 - 1.0) / 2
    assert abs(drawn.mean() - kl) < 0.05 * kl + 4.5 * drawn.std() / 4000**0.5
    with pytest.raises(ValueError, match="Site 'a' has a value but the program has no such site"):
        vipp.ELBO().loss(KEY, {}, model, lambda: guide({}))
