"""Sequence models and branches written with NumPyro's control flow, and filtering bounds."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.scipy.special import logsumexp
from numpyro.contrib.control_flow import cond, scan

import vipp

pytestmark = pytest.mark.uncompiled

A = jnp.array([[0.8, 0.2], [0.3, 0.7]])
MEANS = jnp.array([-1.0, 1.5])
XS = jnp.array([0.3, -0.8, 1.2])


def chain(xs):
    means = numpyro.param("means", MEANS)

    def step(z, x):
        z = numpyro.sample("z", dist.Categorical(probs=A[z]))
        numpyro.sample("x", dist.Normal(means[z], 1.0), obs=x)
        return z, None

    scan(step, jnp.array(0), xs)


def proposal(estimator):
    def guide(xs):
        theta = numpyro.param("theta", jnp.zeros(2))

        def step(z, x):
            logit = theta[0] * x + theta[1] * (2 * z - 1)
            logits = jnp.stack([jnp.zeros(()), logit])
            return vipp.sample("z", dist.Categorical(logits=logits), estimator), None

        scan(step, jnp.array(0), xs)

    return guide


PARAMS = {"theta": jnp.array([0.7, 0.4]), "means": MEANS}
ESTIMATORS = {
    "default": None,
    "score": vipp.ScoreFunction(),
    "leave one out": vipp.ScoreFunction(num_samples=4, baseline="leave_one_out"),
    "enumerate": vipp.Enumerate(),
    "measure valued": vipp.MeasureValued(),
}


def paths(params, length=3):
    """All paths of the states, with their log densities under guide and model."""
    log_q, log_p = [], []
    for zs in itertools.product((0, 1), repeat=length):
        before, of_q, of_p = 0, 0.0, 0.0
        for z, x in zip(zs, XS):
            logit = params["theta"][0] * x + params["theta"][1] * (2 * before - 1)
            of_q += jax.nn.log_softmax(jnp.stack([jnp.zeros(()), logit]))[z]
            of_p += jnp.log(A[before, z]) + dist.Normal(params["means"][z], 1.0).log_prob(x)
            before = z
        log_q.append(of_q)
        log_p.append(of_p)
    return jnp.stack(log_q), jnp.stack(log_p)


def bound(params, particles=1):
    log_q, log_p = paths(params)
    picks = np.array(list(itertools.product(range(8), repeat=particles)))
    log_w = (log_p - log_q)[picks]
    values = logsumexp(log_w, axis=1) - math.log(particles)
    return (jnp.exp(log_q[picks].sum(1)) * values).sum()


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ESTIMATORS)
def test_elbo_of_a_chain(kind, bound_and_grad, check_bound):
    programs = vipp.ELBO(), chain, proposal(ESTIMATORS[kind]), PARAMS, XS
    wanted = jax.jit(jax.value_and_grad(bound))(PARAMS)
    if kind == "enumerate":
        same = lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)
        jax.tree.map(same, bound_and_grad(*programs), wanted)
    else:
        check_bound(wanted, *programs, most=60_000)


@pytest.mark.thorough
@pytest.mark.parametrize("objective", [vipp.IWAE(num_particles=2), vipp.VIMCO(num_particles=2)])
def test_several_particles_of_a_chain(objective, check_bound):
    wanted = jax.jit(jax.value_and_grad(bound), static_argnums=1)(PARAMS, 2)
    check_bound(wanted, objective, chain, proposal(None), PARAMS, XS, most=150_000)


def test_reward_to_go_reaches_the_model(bound_and_grad):
    """Model and guide loop apart from each other; a step's score sees no cost before it."""
    plan_of = vipp.explain(vipp.ELBO(), chain, proposal(vipp.ScoreFunction()), XS)
    assert "'z'" in repr(plan_of) or "z " in str(plan_of)

    def long(xs):
        def step(z, x):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
            return z, None

        scan(step, jnp.array(0), xs)

    def guide(xs):
        logits = numpyro.param("logits", jnp.zeros(50))

        def step(before, given):
            x, logit = given
            z = vipp.sample("z", dist.Bernoulli(logits=logit + 0.0 * before), vipp.ScoreFunction())
            return z, None

        scan(step, jnp.array(0), (xs, logits))

    params, xs = {"logits": jnp.full(50, 0.3)}, jnp.full(50, 3.0)
    _, gradient = bound_and_grad(vipp.ELBO(), long, guide, params, xs, keys=4_000)
    variance = np.asarray(gradient["logits"]).var(0)
    # nearly all of the cost is data: the variance goes with the square of the steps left
    ratio = variance[:5].mean() / variance[-5:].mean()
    assert ratio > 50, ratio


