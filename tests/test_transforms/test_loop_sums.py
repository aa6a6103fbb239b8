"""Enumerated choices in a loop that stays one, against the sum over all outcomes in plain Python."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipp_transforms as vt

KEY = jax.random.key(0)
STEPS = 4
XS = jnp.array([0.3, -0.8, 1.1, 0.4])
THETA = jnp.array([[0.4, -0.7], [0.9, 0.2]])
COSTS = jnp.array([[1.0, -2.0], [0.5, 3.0]])


class Engine:
    """Draws through the engine."""

    def scan(self, step, first, xs, reverse=False):
        keys = jax.random.split(KEY, STEPS)

        def body(carry, given):
            return step(lambda *a: self._draw(given[0], *a), carry, given[1])

        return jax.lax.scan(body, first, (keys, xs), reverse=reverse)

    def _draw(self, key, name, logits):
        fn = dist.Categorical(logits=logits)
        return vt.sample(key, fn, vt.Enumerate(), name=name)

    def one(self, name, logits):
        return self._draw(KEY, name, logits)


class Given:
    """The outcomes are given one after the other; notes how many, and adds up log probabilities."""

    def __init__(self, outcomes):
        self.outcomes, self.shapes, self.log_prob = outcomes, [], 0.0

    def scan(self, step, first, xs, reverse=False):
        carry, ys = first, []
        for t in reversed(range(STEPS)) if reverse else range(STEPS):
            carry, y = step(self.one, carry, xs[t])
            ys.append(y)
        ys = ys[::-1] if reverse else ys
        return carry, jax.tree.map(lambda *y: jnp.stack(y), *ys)

    def one(self, name, logits):
        at, shape = sum(map(math.prod, self.shapes)), logits.shape[:-1]
        self.shapes.append(shape)
        z = self.outcomes[at : at + math.prod(shape)].reshape(shape)
        self.log_prob += dist.Categorical(logits=logits).log_prob(z).sum()
        return z


def chain(theta, rv):
    """What is averaged is a cost of two choices, and another of one, computed outside."""

    def step(draw, before, x):
        z = draw("z", theta[before] * x)
        return z, (z, COSTS[before, z])

    _, (zs, costs) = rv.scan(step, 0, XS)
    return (costs * XS).sum() + (jnp.exp(theta[0, 0] * zs) ** 2).sum()


def accumulated(theta, rv):
    """A total is carried, and the last state returned."""

    def step(draw, carry, x):
        z, total = carry
        new = draw("z", theta[z])
        return (new, total + theta[z, new] - x * new), None

    last, total = rv.scan(step, (1, 0.5), XS)[0]
    return 2.0 * total + COSTS[last, last] ** 2


def second_order(theta, rv):
    def step(draw, carry, x):
        one, two = carry
        z = draw("z", theta[one] + x * theta[two])
        return (z, one), COSTS[one, z] * two

    return rv.scan(step, (0, 1), XS, reverse=True)[1].sum()


def lanes(theta, rv):
    """Each lane is a chain of its own; the order of axes changes on the way."""
    slopes = jnp.array([1.0, -0.5])

    def step(draw, z, x):
        z = draw("z", theta[z] * slopes[:, None])
        return z, jnp.stack([z * x, z * z * slopes], axis=1)

    return (rv.scan(step, jnp.array([0, 1]), XS)[1] ** 2).sum()


def two_sites(theta, rv):
    """Each depends on the other's past, and a value on both and the time."""

    def step(draw, carry, x):
        a, b, clock = carry
        a = draw("a", theta[b])
        b = draw("b", theta[a] * clock)
        return (a, b, clock * 0.5 + x), COSTS[a, b] * clock

    return rv.scan(step, (0, 1, 1.0), XS)[1].sum()


def one_and_many(theta, rv):
    """A chain, and in a plate chains that look at it."""

    def step(draw, carry, x):
        a, b = carry
        a = draw("a", theta[a])
        b = draw("b", theta[a][None] + theta[b] * x)
        return (a, b), COSTS[a, b] * (1.0 + a)

    return (rv.scan(step, (1, jnp.array([0, 1])), XS)[1] ** 2).sum()


