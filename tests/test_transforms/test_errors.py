"""Each mistake the engine names: what it says, and that nothing near it is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

import vipp
import vipp_transforms as vt

KEY = jax.random.key(0)
T = jnp.float32(0.3)
LOO = r"ScoreFunction\(num_samples=2, baseline='leave_one_out'\)"


def draw(d, estimator, name="z"):
    return vt.sample(KEY, d, estimator, name=name) * 1.0


def run(fn, *args):
    return vt.surrogate(lambda *xs: (fn(*xs), None))(*(args or (T,)))[0]


def coins(t, n, estimator=None):
    return draw(dist.Bernoulli(jnp.full(n, t)), estimator or vt.Enumerate())


@pytest.mark.parametrize("lanes", [17, 1100, 5000])
def test_enumeration_of_too_many_mixed_lanes(lanes):
    match = (
        rf"Site 'z': a term depends on {lanes} of its lanes together.*2\*\*{lanes}.*65536.*{LOO}"
    )
    with pytest.raises(vt.SiteError, match=match):
        run(lambda t: jnp.prod(1 + coins(t, lanes)))


def test_enumeration_of_many_lanes_apart_is_fine():
    np.testing.assert_allclose(run(lambda t: coins(t, 5000).sum()), 1500, rtol=1e-4)


def test_enumeration_limit_is_the_estimators_own():
    product = lambda limit: lambda t: jnp.prod(1 + coins(t, 3, vt.Enumerate(max_evaluations=limit)))
    np.testing.assert_allclose(run(product(8)), 1.3**3, rtol=1e-5)
    with pytest.raises(vt.SiteError, match=r"3 of its lanes together.*= 8 evaluations.*at most 7"):
        run(product(7))


@pytest.mark.parametrize(
    ("distribution", "kind"),
    [(dist.Poisson(1.0), "Poisson"), (dist.Normal(0.0, 1.0), "Normal"),
     (dist.Geometric(0.5), "Geometric"),
     (dist.Binomial(jnp.array([2, 3]), 0.5), "Binomial"),
     (dist.Normal(0.0, 1.0).expand([2]).to_event(1), "Normal"),
     (dist.Bernoulli(jnp.full(3, 0.5)).to_event(1), "Bernoulli")],
)  # fmt: skip
def test_enumeration_needs_a_finite_support(distribution, kind):
    with pytest.raises(
        vt.SiteError, match=rf"Site 'z': .*finite support.*got {kind}.*Fix: .*{LOO}"
    ):
        run(lambda t: draw(distribution, vt.Enumerate()).sum())


@pytest.mark.parametrize(
    ("value", "got"),
    [(lambda z: jnp.stack([z, z]), r"float32\[2\]"),
     (lambda z: z[None], r"float32\[1\]"),
     (lambda z: z.astype(int), r"int32\[\]"),
     (lambda z: z > 0, r"bool\[\]"),
     (lambda z: 1j * z, r"complex64\[\]"),
     (lambda z: {"z": z}, r"float32\[\] in a dict"),
     (lambda z: None, "nothing")],
)  # fmt: skip
def test_the_value_must_be_a_real_scalar(value, got):
    with pytest.raises(ValueError, match=rf"real scalar.*got {got}.*Fix: sum"):
        run(lambda t: value(draw(dist.Bernoulli(t), vt.Enumerate())))


def inside(construct, body, t):
    """``body(carry)`` in a construct of JAX's own."""
    return {
        "scan": lambda: lax.scan(lambda c, _: (body(c), None), t, None, 2)[0],
        "while": lambda: lax.while_loop(lambda c: c < 2, body, t),
        "cond": lambda: lax.cond(t > 0, body, lambda c: c, t),
        "checkpoint": lambda: jax.checkpoint(body)(t),
        "scan of cond": lambda: lax.scan(
            lambda c, _: (lax.cond(c > 0, body, lambda c: c, c), None), t, None, 2
        )[0],
    }[construct]()


CONSTRUCTS = {"scan": "scan", "while": "while", "cond": "cond", "checkpoint": "checkpoint|remat",
              "scan of cond": "scan"}  # fmt: skip


