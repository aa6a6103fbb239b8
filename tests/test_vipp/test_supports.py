"""Supports that move with a parameter, and labels outside of one."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints, transforms
from numpyro.infer import Trace_ELBO

import vipp
from labels import label

KEY = jax.random.key(0)
EYE, ONES = jnp.eye(2), jnp.ones(2)
SCORE = vipp.ScoreFunction(2, "leave_one_out")


def moved(base, *steps):
    return dist.TransformedDistribution(base, list(steps))


def affine(loc, scale):
    return transforms.AffineTransform(loc, scale)


def either(*components, **kwargs):
    return dist.MixtureGeneral(dist.Categorical(ONES / 2), list(components), **kwargs)


MOVES = {
    "Uniform": lambda t: dist.Uniform(-1.0, t),
    "Uniform, lower": lambda t: dist.Uniform(-t, 3.0),
    "Uniform, its lanes in an event": lambda t: dist.Uniform(0.0, t).expand([3]).to_event(1),
    "Delta": dist.Delta,
    "DoublyTruncatedPowerLaw": lambda t: dist.DoublyTruncatedPowerLaw(-1.5, t, 4.0),
    "LowerTruncatedPowerLaw": lambda t: dist.LowerTruncatedPowerLaw(-1.5, t),
    "LeftTruncatedDistribution": lambda t: dist.TruncatedNormal(0.0, 1.0, low=t),
    "RightTruncatedDistribution": lambda t: dist.TruncatedNormal(0.0, 1.0, high=t),
    "TwoSidedTruncatedDistribution": lambda t: dist.TruncatedCauchy(0.0, 1.0, low=-1.0, high=t),
    "Levy": lambda t: dist.Levy(t, 1.0),
    "LogUniform": lambda t: dist.LogUniform(1.0, 1.0 + t),
    "Pareto": lambda t: dist.Pareto(t, 3.0),
    "GaussianCopula": lambda t: dist.GaussianCopula(dist.Uniform(0.0, t * ONES), EYE),
    "EulerMaruyama": lambda t: dist.EulerMaruyama(
        jnp.arange(3.0), lambda x, s: (x, 1.0), dist.Uniform(0.0, t)
    ),
    "MixtureGeneral": lambda t: either(
        dist.Uniform(0.0, t), dist.Exponential(1.0), support=constraints.positive
    ),
    "a bounded base, scaled": lambda t: moved(dist.Beta(2.0, 3.0), affine(0.0, t)),
    "a bounded base, shifted": lambda t: moved(dist.Exponential(1.0), affine(t, 1.0)),
    "a sigmoid, scaled": lambda t: moved(
        dist.Normal(0.0, 1.0), transforms.SigmoidTransform(), affine(0.0, t)
    ),
    "a simplex, scaled": lambda t: moved(dist.Dirichlet(ONES), affine(0.0, t)),
    "counts, scaled": lambda t: moved(dist.Poisson(1.0), affine(0.0, t)),
    "a moving end, transformed": lambda t: moved(
        dist.Uniform(0.0, t), transforms.ExpTransform(), transforms.PowerTransform(2.0)
    ),
}
STAYS = {
    "a constant bound": lambda t: dist.Uniform(jnp.zeros(2), 3.0 * ONES),
    "a bound held fixed": lambda t: dist.Uniform(0.0, jax.lax.stop_gradient(t)),
    "a parameter besides": lambda t: dist.TruncatedNormal(t, 1.0, low=jnp.float32(-1.0)),
    "Pareto's index": lambda t: dist.Pareto(2.0, t),
    "an end at zero, scaled": lambda t: moved(dist.Exponential(2.0), affine(0.0, t)),
    "LogNormal, scaled": lambda t: moved(dist.LogNormal(0.0, t), affine(0.0, t)),
    "ends at 0 and 1, to a power": lambda t: moved(
        dist.Beta(2.0, 3.0), transforms.PowerTransform(t)
    ),
    "no ends": lambda t: moved(
        dist.Normal(jnp.zeros(2), 1.0).to_event(1), transforms.LowerCholeskyAffine(t * ONES, EYE)
    ),
    "a simplex": lambda t: dist.Dirichlet(t * ONES),
    "a mixing weight": lambda t: dist.MixtureGeneral(
        dist.Categorical(logits=jnp.stack([t, 0.0 * t])),
        [dist.Uniform(0.0, 1.0), dist.Uniform(0.0, 2.0)],
        support=constraints.positive,
    ),
}


def slope_of(make, estimator):
    square = lambda t: jnp.sum(vipp.sample("z", make(t), estimator) * 1.0) ** 2
    return jax.grad(vipp.expectation(square), argnums=1)


@pytest.mark.parametrize("name", MOVES)
def test_a_support_that_moves_is_refused(name):
    with pytest.raises(
        vipp.SiteError, match=r"Site 'z': the support of \w+ moves.*Fix: .*Pathwise"
    ):
        jax.eval_shape(slope_of(MOVES[name], SCORE), KEY, jnp.float32(1.5))


@pytest.mark.parametrize("name", STAYS)
def test_a_support_that_stays_is_not(name):
    assert jax.eval_shape(slope_of(STAYS[name], SCORE), KEY, jnp.float32(1.5)).shape == ()


@pytest.mark.parametrize(
    "estimator",
    [
        vipp.ScoreFunction(),
        vipp.ScoreFunction(2, antithetic=True),
        vipp.Mix(vipp.ScoreFunction(), vipp.ScoreFunction(), 0.5),
    ],
)
def test_whatever_differentiates_the_density(estimator):
    with pytest.raises(vipp.SiteError, match="the support of Uniform moves"):
        jax.eval_shape(slope_of(MOVES["Uniform"], estimator), KEY, jnp.float32(1.5))


@pytest.mark.parametrize("estimator", [None, vipp.Pathwise(2), vipp.Pathwise(2, antithetic=True)])
def test_a_draw_that_moves_along_is_right(estimator, reference):
    """By default, too."""
    value = lambda k: vipp.expectation(
        lambda t: vipp.sample("z", dist.Uniform(0.0, t), estimator) ** 2
    )(k, jnp.float32(1.5))  # fmt: skip
    slope = slope_of(lambda t: dist.Uniform(0.0, t), estimator)
    keys = jax.random.split(KEY, 20_000)
    got = jax.jit(jax.vmap(lambda k: (value(k), slope(k, jnp.float32(1.5)))))(keys)
    reference.check_unbiased(got, (1.5**2 / 3, 1.0), bias=0.05)


def test_a_scaled_end_at_zero_is_right(reference):
    value = lambda k, t: vipp.expectation(
        lambda t: vipp.sample("z", STAYS["an end at zero, scaled"](t), SCORE)
    )(k, t)  # fmt: skip
    keys = jax.random.split(KEY, 20_000)
    got = jax.jit(jax.vmap(jax.value_and_grad(value, argnums=1), (0, None)))(keys, 1.5)
    reference.check_unbiased(got, (0.75, 0.5), bias=0.1)


def test_bounds_that_are_data_are_traced_and_right():
    """Under jit nothing tells data from parameters but what is differentiated."""

    def model(width):
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(width):
        p = numpyro.param("p", 0.5, constraint=constraints.positive)
        numpyro.sample("z", moved(dist.Beta(p, 2.0), affine(-width, 2 * width)))

    asked = vipp.with_estimators(guide, {"z": SCORE})
    one = lambda width: vipp.value_and_grad(vipp.ELBO(), model, asked)(
        KEY, {"p": jnp.float32(0.3)}, width
    )
    _, gradient = jax.jit(one)(jnp.float32(2.0))
    assert np.isfinite(gradient["p"])
    with pytest.raises(vipp.SiteError, match="'z': the support.*a parameter of AffineTransform"):
        jax.jit(jax.grad(lambda width: one(width)[0]))(jnp.float32(2.0))


@pytest.mark.parametrize("moving", [True, False])
def test_in_a_scan(moving):
    def program(t):
        def step(carry, width):
            high = 1.0 + t * carry if moving else width
            z = vipp.sample("z", moved(dist.Beta(1.0 + t, 2.0), affine(0.0, high)), SCORE)
            return z, z

        return scan(step, 0.0, jnp.arange(1.0, 4.0))[1].sum()

    slope = jax.grad(vipp.expectation(program), argnums=1)
    if moving:
        with pytest.raises(vipp.SiteError, match="'z': the support of TransformedDistribution"):
            jax.eval_shape(slope, KEY, jnp.float32(0.3))
    else:
        jax.eval_shape(slope, KEY, jnp.float32(0.3))


# -- objectives that follow or drop the score of the guide ------------------------------------------


@vipp.objective
def held_draws(p, q):
    z, log_q = q.constant().simulate()
    return p.log_density(z) * log_q


K2 = {"num_particles": 2}
RELYING = [
    vipp.VIMCO(**K2), vipp.VarGrad(**K2), vipp.VarGrad(num_particles=1, log_evidence="log_z"),
    vipp.ELBO(stick_the_landing=True), vipp.ELBO(stick_the_landing=True, beta=0.5),
    vipp.IWAE(**K2, doubly_reparameterised=True), vipp.ForwardKL(**K2),
    vipp.ReweightedWakeSleep(**K2), vipp.ELBO() + 0.5 * vipp.VIMCO(**K2), held_draws(),
]  # fmt: skip
SEEING = [
    vipp.ELBO(), vipp.ELBO(num_particles=2, kl="analytic"), vipp.IWAE(**K2), vipp.CIWAE(**K2, beta=0.5),
    vipp.PIWAE(num_bounds=2, **K2), vipp.MIWAE(num_bounds=2, **K2), vipp.TVO(**K2), vipp.CUBO(**K2),
    vipp.Renyi(alpha=0.5, **K2), vipp.AnnealedBound(num_steps=1),
    vipp.ReweightedWakeSleep(**K2, wake=0.0, sleep=1.0, dreamt=lambda data, *args: args),
]  # fmt: skip


def two(first, second):
    """A program of two sites, ``z`` from what ``y`` was; a bit between them is summed out."""

    def program():
        t = numpyro.param("t", 1.5)
        y = numpyro.sample("y", first(t))
        numpyro.sample("z", second(t, y))

    return program


def one(make):
    return two(lambda t: dist.Normal(0.0, 1.0), lambda t, y: make(t))


def in_a_loop(make):
    def program():
        t = numpyro.param("t", 1.5)
        scan(
            lambda y, _: (numpyro.sample("y", dist.Normal()), numpyro.sample("z", make(t))),
            0.0,
            None,
            2,
        )

    return program


def summed_out():
    t = numpyro.param("t", 1.5)
    numpyro.sample("y", dist.Normal())
    bit = numpyro.sample("bit", dist.Bernoulli(0.4))
    numpyro.sample("z", dist.Uniform(0.0, (1.0 + bit) * t))


def hidden():
    with numpyro.handlers.mask(mask=False):
        one(MOVES["Uniform"])()


MOVING = {
    **{name: one(MOVES[name]) for name in ("Uniform", "LogUniform", "a bounded base, scaled")},
    "in a loop": in_a_loop(MOVES["Uniform"]),
    "summed out": vipp.marginal(summed_out, keep=["y", "z"], exact=True),
    "masked": hidden,
    "by a deterministic site": two(lambda t: dist.Delta(t), lambda t, y: dist.Uniform(0.0, y)),
}
STAYING = {
    **{name: one(make) for name, make in STAYS.items()},
    "by a draw": two(lambda t: dist.Normal(t, 1.0), lambda t, y: dist.Uniform(0.0, 1.0 + y * y)),
    "in a loop": in_a_loop(STAYS["a parameter besides"]),
}


def objective_slope(objective, guide, model=None):
    """The shapes, traced alone: what is refused is so before anything is compiled."""
    loss = lambda p: objective.loss(KEY, p, model or guide, guide)
    slope = jax.eval_shape(jax.grad(loss), {"t": jnp.float32(1.5), "log_z": jnp.float32(0.0)})
    return {name: x.shape for name, x in slope.items()}


BOTH = {"t": (), "log_z": ()}


@pytest.mark.few(12)
@pytest.mark.parametrize(
    ("objective", "name"),
    [(o, "Uniform") for o in RELYING]
    + [(o, n) for o in (*RELYING[:2], RELYING[3]) for n in MOVING],
    ids=label,
)
def test_an_objective_that_relies_on_the_score_refuses_it(objective, name):
    lands = "stick" in repr(objective)
    if name == "by a deterministic site" and lands:
        assert objective_slope(objective, MOVING[name]) == BOTH  # whose gradient is kept
        return
    model = (
        in_a_loop(lambda t: dist.Normal()) if name == "in a loop" else one(lambda t: dist.Normal())
    )
    with pytest.raises(
        vipp.SiteError, match=r"Site 'z': the support of \w+ moves.*score of the guide.*Fix: .*ELBO"
    ):
        objective_slope(objective, MOVING[name], model)


@pytest.mark.few(10)
@pytest.mark.parametrize(
    ("objective", "name"),
    [(o, "a constant bound") for o in RELYING] + [(RELYING[3], n) for n in STAYING]
    + [(RELYING[5], "by a draw"), (RELYING[0], "in a loop")],
    ids=label,
)  # fmt: skip
def test_an_objective_that_relies_on_the_score_takes_what_stays(objective, name):
    assert objective_slope(objective, STAYING[name]) == BOTH


@pytest.mark.parametrize("objective", SEEING, ids=label)
def test_an_objective_that_sees_the_moving_end_takes_it(objective):
    model = one(lambda t: dist.Uniform(0.0, 2.0))
    assert objective_slope(objective, MOVING["Uniform"], model) == BOTH


def test_the_score_may_be_relied_on_where_nothing_moves_the_support():
    """The model's parameter alone is differentiated."""
    model = two(lambda t: dist.Normal(t, 1.0), lambda t, y: dist.Uniform(0.0, 2.0))
    guide = two(lambda t: dist.Normal(), lambda t, y: dist.Uniform(0.0, numpyro.param("high", 1.5)))
    for objective in RELYING[:1] + RELYING[3:4]:
        at = lambda t, o=objective: o.loss(KEY, {"t": t, "high": jnp.float32(1.5)}, model, guide)
        assert jax.eval_shape(jax.grad(at), jnp.float32(0.3)).shape == ()


