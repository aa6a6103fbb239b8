"""What a program does again and again becomes calls of one function, with the same results."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import vipp
from vipp_transforms.flattening import flatten
from vipp_transforms.outlining import outlined
from vipp_transforms.packing import one_by_one

XS = np.linspace(-1.0, 1.0, 10).astype(np.float32)


def apart(xs):
    """Alike, and nothing in common."""
    return sum(jnp.exp(jnp.sin(x) * 0.5 - x) for x in xs)


def chained(xs):
    """Each reads the one before, and one value that all share."""
    shared, z = jnp.cos(xs[0]), 0.0
    for x in xs:
        z = jnp.tanh(z * shared + x) * x - z
    return z


def numbered(xs):
    """Alike but for a number: calls of one function would not do."""
    return sum(jnp.exp(jnp.sin(x) * (0.1 * i)) * jnp.cos(x) for i, x in enumerate(xs))


def wired(xs):
    """Alike but for which operand is which: the first of a block twice, or the second."""
    total = 0.0
    for i, (x, y) in enumerate(zip(xs, xs[1:], strict=False)):
        a, b = jnp.sin(x), jnp.sin(y)
        total = total + jnp.exp((a - b) if i % 3 else (a - a)) * jnp.cos(b)
    return total


def kept(xs):
    """Some of what a block makes is a result, some is read much later."""
    made = [(jnp.sin(x), jnp.exp(x) - jnp.cos(x) * x) for x in xs]
    return sum(a * b for a, b in made) + made[3][1] * made[7][1]


def two_kinds(xs):
    """Two kinds by turns, then one of them again."""
    total = sum(jnp.exp(jnp.sin(x) - x) * jnp.tanh(jnp.cos(x)) for x in xs)
    return total * sum(jnp.tanh(jnp.cos(x)) + 0.5 for x in xs)


PROGRAMS = {f.__name__: f for f in (apart, chained, numbered, wired, kept, two_kinds)}
CALLS = {"apart": 9, "chained": 9, "numbered": 0, "wired": 8, "kept": 10, "two_kinds": 9}


def calls(program):
    return [n for n in program.nodes if n.eqn.primitive.name in ("jit", "pjit")]


@pytest.mark.parametrize("name", PROGRAMS)
def test_same_value_and_slopes(name):
    fn = PROGRAMS[name]
    program = flatten(jax.make_jaxpr(fn)(list(XS)), sums=False)
    after = outlined(program)
    assert len(calls(after)) == CALLS[name]
    run = lambda xs: one_by_one(after, xs)[0]
    found, expected = (jax.jit(jax.value_and_grad(f))(list(XS)) for f in (run, fn))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-6)


def test_of_blocks_that_do_the_same_the_calls_are_of_one_function():
    called = calls(outlined(flatten(jax.make_jaxpr(apart)(list(XS)), sums=False)))
    assert len({id(n.eqn) for n in called}) == 1


def test_without_repeats_a_program_is_itself():
    program = flatten(jax.make_jaxpr(lambda x: jnp.sin(x) * jnp.exp(x))(1.0), sums=False)
    assert outlined(program) is program


def test_nothing_is_called_where_calls_are_opened():
    program = flatten(jax.make_jaxpr(apart)(list(XS)), sums=False)
    params, loss = binary(6)
    expected = jax.value_and_grad(loss)(params)
    with jax.disable_jit():
        assert outlined(program) is program
        found = jax.value_and_grad(loss)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def binary(sites):
    """The jaxpr of the gradient of a bound with so many choices in a chain."""

    def model():
        z = 0.0
        for i in range(sites):
            z = numpyro.sample(f"z{i}", dist.Bernoulli(logits=z - 0.5))
        numpyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=1.0)

    def guide(params):
        for i in range(sites):
            numpyro.sample(f"z{i}", dist.Bernoulli(logits=params[f"l{i}"]))

    params = {f"l{i}": jnp.float32(0.1 * i) for i in range(sites)}
    return params, lambda p: vipp.ELBO().loss(jax.random.key(0), p, model, lambda: guide(p))


def test_a_site_more_adds_few_equations():
    def number(sites):
        params, loss = binary(sites)
        return len(jax.make_jaxpr(jax.grad(loss))(params).eqns)

    assert number(20) - number(16) <= 4 * 14
