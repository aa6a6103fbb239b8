"""Distributions of other libraries: pathwise where their own trace shows it."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flowjax.distributions import StandardNormal
from flowjax.experimental.numpyro import register_params
from flowjax.experimental.numpyro import sample as flow_sample
from flowjax.flows import masked_autoregressive_flow
from numpyro.distributions import constraints
from numpyro.infer import SVI, Trace_ELBO

import vipp
from vipp.distributions.reparameterisation import reparameterised

KEY = jax.random.key(0)


class Shifted(dist.Distribution):
    """Declares nothing of what its sampler can do."""

    support = constraints.real
    pytree_data_fields = ("loc",)

    def __init__(self, loc):
        self.loc = loc
        super().__init__(jnp.shape(loc), ())

    def sample(self, key, sample_shape=()):
        return self.loc + jax.random.normal(key, sample_shape + self.batch_shape)

    def log_prob(self, x):
        return dist.Normal(self.loc, 1.0).log_prob(x)


class Unlisted(Shifted):
    """Its parameter is no part of the pytree."""

    pytree_data_fields = ()


class Held(Shifted):
    """Its draw does not move."""

    def sample(self, key, sample_shape=()):
        return jax.lax.stop_gradient(super().sample(key, sample_shape))


class Chosen(Shifted):
    """Its parameter only decides."""

    def sample(self, key, sample_shape=()):
        return jnp.where(jax.random.uniform(key, self.batch_shape) < self.loc, 1.0, 2.0)


class Rejected(Shifted):
    """Drawn again until it fits."""

    def sample(self, key, sample_shape=()):
        def again(state):
            key, x = state
            key, own = jax.random.split(key)
            return key, self.loc + jax.random.normal(own)

        return jax.lax.while_loop(lambda s: s[1] < self.loc, again, (key, self.loc - 1.0))[1]


class Counted(Shifted):
    """Discrete."""

    def sample(self, key, sample_shape=()):
        return jnp.floor(super().sample(key, sample_shape)).astype(int)


class OwnNormal(dist.Normal):
    """What NumPyro declares is of another sampler."""

    def __init__(self, loc):
        super().__init__(loc, 1.0)


class OwnMoved(OwnNormal):
    def sample(self, key, sample_shape=()):
        return 3.0 + super().sample(key, sample_shape)


class OwnHeld(OwnNormal):
    def sample(self, key, sample_shape=()):
        return jax.lax.stop_gradient(super().sample(key, sample_shape))


class OwnAngle(dist.VonMises):
    def __init__(self, concentration):
        super().__init__(0.0, concentration)

    def sample(self, key, sample_shape=()):
        return jax.lax.stop_gradient(0.5 * super().sample(key, sample_shape))


def mixed(kind):
    return lambda loc: dist.MixtureSameFamily(
        dist.Categorical(jnp.ones(2) / 2), kind(loc * jnp.ones(2))
    )


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("kind", "moves"),
    [(Shifted, True), (Unlisted, True), (Held, False), (OwnHeld, False), (Chosen, False),
     (Rejected, False), (mixed(OwnMoved), False), (Counted, False), (OwnAngle, False),
     (OwnNormal, True), (OwnMoved, True), (mixed(OwnNormal), True)],
)  # fmt: skip
def test_what_its_trace_shows(kind, moves):
    shown = []
    jax.make_jaxpr(lambda loc: shown.append(reparameterised(kind(loc))) or loc)(0.3)
    assert shown == [moves]


class Broken(Shifted):
    """Its pytree has no children to go through, as tinygp's has not."""

    def tree_flatten(self):
        return object(), None


class Bare(dist.Distribution):
    """Its parameter is no part of the pytree."""

    support = constraints.real
    sample, log_prob = Shifted.sample, Shifted.log_prob

    def __init__(self, loc):
        self.loc = loc
        super().__init__(jnp.shape(loc), ())


class Coin(dist.Distribution):
    """The same, discrete."""

    support = constraints.boolean
    has_enumerate_support = True
    pytree_data_fields = ()

    def __init__(self, p):
        self.p = p
        super().__init__((), ())

    def sample(self, key, sample_shape=()):
        return jax.random.bernoulli(key, self.p, sample_shape).astype(float)

    def log_prob(self, x):
        return dist.Bernoulli(self.p).log_prob(x)

    def enumerate_support(self, expand=True):
        return jnp.arange(2.0)


class HiddenCoin(Coin):
    """It has another one, as a static field of the pytree."""

    pytree_aux_fields = ("get",)

    def __init__(self, p):
        self.get = lambda: p
        super(Coin, self).__init__((), ())

    p = property(lambda self: self.get())