def followed(theta, rv):
    """A second loop goes through what the first one chose, and looks back; a third one, too."""
    _, zs = rv.scan(lambda draw, z, x: (draw("z", theta[z]),) * 2, 0, XS)

    def score(draw, before, given):
        x, z = given[0], given[1].astype(int)
        return z, x * COSTS[before, z]

    joined = jnp.stack([XS, 1.0 * zs], axis=1) if isinstance(rv, Given) else None
    if joined is None:
        _, scores = jax.lax.scan(lambda b, g: score(None, b, g), 0, (XS, zs))
    else:
        _, scores = rv.scan(score, 0, joined)
    return (jnp.exp(scores) * theta[0, 1]).sum()


def impossible(theta, rv):
    """From the first state none leads back; a cost is infinite where no path leads."""
    never = jnp.array([[0.0, 0.0], [-jnp.inf, 0.0]])
    endless = jnp.array([[1.0, 2.0], [-jnp.inf, 0.5]])

    def step(draw, before, x):
        z = draw("z", theta[before] + never[before])
        return z, endless[before, z] * x**2

    return rv.scan(step, 0, XS)[1].sum()


def started(theta, rv):
    """The first state is enumerated, too, and what is averaged depends on it."""
    first = rv.one("first", theta[0])
    costs = rv.scan(lambda draw, z, x: ((new := draw("z", theta[z])), COSTS[z, new]), first, XS)[1]
    return (costs * (1.0 + first)).sum()


def started_once(theta, rv):
    """The first state is a choice that nothing else depends on together with the loop."""
    first = rv.one("first", theta[1])

    def step(draw, carry, x):
        z, odd, two = carry
        new = draw("z", theta[z] + x * two)
        return (new, 2 * new + 1, new - 1.0), COSTS[z, new] * odd

    last, costs = rv.scan(step, (first, 2 * first + 1, -1.0), XS)
    return costs.sum() + COSTS[first, first] * theta[0, 1] + 0.5 * last[1]


def started_in_lanes(theta, rv):
    """Each lane's first state is a choice of its own."""
    first = rv.one("first", theta * jnp.array([[1.0], [-2.0]]))

    def step(draw, z, x):
        new = draw("z", theta[z] * jnp.array([[1.0], [0.3]]))
        return new, COSTS[z, new] * jnp.array([x, 2.0])

    _, costs = rv.scan(step, first, XS)
    return costs.sum() + (jnp.sin(1.0 * first) * theta[0]).sum()


def followed_start(theta, rv):
    """Another choice depends on the first state, and is averaged with the loop's."""
    first = rv.one("first", theta[0])
    other = rv.one("other", theta[first])
    costs = rv.scan(lambda draw, z, x: ((new := draw("z", theta[z])), COSTS[z, new]), first, XS)[1]
    return (costs * (1.0 + other)).sum()


def looked_at(theta, rv):
    """The loop reads what depends on the first state in every step."""
    first = rv.one("first", theta[0])
    other = rv.one("other", theta[first])
    step = lambda draw, z, x: ((new := draw("z", theta[z] * x + other)), COSTS[z, new])
    return rv.scan(step, first, XS)[1].sum()


def tosses(theta, rv):
    """All steps are alike, and each is drawn by itself."""
    step = lambda draw, total, x: (total + (z := draw("z", theta[0])), jnp.sin(1.0 * z))
    return rv.scan(step, 0.0, XS)[1].sum()


def independent(theta, rv):
    """Nothing is carried; within a step lanes are mixed."""

    def step(draw, carry, x):
        return carry, draw("z", theta * x).sum() ** 2

    return (1.0 * rv.scan(step, 0, XS)[1] ** 2).sum()


def carried(theta, rv):
    """What is carried follows from the last choice, and starts where some choice leads, or none."""

    def step(draw, carry, x):
        z, odd, hot, mean, two = carry
        new = draw("z", theta[z] + theta[jnp.minimum(two, 1)] * x)
        costs = COSTS[z, new] * odd + jnp.where(hot, x, mean) + two * new
        return (new, 3 - 2 * new, new == 1, XS[new], new), costs

    last, costs = rv.scan(step, (1, 1, jnp.array(False), 0.7, 2), XS)
    return costs.sum() + jnp.where(last[2], theta[0, 1], 1.0 * last[1])