@pytest.mark.thorough
def test_a_pathwise_guide_next_to_discrete_choices(check_bound):
    """A switching model: in each step a regime, then a Gaussian."""

    def model(xs):
        def step(carry, x):
            z, y = carry
            z = numpyro.sample("z", dist.Categorical(probs=A[z]))
            y = numpyro.sample("y", dist.Normal(0.5 * y + MEANS[z], 0.5))
            numpyro.sample("x", dist.Normal(y, 1.0), obs=x)
            return (z, y), None

        scan(step, (jnp.array(0), 0.0), xs)

    def guide(xs):
        theta = numpyro.param("theta", jnp.zeros(2))

        def step(carry, x):
            z, y = carry
            logits = jnp.stack([jnp.zeros(()), theta[0] * x])
            z = numpyro.sample("z", dist.Categorical(logits=logits))
            y = numpyro.sample("y", dist.Normal(theta[1] * (x + y) + 0.3 * z, 0.6))
            return (z, y), None

        scan(step, (jnp.array(0), 0.0), xs)

    theta = {"theta": jnp.array([0.5, 0.4])}

    def exact(params):
        """Gauss-Hermite over both Gaussians, all states."""
        t, total = params["theta"], 0.0
        nodes, weights = np.polynomial.hermite_e.hermegauss(12)
        weights = weights / weights.sum()
        grids = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
        mass = np.outer(weights, weights).reshape(-1)
        for zs in itertools.product((0, 1), repeat=2):
            before, y, value, log_z = 0, 0.0, 0.0, 0.0
            for i, (z, x) in enumerate(zip(zs, XS[:2])):
                log_q = jax.nn.log_softmax(jnp.stack([jnp.zeros(()), t[0] * x]))[z]
                log_z += log_q
                loc = t[1] * (x + y) + 0.3 * z
                new = loc + 0.6 * grids[:, i]
                value += jnp.log(A[before, z]) - log_q
                value += dist.Normal(0.5 * y + MEANS[z], 0.5).log_prob(new)
                value += dist.Normal(new, 1.0).log_prob(x) - dist.Normal(loc, 0.6).log_prob(new)
                before, y = z, new
            total += jnp.exp(log_z) * (mass * value).sum()
        return total

    wanted = jax.jit(jax.value_and_grad(exact))(theta)
    check_bound(wanted, vipp.ELBO(), model, guide, theta, XS[:2], most=300_000)


def test_plates_inside_a_scan(check_bound):
    """Two independent chains under one plate are twice one chain."""

    def both(program, estimator=None):
        def run(xs):
            theta = numpyro.param("theta", jnp.zeros(2)) if estimator is not None else None

            def step(z, x):
                with numpyro.plate("N", 2):
                    if theta is None:
                        z = numpyro.sample("z", dist.Categorical(probs=A[z]))
                        numpyro.sample("x", dist.Normal(MEANS[z], 1.0), obs=x)
                    else:
                        logit = theta[0] * x + theta[1] * (2 * z - 1)
                        logits = jnp.stack([jnp.zeros(2), logit], -1)
                        z = vipp.sample("z", dist.Categorical(logits=logits), estimator)
                return z, None

            scan(step, jnp.zeros(2, int), xs)

        return run

    xs = jnp.stack([XS, XS], 1)
    params = {"theta": PARAMS["theta"]}
    wanted = jax.jit(jax.value_and_grad(lambda p: 2 * bound({**PARAMS, **p})))(params)
    guide = both(None, vipp.ScoreFunction(num_samples=2, baseline="leave_one_out"))
    check_bound(wanted, vipp.ELBO(), both(None), guide, params, xs, most=60_000)


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["default", "score", "enumerate"])
def test_a_branch(kind, bound_and_grad, check_bound):
    def program(probs, estimator=None):
        def run():
            t = numpyro.param("t", jnp.zeros(2)) if probs is None else None
            p = jax.nn.sigmoid(t) if probs is None else probs
            b = vipp.sample("b", dist.Bernoulli(0.4), estimator)
            yes = lambda p: vipp.sample("z", dist.Bernoulli(p[0]), estimator)
            no = lambda p: vipp.sample("z", dist.Bernoulli(p[1]), estimator)
            z = cond(b == 1, yes, no, p)
            if probs is not None:
                numpyro.factor("f", 1.3 * z * b - 0.4 * z)

        return run

    t = {"t": jnp.array([0.6, -0.3])}

    def exact(params):
        q, total = jax.nn.sigmoid(params["t"]), 0.0
        for b, z in itertools.product((0, 1), repeat=2):
            qz, pz = q[1 - b], jnp.array([0.3, 0.8])[1 - b]
            qz, pz = (qz, pz) if z else (1 - qz, 1 - pz)
            value = 1.3 * z * b - 0.4 * z + jnp.log(pz) - jnp.log(qz)
            total += (0.4 if b else 0.6) * qz * value
        return total

    wanted = jax.jit(jax.value_and_grad(exact))(t)
    programs = vipp.ELBO(), program(jnp.array([0.3, 0.8])), program(None, ESTIMATORS[kind]), t
    if kind == "enumerate":
        same = lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)
        jax.tree.map(same, bound_and_grad(*programs), wanted)
    else:
        check_bound(wanted, *programs, most=150_000)


