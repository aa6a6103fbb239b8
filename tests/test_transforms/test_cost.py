"""What an estimate costs: how often the program's terms are evaluated, counted in what is compiled.

The programs take an arc tangent, which nothing else does; a term of several lanes takes it of their
sum, one of each lane of each.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

import vipp
import vipp_transforms as vt

LANES = 4


def count(make, estimator, mixed, lanes=LANES):
    """Evaluations (of all lanes) in the compiled value and gradient."""

    def program(t, key):
        z = vt.sample(key, make(t[:lanes]), estimator, name="z") * 1.0
        z = z @ jnp.arange(1.0, 4.0) if z.ndim == 2 else z
        return jnp.arctan(t[-1] * z.sum() + t[-2]) if mixed else jnp.arctan(t[-1] * z).sum(), None

    one = jax.value_and_grad(lambda t, key: vt.surrogate(program)(t, key)[0])
    text = jax.jit(one).lower(jnp.linspace(0.1, 0.7, lanes + 2), jax.random.key(0)).compile()
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* atan2\(", text.as_text())
    total = sum(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes)
    return total / (1 if mixed else lanes)


def bernoulli(t):
    return dist.Bernoulli(logits=t)


def categorical(t):
    return dist.Categorical(logits=jnp.stack([t, 2 * t, 0 * t], -1))


def one_hot(t):
    return vipp.OneHotCategorical(logits=jnp.stack([t, 2 * t, 0 * t], -1))


def normal(t):
    return dist.Normal(t, jnp.exp(t))


LOO = vt.ScoreFunction(2, "leave_one_out")
RELAX = vt.Relax(2, vt.Relax(2).init(jax.random.key(0), 1))


@pytest.mark.parametrize(
    ("make", "estimator", "mixed", "apart"),
    [
        (bernoulli, vt.ScoreFunction(), 1, 1),
        (bernoulli, LOO, 2, 2),
        (bernoulli, vt.ScoreFunction(6, antithetic=True), 6, 6),
        (bernoulli, vt.ScoreFunction(3, jnp.ones(4), coefficient="optimal"), 3, 3),
        (bernoulli, vt.Enumerate(), 2**LANES, 2),
        (categorical, vt.Enumerate(), 3**LANES, 3),
        (bernoulli, vt.LocalExpectation(), 2 * LANES, 2),
        (categorical, vt.LocalExpectation(), 3 * LANES, 3),
        (bernoulli, vt.MeasureValued(), 1 + 2 * LANES, 3),
        (normal, vt.MeasureValued(), 1 + 4 * LANES, 5),
        (bernoulli, vt.ARM(), 2, 2),
        (bernoulli, vt.DisARM(), 2, 2),
        (bernoulli, vt.Rebar(), 3, 3),
        (one_hot, vt.Rebar(), 3, 3),
        (bernoulli, vt.Mix(vt.DisARM(), LOO, 0.5), 4, 4),
        (normal, vt.Pathwise(), 1, 1),
        (normal, vt.Pathwise(5), 5, 5),
        (normal, vt.Pathwise(4, antithetic=True), 4, 4),
        (normal, vt.Pathwise(8, quasi=True), 8, 8),
        (normal, vt.Pathwise(control_variate="taylor"), 3, 3),
        (normal, vt.Pathwise(4, control_variate="taylor"), 6, 6),
        (bernoulli, vt.GumbelSoftmax(), 1, 1),
        (bernoulli, vt.StraightThrough(), 1, 1),
        (bernoulli, vt.ReinMax(), 1, 1),
        (bernoulli, vt.ReSTE(), 1, 1),
        (bernoulli, vt.SparseMixer(), 3, 3),
    ],
    ids=str,
)
def test_number_of_evaluations(make, estimator, mixed, apart):
    assert count(make, estimator, mixed=True) == mixed
    assert count(make, estimator, mixed=False) == apart


def test_a_control_variate_that_learns_costs_at_most_as_much_again():
    assert 3 <= count(bernoulli, RELAX, mixed=False) <= 6


@pytest.mark.parametrize("estimator", [vt.ScoreFunction(3), LOO], ids=str)
def test_joint_trajectories_cost_one_evaluation_per_sample(estimator):
    """Of a term of several sites; estimators of their own multiply."""

    def program(t, key, second):
        keys = jax.random.split(key)
        a = vt.sample(keys[0], bernoulli(t[0]), estimator, name="a") * 1.0
        b = vt.sample(keys[1], bernoulli(t[1] + a), second, name="b") * 1.0
        return jnp.arctan(t[2] * a + t[3] * b), None

    def total(second):
        one = jax.value_and_grad(lambda t, key: vt.surrogate(program)(t, key, second)[0])
        text = jax.jit(one).lower(jnp.linspace(0.1, 0.7, 4), jax.random.key(0)).compile().as_text()
        shapes = re.findall(r"= \w+\[([\d,]*)\]\S* atan2\(", text)
        return sum(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes)

    samples = estimator.num_samples
    assert total(estimator) == samples
    assert total(vt.DisARM()) == total(vt.Enumerate()) == 2 * samples
