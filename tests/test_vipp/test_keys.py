"""A draw has a key of its own, or is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan

import vipp

KEY, P, STEPS = jax.random.key(1), 0.3, 4
ZERO, THREE = jnp.zeros(()), jnp.arange(3.0)


def coin(**given):
    return 1.0 * vipp.sample("z", dist.Bernoulli(P), vipp.ScoreFunction(), **given)


def noise(**given):
    return numpyro.sample("z", dist.Normal(0.0, 1.0), **given)


def subsample():
    with numpyro.plate("N", 4, subsample_size=2) as index:
        return 1.0 * index.sum()


def loop(draw):
    return scan(lambda c, _: (c + draw(), None), ZERO, None, length=3)[0]


SHARED = {
    "scan": lambda d: jax.lax.scan(lambda c, _: (c + d(), None), ZERO, None, length=3)[0],
    "map": lambda d: jax.lax.map(lambda x: d() * x, THREE).sum(),
    "vmap": lambda d: jax.vmap(lambda x: d() * x)(THREE).sum(),
    "jit": lambda d: jax.jit(lambda: d())(),
    "checkpoint": lambda d: jax.checkpoint(lambda x: x * d())(1.0),
    "cond": lambda d: jax.lax.cond(True, lambda: d(), lambda: ZERO),
    "fori_loop": lambda d: jax.lax.fori_loop(0, 3, lambda i, c: c + d(), ZERO),
    "while_loop": lambda d: jax.lax.while_loop(lambda c: c < 3, lambda c: c + d() ** 2, ZERO),
    "jit in NumPyro's scan": lambda d: loop(lambda: jax.jit(lambda: d())()),
    "NumPyro's scan in jit": lambda d: jax.jit(lambda: loop(d))(),
}


@pytest.mark.parametrize("draw", [coin, noise], ids=["score function", "pathwise"])
@pytest.mark.parametrize("where", SHARED)
def test_a_shared_key_is_refused(where, draw):
    with pytest.raises(vipp.SiteError, match=r"Site 'z' is drawn under .* Fix: .*rng_key="):
        vipp.expectation(lambda: SHARED[where](draw))(KEY)


ONE_KEY = {
    "a seed around it": lambda loop, draw: handlers.seed(lambda: loop(draw), rng_seed=0)(),
    "a seed within": lambda loop, draw: loop(handlers.seed(draw, rng_seed=0)),
    "a key": lambda loop, draw: loop(lambda: draw(rng_key=KEY)),
    "a key carried along": lambda loop, draw: jax.lax.scan(
        lambda k, _: (k, draw(rng_key=k)), KEY, None, 3)[1].sum(),
    "a key of the loop around it": lambda loop, draw: jax.lax.map(
        lambda k: loop(lambda: draw(rng_key=k)), jax.random.split(KEY)).sum(),
}  # fmt: skip


@pytest.mark.parametrize("draw", [coin, noise], ids=["score function", "pathwise"])
@pytest.mark.parametrize("where", ["scan", "map", "fori_loop", "while_loop"])
@pytest.mark.parametrize("key", ONE_KEY)
def test_a_key_of_the_users_own_is_refused_for_all_steps(key, where, draw):
    with pytest.raises(vipp.SiteError, match=r"Site 'z' is drawn in a loop .* Fix: scan over"):
        vipp.expectation(lambda: ONE_KEY[key](SHARED[where], draw))(KEY)


@pytest.mark.parametrize("where", ["scan", "vmap", "jit"])
@pytest.mark.parametrize(
    "draw, what",
    [
        (lambda: jax.random.normal(numpyro.prng_key()), "A random key"),
        (lambda: vipp.replicate(noise, 2).sum(), "A random key"),
        (subsample, "The subsample of plate 'N'"),
    ],
    ids=["prng_key", "replicate", "subsample"],
)
def test_so_are_keys_and_subsamples(where, draw, what):
    with pytest.raises(vipp.SiteError, match=f"{what} is drawn under .* Fix: "):
        vipp.expectation(lambda: SHARED[where](draw))(KEY)


@pytest.mark.parametrize("where", SHARED)
def test_sites_of_a_program_are_refused_even_with_a_key(where):
    """Their densities can't leave the transformation."""
    key = jax.random.key(0)
    program = lambda: SHARED[where](lambda: noise(rng_key=key))
    with pytest.raises(
        vipp.SiteError, match="Site 'z' (of a model or guide stands|is drawn) under"
    ):
        vipp.ELBO().loss(KEY, {}, program, program)