@pytest.mark.parametrize("kind", [Bare, Broken])
def test_what_is_no_pytree_is_drawn_pathwise_lane_by_lane(kind):
    """Each lane has noise of its own, and the gradient is that of a Normal."""

    def mean(loc):
        draw = lambda x: vipp.sample("z", kind(x))
        z = vipp.replicate(lambda: draw(loc), 2)
        return (z[0] - z[1]) ** 2 + z.mean()

    run = jax.jit(jax.vmap(jax.value_and_grad(vipp.expectation(mean), argnums=1), (0, None)))
    value, slope = run(jax.random.split(KEY, 20_000), 0.3)
    assert abs(value.mean() - 2.3) < 4 * value.std() / 20_000**0.5
    assert abs(slope.mean() - 1.0) < 1e-4


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", [Coin, HiddenCoin, Bare, Broken])
def test_what_is_no_pytree_is_refused_by_other_estimators(kind):
    def run(p):
        return vipp.expectation(lambda: vipp.sample("z", kind(p), vipp.ScoreFunction()))(KEY)

    with pytest.raises(vipp.SiteError, match="Site 'z': .* is no pytree of its parameters.*Fix: "):
        jax.grad(run)(0.3)


def shifted(base):
    """A class that inherits a list of values that its own sampler does not draw."""

    class Own(base):
        def sample(self, key, sample_shape=()):
            return 3 + super().sample(key, sample_shape)

        def log_prob(self, value):
            return super().log_prob(value - 3)

    return Own


LISTED = {
    "Bernoulli": lambda: shifted(dist.BernoulliProbs)(0.5),
    "its lanes in an event": lambda: shifted(dist.BernoulliLogits)(jnp.zeros(2)).to_event(1),
    "Categorical": lambda: shifted(dist.CategoricalProbs)(jnp.ones(3) / 3),
    "Binomial": lambda: shifted(dist.BinomialProbs)(0.5, 2),
    "Multinomial": lambda: shifted(dist.MultinomialProbs)(jnp.ones(2) / 2, 2),
}


@pytest.mark.parametrize("name", LISTED)
def test_a_list_of_values_that_is_inherited_is_of_another_law(name):
    fn = LISTED[name]()
    run = vipp.expectation(lambda: jnp.sum(vipp.sample("z", fn, vipp.Enumerate()) * 1.0))
    with pytest.raises(vipp.SiteError, match="Site 'z': Enumerate needs a finite support.*Fix: "):
        jax.eval_shape(run, KEY)
    own = lambda: numpyro.sample("z", fn)
    assert vipp.explain(vipp.ELBO(), own, own)["z"].estimator.startswith("ScoreFunction")
    with pytest.raises(ValueError, match="'z' .* has no closed form"):
        vipp.ELBO(kl=["z"]).loss(KEY, {}, own, own)


def model():
    cov = jnp.array([[1.0, 0.6], [0.6, 1.0]])
    numpyro.sample("z", dist.MultivariateNormal(jnp.ones(2), cov))


@pytest.fixture(scope="module")
def guide():
    """Its initial parameters are drawn where it is first needed, and not by every process."""
    base = StandardNormal((2,))
    flow = masked_autoregressive_flow(KEY, base_dist=base, flow_layers=1, nn_width=8)
    return lambda: flow_sample("z", register_params("flow", flow))


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "objective", [vipp.ELBO(), vipp.IWAE(num_particles=4), vipp.ELBO(stick_the_landing=True)]
)
def test_a_flow_as_a_guide_is_trained_to_the_evidence(objective, guide):
    """One layer is enough for a Gaussian: the bound is tight, as NumPyro's becomes."""
    assert vipp.explain(objective, model, guide)["z"].estimator == "Pathwise"
    optim = optax.adam(optax.cosine_decay_schedule(2e-2, 800))
    ours = vipp.fit(KEY, objective, model, guide, optim, 800, progress_bar=False)
    theirs = SVI(model, guide, optim, Trace_ELBO()).run(KEY, 800, progress_bar=False)
    keys = jax.random.split(KEY, 2000)
    loss = lambda bound, params: jax.jit(
        jax.vmap(lambda k: bound.loss(k, params, model, guide))
    )(keys).mean()  # fmt: skip
    bound, bar = loss(objective, ours.params), loss(Trace_ELBO(), theirs.params)
    assert -0.02 < bound < bar + 0.03 and bar < 0.05, (bound, bar)  # the evidence is one
