"""What `Automatic` chooses, and why."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipp_transforms as vt

KEY = jax.random.key(0)
FALLBACK, SLOPES = vt.ScoreFunction(8, "leave_one_out"), vt.FittedControlVariates(8)
FOUR = vt.ScoreFunction(4, "leave_one_out")


def first(estimator, count=None):
    count = estimator.num_samples if count is None else count
    return dataclasses.replace(estimator, num_samples=count, differentiate="first")


def choices(fn):
    plan = vt.plan(lambda: (fn(), None))
    sites = {s.index: s.name for s in plan.program.sites.values()}
    return {sites[i]: c for i, c in plan.choices.items()}


def draw(name, distribution, estimator=None):
    return vt.sample(KEY, distribution, estimator or vt.Automatic(), name=name) * 1.0


def coins(name, *shape, estimator=None):
    return draw(name, dist.Bernoulli(logits=jnp.zeros(shape)), estimator)


@pytest.mark.parametrize(
    ("program", "expected", "reason"),
    [
        (lambda: coins("z"), vt.Enumerate(), "2 values"),
        (lambda: coins("z", 100).sum(), vt.Enumerate(), "2 values"),
        (lambda: jnp.prod(coins("z", 4)), vt.Enumerate(), "16 values"),
        (lambda: jnp.prod(coins("z", 5)), SLOPES, "2^5"),
        (lambda: jnp.prod(coins("z", 7, 5), 0).sum(), SLOPES, "2^7"),
        (lambda: jnp.prod(coins("z", 7, 2), 1).sum(), vt.Enumerate(), "4 values"),
        (lambda: jnp.prod(coins("z", 9000)), SLOPES, "2^9000"),
        (lambda: draw("z", dist.Categorical(jnp.ones(16) / 16)), vt.Enumerate(), "16 values"),
        (lambda: draw("z", dist.Categorical(jnp.ones(17) / 17)), FALLBACK, "17 values"),
        (lambda: draw("z", dist.Poisson(1.0)), FALLBACK, "no finite support"),
        (lambda: draw("z", dist.Normal(0.0, 1.0)), FALLBACK, "no finite support"),
        (lambda: draw("z", dist.Binomial(3, 0.5)), vt.Enumerate(), "4 values"),
        (lambda: draw("z", dist.Binomial(jnp.array([3, 4]), 0.5)).sum(), FALLBACK, "no finite"),
    ],
)
def test_choice_for_one_site(program, expected, reason):
    choice = choices(program)["z"]
    assert choice.estimator == expected
    assert reason in choice.reason


def test_what_was_asked_for_is_kept():
    choice = choices(lambda: coins("z", estimator=vt.ScoreFunction(3)))["z"]
    assert choice.estimator == vt.ScoreFunction(3)
    assert choice.reason == "asked for"


def test_sites_of_one_term_are_not_all_enumerated_when_that_costs_too_much():
    program = lambda: jnp.exp(sum(coins(f"z{i}", *([2] if i == 3 else [])).sum() for i in range(7)))
    chosen = choices(program)
    enumerated = [n for n, c in chosen.items() if isinstance(c.estimator, vt.Enumerate)]
    assert len(enumerated) == 6  # 2 ** 6 = 64 combinations
    assert chosen["z3"].estimator == SLOPES  # the largest, of two lanes
    assert "with the others" in chosen["z3"].reason


def test_sites_of_separate_terms_are_all_enumerated():
    chosen = choices(lambda: sum(jnp.exp(coins(f"z{i}")) for i in range(20)))
    assert all(isinstance(c.estimator, vt.Enumerate) for c in chosen.values())


def test_a_chain_is_all_enumerated():
    def chain():
        z, total = 0.0, 0.0
        for i in range(20):
            z = draw(f"z{i}", dist.Bernoulli(logits=z))
            total = total + jnp.exp(z)
        return total

    assert all(isinstance(c.estimator, vt.Enumerate) for c in choices(chain).values())


TABLE = np.linspace(0.0, 1.0, 7, dtype=np.float32)


def hidden():
    """Its slopes are lost: looked up and compared."""
    z = vt.sample(KEY, dist.Bernoulli(logits=jnp.zeros(6)), vt.Automatic(), name="z")
    return jnp.asarray(TABLE)[z.sum()] + jnp.where((z == 1).all(), 1.0, 0.0)


def wide(numbers=1_000_000, **limits):
    """Its lanes are mixed in so many numbers."""
    z = coins("z", 6, estimator=vt.Automatic(**limits))
    return jnp.sin(jnp.linspace(0.0, 1.0, numbers) * z.sum()).sum()


def network(product=jnp.dot, key=KEY, **limits):
    """Most of it is products."""
    z = vt.sample(key, dist.Bernoulli(logits=jnp.zeros(6)), vt.Automatic(**limits), name="z")
    return jnp.sin(product(jnp.ones((100, 100)) * z.sum(), jnp.ones((100, 100)))).sum()


def convolution(x, kernel):
    return jax.lax.conv(x[None, None], kernel[None, None, :10, :10], (1, 1), "SAME")


def particles(number, **limits):
    """So many are weighed against each other."""
    one = lambda key: network(key=key, **limits)
    return jax.nn.logsumexp(jax.vmap(one)(jax.random.split(KEY, number)))


def steps(number):
    """Particles of a loop of five steps."""

    def step(state, key):
        z = vt.sample(key, dist.Bernoulli(logits=jnp.full(6, state)), vt.Automatic(), name="z")
        return z.sum() * 1.0, jnp.sin(z.sum())

    one = lambda key: jax.lax.scan(step, 0.0, jax.random.split(key, 5))[1].sum()
    return jax.nn.logsumexp(jax.vmap(one)(jax.random.split(KEY, number)))


def apart(number):
    return jax.vmap(lambda key: network(key=key))(jax.random.split(KEY, number)).sum()


@pytest.mark.parametrize(
    ("program", "expected", "reason"),
    [
        (hidden, FALLBACK, "8 samples, of"),
        (wide, SLOPES, "of 2,000,026 numbers each, which have slopes"),
        (lambda: wide(max_samples=16), dataclasses.replace(SLOPES, num_samples=16), "16 samples"),
        (lambda: wide(max_numbers=2**23), FOUR, "4 samples"),
        (lambda: wide(max_samples=2), vt.ScoreFunction(2, "leave_one_out"), "2 samples"),
        (network, first(SLOPES), "which have slopes; differentiated at the first"),
        (lambda: network(convolution), first(SLOPES), "differentiated at the first"),
        (lambda: network(max_samples=16), first(SLOPES, 16), "16 samples"),
        (lambda: network(max_samples=2), vt.ScoreFunction(2, "leave_one_out"), "2 samples"),
        (lambda: particles(4), first(FOUR), "4 samples"),
        (lambda: particles(4, max_samples=16), first(SLOPES), "8 samples"),
        (lambda: particles(16), vt.ScoreFunction(2, "leave_one_out"), "2 samples"),
        (lambda: apart(16), first(SLOPES), "8 samples"),
        (lambda: steps(4), FOUR, "in a loop; 4 samples"),
        (lambda: steps(1), FALLBACK, "in a loop; 8 samples"),
    ],
    ids=[
        *("hidden", "wide", "many", "dear", "two", "network", "convolution", "many of a network"),
        *("two of a network", "particles", "many of particles", "many particles", "apart"),
        *("particles of a loop", "one particle of a loop"),
    ],
)
def test_samples_and_slopes(program, expected, reason):
    choice = choices(program)["z"]
    assert choice.estimator == expected
    assert reason in choice.reason


def test_limits_are_the_sites_own():
    program = lambda: jnp.prod(coins("z", 5, estimator=vt.Automatic(max_support=32)))
    assert choices(program)["z"].estimator == vt.Enumerate()
    program = lambda: coins("a", estimator=vt.Automatic(max_evaluations=2)) * coins("b")
    kinds = sorted(type(c.estimator).__name__ for c in choices(program).values())
    assert kinds == ["Enumerate", "ScoreFunction"]
