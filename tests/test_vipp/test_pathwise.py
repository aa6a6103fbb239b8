"""The pathwise gradient of every distribution that has one, against quadrature or a formula."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints, transforms
from numpyro.handlers import seed, trace

import vipp
from vipp.distributions.cdf import cdf, moving_cdf
from vipp.distributions.implicit import implicit
from vipp.distributions.reparameterisation import explicit, reparameterised
from vipp.language.handler import estimated

from .pathwise_rows import turn
from .pathwise_scalars import LOCS, LOGITS, SCALES, mixture, mixtures, scalars, wrapped
from .pathwise_vectors import vectors

pytestmark = pytest.mark.uncompiled

ROWS = {**scalars(), **wrapped(), **mixtures(), **vectors()}
DRAWS = 2**15
MIXED = mixture(dist.Normal)(LOGITS, LOCS, SCALES)


def values_and_gradients(row):
    """``f`` at each draw, and its gradient: every draw has its own copy of the parameters."""
    key = jax.random.key(5)

    def one(params, key):
        with estimated(), seed(rng_seed=key):
            # asked for, as an angle is not pathwise by default
            return row.f(vipp.sample("x", row.make(*params), vipp.Pathwise()))

    def total(params):
        if row.lanes:
            values = jax.vmap(one)(params, jax.random.split(key, DRAWS))
        else:
            values = one(params, key)
        return values.sum(), values

    copies = jax.tree.map(lambda p: jnp.broadcast_to(p, (DRAWS, *p.shape)), row.params)
    gradients, values = jax.jit(jax.grad(total, has_aux=True))(copies)
    return values, gradients


# the reference evaluates a component of a mixture outside its support
@pytest.mark.few(5)
@pytest.mark.filterwarnings("ignore:Out-of-support values:UserWarning")
@pytest.mark.parametrize("name", ROWS)
def test_expected_gradient_in_every_parameter(name, reference):
    row = ROWS[name]
    assert reparameterised(row.make(*row.params))
    values, gradients = values_and_gradients(row)
    exact, slopes = jax.jit(jax.value_and_grad(lambda p: row.exact(*p)))(row.params)
    reference.check_unbiased((values, *gradients), (exact, *slopes), bias=row.bias)
    for got, want in zip(gradients, slopes, strict=True):
        if jax.tree.reduce(lambda m, x: max(m, float(abs(x).max())), want, 0.0) > 0.01:
            reference.check_unbiased((values, got), (exact, want), bias=0.25)


REFUSED = {
    "BernoulliProbs": dist.Bernoulli(0.3),
    "GaussianCopula": dist.GaussianCopula(dist.Gamma(jnp.ones(2)), correlation_matrix=jnp.eye(2)),
    "GaussianCopulaBeta": dist.GaussianCopulaBeta(
        jnp.ones(2), jnp.ones(2), correlation_matrix=jnp.eye(2)
    ),
    "HurdleGamma": dist.HurdleGamma(0.3, 1.0, 1.0),
    "HurdleLogNormal": dist.HurdleLogNormal(0.3, 0.0, 1.0),
    "ImproperUniform": dist.ImproperUniform(constraints.real, (), ()),
    "LeftTruncatedDistribution": dist.LeftTruncatedDistribution(dist.StudentT(3.0)),
    "MixtureGeneral": dist.MixtureGeneral(
        dist.Categorical(logits=LOGITS), [dist.Uniform(0.0, 1.0), dist.Uniform(2.0, 3.0)]
    ),
    "MixtureSameFamily": mixture(dist.Poisson)(LOGITS, jnp.ones(2)),
    "SineBivariateVonMises": dist.SineBivariateVonMises(0.0, 0.0, 1.0, 1.0, 0.1),
    "SineSkewed": dist.SineSkewed(dist.VonMises(jnp.zeros(1), 1.0).to_event(1), jnp.zeros(1)),
    "TransformedDistribution": dist.TransformedDistribution(
        dist.Poisson(1.0), transforms.AffineTransform(0.0, 2.0)
    ),
    "EulerMaruyama": dist.EulerMaruyama(jnp.arange(3.0), lambda x, t: (x, 1.0), dist.Poisson(1.0)),
    "RightCensoredDistribution": dist.RightCensoredDistribution(dist.Poisson(1.0)),
}
NOT_IN_THE_TABLE = {
    "Distribution": "abstract",
    "TruncatedPolyaGamma": "has no parameters",
    "Unit": "has no values",
}


@pytest.mark.parametrize("name", REFUSED)
def test_pathwise_is_refused_where_there_is_no_gradient(name):
    fn = REFUSED[name]
    assert not reparameterised(fn)

    def program():
        vipp.sample("angle", fn, vipp.Pathwise())
        return 0.0

    message = (
        f"Site 'angle': Pathwise needs a distribution with a differentiable sampler, got {name}. "
        "Fix: use .*ScoreFunction"
    )
    with pytest.raises(vipp.SiteError, match=message):
        vipp.expectation(program)(jax.random.key(0))


@pytest.mark.thorough
def test_every_continuous_distribution_is_accounted_for():
    discrete = ("numpyro.distributions.discrete", "numpyro.distributions.conjugate")
    classes = {
        c.__name__
        for name in dist.__all__
        if inspect.isclass(c := getattr(dist, name)) and issubclass(c, dist.Distribution)
        if c.__module__ not in discrete
    }
    tested = {*ROWS, *(type(row.make(*row.params)).__name__ for row in ROWS.values())}
    assert sorted(classes - tested - set(REFUSED) - set(NOT_IN_THE_TABLE)) == []


def test_a_sampler_that_declares_no_parameters_is_not_trusted():
    class Rejection(dist.Distribution):
        support = constraints.real

    assert Rejection().has_rsample
    assert not reparameterised(Rejection())
    assert not reparameterised(Rejection().expand([3]).to_event(1))


@pytest.mark.few(2)
@pytest.mark.parametrize("kappa", [1e-3, 0.3, 2.0, 20.0, 300.0, 1e4])
def test_von_mises_moves_as_quadrature_says(kappa, x64):
    """The derivative in the concentration, to 1e-6, out to five standard deviations."""
    z = jnp.linspace(-1, 1, 9) * min(3.0, 5 / math.sqrt(kappa))
    steps = jnp.linspace(0, 1, 20001)

    def below(k):  # the trapezoidal rule from 0; half the mass lies below
        t = z[:, None] * steps
        p = jnp.exp(k * (jnp.cos(t) - 1)) / (2 * jnp.pi * jax.scipy.special.i0e(k))
        return 0.5 + z * jnp.trapezoid(p, steps)

    want = jax.jit(lambda: jax.jvp(below, (kappa,), (1.0,)))()
    moved = lambda k: moving_cdf(dist.VonMises(0.0, k), z)
    got = jax.jit(lambda: jax.jvp(moved, (kappa,), (1.0,)))()
    np.testing.assert_allclose(got[0], want[0], atol=1e-7)
    np.testing.assert_allclose(got[1], want[1], atol=1e-6 * float(abs(want[1]).max()))


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "fn", [dist.StudentT(1.3, 0.2, 0.9), dist.Beta(0.6, 2.2), dist.VonMises(2.5, 1.4)]
)
def test_cdfs_by_quadrature_integrate_the_density(fn, x64):
    x = jnp.array([-3.0, -0.4, 0.3, 0.9, 2.0])
    x = jnp.clip(x, 0.01, 0.99) if isinstance(fn, dist.Beta) else x
    along = lambda x: jax.jvp(lambda x: cdf(fn, x), (x,), (jnp.ones_like(x),))
    below, slope = jax.jit(along)(x)
    np.testing.assert_allclose(slope, jnp.exp(fn.log_prob(x)), rtol=1e-6)
    if isinstance(fn, dist.VonMises):
        np.testing.assert_allclose(cdf(fn, jnp.array(-jnp.pi)), 0, atol=1e-12)
    else:
        np.testing.assert_allclose(below, fn.cdf(x), atol=1e-7)


def test_second_derivatives_are_right(reference):
    row = ROWS["MixtureSameFamily"]

    def value(params, key):
        def program():
            # asked for, as an angle is not pathwise by default
            return row.f(vipp.sample("x", row.make(*params), vipp.Pathwise()))

        return vipp.expectation(program)(key)

    along = (jnp.array([0.5, -0.5]), jnp.array([1.0, 0.0]), jnp.array([-1.0, 0.0]))

    def second(fn):
        first = lambda p: jax.jvp(fn, (p,), (along,))[1]
        return jax.jvp(first, (row.params,), (along,))

    keys = jax.random.split(jax.random.key(1), DRAWS)
    got = jax.jit(jax.vmap(lambda k: second(lambda p: value(p, k))))(keys)
    want = jax.jit(lambda: second(lambda p: row.exact(*p)))()
    reference.check_unbiased(got, want, bias=0.15)


@pytest.mark.parametrize(
    "mixing",
    [dist.CategoricalLogits(jnp.array([0.0, -900.0])), dist.CategoricalProbs(jnp.eye(2)[0])],
)
def test_a_component_far_away_or_impossible_gives_finite_gradients(mixing):
    def value(mixing, locs, scales):
        fn = dist.MixtureSameFamily(mixing, dist.Normal(locs, scales))
        with estimated(), seed(rng_seed=0):
            return numpyro.sample("x", fn.expand([50])).mean()

    params = (mixing, jnp.array([-1e4, 1e4]), jnp.array([1e-3, 1.0]))
    assert all(
        np.isfinite(g).all() for g in jax.tree.leaves(jax.jit(jax.grad(value, (0, 1, 2)))(*params))
    )


def test_an_angle_is_pathwise_only_where_asked_for():
    """A function that is not continuous at pi would have a biased gradient."""

    def draw():
        numpyro.sample("x", dist.VonMises(0.3, numpyro.param("k", 1.5)).expand([2]).to_event(1))

    assert "leave_one_out" in vipp.explain(vipp.ELBO(), draw, draw)["x"].estimator
    asked = vipp.with_estimators(draw, {"x": vipp.Pathwise()})
    assert vipp.explain(vipp.ELBO(), draw, asked)["x"].estimator == "Pathwise"


def test_draws_and_density_are_the_distributions_own():
    fn = dist.TransformedDistribution(MIXED, transforms.ExpTransform()).expand([3]).to_event(1)
    key = jax.random.key(4)
    with estimated(), trace() as record:
        x = numpyro.sample("x", fn, rng_key=key)
    assert record["x"]["fn"] is fn
    np.testing.assert_array_equal(x, fn.sample(key))
    scored = fn.log_prob(x, record["x"]["intermediates"])
    np.testing.assert_allclose(scored, fn.log_prob(x), rtol=1e-6)


def test_explicit_samplers_are_left_alone():
    assert explicit(dist.Normal()) and not implicit(dist.Normal().expand([2]).mask(False))
    assert implicit(MIXED) and not explicit(MIXED)


@pytest.mark.thorough
def test_an_implicit_draw_inside_scan_has_its_gradient(reference):
    kappa = jnp.array(1.3)

    def value(kappa, key):
        def program():
            def step(carry, _):
                x = vipp.sample("x", dist.VonMises(0.4, kappa), vipp.Pathwise())
                return carry + turn(x), None

            return scan(step, 0.0, None, length=2)[0]

        return vipp.expectation(program)(key)

    keys = jax.random.split(jax.random.key(2), 2**15)
    got = jax.jit(jax.vmap(jax.value_and_grad(value), (None, 0)))(kappa, keys)
    want = jax.jit(jax.value_and_grad(lambda k: 2 * ROWS["VonMises"].exact(jnp.array(0.4), k)))(
        kappa
    )
    reference.check_unbiased(got, want, bias=0.2)


def test_a_mixture_guide_in_a_plate_is_scored_by_its_own_density():
    target = dist.MixtureSameFamily(
        dist.Categorical(logits=jnp.array([0.0, 0.5])), dist.Normal(jnp.array([-1.0, 1.5]), 0.5)
    )

    def model():
        with numpyro.plate("n", 2):
            numpyro.sample("x", target)

    def guide():
        logits = numpyro.param("logits", jnp.zeros(2))
        locs = numpyro.param("locs", jnp.array([-0.5, 0.5]))
        with numpyro.plate("n", 2):
            numpyro.sample("x", mixture(dist.Normal)(logits, locs, jnp.full(2, 0.5)))

    params = {"logits": jnp.array([0.0, 0.5]), "locs": jnp.array([-1.0, 1.5])}
    one = vipp.value_and_grad(vipp.ELBO(), model, guide)
    value, gradient = jax.jit(one)(jax.random.key(0), params)
    np.testing.assert_allclose(value, 0, atol=1e-5)  # the bound is tight, draw by draw
    assert all(np.isfinite(g).all() for g in gradient.values())
