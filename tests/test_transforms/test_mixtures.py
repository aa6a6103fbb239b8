"""Sites with different estimators in one program: the tower property in every order."""

import itertools

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipp_transforms as vt

ESTIMATORS = {
    "score": vt.ScoreFunction(),
    "score2": vt.ScoreFunction(2),
    "score2-loo": vt.ScoreFunction(2, "leave_one_out"),
    "score3-loo": vt.ScoreFunction(3, "leave_one_out"),
    "enumerate": vt.Enumerate(),
    "automatic": vt.Automatic(max_samples=2),
}
THETA = np.array([0.4, -0.3, 0.7])


def bernoulli(logits):
    return dist.Bernoulli(logits=logits)


def chain(theta, rv):
    """The second site's distribution depends on the first; terms of one, the other and both."""
    a = rv("a", bernoulli(theta[0]))
    b = rv("b", bernoulli(theta[1] + theta[2] * a))
    return jnp.sin(theta[0] + a) + theta[1] * b + jnp.exp(0.3 * a * b)


def plated(theta, rv):
    """Lane by lane, and a term that mixes the second site's lanes."""
    a = rv("a", bernoulli(theta[0] + jnp.array([0.1, 0.5])))
    b = rv("b", bernoulli(theta[1] + theta[2] * a))
    return (jnp.sin(theta[0] + a) * jnp.cos(theta[1] * b)).sum() + jnp.prod(1.0 + 0.5 * b)


def funnel(theta, rv):
    """Many lanes feed one site, which feeds many."""
    a = rv("a", bernoulli(theta[:2]))
    b = rv("b", bernoulli(theta[2] - a.sum()))
    c = rv.noise("c", theta[0] * b, 1.0)
    return (jnp.sin(theta[1] + a) * c).sum() + theta[2] * b


def through_noise(theta, rv):
    """A reparameterised value between the two sites."""
    a = rv("a", bernoulli(theta[0]))
    x = rv.noise("x", theta[1] * a, jnp.exp(theta[2]))
    b = rv("b", bernoulli(x + theta[0]))
    return jnp.sin(x + b) + theta[1] * a * b


@pytest.mark.few(5)
@pytest.mark.parametrize("second", ESTIMATORS)
@pytest.mark.parametrize("first", ESTIMATORS)
def test_every_ordered_pair(exact, x64, first, second):
    estimators = {"a": ESTIMATORS[first], "b": ESTIMATORS[second]}
    exact.check(chain, jnp.asarray(THETA), estimators)


@pytest.mark.few(2)
@pytest.mark.parametrize("program", [plated, funnel, through_noise])
@pytest.mark.parametrize(
    ("first", "second"),
    [("score", "enumerate"), ("enumerate", "score"), ("score2-loo", "score2-loo"),
     ("score2", "score"), ("enumerate", "score2-loo"), ("score2-loo", "enumerate"),
     ("automatic", "automatic")],
)  # fmt: skip
def test_pairs_in_other_shapes(exact, x64, program, first, second):
    estimators = {"a": ESTIMATORS[first], "b": ESTIMATORS[second]}
    exact.check(program, jnp.asarray(THETA), estimators)


def sandwich(theta, rv):
    """The last site does not see the first, but for what is in between."""
    a = rv("a", bernoulli(theta[0]))
    b = rv("b", bernoulli(theta[1] + a))
    c = rv("c", bernoulli(theta[2] - theta[0] + 2.0 * b))
    return 3.0 * b * c + c


def siblings(theta, rv):
    """The last site is independent of the others; a term meets it with the second."""
    a = rv("a", bernoulli(theta[0]))
    b = rv("b", bernoulli(theta[1] + theta[2] * a))
    c = rv("c", bernoulli(theta[2]))
    return jnp.exp(b * c + theta[0] * c) + a


SANDWICHES = [
    *itertools.product(
        ["score2-loo"], ["score", "score3-loo", "enumerate", "score2"], ["score2-loo", "score2"]
    ),
    ("score", "score2", "score"),
    ("score2", "score", "score2"),
]


@pytest.mark.few(2)
@pytest.mark.parametrize("program", [sandwich, siblings])
@pytest.mark.parametrize(("first", "middle", "last"), SANDWICHES)
def test_trajectories_stay_joint_through_other_estimators(exact, x64, program, first, middle, last):
    """Sites that share trajectories meet in a term that only a site in between connects."""
    estimators = {"a": ESTIMATORS[first], "b": ESTIMATORS[middle], "c": ESTIMATORS[last]}
    exact.check(program, jnp.asarray(THETA), estimators)


def hidden_markov(theta, rv):
    z, total = 0.0, 0.0
    for t in range(4):
        z = rv(f"z{t}", bernoulli(theta[0] + theta[1] * z))
        total = total + jnp.sin(theta[2] * z + t)
    return total


@pytest.mark.parametrize("estimator", ["score", "score2-loo", "enumerate", "automatic"])
def test_chain_of_four(exact, x64, estimator):
    exact.check(hidden_markov, jnp.asarray(THETA), default=ESTIMATORS[estimator])


def shared_parent(theta, rv):
    """Mixture: one global site, lanes that depend on it, one enumerated jointly per value."""
    k = rv("k", dist.Categorical(logits=theta))
    z = rv("z", bernoulli(theta[k] + jnp.array([0.0, 1.0])))
    x = rv("x", bernoulli(theta[0] * z + k))
    return jnp.sin(x * z + k).sum() + jnp.prod(1 + x) * theta[k]


@pytest.mark.parametrize(
    ("k", "z", "x"),
    [("enumerate", "enumerate", "enumerate"), ("score", "enumerate", "score"),
     ("score", "enumerate", "enumerate"), ("score2-loo", "score", "enumerate"),
     ("automatic", "score", "automatic")],
)  # fmt: skip
def test_mixture(exact, x64, k, z, x):
    estimators = {"k": ESTIMATORS[k], "z": ESTIMATORS[z], "x": ESTIMATORS[x]}
    exact.check(shared_parent, jnp.asarray(THETA), estimators)