@pytest.mark.thorough
def test_hidden_markov_model_of_500_steps():
    """Exact elimination is the forward algorithm."""
    table = jax.nn.softmax(jax.random.normal(jax.random.key(0), (4, 4)))
    means = jnp.array([-2.0, 0.0, 1.0, 3.0])
    xs = 2.0 * jax.random.normal(jax.random.key(1), (500,))

    def model(xs):
        def step(z, x):
            z = numpyro.sample("z", dist.Categorical(probs=table[z]))
            numpyro.sample("x", dist.Normal(means[z], 1.0), obs=x)
            return z, None

        scan(step, numpyro.sample("z0", dist.Categorical(probs=jnp.full(4, 0.25))), xs)

    summed = vipp.marginal(model, [], exact=True)
    got = -vipp.ELBO().loss(jax.random.key(0), {}, summed, lambda xs: None, xs)

    def forward(alpha, x):
        alpha = logsumexp(alpha[:, None] + jnp.log(table), axis=0)
        return alpha + dist.Normal(means, 1.0).log_prob(x), None

    alpha, _ = jax.lax.scan(forward, jnp.full(4, math.log(0.25)), xs)
    np.testing.assert_allclose(got, logsumexp(alpha), rtol=1e-4)


@pytest.mark.thorough
def test_attend_infer_repeat_chain(check_bound):
    """Three slots: one is present only if the one before is; what is present has a position."""

    def guide():
        p = numpyro.param("p", jnp.full(3, 0.5))
        m = numpyro.param("m", jnp.zeros(3))

        def step(before, i):
            present = numpyro.sample("present", dist.Bernoulli(before * p[i]))
            where = numpyro.sample("where", dist.Normal(m[i], 0.7))
            return present * 1.0, where

        scan(step, 1.0, jnp.arange(3))

    def model():
        def step(before, i):
            present = numpyro.sample("present", dist.Bernoulli(before * 0.6))
            where = numpyro.sample("where", dist.Normal(0.3, 1.0))
            return present * 1.0, present * where

        _, shown = scan(step, 1.0, jnp.arange(3))
        numpyro.sample("x", dist.Normal(shown.sum(), 0.8), obs=2.2)

    params = {"p": jnp.array([0.7, 0.5, 0.4]), "m": jnp.array([0.5, 0.2, -0.1])}

    def exact(params):
        p, m, total = params["p"], params["m"], 0.0
        kl = dist.kl_divergence(dist.Normal(m, 0.7), dist.Normal(0.3, 1.0)).sum()
        for count in range(4):
            log_q = jnp.log(p[:count]).sum() + (jnp.log(1 - p[count]) if count < 3 else 0.0)
            log_p = count * math.log(0.6) + (math.log(0.4) if count < 3 else 0.0)
            spread = count * 0.49
            fit = dist.Normal(m[:count].sum(), 0.8).log_prob(2.2) - spread / (2 * 0.64)
            total += jnp.exp(log_q) * (log_p - log_q + fit - kl)
        return total

    wanted = jax.jit(jax.value_and_grad(exact))(params)
    check_bound(wanted, vipp.ELBO(), model, guide, params, most=150_000)


# -- filtering bounds ------------------------------------------------------------------------------

FILTERS = {
    "multinomial": {},
    "systematic": {"resample": "systematic"},
    "soft": {"resample": "soft"},
    "none": {"resample": "none"},
    "with gradient": {"resampling_gradient": True},
    "soft, with gradient": {"resample": "soft", "resampling_gradient": True},
}


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", FILTERS)
def test_the_likelihood_estimate_is_unbiased(kind, bound_and_grad):
    objective = vipp.FilteringBound(num_particles=3, **FILTERS[kind])
    guide = proposal(vipp.ScoreFunction())  # the default's value is a mean of two
    value, _ = bound_and_grad(objective, chain, guide, PARAMS, XS, keys=20_000)
    weights = np.exp(np.asarray(value, np.float64))
    evidence = float(jnp.exp(logsumexp(paths(PARAMS)[1])))
    error = weights.std() / 20_000**0.5
    assert error < 0.01 * evidence
    assert abs(weights.mean() - evidence) < 4 * error


