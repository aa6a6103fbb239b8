"""Objectives count every term that the two programs have: scales, masks, factors, data, volumes."""

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
from numpyro.infer import SVI
from numpyro.infer.autoguide import (
    AutoBNAFNormal,
    AutoDAIS,
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuide,
    AutoLaplaceApproximation,
    AutoMultivariateNormal,
    AutoNormal,
    AutoSurrogateLikelihoodDAIS,
)

import vipp
from labels import label
from vipp.programs.auxiliary import Auxiliary, loose

pytestmark = pytest.mark.uncompiled

KEY = jax.random.key(0)
MASK = jnp.array([True, False, True])
sg = jax.lax.stop_gradient
agree = lambda got, want: jax.tree.map(
    lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-3, atol=2e-4), got, want
)


# -- divergences in closed form, against integrals --------------------------------------------------

same = lambda program: program
scale = lambda s: lambda program: handlers.scale(program, scale=s)
mask = lambda m: lambda program: handlers.mask(program, mask=m)
LOCS = jnp.arange(3.0)
NORMAL = lambda m: dist.Normal(m, 0.7).expand([3])
REAL, POSITIVE, UNIT = (-9.0, 12.0), (1e-6, 25.0), (1e-6, 1 - 1e-6)


def plated(program):
    def run():
        with numpyro.plate("N", 6, subsample_size=3):
            program()

    return run


# of the model, of the guide, what is around either, and where the values lie
CLOSED = {
    "scale": (dist.Normal(2.0, 1.0), lambda m: dist.Normal(m, 0.7), scale(0.1), same, REAL),
    "scales": (dist.Normal(LOCS, 1.0).to_event(1), lambda m: NORMAL(m).to_event(1),
               scale(0.1), scale(2.0), REAL),
    "scale of arrays": (dist.Normal(LOCS, 1.0), NORMAL, scale(1 + LOCS), same, REAL),
    "mask": (dist.Normal(LOCS, 1.0), NORMAL, mask(MASK), same, REAL),
    "masks": (dist.Normal(LOCS, 1.0), NORMAL, mask(MASK), mask(MASK), REAL),
    "nothing counts": (dist.Normal(LOCS, 1.0), NORMAL, mask(False), mask(False), REAL),
    "mask within the event": (dist.Normal(LOCS, 1.0).to_event(1),
                              lambda m: NORMAL(m).mask(MASK).to_event(1), scale(0.5), same, REAL),
    "subsampled": (dist.Normal(2.0, 1.0), lambda m: dist.Normal(m, 0.7), plated, plated, REAL),
    "subsampled and scaled": (dist.Normal(2.0, 1.0), lambda m: dist.Normal(m, 0.7),
                              lambda p: plated(scale(0.3)(p)), plated, REAL),
    "Gamma": (dist.Gamma(2.0, 1 + LOCS).to_event(1),
              lambda m: dist.Gamma(2 + m, 2.0).expand([3]).to_event(1), scale(0.1), same, POSITIVE),
    "Beta": (dist.Beta(2.0, 1 + LOCS), lambda m: dist.Beta(2 + m, 2.0).expand([3]),
             mask(MASK), scale(3.0), UNIT),
    "Bernoulli": (dist.Bernoulli(0.2 + LOCS / 4).to_event(1),
                  lambda m: dist.Bernoulli(logits=m).expand([3]).to_event(1), scale(0.1), same, 2),
    "Bernoulli, masks": (dist.Bernoulli(0.2 + LOCS / 4).mask(MASK).to_event(1),
                         lambda m: dist.Bernoulli(logits=m).expand([3]).to_event(1),
                         same, scale(2.0), 2),
    "Categorical": (dist.Categorical(jnp.array([0.2, 0.5, 0.3])).expand([2]).to_event(1),
                    lambda m: dist.Categorical(logits=m * LOCS).expand([2]).to_event(1),
                    scale(0.5), same, 3),
    "Binomial": (dist.Binomial(4, 0.3), lambda m: dist.Binomial(4, logits=m), same, scale(0.5), 5),
}  # fmt: skip