def keys(n):
    return jax.random.split(numpyro.prng_key(), n)


def in_a_scan(draw):
    return jax.lax.scan(lambda c, k: (c + draw(rng_key=k), None), ZERO, keys(STEPS))[0]


def under_vmap(draw):
    return jax.vmap(lambda k: draw(rng_key=k))(keys(STEPS)).sum()


def under_vmap_with_a_seed(draw):
    return jax.vmap(lambda k: handlers.seed(draw, rng_seed=k)())(keys(STEPS)).sum()


def in_a_scan_with_a_seed(draw):
    step = lambda c, k: (c + handlers.seed(draw, rng_seed=k)(), None)
    return jax.lax.scan(step, ZERO, keys(STEPS))[0]


def in_a_loop_that_splits(draw):
    def step(_, carry):
        key, now = jax.random.split(carry[0])
        return key, carry[1] + draw(rng_key=now)

    return jax.lax.fori_loop(0, STEPS, step, (numpyro.prng_key(), ZERO))[1]


def in_a_map_in_a_map(draw):
    row = lambda k: jax.lax.map(lambda k: draw(rng_key=k), jax.random.split(k))
    return jax.lax.map(row, keys(STEPS // 2)).sum()


def in_calls(draw):
    helper = jax.jit(lambda k: draw(rng_key=k))
    return sum(helper(k) for k in keys(STEPS))


def in_numpyros_scan(draw):
    return scan(lambda c, _: (c + draw(), None), ZERO, None, length=STEPS)[0]


def in_numpyros_scan_in_one(draw):
    inner = lambda c, _: (c + draw(), None)
    outer = lambda c, _: (scan(inner, c, None, length=2)[0], None)
    return scan(outer, ZERO, None, length=STEPS // 2)[0]


def in_numpyros_branches(draw):
    either = lambda _: draw()
    return sum(cond(t % 2 == 0, either, either, None) for t in range(STEPS))


def replicated(draw):
    return vipp.replicate(draw, STEPS).sum()


OWN = [
    in_a_scan, in_a_scan_with_a_seed, in_a_loop_that_splits, in_a_map_in_a_map, under_vmap, under_vmap_with_a_seed, in_calls, in_numpyros_scan,
    in_numpyros_scan_in_one,     in_numpyros_branches, replicated,
]  # fmt: skip


@pytest.mark.few(3)
@pytest.mark.parametrize("where", OWN, ids=lambda f: f.__name__)
def test_keys_of_their_own_make_draws_independent(where):
    """The square of a sum of draws, and its slope in their common parameter."""

    def total(p, estimator):
        return where(lambda **k: vipp.sample("z", dist.Bernoulli(p), estimator, **k) * 1.0) ** 2

    right = jax.jit(jax.value_and_grad(lambda p: STEPS * p * (1 - p) + (STEPS * p) ** 2))(P)
    exact = jax.value_and_grad(vipp.expectation(lambda p: total(p, vipp.Enumerate())), argnums=1)
    np.testing.assert_allclose(jnp.stack(jax.jit(exact)(KEY, P)), jnp.stack(right), rtol=1e-5)
    square = vipp.expectation(lambda: where(noise) ** 2)
    got = jax.jit(jax.vmap(square))(jax.random.split(KEY, 40_000))
    np.testing.assert_allclose(got.mean(), STEPS, rtol=0.05)  # its square if they shared a key


def test_a_derivative_inside_the_program_is_no_repetition():
    slope = vipp.expectation(
        lambda: jax.grad(lambda m: numpyro.sample("z", dist.Normal(m, 1.0)) * m)(2.0)
    )
    got = jax.jit(jax.vmap(slope))(jax.random.split(KEY, 10_000))
    np.testing.assert_allclose(got.mean(), 4.0, rtol=0.02)