@pytest.mark.thorough
def test_without_resampling_it_is_iwae(check_bound):
    objective = vipp.FilteringBound(num_particles=2, resample="none")
    wanted = jax.jit(jax.value_and_grad(bound), static_argnums=1)(PARAMS, 2)
    check_bound(wanted, objective, chain, proposal(None), PARAMS, XS, most=150_000)


@pytest.mark.thorough
@pytest.mark.parametrize("soft", [False, True])
def test_the_resampling_gradient_makes_it_unbiased(soft, check_bound):
    """Two particles, two steps: all draws and ancestors by brute force."""

    def term(params, first, ancestors, second):
        logits = lambda x, before: params["theta"][0] * x + params["theta"][1] * (2 * before - 1)
        log_q = lambda x, before, z: dist.Bernoulli(logits=logits(x, before)).log_prob(z)
        log_p = lambda x, before, z: (
            jnp.log(A[before, z]) + dist.Normal(params["means"][z], 1.0).log_prob(x)
        )
        q1, before = log_q(XS[0], 0, first), first[ancestors]
        log_w = log_p(XS[0], 0, first) - q1 - math.log(2)
        one = logsumexp(log_w)
        log_w = log_w - one
        chosen = jnp.logaddexp(log_w + math.log(0.5), math.log(0.25)) if soft else log_w
        kept = (log_w - chosen)[ancestors] - math.log(2)
        q2 = log_q(XS[1], before, second)
        log_prob = (q1 + q2 + chosen[ancestors]).sum()
        return jnp.exp(log_prob) * (one + logsumexp(log_p(XS[1], before, second) - q2 + kept))

    def exact(params):
        each = np.array(list(itertools.product((0, 1), repeat=6))).reshape(-1, 3, 2)
        return jax.vmap(lambda outcome: term(params, *outcome))(jnp.asarray(each)).sum()

    objective = vipp.FilteringBound(
        num_particles=2, resampling_gradient=True, resample="soft" if soft else "multinomial"
    )
    wanted = jax.jit(jax.value_and_grad(exact))(PARAMS)
    check_bound(wanted, objective, chain, proposal(None), PARAMS, XS[:2], most=200_000)


def kalman(xs, seen=None):
    mean, variance, total = 0.0, 1.0, 0.0
    for i, x in enumerate(np.asarray(xs, np.float64)):
        mean, variance = 0.9 * mean, 0.81 * variance + 0.25
        if seen is not None and not seen[i]:
            continue
        total += -0.5 * (math.log(2 * math.pi * (variance + 0.49)))
        total += -0.5 * (x - mean) ** 2 / (variance + 0.49)
        gain = variance / (variance + 0.49)
        mean, variance = mean + gain * (x - mean), (1 - gain) * variance
    return total


def linear_gaussian(xs):
    def step(z, x):
        z = numpyro.sample("z", dist.Normal(0.9 * z, 0.5))
        numpyro.sample("x", dist.Normal(z, 0.7), obs=x)
        return z, None

    scan(step, numpyro.sample("z0", dist.Normal(0.0, 1.0)), xs)


def gaussian_steps(xs):
    gains = numpyro.param("gains", jnp.array([0.6, 0.4]))
    scale = numpyro.param("scale", 0.4, constraint=dist.constraints.positive)

    def step(z, x):
        return numpyro.sample("z", dist.Normal(gains[0] * z + gains[1] * x, scale)), None

    scan(step, numpyro.sample("z0", dist.Normal(0.0, 1.0)), xs)


def simulated(length=100):
    rng, z, xs = np.random.default_rng(0), 0.0, []
    for _ in range(length):
        z = 0.9 * z + 0.5 * rng.normal()
        xs.append(z + 0.7 * rng.normal())
    return jnp.asarray(xs, jnp.float32)


def bounds(objective, model, guide, params, *args, keys):
    """Draws of a bound."""
    one = lambda key, params, args: -objective.loss(key, params, model, guide, *args)
    run = jax.jit(jax.vmap(one, (0, None, None)))
    return run(jax.random.split(jax.random.key(11), keys), params, args)