@pytest.mark.parametrize("estimator", [vt.Enumerate(), vt.ScoreFunction(), vt.Automatic()])
@pytest.mark.parametrize("construct", CONSTRUCTS)
def test_a_site_inside_control_flow(construct, estimator):
    match = rf"Site 'z' is drawn inside '({CONSTRUCTS[construct]})\d?'.*Pathwise.*Fix: .*outside"
    with pytest.raises(vt.SiteError, match=match):
        run(lambda t: inside(construct, lambda c: c + draw(dist.Bernoulli(t), estimator), t))


@pytest.mark.parametrize("construct", [c for c in CONSTRUCTS if c != "while"])
def test_a_pathwise_site_inside_control_flow(construct):
    """Also where its parameters depend on a site outside that is enumerated."""

    def program(t):
        z = draw(dist.Bernoulli(t), vt.Enumerate(), name="outside")
        noise = lambda c: vt.sample(KEY, dist.Normal(c, 2.0), vt.Pathwise(), name="x")
        return inside(construct, noise, t + z)

    shift = lambda c: c + 2.0 * jax.random.normal(KEY)
    low, high = (inside(construct, shift, T + z) for z in (0.0, 1.0))
    value, grad = jax.value_and_grad(lambda t: run(program, t))(T)
    np.testing.assert_allclose(value, 0.7 * low + 0.3 * high, rtol=1e-5)
    np.testing.assert_allclose(grad, 1 + high - low, rtol=1e-5)


@pytest.mark.parametrize("derive", [
    lambda f, t: jax.grad(f)(t),
    lambda f, t: jax.jvp(f, (t,), (t,))[1],
    lambda f, t: jax.vjp(f, t)[1](t)[0],
    lambda f, t: jax.vmap(jax.grad(f))(jnp.stack([t, t])).sum(),
])  # fmt: skip
def test_differentiating_inside_the_program(derive):
    inner = lambda s: draw(dist.Bernoulli(s), vt.Enumerate()) * s
    with pytest.raises(
        vt.SiteError, match="'z' is differentiated inside.*around the whole estimate"
    ):
        run(lambda t: derive(inner, t))


def test_differentiating_inside_what_does_not_reach_a_site():
    def program(t):
        z = draw(dist.Bernoulli(t), vt.Enumerate())
        return jax.grad(lambda s: s**2 * z)(t)

    value, grad = jax.value_and_grad(lambda t: run(program, t))(T)
    np.testing.assert_allclose((value, grad), (0.18, 1.2), rtol=1e-5)


@pytest.mark.parametrize(
    ("args", "match"),
    [((0,), "positive, got 0"), ((-1,), "positive, got -1"), ((2.0,), "an int, got 2.0"),
     ((True,), "an int, got True"), ((1, "leave_one_out"), "at least 2, got 1"),
     ((2, "mean"), "None or 'leave_one_out', MovingAverage.*got 'mean'")],
)  # fmt: skip
def test_arguments_of_the_score_function(args, match):
    with pytest.raises(ValueError, match=match):
        vt.ScoreFunction(*args)


@pytest.mark.parametrize("limit", [0, -3, 2.5, "8"])
def test_arguments_of_enumerate(limit):
    with pytest.raises(ValueError, match="max_evaluations must be a positive int"):
        vt.Enumerate(limit)


@pytest.mark.parametrize("estimator", [vt.Enumerate(), vt.ScoreFunction()])
def test_a_mask_is_no_part_of_what_is_drawn(exact, estimator):
    """Its log density leaves lanes out that were drawn: refused, or averaged all the same."""

    def staged(t):
        masked = dist.Bernoulli(jnp.full(2, t[0])).mask(jnp.array([True, False]))
        return draw(masked, estimator).sum(), None

    try:
        got = exact.estimate(staged, jnp.array([0.3]), orders=1)
    except vt.SiteError as error:
        assert "mask" in str(error)
    else:
        np.testing.assert_allclose(got.mass, 1.0, rtol=1e-5)
        np.testing.assert_allclose(got.value, 0.6, rtol=1e-5)


def test_a_pathwise_choice_needs_a_sampler_with_a_gradient():
    with pytest.raises(vt.SiteError, match=r"'z'.*Pathwise.*Bernoulli"):
        run(lambda t: draw(dist.Bernoulli(t), vt.Pathwise()))


# -- estimators ----------------------------------------------------------------------------------