def lanes_from_one_state(theta, rv):
    """All lanes start alike; their states are carried as they are, and along another axis."""

    def step(draw, carry, x):
        z, column = carry
        new = draw("z", theta[z] + x * theta[column[:, 0]])
        return (new, new[:, None] + jnp.zeros((2, 3), int)), COSTS[z, new] * column[:, 2]

    (last, _), costs = rv.scan(step, (jnp.zeros(2, int), jnp.ones((2, 3), int)), XS)
    return (costs * jnp.array([[1.0, 2.0]])).sum() + COSTS[last, last].sum()


SUMMED = (
    chain, accumulated, second_order, lanes, two_sites, one_and_many, followed, impossible, started,
    independent, tosses, carried, lanes_from_one_state,
    started_once, started_in_lanes, followed_start, looked_at,
)  # fmt: skip


def squared(theta, rv):
    return rv.scan(lambda draw, z, x: ((new := draw("z", theta[z])), x * new), 0, XS)[1].sum() ** 2


def neighbours(theta, rv):
    zs = rv.scan(lambda draw, z, x: (draw("z", theta[z]),) * 2, 0, XS)[1]
    return (1.0 * zs[1:] * zs[:-1]).sum()


def counted(theta, rv):
    """The odds depend on how often a one was drawn."""

    def step(draw, count, x):
        z = draw("z", theta[0] * (1.0 + count))
        return count + z, x * z

    return rv.scan(step, 0.0, XS)[1].sum()


def outer(theta, rv):
    """Every step is paired with every other."""
    a, b = rv.scan(lambda draw, z, x: ((z2 := draw("z", theta[z])), (z2, z)), 0, XS)[1]
    return (jnp.sin(1.0 * a[:, None] + 2.0 * b[None])).sum()


def end_and_steps(theta, rv):
    last, zs = rv.scan(lambda draw, z, x: (draw("z", theta[z]),) * 2, 0, XS)
    return (1.0 * zs * last).sum()


def total_of_lanes(theta, rv):
    """A plate's chains meet in one number."""

    def step(draw, z, x):
        z = draw("z", theta[z])
        return z, x * z

    return (rv.scan(step, jnp.array([0, 1]), XS)[1].sum(1) ** 2).sum()


UNROLLED = (squared, neighbours, counted, outer, end_and_steps, total_of_lanes)


def exact(program):
    """By all outcomes."""

    def run(theta, outcomes):
        given = Given(outcomes)
        value = program(theta, given)
        return jnp.exp(given.log_prob) * jnp.where(given.log_prob > -jnp.inf, value, 0.0)

    probe = Given(np.zeros(64, int))
    jax.eval_shape(lambda t: program(t, probe), THETA)
    count = sum(map(math.prod, probe.shapes))
    all_outcomes = jnp.array(list(itertools.product(range(2), repeat=count)))
    return lambda theta: jnp.nansum(jax.vmap(lambda o: run(theta, o))(all_outcomes))


@pytest.mark.few(1)
@pytest.mark.parametrize("program", SUMMED + UNROLLED)
def test_value_and_derivatives(program):
    """Value, gradient and second derivative; one row of the table for all steps, where it can be."""
    estimate = lambda theta: vt.surrogate(lambda t: (program(t, Engine()), None))(theta)[0]

    def all_orders(fn):
        return jax.jit(lambda t: (*jax.value_and_grad(fn)(t), jax.jvp(jax.grad(fn), (t,), (t,))[1]))

    got, want = all_orders(estimate)(THETA), all_orders(exact(program))(THETA)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=2e-4, atol=2e-5)
    sites = vt.plan(lambda t: (program(t, Engine()), None), THETA).program.sites.values()
    assert (len([s for s in sites if s.lane_shape[:1] == (STEPS,)]) > 0) == (program in SUMMED)