@pytest.mark.thorough
def test_filtering_comes_closest_to_the_kalman_likelihood():
    xs = simulated()
    params = {"gains": jnp.array([0.6, 0.4]), "scale": jnp.array(0.4)}
    exact, means = kalman(xs), []
    for objective in (
        vipp.ELBO(),
        vipp.IWAE(num_particles=64),
        vipp.FilteringBound(num_particles=64),
    ):
        value = bounds(objective, linear_gaussian, gaussian_steps, params, xs, keys=40)
        means.append(float(value.mean()))
        assert means[-1] < exact + 3 * float(value.std()) / 40**0.5
    assert means[0] < means[1] - 3 < means[2] - 6
    assert exact - means[2] < 1.5


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::vipp.BiasedObjectiveWarning")
def test_fitting_by_filtering():
    xs = simulated(60)
    result = vipp.fit(
        jax.random.key(0), vipp.FilteringBound(num_particles=8), linear_gaussian, gaussian_steps,
        optax.adam(0.02), 500, xs, progress_bar=False,
        init_params={"gains": jnp.zeros(2), "scale": jnp.array(1.0)},
    )  # fmt: skip
    exact = kalman(xs)
    assert -result.losses[:20].mean() < exact - 10
    assert exact - 4 < -result.losses[-100:].mean() < exact + 0.5


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::vipp.BiasedObjectiveWarning")
def test_deep_markov_model_learns():
    """Neural transitions and emissions on a noisy sine."""
    xs = jnp.sin(jnp.arange(30) * 0.6)[:, None] + 0.1 * jax.random.normal(
        jax.random.key(0), (30, 1)
    )

    def dense(name, sizes):
        def init(key):
            keys = jax.random.split(key)
            first = jax.random.normal(keys[0], (sizes[0], sizes[1])) / sizes[0] ** 0.5
            return jnp.concatenate(
                [first.ravel(), jax.random.normal(keys[1], (sizes[1] * sizes[2],)) / sizes[1]]
            )

        weights = numpyro.param(name, init)
        first = weights[: sizes[0] * sizes[1]].reshape(sizes[:2])
        second = weights[sizes[0] * sizes[1] :].reshape(sizes[1:])

        def apply(x):
            return jnp.tanh(x @ first) @ second

        return apply

    def model(xs):
        transition, emission = dense("transition", (2, 8, 2)), dense("emission", (2, 8, 1))

        def step(z, x):
            z = numpyro.sample("z", dist.Normal(transition(z), 0.3).to_event(1))
            numpyro.sample("x", dist.Normal(emission(z), 0.2).to_event(1), obs=x)
            return z, None

        scan(step, jnp.zeros(2), xs)

    def guide(xs):
        combine = dense("combine", (3, 8, 4))

        def step(z, x):
            loc, scale = jnp.split(combine(jnp.concatenate([z, x])), 2)
            z = numpyro.sample("z", dist.Normal(loc, jax.nn.softplus(scale)).to_event(1))
            return z, None

        scan(step, jnp.zeros(2), xs)

    for objective in (vipp.ELBO(num_particles=4), vipp.FilteringBound(num_particles=4)):
        result = vipp.fit(
            jax.random.key(0), objective, model, guide, optax.adam(0.02), 250, xs,
            progress_bar=False,
        )  # fmt: skip
        assert result.losses[-50:].mean() < 0.5 * result.losses[:10].mean()


@pytest.mark.few(1)
@pytest.mark.parametrize("length", [64, 1_000])
def test_a_long_enumerated_guide(length, bound_and_grad):
    """Five states, summed out in the loop: the sum over all paths by dynamic programming."""
    size = 5
    table = jax.nn.softmax(jax.random.normal(jax.random.key(4), (size, size)))
    xs = jax.random.normal(jax.random.key(1), (length,)) + 2

    def model(xs):
        def step(z, x):
            z = numpyro.sample("z", dist.Categorical(probs=table[z]))
            numpyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=x)
            return z, None

        scan(step, jnp.array(0), xs)

    def guide(xs):
        logits = numpyro.param("logits", jnp.zeros((size, size)))

        def step(z, x):
            return vipp.sample("z", dist.Categorical(logits=logits[z]), vipp.Enumerate()), None

        scan(step, jnp.array(0), xs)

    params = {"logits": jax.random.normal(jax.random.key(2), (size, size))}

    def exact(params):
        log_q = jax.nn.log_softmax(params["logits"])

        def step(alpha, x):
            log_p = jnp.log(table) + dist.Normal(jnp.arange(size), 1.0).log_prob(x)[None]
            joint = alpha[:, None] * jnp.exp(log_q)
            return joint.sum(0) / joint.sum(), (joint * (log_p - log_q)).sum()

        return jax.lax.scan(step, jnp.eye(size)[0], xs)[1].sum()

    got = bound_and_grad(vipp.ELBO(), model, guide, params, xs)
    want = jax.jit(jax.value_and_grad(exact))(params)
    same = lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=2e-3)
    jax.tree.map(same, got, want)