TWO = lambda w: jnp.stack([w, 1 - w])
OUTSIDE = {
    "Bernoulli": (lambda w: dist.Bernoulli(w), [-1.0, 2.0, 0.5]),
    "Bernoulli, by logits": (lambda w: dist.Bernoulli(logits=w), [-1.0, 2.0, 0.5]),
    "Binomial": (lambda w: dist.Binomial(3, w), [-1.0, 4.0, 0.5]),
    "Binomial, by logits": (lambda w: dist.Binomial(3, logits=w), [-1.0, 4.0, 0.5]),
    "Categorical": (lambda w: dist.Categorical(TWO(w)), [-1, 2]),
    "Categorical, by logits": (lambda w: dist.Categorical(logits=TWO(w)), [-1, 2]),
    "Geometric": (lambda w: dist.Geometric(w), [-1.0, 0.5]),
    "Geometric, by logits": (lambda w: dist.Geometric(logits=w), [-1.0, 0.5]),
    "Poisson": (lambda w: dist.Poisson(w), [-1.0, 0.5]),
    "Multinomial": (lambda w: dist.Multinomial(2, TWO(w)), [[1.0, 2.0], [3.0, -1.0]]),
    "lanes of an event": (
        lambda w: dist.Bernoulli(logits=w).expand([2]).to_event(1), [[0.0, 2.0], [-1.0, 1.0], [0.5, 1.0]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_label_outside_the_support_has_no_density(name):
    make, labels = OUTSIDE[name]

    def model(y):
        numpyro.sample("y", make(numpyro.param("w", 0.3)), obs=y)

    def loss(objective):
        value = lambda p, y: objective.loss(KEY, p, model, lambda y: None, y)
        each = jax.jit(jax.vmap(jax.value_and_grad(value), (None, 0)))
        return each({"w": jnp.float32(0.3)}, labels)

    labels = jnp.asarray(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (ours, slope), (theirs, _) = loss(vipp.ELBO()), loss(Trace_ELBO())
    assert (ours == jnp.inf).all() and (theirs == jnp.inf).all()
    assert not np.isnan(slope["w"]).any()


HALVES = jnp.array([0.3, 0.7])
NO_INDEX = {  # whether it is observed, its distribution, and what the guide draws it with
    "REBAR": (False, dist.Categorical(HALVES), vipp.REBAR()),
    "GumbelSoftmax": (False, dist.Categorical(logits=HALVES), vipp.GumbelSoftmax()),
    "in lanes": (False, dist.Categorical(HALVES).expand([2]).to_event(1), vipp.REBAR()),
    "ordered": (False, dist.OrderedLogistic(0.2, jnp.array([0.1])), vipp.REBAR()),
    "a label": (True, dist.Categorical(HALVES), vipp.Enumerate()),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", NO_INDEX)
def test_a_value_that_is_no_index_is_refused(name):
    observed, of_z, estimator = NO_INDEX[name]

    def model():
        numpyro.sample("z", of_z, obs=jnp.zeros(of_z.shape()) if observed else None)

    def guide(logit):
        if not observed:
            drawn = dist.Bernoulli(logits=logit).expand(of_z.shape()).to_event(len(of_z.shape()))
            vipp.sample("z", drawn, estimator)

    expected = "convert the data" if observed else "make it a Bernoulli .*in both programs"
    loss = lambda logit: vipp.ELBO().loss(KEY, {}, model, lambda: guide(logit))
    with pytest.raises(vipp.SiteError, match=f"'z': .* as an index, .*float32.*Fix: {expected}"):
        jax.eval_shape(loss, 0.4)