ONE_HOT = vipp.OneHotCategorical(jnp.array([0.2, 0.3, 0.5]))
CATEGORICAL = dist.Categorical(jnp.array([0.2, 0.3, 0.5]))
RELAX = vt.Relax(2, vt.Relax(2).init(KEY, 1))
RELAXED = [
    vt.GumbelSoftmax(),
    vt.StraightThrough(),
    vt.ReinMax(),
    vt.SparseMixer(),
    vt.Rebar(),
    RELAX,
]
ANTITHETIC = [vt.Pathwise(2, antithetic=True), vt.Pathwise(2, quasi=True)]


@pytest.mark.parametrize(
    ("estimator", "distribution", "match"),
    [
        *((e, d, rf"needs a Bernoulli distribution, got {kind}.*Fix: use LocalExpectation")
          for e in (vt.ARM(), vt.DisARM(), vt.ReSTE())
          for d, kind in ((CATEGORICAL, "CategoricalProbs"), (dist.Normal(0.0, 1.0), "Normal"),
                          (ONE_HOT, "OneHotCategorical"))),
        *((e, d, rf"{type(e).__name__} relaxes .*got {kind}.*Fix: use vipp.OneHotCategorical")
          for e in RELAXED
          for d, kind in ((CATEGORICAL, "CategoricalProbs"), (dist.Poisson(1.0), "Poisson"),
                          (dist.Binomial(1, 0.5), "BinomialProbs"))),
        *((vt.LocalExpectation(), d, rf"finite support.*got {kind}.*Fix: use {LOO}")
          for d, kind in ((dist.Poisson(1.0), "Poisson"), (dist.Normal(0.0, 1.0), "Normal"))),
        (vt.MeasureValued(), dist.Beta(1.0, 2.0), "no weak derivative of Beta.*'Weibull'.*Fix: use"),
        (vt.MeasureValued(), dist.Bernoulli(jnp.full(3, 0.5)).to_event(1),
         r"finite support.*got BernoulliProbs with event shape \(3,\).*Fix: draw without to_event"),
        *((e, dist.VonMises(0.0, 1.0), "quantile function.*got VonMises.*Fix: leave antithetic")
          for e in ANTITHETIC),
        (vt.ScoreFunction(2, antithetic=True), dist.Dirichlet(jnp.ones(3)),
         "quantile function.*got Dirichlet.*Fix: leave antithetic"),
        (vt.Pathwise(control_variate="taylor"),
         dist.TransformedDistribution(dist.Normal(0.0, 1.0), dist.transforms.SigmoidTransform()),
         r"around the mean, which TransformedDistribution does not know.*Fix: use Pathwise"),
        *((e, dist.Bernoulli(0.5), "Pathwise needs .*differentiable sampler, got Bernoulli.*Fix: use")
          for e in (vt.Pathwise(3), vt.Pathwise(control_variate="taylor"), *ANTITHETIC)),
        (vt.Mix(vt.DisARM(), vt.Enumerate(), 0.5), CATEGORICAL, "DisARM needs a Bernoulli"),
        (vt.Mix(vt.ScoreFunction(), vt.Enumerate(), 0.5), dist.Poisson(1.0), "Enumerate needs a"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, vt.Estimator | dist.Distribution) else "",
)  # fmt: skip
def test_an_estimator_for_another_distribution(estimator, distribution, match):
    with pytest.raises(vt.SiteError, match=f"'z'.*{match}"):
        run(lambda t: t * draw(distribution, estimator).sum())


@pytest.mark.parametrize("estimator", [vt.GumbelSoftmax, vt.Rebar, vt.ReinMax])
@pytest.mark.parametrize("temperature", [0.0, -1.0, True, float("nan"), jnp.array([1.0, 0.0])])
def test_temperatures_are_positive(estimator, temperature):
    with pytest.raises(ValueError, match=rf"{estimator.__name__}: temperature must be positive"):
        estimator(temperature=temperature)


@pytest.mark.parametrize(
    ("make", "match"),
    [(lambda: vt.ScoreFunction(3, antithetic=True), "pairs, got num_samples=3, expected an even"),
     (lambda: vt.ScoreFunction(2, "leave_one_out", antithetic=True), "at least 4, got 2"),
     (lambda: vt.ScoreFunction(baseline=1.0, coefficient="optimal"), "at least 2, got 1"),
     (lambda: vt.ScoreFunction(2, 1.0, antithetic=True, coefficient="optimal"), "at least 4, got 2"),
     (lambda: vt.ScoreFunction(2, coefficient="optimal"), "a baseline of values, got baseline=None"),
     (lambda: vt.ScoreFunction(2, "leave_one_out", coefficient="optimal"), "a baseline of values"),
     (lambda: vt.Pathwise(0), "positive, got 0"),
     (lambda: vt.Pathwise(3, antithetic=True), "pairs, got num_samples=3, expected an even"),
     (lambda: vt.Pathwise(2, control_variate="mean"), "None or 'taylor', got 'mean'"),
     (lambda: vt.Pathwise(2, antithetic=True, quasi=True), "exclude each other"),
     (lambda: vt.Pathwise(2, quasi=True, control_variate="taylor"), "exclude each other"),
     (lambda: vt.LocalExpectation(0), "max_evaluations must be a positive int, got 0"),
     (lambda: vt.Relax(0), "hidden must be positive, got 0"),
     (lambda: vt.ReSTE(power=0.5), "power must be at least 1, got 0.5"),
     (lambda: vt.ReSTE(limit=0.0), "limit must be positive, got 0.0"),
     (lambda: vt.MovingAverage(1.0), r"decay must be in \[0, 1\), got 1.0"),
     (lambda: vt.Mix(vt.ARM(), vt.DisARM(), "best"), "a number or 'optimal', got 'best'"),
     (lambda: vt.Mix(vt.ARM(), vt.DisARM(), decay=1.5), r"decay must be in \[0, 1\), got 1.5")],
)  # fmt: skip
def test_arguments_of_estimators(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    "part",
    [vt.Pathwise(control_variate="taylor"), vt.Pathwise(2, antithetic=True), RELAX, 0.5,
     vt.ScoreFunction(2, antithetic=True), vt.ScoreFunction(baseline=vt.Learned(jnp.zeros(())))],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_mixed(part):
    for parts in [(part, vt.ScoreFunction()), (vt.ScoreFunction(), part)]:
        with pytest.raises(TypeError, match="Mix: expected two estimators without state.*Fix: mix"):
            vt.Mix(*parts)


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1), (1, 3)])
@pytest.mark.parametrize("learned", [lambda x: x, vt.Learned])
def test_a_baseline_of_the_wrong_shape(shape, learned):
    match = rf"Site 'z': the baseline has shape {re.escape(str(shape))}.*batch shape \(3,\).*Fix:"
    estimator = vt.ScoreFunction(baseline=learned(jnp.zeros(shape)))
    with pytest.raises(vt.SiteError, match=match):
        run(lambda t: coins(t, 3, estimator).sum())