SEEN = jnp.array([True, False, True])


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["mask", "obs_mask"])
@pytest.mark.parametrize(
    "objective", [vipp.FilteringBound(num_particles=20), vipp.IWAE(num_particles=100)]
)
def test_missing_observations(how, objective):
    """The evidence is estimated; a step without an observation counts nothing; a carry in a tree."""

    def model(xs):
        def step(carry, given):
            x, seen = given
            z = numpyro.sample("z", dist.Normal(0.9 * carry["z"][0], 0.5))
            if how == "obs_mask":
                numpyro.sample("x", dist.Normal(z, 0.7), obs=x, obs_mask=seen)
            else:
                with numpyro.handlers.mask(mask=seen):
                    numpyro.sample("x", dist.Normal(z, 0.7), obs=x)
            return {"z": (z, carry["z"][1] + 1), "none": None}, None

        start = numpyro.sample("z0", dist.Normal(0.0, 1.0))
        scan(step, {"z": (start, 0), "none": None}, (xs, SEEN))

    bound = jax.jit(jax.vmap(lambda key: -objective.loss(key, {}, model, gaussian_steps, XS)))
    weights = np.exp(np.asarray(bound(jax.random.split(jax.random.key(0), 1_000)), np.float64))
    error = weights.std() / 1_000**0.5 / weights.mean()
    assert abs(np.log(weights.mean()) - kalman(XS, SEEN)) < 4 * error < 0.12


@pytest.mark.thorough
def test_filtering_with_unknown_dynamics():
    """A latent before the scan is resampled with the particle whose steps it governs."""

    def model(xs):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))

        def step(z, x):
            z = numpyro.sample("z", dist.Normal(a * z, 0.5))
            numpyro.sample("x", dist.Normal(z, 0.7), obs=x)
            return z, None

        scan(step, 0.0, xs)

    def guide(xs):
        numpyro.sample("a", dist.Normal(numpyro.param("m", 0.0), 1.0))
        scan(lambda z, x: (numpyro.sample("z", dist.Normal(0.5 * x, 0.5)), None), 0.0, xs)

    params, xs = {"m": jnp.array(0.0)}, jnp.array([0.3, -0.2, 0.5, 1.1])
    values = [
        bounds(objective(num_particles=200), model, guide, params, xs, keys=64).mean()
        for objective in (vipp.IWAE, vipp.FilteringBound)
    ]
    np.testing.assert_allclose(values[0], values[1], atol=0.05)


# -- mistakes --------------------------------------------------------------------------------------


def without_scan(xs):
    numpyro.sample("z", dist.Normal())


def with_a_site_after(xs):
    linear_gaussian(xs)
    numpyro.sample("late", dist.Normal(), obs=0.0)


def shorter(xs):
    gaussian_steps(xs[:-1])


def backwards(xs):
    scan(lambda z, x: (numpyro.sample("z", dist.Normal()), None), 0.0, xs, reverse=True)


REFUSED = {
    "guide without scan": (linear_gaussian, without_scan, "the guide has no .*scan"),
    "model without scan": (without_scan, gaussian_steps, "latent here|has no .*scan"),
    "site after the scan": (with_a_site_after, gaussian_steps, "'late' of the model comes after"),
    "other lengths": (linear_gaussian, shorter, "guide's scan has 2 steps, the model's 3"),
    "reverse": (linear_gaussian, backwards, "runs in reverse"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_filtering_refuses(case):
    model, guide, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        vipp.FilteringBound(num_particles=2).loss(jax.random.key(0), {}, model, guide, XS)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"resample": "often"}, "resample must be one of"),
        ({"resample": "systematic", "resampling_gradient": True}, "has no resampling gradient"),
        ({"softness": 0.0}, "softness must be"),
        ({"num_particles": 0}, "positive int"),
    ],
)
def test_filtering_arguments(config, message):
    with pytest.raises(ValueError, match=message):
        vipp.FilteringBound(**{"num_particles": 2, **config})


def test_a_long_enumerated_scan_is_refused_where_its_steps_meet():
    xs, bound = jnp.zeros(1_000), vipp.IWAE(num_particles=2)
    with pytest.raises(vipp.SiteError, match="site 'z' with Enumerate.*, as .* several steps"):
        bound.loss(jax.random.key(0), PARAMS, chain, proposal(vipp.Enumerate()), xs)


