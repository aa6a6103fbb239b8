"""Fitted control variates at the means, and a program differentiated at the first draw alone.

That it is unbiased is a row of the contract (test_contract.py).
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipp_transforms as vt
from vipp_transforms import source
from vipp_transforms.first_draw import scored_sites

KEYS = jax.random.split(jax.random.key(0), 3)
WEIGHTS = jax.random.normal(jax.random.key(1), (30, 200))
MADE = {
    "fitted": lambda n, where: vt.FittedControlVariates(n, differentiate=where),
    "score": lambda n, where: vt.ScoreFunction(n, "leave_one_out", differentiate=where),
}


def autoencoder(estimator):
    def program(logits, weights):
        z = vt.sample(KEYS[0], dist.Bernoulli(logits=logits), estimator, name="z")
        return jnp.log1p(jnp.exp(z @ weights)).sum() - z.sum(), None

    return lambda logits, weights: vt.surrogate(program)(logits, weights)[0]


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_the_choices_own_gradient_is_that_of_all_draws(make):
    """And that in all else is that of the first draw, in fewer operations."""
    logits = jnp.zeros((20, 30))
    taken, flops = {}, {}
    for where in ("all", "first"):
        fn = jax.jit(jax.value_and_grad(autoencoder(make(8, where)), (0, 1)))
        compiled = fn.lower(logits, WEIGHTS).compile()
        taken[where] = compiled(logits, WEIGHTS)
        flops[where] = (compiled.cost_analysis() or {})["flops"]
    (value, (own, every)), (value_first, (own_first, first)) = taken["all"], taken["first"]
    np.testing.assert_allclose(value_first, value, rtol=1e-5)
    np.testing.assert_allclose(own_first, own, rtol=1e-3, atol=1e-3 * np.abs(own).max())
    # at one draw a weight's slope is a mean over 20 rows, at eight over 160
    spread = np.std(np.asarray(first - every)) / np.std(np.asarray(every))
    assert 0.05 < spread < 1.0
    assert flops["first"] < 0.75 * flops["all"]


def chain(between):
    """Three coins, each given the one before."""
    first = vt.FittedControlVariates(3, differentiate="first")
    estimators = {"x": first, "y": between, "z": first}

    def program():
        value = 0.0
        for n, (name, estimator) in enumerate(estimators.items()):
            coin = dist.Bernoulli(logits=jnp.full(3, value - 0.3))
            value = value + vt.sample(KEYS[n], coin, estimator, name=name).sum()
        return value**2, None

    return vt.plan(program)


@pytest.mark.parametrize(
    ("between", "names"),
    [
        (vt.Enumerate(), {"x", "z"}),
        (vt.ScoreFunction(3), {"x", "y", "z"}),  # joint trajectories
        (vt.ScoreFunction(), set()),
        (vt.ScoreFunction(2), set()),
    ],
)
def test_where_a_choice_is_drawn_between_all_draws_are_used(between, names):
    planned = chain(between)
    scored = scored_sites(planned)
    assert {s.name for s in planned.program.sites.values() if s.index in scored} == names


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_another_word_is_refused(make):
    with pytest.raises(ValueError, match="differentiate must be 'all' or 'first', got 'last'"):
        make(4, "last")


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_scalar_choice_that_a_mask_may_hide(exact, make):
    """Of nothing the slope is the number zero, which no equation makes."""

    def masked(theta, rv):
        z = rv("z", dist.Bernoulli(logits=theta))
        y = rv("y", dist.Bernoulli(logits=jnp.tanh(0.3 * z)))
        return jnp.tanh(jnp.where(theta > 0, z, 0)) * (y + theta)

    estimators = {name: make(3, "first") for name in ("z", "y")}
    exact.check(masked, jnp.float32(0.3), estimators, orders=1, rtol=1e-4)


def test_the_means_take_no_draw_of_their_own():
    """A draw that only floats are made of is at its mean in all of them; a compared one is drawn."""

    def num_draws(seen):
        def program(logits):
            z = vt.sample(
                KEYS[0], dist.Bernoulli(logits=logits), MADE["fitted"](4, "all"), name="z"
            )
            return jnp.sin(seen(z)), None

        jaxpr = jax.make_jaxpr(lambda logits: vt.surrogate(program)(logits)[0])(jnp.zeros(5))
        return str(jaxpr).count("random_bits[")

    assert num_draws(lambda z: z.sum()) == 1
    assert num_draws(lambda z: 3 * z.sum() - z[0]) == 1
    assert num_draws(lambda z: z[0] * z[1] * 1.0) == 2
    assert num_draws(lambda z: z.sum() + jnp.where(z[0] == 1, 0.5, 0.0)) == 2


BESIDE = {
    "another use of all draws": vt.ScoreFunction(3, "leave_one_out"),
    "one that needs slopes, at the same draws": vt.DoubleControlVariates(3),
    "one that needs slopes, at others": vt.DoubleControlVariates(2),
    "values, one by one": vt.Enumerate(),
}


@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_beside_other_estimators(exact, make, beside):
    def two(theta, rv):
        z = rv("z", dist.Bernoulli(logits=jnp.stack([theta, 0.2 - theta])))
        x = rv("x", dist.Bernoulli(logits=jnp.stack([0.5 - theta, theta])))
        return jnp.sin(theta + 1.3 * z.sum() - x @ jnp.array([0.7, 0.3])) * (1.0 + x.sum())

    exact.check(two, jnp.float32(0.3), {"z": make(3, "first"), "x": beside}, orders=1, rtol=1e-4)


@pytest.mark.parametrize("drawn", ["before", "after"])
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_beside_pathwise_choices_of_as_many_draws(make, drawn):
    """The expectation is (E[sin(z)] + 2) m."""
    weights = jnp.array([1.0, -2.0, 0.7])
    logits = jnp.array([0.3, -0.4, 1.2])

    def program(key, mean):
        keys = jax.random.split(key)

        def pathwise():
            return vt.sample(keys[0], dist.Normal(mean, 1.0), vt.Pathwise(4), name="y")

        y = pathwise() if drawn == "before" else None
        z = vt.sample(keys[1], dist.Bernoulli(logits=logits), make(4, "first"), name="z")
        y = pathwise() if y is None else y
        return (jnp.sin(z @ weights) + 2.0) * y, None

    slope = jax.grad(lambda mean, key: vt.surrogate(program)(key, mean)[0])
    keys = jax.random.split(jax.random.key(3), 4_000)
    found = jax.jit(jax.vmap(slope, (None, 0)))(jnp.float32(0.5), keys)
    every = np.stack(np.meshgrid(*[[0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
    weight = np.prod(np.where(every, jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)), -1)
    expected = (weight * np.sin(every @ np.asarray(weights))).sum() + 2
    assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(len(keys))
    assert found.std() / np.sqrt(len(keys)) < 0.01 * expected


def test_the_draw_at_the_means_is_that_of_no_sample(exact):
    """Of products of draws the slope depends on the draw that it is taken at."""

    def products(theta, rv):
        logits = jnp.array([0.3, -0.4, 1.2, 0.5, -0.2]).at[0].add(theta)
        z = rv("z", dist.Bernoulli(logits=logits))
        return (z[0] * z[1:].sum()) * 1.0

    run = exact.estimates(products, jnp.float32(0.0), {"z": vt.FittedControlVariates(3)})
    found = np.concatenate([run(n)[1] for n in range(8)])
    expected = exact.expectation(products, jnp.float32(0.0)).grad
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean() - expected) < 4 * error < 0.02 * expected


@pytest.mark.parametrize("filled", [0, 3])
def test_what_a_gather_fills_in_has_no_slope(exact, filled):
    def beyond(theta, rv):
        z = rv("z", dist.Bernoulli(logits=jnp.stack([theta, 0.2 - theta])))
        read = z.at[jnp.array([0, 5, 1])].get(mode="fill", fill_value=filled)
        return jnp.sin((read * jnp.array([1.0, 2.0, 0.5])).sum() + theta)

    for estimator in (vt.DoubleControlVariates(3), vt.FittedControlVariates(3)):
        exact.check(beyond, jnp.float32(0.3), {"z": estimator}, orders=1, rtol=1e-4)


def test_no_salt_is_the_number_of_a_sample():
    key = jax.random.key(5)
    drawn = {tuple(k) for k in np.asarray(jax.random.key_data(jax.random.split(key, 5_000)))}
    salts = source.OWN, source.UNIFORM, source.COMMON, source.AT_MEANS
    folded = [jax.random.key_data(jax.random.fold_in(key, salt)).tolist() for salt in salts]
    assert drawn.isdisjoint(map(tuple, folded)) and len(set(map(tuple, folded))) == len(salts)
