"""Filtering bounds of many sequences: particles for each element of the plates around them all."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp
from numpyro.contrib.control_flow import scan

import vipp

A = jnp.array([[0.8, 0.2], [0.3, 0.7]])
MEANS = jnp.array([-1.0, 1.5])
XS = jnp.array([[0.3, -0.8], [1.4, 2.0]])  # two sequences of two steps
PARAMS = {"theta": jnp.array([0.7, 0.4]), "means": MEANS}


@jax.jit
def exact(params, xs):
    """Two particles, two steps of one sequence: all draws and ancestors by brute force."""
    pairs = np.array(list(itertools.product((0, 1), repeat=2)))
    first, ancestors, second = pairs[:, None, None], pairs[None, :, None], pairs[None, None]
    before = np.take_along_axis(*np.broadcast_arrays(first, ancestors), axis=-1)

    def step(x, before, z):
        logit = params["theta"][0] * x + params["theta"][1] * (2 * before - 1)
        log_q = z * logit - jax.nn.softplus(logit)
        log_p = jnp.log(A)[before, z] + dist.Normal(params["means"][z], 1.0).log_prob(x)
        return log_q, log_p - log_q

    one_q, one = step(xs[0], 0, first)
    two_q, two = step(xs[1], before, second)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(one), ancestors, -1)
    weight = jnp.exp((one_q + two_q + chosen).sum(-1))
    return (weight * (logsumexp(one, -1) + logsumexp(two, -1) - 2 * math.log(2))).sum()


def of_all(params):
    return sum(exact(params, xs) for xs in XS)


def chains(subsample_size=None, shared=False, plate="N", flip=False):
    """A model and a guide of two chains in a plate.

    shared: whether a state of the guide depends on both. flip: the plate is the carry's last axis.
    """

    def at(index):
        return XS[index].T

    def model():
        means = numpyro.param("means", MEANS)
        with numpyro.plate(plate, 2, subsample_size) as index:
            xs = at(index)

        def step(carry, x):
            z, t = carry
            z = z[0] if flip else z
            with numpyro.plate(plate, 2, subsample_size):
                z = numpyro.sample("z", dist.Categorical(probs=A[z]))
                numpyro.sample("x", dist.Normal(means[z], 1.0), obs=x)
            return (z[None] if flip else z, t + 1), None

        z = jnp.zeros(len(index), int)
        scan(step, (z[None] if flip else z, 0), xs)

    def guide():
        theta = numpyro.param("theta", jnp.zeros(2))
        with numpyro.plate(plate, 2, subsample_size) as index:
            xs = at(index)

        def step(carry, x):
            z, together = carry
            logit = theta[0] * x + theta[1] * (2 * z - 1) + 0.0 * together
            with numpyro.plate(plate, 2, subsample_size):
                logits = jnp.stack([jnp.zeros(len(index)), logit], -1)
                z = numpyro.sample("z", dist.Categorical(logits=logits))
            return (z, 1.0 * z.sum() if shared else together), None

        scan(step, (jnp.zeros(len(index), int), 0.0), xs)

    return model, guide


PLATED = {
    "a plate": {},
    "a subsampled plate": {"subsample_size": 1},
    "a carry of two axes": {"flip": True},
}


@pytest.mark.few(1)
@pytest.mark.parametrize("case", PLATED)
def test_the_bound_is_the_sum_of_the_bounds_of_each(case, check_bound):
    objective = vipp.FilteringBound(num_particles=2, resampling_gradient=True)
    model, guide = chains(**PLATED[case])
    assert "each element of plate 'N'" in str(vipp.explain(objective, model, guide, params=PARAMS))
    wanted = jax.jit(jax.value_and_grad(of_all))(PARAMS)
    check_bound(wanted, objective, model, guide, PARAMS, most=120_000)


@pytest.mark.few(2)
@pytest.mark.parametrize("resample", ["soft", "none", "multinomial", "systematic"])
def test_particles_of_which_none_is_possible(resample):
    """The estimate of the evidence is unbiased: it is nought where they all end."""

    def model():
        def step(c, _):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.factor("f", jnp.where(z == 1, 0.0, -jnp.inf))
            return c, None

        scan(step, 0.0, None, length=3)

    def guide():
        step = lambda c, _: (c, vipp.sample("z", dist.Bernoulli(0.5), vipp.ScoreFunction()))
        scan(step, 0.0, None, length=3)

    objective = vipp.FilteringBound(num_particles=2, resample=resample)
    one = jax.jit(jax.vmap(lambda key: -objective.loss(key, {}, model, guide)))
    estimates = np.exp(one(jax.random.split(jax.random.key(0), 20_000)))
    error = estimates.std() / 20_000**0.5
    assert abs(estimates.mean() - 0.125) < 4 * error < 0.01


@pytest.mark.thorough
def test_elements_that_a_state_mixes_are_resampled_together():
    """A bound over everything then, and it is said so; to ask for more is refused."""
    model, guide = chains(shared=True)[0], chains(shared=True)[1]
    loss = lambda per_plate: vipp.FilteringBound(num_particles=2, per_plate=per_plate).loss(
        jax.random.key(1), PARAMS, model, guide
    )
    assert loss("auto") == loss(None)
    plan = str(vipp.explain(vipp.FilteringBound(num_particles=2), model, guide, params=PARAMS))
    assert "one bound over everything; the density of site 'z' in the scan mixes the" in plan
    with pytest.raises(ValueError, match="density of site 'z' in the scan mixes the elements of"):
        loss("N")


@pytest.mark.thorough
def test_a_latent_value_outside_of_the_plate(bound_and_grad):
    """It belongs to a particle of all elements: these are resampled together."""

    def program(model):
        def run():
            a = numpyro.sample("a", dist.Bernoulli(0.4))

            def step(z, x):
                with numpyro.plate("N", 2):
                    z = numpyro.sample("z", dist.Normal(a + 0.5 * z, 1.0))
                    if model:
                        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
                return z, None

            scan(step, jnp.zeros(2), XS.T)

        return run

    objective = vipp.FilteringBound(num_particles=2)
    plan = str(vipp.explain(objective, program(True), program(False)))
    assert "one bound over everything\n" in plan
    asked = vipp.FilteringBound(num_particles=2, per_plate="N")
    with pytest.raises(ValueError, match="Site 'a' is outside plate 'N'"):
        asked.loss(jax.random.key(0), {}, program(True), program(False))


@pytest.mark.thorough
def test_all_ways_to_resample_in_plates():
    """The likelihood of all is estimated without bias: two plates, one latent value before."""
    xs = jnp.linspace(-1.0, 2.0, 8).reshape(2, 2, 2)  # steps, and two plates
    log_a = jnp.log(A)

    def program(model):
        def run():
            with numpyro.plate("rows", 2, dim=-2), numpyro.plate("columns", 2, dim=-1):
                a = numpyro.sample("a", dist.Bernoulli(0.3 if model else 0.5))

            def step(carry, given):
                t, z = carry
                x, shift = given
                with numpyro.plate("rows", 2, dim=-2), numpyro.plate("columns", 2, dim=-1):
                    rate = A[z.T][..., 1] if model else jax.nn.sigmoid(0.4 * x)
                    z = numpyro.sample("z", dist.Bernoulli(rate))
                    if model:
                        numpyro.sample("x", dist.Normal(z + a + shift, 1.0), obs=x)
                return (t + 1, z.T), None

            with_own = jnp.stack([0.5 * a, -a])  # another value for each particle
            scan(step, (0, jnp.zeros((2, 2), int)), (xs, with_own))

        return run

    def evidence(xs):
        total = 0.0
        for a, *zs in itertools.product((0, 1), repeat=3):
            before, log_p = 0, math.log(0.3 if a else 0.7)
            for z, x, shift in zip(zs, xs, (0.5 * a, -a)):
                log_p += log_a[before, z] + dist.Normal(z + a + shift, 1.0).log_prob(x)
                before = z
            total += jnp.exp(log_p)
        return total

    guide = vipp.with_estimators(program(False), dict.fromkeys("az", vipp.ScoreFunction()))
    ways = [{"resample": way} for way in ("multinomial", "systematic", "soft", "none")]
    ways += [{"resample": "soft", "resampling_gradient": True}]
    bounds = [
        vipp.FilteringBound(num_particles=4, per_plate=("rows", "columns"), **w) for w in ways
    ]
    run = lambda key: jnp.stack([-b.loss(key, {}, program(True), guide) for b in bounds])
    values = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 20_000))
    weights = np.exp(np.asarray(values, np.float64))
    wanted = math.prod(float(evidence(xs[:, i, j])) for i in range(2) for j in range(2))
    error = weights.std(0) / 20_000**0.5
    assert error.max() < 0.02 * wanted
    np.testing.assert_array_less(abs(weights.mean(0) - wanted), 4 * error)


def doubled(run):
    """Counts everything twice, the scan as a whole."""
    return lambda: numpyro.handlers.scale(run, scale=2.0)()


def switched_off(run):
    return lambda: numpyro.handlers.mask(run, mask=False)()


@pytest.mark.thorough
def test_handlers_around_the_scan_reach_its_steps():
    """With one particle it is the ELBO: of given states, data, scales and masks, too."""
    zs = {"z": jnp.array([[0, 1], [1, 1]])}
    data = {"x": jnp.full((2, 2), 0.5)}
    model, guide = chains()
    given = numpyro.handlers.substitute(guide, data=zs)
    log_q = vipp.Program(guide, PARAMS).log_density
    log_p = lambda m: vipp.Program(m, PARAMS).log_density(vipp.Trace(zs))
    log_weight = jax.jit(
        lambda m: vipp.FilteringBound(num_particles=1).draw(jax.random.key(0), PARAMS, m, given, (), {})[0],
        static_argnums=0,
    )  # fmt: skip
    by_hand = lambda m: vipp.expectation(lambda: log_p(m) - log_q(vipp.Trace(zs)))(
        jax.random.key(0)
    )
    conditioned = numpyro.handlers.condition(model, data=data)
    for changed in (model, conditioned, doubled(model), switched_off(model)):
        np.testing.assert_allclose(log_weight(changed), by_hand(changed), rtol=1e-5)