def counted(program, values):
    """The density of ``z`` in a program as NumPyro counts it, for values with an axis in front."""

    def at(value):
        record = handlers.trace(
            handlers.substitute(handlers.seed(program, 0), data={"z": value})
        ).get_trace()
        site = record["z"]
        log_prob = site["fn"].log_prob(value)
        factor = 1.0 if site["scale"] is None else site["scale"]
        return (factor * log_prob).sum()

    return jax.vmap(at)(values)


def integral(p, q, support, params):
    """Of ``q (c_q log q - c_p log p)``, lane by lane, the other lanes at any value of theirs."""
    run = handlers.trace(handlers.seed(handlers.substitute(q, data=params), 0)).get_trace
    fn = run()["z"]["fn"]
    while isinstance(fn, dist.Independent | dist.MaskedDistribution) or hasattr(fn, "_mask"):
        fn = fn.base_dist
    if isinstance(support, int):
        points, weight = jnp.arange(support), 1.0
    else:
        points = jnp.linspace(*support, 4001)
        weight = points[1] - points[0]
    shape = fn.batch_shape
    middle = jnp.full(shape, points[len(points) // 3])
    difference = lambda x: counted(handlers.substitute(q, data=params), x) - counted(p, x)
    rest = difference(middle[None])[0]

    def of_lane(lane):
        at_lane = jnp.arange(middle.size).reshape(shape) == lane
        columns = points.reshape(-1, *(1 for _ in shape))
        values = jnp.where(at_lane, columns, middle)
        log_q = jnp.where(at_lane, jnp.broadcast_to(fn.log_prob(values), values.shape), 0.0)
        mass = jnp.exp(log_q.reshape(len(points), -1).sum(1))
        return (weight * mass * (difference(values) - rest)).sum()

    return jax.vmap(of_lane)(jnp.arange(middle.size)).sum() + rest


@pytest.mark.few(6)
@pytest.mark.parametrize("name", CLOSED)
def test_a_closed_divergence_is_the_integral(name):
    of_p, of_q, around_p, around_q, support = CLOSED[name]
    model = around_p(lambda: numpyro.sample("z", of_p))
    guide = around_q(lambda: numpyro.sample("z", of_q(numpyro.param("m", 0.3))))
    params = {"m": jnp.array(0.3)}
    exact = lambda params: -integral(model, guide, support, params)
    wanted = jax.jit(jax.value_and_grad(exact))(params)
    evaluate = vipp.value_and_grad(vipp.ELBO(kl=["z"]), model, guide)
    drawn = jax.jit(jax.vmap(evaluate, (0, None)))(jax.random.split(KEY, 3), params)
    agree(drawn, jax.tree.map(lambda x: jnp.full(3, x), wanted))  # without any variance


def test_a_lane_that_stands_for_several_has_no_closed_form():
    p = lambda: numpyro.sample("z", dist.Normal(LOCS, 1.0))
    q = lambda: numpyro.sample("z", dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="'z' .Normal from Normal. has no closed form"):
        vipp.ELBO(kl=["z"]).loss(KEY, {}, p, q)


def test_a_loop_that_runs_the_other_way_has_no_closed_form(bound_and_grad):
    """What a step of the model depends on, the guide draws later."""

    def run(reverse, shift):
        step = lambda z, _: (numpyro.sample("z", dist.Normal(0.9 * z + shift, 0.5)), None)
        scan(step, 0.0, None, length=3, reverse=reverse)

    model = lambda: run(False, 0.0)
    guide = lambda reverse: lambda: run(reverse, numpyro.param("m", 0.3))
    with pytest.raises(ValueError, match="'z'.*steps of the loop that the guide draws later"):
        vipp.ELBO(kl=["z"]).loss(KEY, M, model, guide(True))
    plain, closed = (
        bound_and_grad(vipp.ELBO(kl=kl), model, guide(True), M, keys=50)[0]
        for kl in ("monte_carlo", "analytic")
    )
    np.testing.assert_allclose(plain, closed, rtol=1e-4)
    value, _ = bound_and_grad(vipp.ELBO(kl=["z"]), model, guide(False), M)
    np.testing.assert_allclose(value, -3 * 0.5 * (0.2 / 0.5) ** 2, rtol=1e-4)


# -- a guide with everything, enumerated -------------------------------------------------------------


def rich_model():
    with numpyro.plate("N", 3), handlers.mask(mask=MASK):
        with handlers.scale(scale=0.5):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=LOCS)


def rich_guide():
    """Masked and scaled draws, a factor with a parameter, and an observed site."""
    m = numpyro.param("m", 0.3)
    with numpyro.plate("N", 3), handlers.scale(scale=0.7):
        with handlers.mask(mask=MASK):
            z = numpyro.sample("z", dist.Bernoulli(logits=m * LOCS - 0.4))
        numpyro.factor("g", 0.3 * m * z)
        numpyro.sample("seen", dist.Normal(m * z, 1.0), obs=0.4)


RICH = {"m": jnp.array(-1.5)}  # far from the optimum: a large gradient
log_mean_exp = lambda x: logsumexp(x, axis=0) - jnp.log(len(x))
K2 = {"num_particles": 2}
FORMULAS = [
    (vipp.ELBO(**K2), lambda w: w.mean(0)),
    (vipp.ELBO(beta=jnp.array(1.0), **K2), lambda w: w.mean(0)),
    (vipp.ELBO(kl="analytic", **K2), lambda w: w.mean(0)),
    (vipp.ELBO(stick_the_landing=True, **K2), lambda w: w.mean(0)),
    (vipp.IWAE(**K2), log_mean_exp),
    (vipp.MIWAE(num_bounds=2, num_particles=1), lambda w: w.mean(0)),
    (vipp.CIWAE(beta=0.3, **K2), lambda w: 0.3 * w.mean(0) + 0.7 * log_mean_exp(w)),
    (vipp.Renyi(alpha=0.5, **K2), lambda w: 2 * log_mean_exp(0.5 * w)),
    (vipp.Renyi(alpha=0.99, **K2), lambda w: 100 * log_mean_exp(0.01 * w)),
    (vipp.CUBO(**K2), lambda w: -log_mean_exp(2 * w) / 2),
    (vipp.TVO(partition=(0.0,), **K2), lambda w: w.mean(0)),
]  # fmt: skip


@pytest.mark.few(5)
@pytest.mark.parametrize("objective, formula", FORMULAS, ids=label)
def test_all_terms_are_weighed(objective, formula, reference, bound_and_grad):
    exact = reference.bound(rich_model, rich_guide, particles=2, plates=("N",), formula=formula)
    got = bound_and_grad(objective, rich_model, rich_guide, RICH)
    agree(got, jax.jit(jax.value_and_grad(exact))(RICH))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "objective, formula",
    [
        (vipp.VIMCO(**K2), log_mean_exp),
        (vipp.VarGrad(**K2), lambda w: w.mean(0)),
        (vipp.PIWAE(num_bounds=1, **K2), log_mean_exp),
    ],
    ids=label,
)
def test_all_terms_are_weighed_where_draws_are_constants(
    objective, formula, reference, check_bound
):
    exact = reference.bound(rich_model, rich_guide, particles=2, plates=("N",), formula=formula)
    wanted = jax.jit(jax.value_and_grad(exact))(RICH)
    check_bound(wanted, objective, rich_model, rich_guide, RICH, most=800_000)