@pytest.mark.parametrize(
    ("estimator", "match"),
    [(vt.ScoreFunction(baseline=vt.MovingAverage()), "baseline MovingAverage.*does not know of"),
     (vt.ScoreFunction(baseline=vt.Learned(lambda x: x)), "baseline Learned.*does not know of"),
     (vt.ScoreFunction(baseline=lambda x: x), "baseline .*does not know of"),
     (vt.Relax(2), "Relax has parameters that the program does not know of"),
     (vt.Mix(vt.ARM(), vt.DisARM()), r"Mix\(weight='optimal'\) has state .*does not know of")],
)  # fmt: skip
def test_state_that_the_engine_alone_does_not_keep(estimator, match):
    with pytest.raises(vt.SiteError, match=rf"Site 'z'.*{match}.*Fix: set .*vipp.sample"):
        run(lambda t: coins(t, 3, estimator).sum())


def test_a_network_for_another_number_of_lanes():
    match = r"Site 'z': Relax has parameters for 2 numbers.*\(lanes \(3,\), event \(\)\).*Fix: make"
    estimator = vt.Relax(2, vt.Relax(2).init(KEY, 2))
    with pytest.raises(vt.SiteError, match=match):
        run(lambda t: coins(t, 3, estimator).sum())
    lanes = lambda t: jax.vmap(lambda s: draw(dist.Bernoulli(s), estimator))(jnp.stack([t, t]))
    with pytest.raises(vt.SiteError, match=r"2 numbers.*\(lanes \(\), event \(\)\)"):
        run(lambda t: jnp.exp(lanes(t).sum()))


def test_local_expectation_limit_is_the_estimators_own():
    product = lambda limit: lambda t: jnp.prod(1 + coins(t, 3, vt.LocalExpectation(limit)))
    assert np.isfinite(run(product(6)))
    with pytest.raises(vt.SiteError, match=r"would make 2 \* 3 = 6 evaluations.*at most 5.*Fix: "):
        run(product(5))