# NumPyro's replay asks for the shape of a state that is a dict
@pytest.mark.filterwarnings("ignore:shape requires ndarray:DeprecationWarning")
@pytest.mark.parametrize(
    "estimator",
    [
        vipp.ScoreFunction(baseline=vipp.MovingAverage()),
        vipp.Mix(vipp.ScoreFunction(), vipp.DisARM(), weight="optimal"),
    ],
    ids=["moving average", "optimal mixture"],
)
def test_state_in_a_scan_is_refused(estimator):
    def guide(xs):
        logits = numpyro.param("logits", 0.3)

        def step(z, x):
            return numpyro.sample("z", dist.Bernoulli(logits=logits)), None

        scan(step, jnp.array(0), xs)

    guide = vipp.with_estimators(guide, {"z": estimator})
    with pytest.raises(vipp.SiteError, match="Site 'z' is drawn in a scan with"):
        vipp.fit(
            jax.random.key(0), vipp.ELBO(), chain, guide, optax.adam(0.1), 2, XS, progress_bar=False
        )


def test_names_with_an_index_of_their_own(bound_and_grad):
    """Sites that a Python loop calls z[0], z[1] leave a scan next to them a loop."""

    def program(estimator):
        def run(xs):
            for i in range(2):
                numpyro.sample(f"a[{i}]", dist.Normal())
            (proposal(estimator) if estimator else chain)(xs)

        return run

    model, guide = program(None), program(vipp.ScoreFunction())
    value, _ = bound_and_grad(vipp.ELBO(), model, guide, PARAMS, XS, keys=2_000)
    alone, _ = bound_and_grad(
        vipp.ELBO(), chain, proposal(vipp.ScoreFunction()), PARAMS, XS, keys=2_000
    )
    np.testing.assert_allclose(value.mean(), alone.mean(), atol=0.15)


def test_filtering_with_a_branch_before_the_scan(bound_and_grad):
    def branching(xs):
        start = cond(xs[0] > 0, lambda x: x, lambda x: 0.0 * x, xs[0])
        scan(lambda z, x: (numpyro.sample("z", dist.Normal(0.9 * z, 0.5)), None), 1.0 * start, xs)

    def observed(xs):
        def step(z, x):
            z = numpyro.sample("z", dist.Normal(0.9 * z, 0.5))
            numpyro.sample("x", dist.Normal(z, 0.7), obs=x)
            return z, None

        scan(step, 0.0, xs)

    value, _ = bound_and_grad(vipp.FilteringBound(num_particles=2), observed, branching, {}, XS)
    assert np.isfinite(value)


# -- loops in expectations, loops in loops, plates in loops ----------------------------------------

ANY = {**ESTIMATORS, "disarm": vipp.DisARM()}


@pytest.mark.few(2)
@pytest.mark.parametrize("nested", [False, True], ids=["one loop", "a loop in a loop"])
@pytest.mark.parametrize("kind", ["enumerate", "disarm", "leave one out"])
def test_an_expectation_over_loops(kind, nested, reference):
    """The squared number of heads."""
    keys, tosses = 4 if kind == "enumerate" else 40_000, 6 if nested else 3

    def squared(params):
        toss = lambda c, _: (c + vipp.sample("z", dist.Bernoulli(params["p"]), ANY[kind]), None)
        again = lambda c, _: (scan(toss, c, None, length=2)[0], None)
        return scan(again if nested else toss, 0.0, None, length=3)[0] ** 2

    run = jax.jit(jax.vmap(jax.value_and_grad(vipp.expectation(squared), argnums=1), (0, None)))
    params = {"p": jnp.array(0.3)}
    drawn = run(jax.random.split(jax.random.key(0), keys), params)
    moment = lambda q: tosses * q["p"] * (1 - q["p"]) + (tosses * q["p"]) ** 2
    wanted = jax.jit(jax.value_and_grad(moment))(params)
    if kind == "enumerate":
        same = lambda g, w: np.testing.assert_allclose(g[0], w, rtol=1e-5)
        jax.tree.map(same, drawn, wanted)
    else:
        reference.check_unbiased(drawn, wanted)


Y = jnp.array([1.8, 0.4, 1.0, 2.2])


def minibatch_in(place, draw):
    """Draws for two of four data, the plate standing in a loop or a branch."""

    def run():
        a = numpyro.param("a", 1.4)  # a scope would call it otherwise

        def batch(_=None):
            with numpyro.plate("N", 4, subsample_size=2) as index:
                draw(a, Y[index])
            return 0.0

        step = lambda c, _: (batch(), None)
        if place == "scan":
            scan(step, 0.0, None, length=1)
        elif place == "nested scan":
            scan(lambda c, _: scan(step, c, None, length=1), 0.0, None, length=1)
        elif place == "cond":
            cond(True, batch, batch, None)
        elif place == "scope":
            with numpyro.handlers.scope(prefix="inner"):
                batch()
        else:
            with numpyro.handlers.block(hide=["N"]):
                batch()

    return run