def test_beta_counts_all_of_the_guide(reference, bound_and_grad):
    """The divergence is the guide's whole density over the model's latent sites'."""
    prior = handlers.block(rich_model, hide=["x"])
    elbo = lambda p: reference.bound(p, rich_guide)(RICH)
    likelihood = elbo(rich_model) - elbo(prior)
    wanted = likelihood + 0.4 * elbo(prior)
    for kl in ("monte_carlo", "analytic"):
        value, _ = bound_and_grad(vipp.ELBO(beta=0.4, kl=kl), rich_model, rich_guide, RICH)
        np.testing.assert_allclose(value, wanted, rtol=1e-4)


@pytest.mark.parametrize(
    "objective",
    [vipp.ReweightedWakeSleep(**K2), vipp.ForwardKL(**K2), vipp.ForwardKL(samples={"z": jnp.ones((1, 3))})],
    ids=label,
)  # fmt: skip
def test_a_density_that_is_followed_itself_is_of_draws_alone(objective):
    with pytest.raises(ValueError, match="the guide observes site 'g'.*Fix: "):
        objective.loss(KEY, RICH, rich_model, rich_guide)


# -- pathwise gradients that leave the density of a draw out -----------------------------------------


def quadratic():
    x = numpyro.sample("x", dist.Normal())
    numpyro.factor("f", -0.5 * (x - 1.0) ** 2)


