"""Each estimator refuses what it can't do, before compilation: site, got, expected, fix."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

import vipp_transforms as vt

KEY = jax.random.key(0)
BERNOULLI = dist.Bernoulli(0.4)
NORMAL = dist.Normal(0.0, 1.0)
CATEGORICAL = dist.Categorical(jnp.array([0.2, 0.3, 0.5]))
POISSON = dist.Poisson(2.0)
BETA = dist.Beta(2.0, 3.0)


def plan(estimator, distribution):
    draw = lambda: (1.0 * vt.sample(KEY, distribution, estimator, name="z")).sum()
    return vt.plan(lambda: (draw(), None))


def run(estimator, distribution):
    draw = lambda: (1.0 * vt.sample(KEY, distribution, estimator, name="z")).sum()
    return jax.eval_shape(lambda: vt.surrogate(lambda: (draw(), None))()[0])


RELAX = vt.RELAX(3, vt.RELAX(3).init(KEY, 1))
NOT_FOR = [
    (vt.LocalExpectation(), [POISSON, NORMAL], "LocalExpectation needs a finite support"),
    (vt.Enumerate(), [POISSON, NORMAL], "Enumerate needs a finite support"),
    (vt.DoubleControlVariates(), [POISSON, NORMAL], "DoubleControlVariates needs a finite"),
    (vt.FittedControlVariates(), [POISSON, NORMAL], "FittedControlVariates needs a finite"),
    (vt.ARM(), [CATEGORICAL, NORMAL, POISSON], "ARM needs a Bernoulli"),
    (vt.DisARM(), [CATEGORICAL, NORMAL, POISSON], "DisARM needs a Bernoulli"),
    (vt.ReSTE(), [CATEGORICAL, NORMAL], "ReSTE needs a Bernoulli"),
    (vt.MeasureValued(), [BETA, POISSON, NORMAL], "MeasureValued knows no weak derivative"),
    (vt.REBAR(), [CATEGORICAL, NORMAL], "REBAR relaxes a Bernoulli or a one-hot"),
    (RELAX, [CATEGORICAL, NORMAL], "RELAX relaxes a Bernoulli or a one-hot"),
    (vt.GumbelSoftmax(), [CATEGORICAL, NORMAL], "GumbelSoftmax relaxes a Bernoulli or a one-hot"),
    (vt.StraightThrough(), [CATEGORICAL], "StraightThrough relaxes a Bernoulli or a one-hot"),
    (vt.ReinMax(), [CATEGORICAL], "ReinMax relaxes a Bernoulli or a one-hot"),
    (vt.SparseMixer(), [CATEGORICAL], "SparseMixer relaxes a Bernoulli or a one-hot"),
    (vt.Analytic(), [CATEGORICAL], "Analytic relaxes a Bernoulli or a one-hot"),
    (vt.Mix(vt.DisARM(), vt.ScoreFunction(), 0.5), [CATEGORICAL], "DisARM needs a Bernoulli"),
    (vt.Pathwise(2), [BERNOULLI, POISSON], "Pathwise needs a distribution with a differentiable"),
]


@pytest.mark.parametrize(
    ("estimator", "distribution", "what"),
    [
        pytest.param(e, d, what, id=f"{type(e).__name__}-{type(d).__name__}")
        for e, ds, what in NOT_FOR
        for d in ds
    ],
)
def test_a_distribution_that_does_not_fit(estimator, distribution, what):
    kind = type(distribution).__name__
    with pytest.raises(vt.SiteError, match=rf"Site 'z': {what}.*got {kind}.*Fix: ") as caught:
        plan(estimator, distribution)
    assert any(name in str(caught.value) for name in ("ScoreFunction(", "Pathwise("))


@pytest.mark.parametrize("estimator", [vt.Pathwise(2, antithetic=True), vt.Pathwise(2, quasi=True)])
def test_coupled_samples_need_a_quantile_function(estimator):
    with pytest.raises(vt.SiteError, match=r"'z'.*quantile function.*got Gamma.*Fix"):
        run(estimator, dist.Gamma(2.0, 1.0))


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, True, float("nan")])
@pytest.mark.parametrize("make", [vt.GumbelSoftmax, vt.REBAR, vt.ReinMax])
def test_temperature(make, temperature):
    with pytest.raises(ValueError, match=rf"{make.__name__}: temperature must be positive, got"):
        make(temperature=temperature)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: vt.ScoreFunction(3, "leave_one_out", antithetic=True), "in pairs.*got num_samp"),
        (lambda: vt.ScoreFunction(2, "leave_one_out", antithetic=True), "at least 4, got 2"),
        (lambda: vt.ScoreFunction(2, coefficient="optimal"), "a baseline of values, got"),
        (lambda: vt.ScoreFunction(1, 2.0, coefficient="optimal"), "at least 2, got 1"),
        (lambda: vt.ScoreFunction(4, "leave_one_out", coefficient="optimal"), "of values, got"),
        (lambda: vt.DoubleControlVariates(1), "num_samples must be at least 2, got 1"),
        (lambda: vt.FittedControlVariates(2), "num_samples must be at least 3, got 2"),
        (lambda: vt.Automatic(max_samples=1), "max_samples must be at least 2, got 1"),
        (lambda: vt.MovingAverage(1.0), r"decay must be in \[0, 1\), got 1.0"),
        (lambda: vt.MovingAverage(-0.1), r"decay must be in \[0, 1\), got -0.1"),
        (lambda: vt.Pathwise(0), "num_samples must be a positive int, got 0"),
        (lambda: vt.Pathwise(3, antithetic=True), "in pairs, got num_samples=3"),
        (lambda: vt.Pathwise(2, antithetic=True, quasi=True), "exclude each other"),
        (lambda: vt.Pathwise(control_variate="newton"), "None or 'taylor', got 'newton'"),
        (lambda: vt.LocalExpectation(0), "must be a positive int, got 0"),
        (lambda: vt.Analytic(0), "must be a positive int, got 0"),
        (lambda: vt.RELAX(0), "hidden must be a positive int, got 0"),
        (lambda: vt.ReSTE(power=0.5), "power must be at least 1, got 0.5"),
        (lambda: vt.ReSTE(limit=0.0), "limit must be positive, got 0.0"),
        (lambda: vt.Mix(vt.ARM(), vt.DisARM(), weight="best"), "'optimal', got 'best'"),
        (lambda: vt.Mix(vt.ARM(), vt.DisARM(), decay=1.5), r"decay must be in \[0, 1\)"),
    ],
)
def test_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    "part", [None, vt.ScoreFunction, vt.RELAX(), 3.0, vt.DoubleControlVariates()]
)
def test_parts_of_a_mixture(part):
    with pytest.raises(TypeError, match=r"Mix: expected two estimators.*got"):
        vt.Mix(vt.DisARM(), part)


@pytest.mark.parametrize("shape", [(3,), (2, 2), (1, 2)])
def test_shape_of_a_baseline(shape):
    estimator = vt.ScoreFunction(baseline=jnp.zeros(shape))
    with pytest.raises(vt.SiteError, match=r"'z': the baseline has shape.*batch shape \(2,\).*Fix"):
        run(estimator, dist.Bernoulli(jnp.full(2, 0.4)))


@pytest.mark.parametrize(
    "estimator",
    [
        vt.ScoreFunction(baseline=vt.MovingAverage()),
        vt.ScoreFunction(baseline=lambda x: x),
        vt.RELAX(),
        vt.Mix(vt.DisARM(), vt.ScoreFunction()),
    ],
    ids=["average", "function", "relax", "mix"],
)
def test_state_that_nobody_keeps(estimator):
    with pytest.raises(vt.SiteError, match=r"'z'.*the program does not know of.*vipp.sample"):
        plan(estimator, BERNOULLI)


def test_local_expectations_of_too_many_lanes():
    together = lambda: (
        jnp.prod(1.0 + vt.sample(KEY, dist.Bernoulli(jnp.full(3000, 0.4)), vt.LocalExpectation(),
                                 name="z")),
        None,
    )  # fmt: skip
    with pytest.raises(vt.SiteError, match=r"2 \* 3000 = 6000 evaluations.*at most 4096.*Fix"):
        vt.plan(together)
