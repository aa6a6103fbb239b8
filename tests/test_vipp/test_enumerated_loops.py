"""Guides that enumerate the choices of a scan, against the sum over all outcomes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import log_density

import vipp
from vipp_transforms.unrolling import unrolling

XS = jnp.array([0.3, -0.8, 1.1, 0.4])
PARAMS = {"w": jnp.array([[0.4, -0.7], [0.9, 0.2]])}
ENUMERATE = vipp.Enumerate()


def weights():
    return numpyro.param("w", jnp.ones((2, 2)))


def chain(xs):
    table = jnp.array([[0.1, 0.5], [-0.3, 0.2]])

    def step(z, x):
        z = numpyro.sample("z", dist.Categorical(logits=table[z]))
        numpyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=x)
        return z, None

    scan(step, 0, xs)


def of_chain(xs):
    w = weights()
    scan(lambda z, x: (vipp.sample("z", dist.Categorical(logits=w[z] * x), ENUMERATE), None), 0, xs)


def plates(xs):
    """A chain for each element, some of whose observations are missing."""

    def step(z, x):
        with numpyro.plate("n", 2):
            z = numpyro.sample("z", dist.Bernoulli(logits=0.3 * z - 0.1))
            with numpyro.handlers.mask(mask=jnp.array([True, False]) | (x > 0)):
                numpyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=x)
        return z, None

    scan(step, jnp.zeros(2, int), xs)


def of_plates(xs):
    w = weights()

    def step(z, x):
        with numpyro.plate("n", 2):
            logits = w[0] * z + w[1] * x
            return vipp.sample("z", dist.Bernoulli(logits=logits), ENUMERATE), None

    scan(step, jnp.zeros(2, int), xs)


def pairs(xs):
    """Two choices a step, that follow a first state."""

    def step(carry, x):
        a = numpyro.sample("a", dist.Bernoulli(logits=0.5 * carry - x))
        b = numpyro.sample("b", dist.Bernoulli(logits=0.5 * a - 0.2))
        numpyro.sample("x", dist.Normal(1.0 * a + b * 2, 1.0), obs=x)
        return b, None

    scan(step, numpyro.sample("first", dist.Bernoulli(0.4)), xs, reverse=True)


def of_pairs(xs):
    w = weights()

    def step(b, x):
        a = vipp.sample("a", dist.Bernoulli(logits=w[0, 0] * b + x), ENUMERATE)
        return vipp.sample("b", dist.Bernoulli(logits=w[1, 0] * a - x * w[1, 1]), ENUMERATE), None

    first = vipp.sample("first", dist.Bernoulli(logits=w[0, 1]), ENUMERATE)
    scan(step, first, xs, reverse=True)


CASES = {
    "chain": (chain, of_chain, {"z": (4,)}),
    "plates": (plates, of_plates, {"z": (4, 2)}),
    "pairs": (pairs, of_pairs, {"first": (), "a": (4,), "b": (4,)}),
}
OBJECTIVES = (vipp.ELBO(), vipp.ELBO(num_particles=2, kl="analytic"))


def over_all(model, guide, shapes):
    """The bound, summed over all outcomes."""
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    ends = np.cumsum([0, *sizes])
    outcomes = jnp.array(list(itertools.product(range(2), repeat=sum(sizes))))

    def term(params, outcome):
        cut = zip(shapes.items(), ends, ends[1:], strict=False)
        values = {n: outcome[i:j].reshape(shape) for (n, shape), i, j in cut}
        log_q, _ = log_density(guide, (XS,), {}, {**params, **values})
        log_p, _ = log_density(model, (XS,), {}, {**params, **values})
        return jnp.exp(log_q) * (log_p - log_q)

    return lambda params: jax.vmap(lambda o: term(params, o))(outcomes).sum()


@pytest.mark.few(1)
@pytest.mark.parametrize("case", CASES)
def test_bounds_are_exact(case):
    model, guide, shapes = CASES[case]
    want = jax.jit(jax.value_and_grad(over_all(model, guide, shapes)))(PARAMS)
    for objective in OBJECTIVES:
        got = jax.jit(vipp.value_and_grad(objective, model, guide))(jax.random.key(0), PARAMS, XS)
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6), got, want)


def test_explained_as_one_site():
    rows = vipp.explain(vipp.ELBO(), chain, of_chain, XS, params=PARAMS)
    assert (rows["z"].lanes, rows["z"].evaluations) == ("4", 2)
    assert rows["z"].reason == "summed out in its loop, for 2 values of z[t-1]"
    assert [row.site for row in rows.rows] == ["z"]


def test_explained_with_the_steps_of_its_sum():
    summed = vipp.marginal(chain, keep=[], exact=True)
    rows = vipp.explain(vipp.ELBO(), summed, lambda xs: None, XS, params=PARAMS)
    assert [(row.site, row.steps) for row in rows.sums] == [("z[1]", 3), ("z[0]", 1)]


@pytest.mark.thorough
def test_a_pathwise_draw_before_the_loop():
    """Given it, the estimate is that of the steps apart."""

    def model(xs):
        s = numpyro.sample("s", dist.Normal())
        step = lambda z, x: (numpyro.sample("z", dist.Bernoulli(logits=z - s * x)), None)
        scan(step, 0, xs)

    def guide(xs):
        w = weights()
        s = numpyro.sample("s", dist.Normal(w[0, 0], 1.0))
        odds = lambda z, x: dist.Bernoulli(logits=w[1, 0] * z + w[1, 1] * x * s)
        scan(lambda z, x: (vipp.sample("z", odds(z, x), ENUMERATE), None), 0, xs)

    run = lambda: jax.jit(vipp.value_and_grad(vipp.ELBO(), model, guide))
    got = run()(jax.random.key(3), PARAMS, XS)
    with unrolling({"z": "it is compared"}):
        want = run()(jax.random.key(3), PARAMS, XS)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5), got, want)


@pytest.mark.thorough
def test_a_score_function_before_the_loop():
    """Exact on average over its two values."""

    def model(xs):
        u = numpyro.sample("u", dist.Bernoulli(0.3))

        def step(z, x):
            z = numpyro.sample("z", dist.Bernoulli(logits=z - 0.3))
            numpyro.sample("x", dist.Normal(z + u * 0.5, 1.0), obs=x)
            return z, None

        scan(step, 0, xs)

    def guide(xs):
        w = weights()
        u = vipp.sample("u", dist.Bernoulli(logits=w[0, 1]), vipp.ScoreFunction())
        odds = lambda z, x: dist.Bernoulli(logits=w[1, 0] * z + w[1, 1] * x + u)
        scan(lambda z, x: (vipp.sample("z", odds(z, x), ENUMERATE), None), 0, xs)

    want = jax.jit(jax.value_and_grad(over_all(model, guide, {"u": (), "z": (4,)})))(PARAMS)
    run = jax.vmap(vipp.value_and_grad(vipp.ELBO(), model, guide), (0, None, None))
    value, slope = jax.jit(run)(jax.random.split(jax.random.key(0), 16), PARAMS, XS)
    low, high = value.argmin(), value.argmax()
    weight = (want[0] - value[low]) / (value[high] - value[low])
    np.testing.assert_allclose(weight, jax.nn.sigmoid(-PARAMS["w"][0, 1]), rtol=1e-4)
    mean = slope["w"][low] + weight * (slope["w"][high] - slope["w"][low])
    np.testing.assert_allclose(mean, want[1]["w"], rtol=1e-4, atol=1e-6)


@pytest.mark.thorough
def test_a_state_that_counts_is_unrolled():
    """The odds depend on all steps before: no chain, and few enough steps."""

    def guide(xs):
        w = weights()

        def step(count, x):
            z = vipp.sample("z", dist.Bernoulli(logits=w[0, 0] * count), ENUMERATE)
            return count + z, None

        scan(step, 0, xs)

    model = lambda xs: scan(lambda c, x: (c, numpyro.sample("z", dist.Bernoulli(0.3))), 0, xs)
    rows = vipp.explain(vipp.ELBO(), model, guide, XS, params=PARAMS).rows
    assert [row.site for row in rows] == [f"z[{t}]" for t in range(4)]
    with pytest.raises(vipp.SiteError, match="1000 steps .*'z' with Enumerate.*, as what it carr"):
        vipp.ELBO().loss(jax.random.key(0), PARAMS, model, guide, jnp.zeros(1_000))