def with_factor():
    m = numpyro.param("m", 0.2)
    x = numpyro.sample("x", dist.Normal(m, 0.7))
    numpyro.factor("g", -0.3 * x * m)


def with_data():
    m = numpyro.param("m", 0.2)
    x = numpyro.sample("x", dist.Normal(m, 0.7))
    numpyro.sample("seen", dist.Normal(x * m, 1.0), obs=0.5)


def scaled():
    with handlers.scale(scale=0.5):
        numpyro.sample("x", dist.Normal(numpyro.param("m", 0.2), 0.7))


def at_a_point():
    numpyro.sample("x", dist.Delta(numpyro.param("m", 0.2)))


def transformed():
    """A flow: what is random is auxiliary, and the volume depends on a parameter."""
    m = numpyro.param("m", 0.2)
    u = numpyro.sample("u", dist.Normal(m, 0.6), infer={"is_auxiliary": True})
    numpyro.sample("x", dist.Delta(u * jnp.exp(m), log_density=-m))


def from_a_point():
    """A parameter that reaches the draw by way of a deterministic site."""
    d = numpyro.sample("d", dist.Delta(numpyro.param("m", 0.2)), infer={"is_auxiliary": True})
    numpyro.sample("x", dist.Normal(d, 0.7))


PATHWISE = [with_factor, with_data, scaled, from_a_point, at_a_point, transformed]
M = {"m": jnp.array(0.2)}