def minibatch_pair(place, estimator=None):
    def of_model(_, y):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=y)

    def of_guide(a, y):
        vipp.sample("z", dist.Bernoulli(logits=a * y), estimator)

    return minibatch_in(place, of_model), minibatch_in(place, of_guide)


@pytest.mark.few(2)
@pytest.mark.parametrize("place", ["scan", "nested scan", "cond", "scope"])
@pytest.mark.parametrize("bound_of", [vipp.ELBO(), vipp.IWAE(num_particles=1)], ids=repr)
def test_a_minibatch_inside(place, bound_of, bound_and_grad, reference):
    """Model and guide see the same one, and its scale stands outside of every logarithm."""
    model, guide = minibatch_pair(place, vipp.Enumerate())
    params = {"a": jnp.array(1.4)}

    def exact(params):
        q, total = jax.nn.sigmoid(params["a"] * Y), 0.0
        for z, w, p in ((0.0, 1 - q, 0.7), (1.0, q, 0.3)):
            total += w * (jnp.log(p) + dist.Normal(2 * z, 1.0).log_prob(Y) - jnp.log(w))
        return total.sum()

    drawn = bound_and_grad(bound_of, model, guide, params, keys=3_000)
    reference.check_unbiased(drawn, jax.jit(jax.value_and_grad(exact))(params))


def test_a_hidden_minibatch_is_refused():
    model, guide = minibatch_pair("block")
    with pytest.raises(ValueError, match="Site 'z' counts 2.0 times inside plate 'N'.*Fix: "):
        vipp.ELBO().loss(jax.random.key(0), {}, model, guide)


@pytest.mark.thorough
def test_each_particle_of_an_elbo_has_its_own_minibatch(bound_and_grad):
    """As numpyro.infer.Trace_ELBO: what the minibatch adds to the spread falls with particles."""

    def model():
        m = numpyro.sample("m", dist.Normal(0.0, 1.0))
        with numpyro.plate("N", 20, subsample_size=2) as index:
            numpyro.sample("x", dist.Normal(m, 1.0), obs=jnp.linspace(-2, 2, 20)[index])

    guide = lambda: numpyro.sample("m", dist.Normal(numpyro.param("l", 0.0), 0.1))
    params = {"l": jnp.array(0.0)}
    spreads = [
        bound_and_grad(vipp.ELBO(num_particles=n), model, guide, params, keys=300)[0].std()
        for n in (1, 100)
    ]
    np.testing.assert_allclose(spreads[0] / spreads[1], 10.0, rtol=0.2)


@pytest.mark.parametrize("steps", [2, 4])
def test_values_for_another_number_of_steps_are_refused(steps):
    """NumPyro draws the steps that values lack: for forecasts, and no part of a bound."""

    def of(length):
        step = lambda c, _: (c, numpyro.sample("z", dist.Normal(c, 1.0)))
        return lambda: scan(step, 0.0, None, length=length)

    with pytest.raises(vipp.SiteError, match=f"'z' has values for {steps} steps, expected 3"):
        vipp.ELBO().loss(jax.random.key(0), {}, of(3), of(steps))


@pytest.mark.parametrize("place", ["scan", "cond"])
def test_a_parameter_of_a_step_has_the_value_given(place):
    """NumPyro's handlers do not reach it: it would have its initial value, and slope 0."""

    def of(inside):
        def program():
            outside = None if inside else numpyro.param("loc", 0.0)
            at = lambda: numpyro.param("loc", 0.0) if inside else outside
            draw = lambda _: numpyro.sample("z", dist.Normal(at(), 1.0))
            if place == "cond":
                cond(True, draw, draw, 0.0)
            else:
                scan(lambda c, _: (c, draw(c)), 0.0, None, length=2)

        return program

    def model():
        draw = lambda _: numpyro.sample("z", dist.Normal(2.0, 1.0))
        if place == "cond":
            cond(True, draw, draw, 0.0)
        else:
            scan(lambda c, _: (c, draw(c)), 0.0, None, length=2)

    bound = lambda inside: vipp.value_and_grad(vipp.ELBO(), model, of(inside))(
        jax.random.key(0), {"loc": jnp.float32(0.7)}
    )
    (value, slope), (wanted, slope_wanted) = bound(True), bound(False)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(slope["loc"], slope_wanted["loc"], rtol=1e-6)