def by_quadrature(guide, particles):
    """The bound of the log weights of a Gaussian draw, all particles on one grid of quantiles."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    weights = weights / weights.sum()
    noise = jnp.stack(np.meshgrid(*[nodes] * particles, indexing="ij")).reshape(particles, -1)
    mass = np.prod(np.meshgrid(*[weights] * particles, indexing="ij"), axis=0).reshape(-1)

    def bound(params):
        m = params["m"]
        loc, spread = (m, 0.6) if guide is transformed else (m, 0.7)
        drawn = loc + spread * noise
        x = {at_a_point: m + 0 * noise, transformed: drawn * jnp.exp(m)}.get(guide, drawn)
        log_q = dist.Normal(loc, spread).log_prob(drawn)
        log_q = {
            with_factor: log_q - 0.3 * x * m,
            with_data: log_q + dist.Normal(x * m, 1.0).log_prob(0.5),
            scaled: 0.5 * log_q,
            from_a_point: log_q,
            at_a_point: 0 * log_q,
            transformed: log_q - m,
        }[guide]
        log_w = dist.Normal().log_prob(x) - 0.5 * (x - 1.0) ** 2 - log_q
        return (mass * log_mean_exp(log_w)).sum()

    return bound


@pytest.mark.few(1)
@pytest.mark.parametrize("guide", PATHWISE, ids=lambda g: g.__name__)
def test_sticking_the_landing_keeps_what_is_no_draw(guide, check_bound):
    wanted = jax.jit(jax.value_and_grad(by_quadrature(guide, 1)))(M)
    for beta in (1.0, jnp.array(1.0)):  # two ways through the objective
        objective = vipp.ELBO(stick_the_landing=True, beta=beta)
        check_bound(wanted, objective, quadratic, guide, M, most=80_000)


@pytest.mark.few(2)
@pytest.mark.parametrize("guide", PATHWISE, ids=lambda g: g.__name__)
def test_double_reparameterisation_keeps_what_is_no_draw(guide, check_bound):
    objective = vipp.IWAE(num_particles=2, doubly_reparameterised=True)
    if guide is scaled:
        with pytest.raises(ValueError, match="site 'x' of the guide is scaled or masked.*Fix: "):
            objective.loss(KEY, M, quadratic, guide)
        return
    wanted = jax.jit(jax.value_and_grad(by_quadrature(guide, 2)))(M)
    check_bound(wanted, objective, quadratic, guide, M, most=80_000)


@pytest.mark.few(1)
@pytest.mark.parametrize("guide", PATHWISE, ids=lambda g: g.__name__)
def test_constant_draws_keep_what_is_no_draw(guide, check_bound):
    for objective, particles in ((vipp.VIMCO(**K2), 2), (vipp.VarGrad(**K2), 1)):
        wanted = jax.jit(jax.value_and_grad(by_quadrature(guide, particles)))(M)
        check_bound(wanted, objective, quadratic, guide, M, most=300_000)


def test_an_estimated_density_is_not_scored_again():
    """Another estimate of it would be no bound."""
    noisy = vipp.marginal(lambda: (numpyro.sample("u", dist.Normal()), with_factor()), keep=["x"])
    with pytest.raises(ValueError, match="stick_the_landing.*marginal.*Fix: "):
        vipp.ELBO(stick_the_landing=True).loss(KEY, M, quadratic, noisy)


# -- autoguides: NumPyro's bound, whichever way it is asked for ----------------------------------------


def regression():
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    w = numpyro.sample("w", dist.Normal().expand([2]).to_event(1))
    numpyro.sample("x", dist.Normal(w[0] + rate * w[1], 0.5), obs=1.0)


AUTOGUIDES = {
    "AutoNormal": AutoNormal,
    "AutoDelta": AutoDelta,
    "AutoDiagonalNormal": AutoDiagonalNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoBNAFNormal": AutoBNAFNormal,
    "AutoDAIS": lambda model: AutoDAIS(model, K=2, init_scale=0.3),
    "AutoSurrogateLikelihoodDAIS": lambda model: AutoSurrogateLikelihoodDAIS(model, model, K=2),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", AUTOGUIDES)
def test_autoguides_have_one_bound(name, reference, bound_and_grad):
    guide = AUTOGUIDES[name](regression)
    svi = SVI(regression, guide, optax.sgd(0.1), vipp.ELBO())
    params = svi.get_params(svi.init(KEY))
    drawn = {
        objective: bound_and_grad(objective, regression, guide, params, keys=4_000)
        for objective in (
            vipp.ELBO(), vipp.ELBO(beta=jnp.array(1.0)), vipp.ELBO(kl="analytic"),
            # (the inverse of a block neural autoregressive flow is not known)
            *([] if name == "AutoBNAFNormal" else [vipp.ELBO(stick_the_landing=True)]),
        )
    }  # fmt: skip
    plain, *others = [jax.tree.map(lambda x: np.asarray(x, np.float64), d) for d in drawn.values()]
    for other in others:
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
            error = np.sqrt((a.var(0) + b.var(0)) / len(a))
            np.testing.assert_array_less(np.abs(a.mean(0) - b.mean(0)), 5 * error + 1e-4)


# -- auxiliary sites ----------------------------------------------------------------------------------

PRIOR = lambda: numpyro.sample("z", dist.Normal())
AUXILIARY = {"is_auxiliary": True}


def random_auxiliary(fn):
    def guide():
        u = numpyro.sample("u", fn, infer=AUXILIARY)
        numpyro.sample("z", dist.Normal(0.0 * u, 1.0))

    return guide


EVERY = [
    vipp.ELBO(), vipp.ELBO(beta=0.5), vipp.IWAE(**K2), vipp.VIMCO(**K2), vipp.Renyi(alpha=0.5, **K2),
    vipp.PIWAE(num_bounds=2, **K2), vipp.MIWAE(num_bounds=2, **K2), vipp.CIWAE(beta=0.5, **K2),
    vipp.TVO(**K2), vipp.VarGrad(**K2), vipp.CUBO(**K2), vipp.ForwardKL(**K2),
    vipp.ReweightedWakeSleep(**K2), vipp.AnnealedBound(num_steps=1),
    vipp.IWAE(**K2, doubly_reparameterised=True), vipp.ELBO(stick_the_landing=True),
]  # fmt: skip


@pytest.mark.parametrize("objective", EVERY, ids=label)
def test_a_random_auxiliary_site_is_refused(objective):
    for fn in (dist.Normal(), dist.Bernoulli(0.5), dist.Normal().expand([2]).to_event(1)):
        with pytest.raises(ValueError, match="Site 'u' is auxiliary and random.*vipp.marginal"):
            objective.loss(KEY, {}, PRIOR, random_auxiliary(fn))
        if objective != EVERY[0]:
            break


def test_the_way_out_of_an_auxiliary_site(bound_and_grad):
    guide = vipp.marginal(random_auxiliary(dist.Bernoulli(0.5)), keep=["z"], num_particles=3)
    value, _ = bound_and_grad(vipp.ELBO(), PRIOR, guide, {}, keys=10)
    np.testing.assert_allclose(value, 0.0, atol=1e-5)


def test_more_is_drawn_than_passed_on():
    def guide():
        u = numpyro.sample("u", dist.Normal().expand([2]).to_event(1), infer=AUXILIARY)
        numpyro.sample("z", dist.Delta(u.sum()))

    with pytest.raises(ValueError, match="Site 'u' is auxiliary and random"):
        vipp.ELBO().loss(KEY, {}, PRIOR, guide)


UNRELATED = {
    "another site of its size": (
        lambda u: numpyro.sample("z", dist.Normal(u, 1.0)),
        lambda u: numpyro.sample("w", dist.Delta(numpyro.param("m", 0.3))),
    ),
    "one of a random site's value": (
        lambda u: numpyro.sample("w", dist.Delta(numpyro.sample("z", dist.Normal(u, 1.0)))),
        lambda u: None,
    ),
}


@pytest.mark.parametrize("case", UNRELATED)
def test_a_deterministic_site_that_does_not_pass_it_on(case):
    def guide():
        u = numpyro.sample("u", dist.Normal(), infer=AUXILIARY)
        for draw in UNRELATED[case]:
            draw(u)

    def two():
        for name in "zw":
            numpyro.sample(name, dist.Normal())

    with pytest.raises(ValueError, match="Site 'u' is auxiliary and random"):
        vipp.ELBO().loss(KEY, {"m": 0.3}, two, guide)


def test_room_for_auxiliary_coordinates():
    """A site may have to leave room for another that has nowhere else to go."""
    sites = {"a": ("de", 1), "b": ("d", 1), "c": ("e", 1)}
    wanting = lambda names: [
        Auxiliary(n, sites[n][1], tuple((e, 1) for e in sites[n][0])) for n in names
    ]
    assert loose(wanting("ab"), "de") == []
    assert loose(wanting("abc"), "de") == ["c"]
    assert loose(wanting("ab"), "d") == ["b"]


# -- deterministic sites where the guide's density at fixed values is followed --------------------------


def flow(moving, name="z"):
    """A draw passed on, by a function that has a parameter or has none."""

    def guide(*_):
        m = numpyro.param("m", 0.3)
        u = numpyro.sample("u", dist.Normal(0.0 if moving else m, 1.0), infer=AUXILIARY)
        shift, slope = (m, 1.0 + m**2) if moving else (0.4, 2.0)
        numpyro.sample(name, dist.Delta(shift + slope * u, -jnp.log(slope)))

    return guide


def flow_drawn(*_):
    """The same with the parameter, as a distribution."""
    m = numpyro.param("m", 0.3)
    loc = 0.4 + 2.0 * m
    numpyro.sample("z", dist.Normal(loc, 2.0))


def seen(*_):
    z = numpyro.sample("z", dist.Normal())
    numpyro.sample("x", dist.Normal(z, 1.0), obs=1.2)


POINT = lambda *_: numpyro.sample("z", dist.Delta(numpyro.param("m", 0.3)))
FIXED = [vipp.ForwardKL(**K2), vipp.ReweightedWakeSleep(**K2)]


@pytest.mark.parametrize("objective", FIXED, ids=label)
def test_a_deterministic_site_that_moves_is_refused(objective):
    for guide in (flow(True), POINT, AutoDelta(seen), AutoLaplaceApproximation(seen)):
        params = {"m": jnp.array(0.3)}
        if isinstance(guide, AutoGuide):
            params = (
                SVI(seen, guide, optax.sgd(0.1), vipp.ELBO()).run(KEY, 1, progress_bar=False).params
            )
        with pytest.raises(ValueError, match="site '.*' is deterministic and moves.*Fix: draw"):
            objective.loss(KEY, params, seen, guide)


@pytest.mark.parametrize("objective", FIXED, ids=label)
def test_a_deterministic_site_that_stays_is_right(objective, bound_and_grad):
    """The same draws, the same values and gradients as of the distribution in one."""
    got = bound_and_grad(objective, seen, flow(False), {"m": jnp.array(0.3)}, keys=4_000)
    same = bound_and_grad(objective, seen, flow_drawn, {"m": jnp.array(0.3)}, keys=4_000)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(same)):
        error = (a.std() ** 2 / 4_000 + b.std() ** 2 / 4_000) ** 0.5
        assert abs(a.mean() - b.mean()) < 4 * error


ELSEWHERE = {
    "samples": (vipp.ForwardKL(samples={"z": jnp.ones(3)}), seen, POINT),
    "sleep": (
        vipp.ReweightedWakeSleep(**K2, wake=0.0, sleep=1.0, dreamt=lambda d, *a: a),
        seen,
        POINT,
    ),
    "proposal": (
        vipp.ELBO(),
        seen,
        vipp.marginal(
            lambda: numpyro.sample("z", dist.Normal(numpyro.sample("u", dist.Normal()), 1.0)),
            keep=["z"],
            proposal=lambda kept: numpyro.sample("u", dist.Delta(kept["z"])),
        ),
    ),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_deterministic_site_has_no_density_elsewhere(case):
    objective, model, guide = ELSEWHERE[case]
    if case == "sleep":
        guide = lambda: numpyro.sample("z", dist.Delta(0.3))
    with pytest.raises(ValueError, match="as a deterministic one.*Fix: draw it from"):
        objective.loss(KEY, {"m": jnp.array(0.3)}, model, guide)


@pytest.mark.parametrize("kind", ["deterministic", "masked"])
def test_an_auxiliary_site_that_has_no_density_is_accepted(kind, bound_and_grad):
    fn = dist.Delta(0.5) if kind == "deterministic" else dist.Normal().mask(False)
    value, _ = bound_and_grad(vipp.ELBO(), PRIOR, random_auxiliary(fn), {}, keys=10)
    np.testing.assert_allclose(value, 0.0, atol=1e-5)


# -- a guide of no sites --------------------------------------------------------------------------------


def no_latents():
    with numpyro.plate("data", 3):
        numpyro.sample("x", dist.Normal(numpyro.param("m", 0.5), 1.0), obs=LOCS)


NOTHING = lambda: None
WITHOUT_SITES = [o for o in EVERY if o.biased is None and not isinstance(o, vipp.AnnealedBound)]


@pytest.mark.parametrize("objective", [*WITHOUT_SITES, vipp.AnnealedBound(num_steps=1)], ids=label)
def test_a_guide_of_no_sites(objective, bound_and_grad):
    """Every lower bound is the evidence."""
    evidence = lambda params: dist.Normal(params["m"], 1.0).log_prob(LOCS).sum()
    got = bound_and_grad(objective, no_latents, NOTHING, M)
    agree(got, jax.jit(jax.value_and_grad(evidence))(M))


def test_programs_of_no_sites(bound_and_grad):
    for objective in (vipp.ELBO(), vipp.IWAE(**K2), vipp.VIMCO(**K2)):
        assert bound_and_grad(objective, NOTHING, NOTHING, {})[0] == 0.0
