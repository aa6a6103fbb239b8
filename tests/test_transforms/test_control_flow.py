"""Random choices inside loops, branches and calls, against all their outcomes in plain Python.

Each program is written once, over `ctl`: JAX's control flow, or Python's for the reference, which
follows every outcome of every choice.
"""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipp_transforms as vt
from vipp.distributions.answers import Answering

pytestmark = pytest.mark.uncompiled

KEY = jax.random.key(0)
THETA = jnp.array([0.4, -0.7])


# -- control flow, in JAX and in Python ------------------------------------------------------------


def _python_scan(step, carry, xs, length=None, reverse=False):
    length = len(jax.tree.leaves(xs)[0]) if length is None else length
    stacked = [None] * length
    for t in reversed(range(length)) if reverse else range(length):
        carry, stacked[t] = step(carry, jax.tree.map(lambda x: x[t], xs))
    return carry, jax.tree.map(lambda *y: jnp.stack(y), *stacked)


def _python_fori(low, high, step, carry):
    for i in range(low, high):
        carry = step(i, carry)
    return carry


def _in_custom_vjp(fn):
    """`fn` called through a function with a derivative of its own."""

    @jax.custom_vjp
    def call(*args):
        return fn(*args)

    call.defvjp(lambda *args: (fn(*args), args), lambda args, g: jax.vjp(fn, *args)[1](g))
    return call


JAX = SimpleNamespace(
    scan=jax.lax.scan, cond=jax.lax.cond, switch=jax.lax.switch, fori=jax.lax.fori_loop,
    jit=jax.jit, checkpoint=jax.checkpoint, custom_vjp=_in_custom_vjp, vmap=jax.vmap,
)  # fmt: skip
PYTHON = SimpleNamespace(
    scan=_python_scan,
    cond=lambda pred, yes, no, *args: yes(*args) if pred else no(*args),
    switch=lambda i, branches, *args: branches[int(i)](*args),
    fori=_python_fori,
    jit=lambda fn: fn,
    checkpoint=lambda fn: fn,
    custom_vjp=lambda fn: fn,
    vmap=lambda fn: lambda *xs: jax.tree.map(lambda *y: jnp.stack(y), *map(fn, *xs)),
)


# -- programs: (theta, keys, rv, ctl) -> value -----------------------------------------------------
# rv(name, key, logits) draws 0.0 or 1.0


def in_jit(theta, keys, rv, ctl):
    draw = ctl.jit(lambda k: rv("z", k, theta[0]) * theta[1])
    return draw(keys[0]) ** 2 + 2 * draw(keys[1])


def in_checkpoint(theta, keys, rv, ctl):
    draw = ctl.checkpoint(lambda k, t: jnp.exp(rv("z", k, t) * t))
    return draw(keys[0], theta[0]) + draw(keys[1], theta[1])


def in_custom_vjp(theta, keys, rv, ctl):
    draw = ctl.custom_vjp(lambda k, t: jnp.exp(rv("z", k, t) * t))
    return draw(keys[0], theta[0]) * theta[1]


def in_branch(theta, keys, rv, ctl):
    """The enumerated choice of the branch taken must not change the value of the other."""
    yes = lambda k: 3.0 * rv("a", k, theta[0])
    no = lambda k: 5.0 * rv("b", k, theta[1]) + theta[0]
    taken = [ctl.cond(flag, yes, no, k) for flag, k in zip((True, False), keys, strict=False)]
    return taken[0] * taken[0] + taken[1]


def branch_on_a_choice(theta, keys, rv, ctl):
    first = rv("first", keys[0], theta[0])
    yes = lambda k: 3.0 * rv("a", k, theta[1])
    return ctl.cond(first > 0, yes, lambda k: theta[1] ** 2, keys[1]) + first


def three_way(theta, keys, rv, ctl):
    index = jnp.int32(rv("i", keys[0], theta[0]) + rv("j", keys[1], theta[1]))
    branches = [
        lambda k: rv("a", k, theta[0]) * 2.0,
        lambda k: rv("b", k, theta[1]) * 3.0 + theta[0],
        lambda k: theta[0] * theta[1],
    ]
    return ctl.switch(index, branches, keys[2])


def markov(theta, keys, rv, ctl):
    def step(before, k):
        z = rv("z", k, theta[0] + theta[1] * before)
        return z, (z - 0.3) ** 2 * (1 + before)

    last, costs = ctl.scan(step, 0.2, keys[:4])
    return costs.sum() + jnp.sin(last)


def accumulating(theta, keys, rv, ctl):
    def step(total, k):
        z = rv("z", k, theta[0] + theta[1] * total)
        return 0.5 * total + z, z * total

    total, costs = ctl.scan(step, jnp.float32(0.2), keys[:4])
    return costs.sum() + total**3


def backwards(theta, keys, rv, ctl):
    def step(total, k):
        z = rv("z", k, theta[0] + theta[1] * total)
        return 0.5 * total + z, z * total

    weights = jnp.arange(1.0, 5.0)
    total, costs = ctl.scan(step, jnp.float32(0.2), keys[:4], reverse=True)
    return (weights * costs).sum() + total**3


def not_carried(theta, keys, rv, ctl):
    def step(carry, given):
        k, x = given
        z = rv("z", k, theta[0] * x)
        return carry, jnp.square(z - x * theta[1])

    xs = jnp.array([0.3, -1.2, 0.7, 2.0])
    return jnp.log(1.0 + ctl.scan(step, 0.0, (keys[:4], xs))[1]).sum()


def two_sites(theta, keys, rv, ctl):
    """Each depends on the other's draw one step before: all must be credited."""

    def step(carry, k):
        a, b = carry
        ka, kb = jax.random.split(k)
        new_a = rv("a", ka, theta[0] + b)
        new_b = rv("b", kb, theta[1] - 2 * a)
        return (new_a, new_b), new_a

    (a, _), outs = ctl.scan(step, (0.3, 0.6), keys[:3])
    return outs @ jnp.array([1.0, -2.0, 4.0]) + a * theta[0]


def upstream(theta, keys, rv, ctl):
    first = rv("first", keys[0], theta[1])

    def step(total, k):
        z = rv("z", k, theta[0] + first - total)
        return total + z, z * total + first

    total, costs = ctl.scan(step, jnp.float32(0.0), keys[1:4])
    return costs.sum() + total * rv("last", keys[4], theta[0] * total)


def two_loops(theta, keys, rv, ctl):
    """What one loop drew is read by another, sliced and by its own counter."""

    def draw(before, k):
        z = rv("z", k, theta[0] + theta[1] * before)
        return z, z

    _, zs = ctl.scan(draw, 0.5, keys[:4])

    def score(carry, z):
        i, before = carry
        cost = jnp.square(z - 0.4 * before) * (1.0 + zs[i])
        return (i + 1, z), cost

    _, costs = ctl.scan(score, (0, 0.5), zs)
    return costs.sum() + theta[0] * zs[2]


def loops_of_unequal_length(theta, keys, rv, ctl):
    """The second loop's counter runs past what the first drew: an index is clamped."""

    def draw(before, k):
        z = rv("z", k, theta[0] + theta[1] * before)
        return z, z

    _, zs = ctl.scan(draw, 0.5, keys[:3])

    def score(i, x):
        return i + 1, jnp.square(zs[i] - x)

    _, costs = ctl.scan(score, jnp.int32(0), jnp.arange(5.0))
    return costs @ jnp.array([1.0, 0.5, -1.0, 2.0, 0.3])


def counted(theta, keys, rv, ctl):
    def step(i, total):
        z = rv("z", keys[i], theta[0] + theta[1] * total)
        return total * 0.7 + z

    return jnp.square(ctl.fori(0, 4, step, jnp.float32(0.1)))


def nested(theta, keys, rv, ctl):
    def outer(total, k):
        def inner(count, key):
            z = rv("z", key, theta[0] + theta[1] * count)
            return count + z, z

        count, zs = ctl.scan(inner, total, jax.random.split(k, 2))
        return 0.5 * count, zs.sum() * total

    total, costs = ctl.scan(outer, jnp.float32(0.3), keys[:2])
    return costs.sum() + total


def branch_in_loop(theta, keys, rv, ctl):
    def step(total, given):
        k, t = given
        yes = lambda k: rv("z", k, theta[0] + theta[1] * total)
        z = ctl.cond(t % 2 == 0, yes, lambda k: total * theta[1], k)
        return total * 0.5 + z, z * total

    total, costs = ctl.scan(step, jnp.float32(0.4), (keys[:4], jnp.arange(4)))
    return costs.sum() + total


def square(keys):
    """As many keys for each key."""
    return jax.vmap(lambda k: jax.random.split(k, len(keys)))(keys)


def table_at_a_choice(theta, keys, rv, ctl):
    """A loop's step and a choice index one table: the choice counts."""
    z = rv("z", keys[0], theta[0])
    table = jnp.arange(6.0).reshape(3, 2) ** 2
    return ctl.fori(0, 3, lambda t, acc: acc + theta[1] * table[t, jnp.int32(z)], jnp.float32(0.0))


def choices_at_a_choice(theta, keys, rv, ctl):
    """One choice picks the column of others, whose rows the loop runs through."""
    which = rv("which", keys[0], theta[1])
    zs = ctl.vmap(ctl.vmap(lambda k: rv("z", k, theta[0] + which)))(square(keys[1:3]))

    def step(t, acc):
        return acc + jnp.exp((1.0 + t) * zs[t, jnp.int32(which)] + theta[1])

    return ctl.fori(0, 2, step, jnp.float32(0.0))


def map_in_loop(theta, keys, rv, ctl):
    """The step of a loop that draws is none of the loop of equal length inside it."""
    xs = jnp.array([0.0, 1.0, 3.0])

    def step(before, k):
        z = rv("z", k, theta[0])
        score = lambda c, x: (c, jnp.square(2.0 * z - x * theta[1]))
        return before, ctl.scan(score, 0.0, xs)[1]

    return ctl.scan(step, 0.0, keys[:3])[1].sum()


def map_within_map(theta, keys, rv, ctl):
    """Every pair of lanes, in two loops of equal length in which nothing is drawn."""
    zs = ctl.vmap(lambda k: rv("z", k, theta[0]))(keys[:3])

    def outer(c, x):
        inner = lambda c, y: (c, jnp.square(x - 3.0 * y + theta[1] * x * y))
        return c, ctl.scan(inner, 0.0, zs)[1]

    pairs = ctl.scan(outer, 0.0, zs)[1]
    return (pairs * jnp.arange(9.0).reshape(3, 3)).sum()


def diagonal(theta, keys, rv, ctl):
    """Both lane axes of a choice at the step of a loop."""
    draw = ctl.vmap(ctl.vmap(lambda k, x: rv("z", k, theta[0] * x)))
    zs = draw(square(keys[:2]), jnp.array([[1.0, -2.0], [0.5, 0.3]]))
    step = lambda t, acc: acc + jnp.exp(theta[1] * (1.0 + t) * zs[t][t])
    return ctl.fori(0, 2, step, jnp.float32(0.0)) + ctl.fori(
        0, 2, lambda t, acc: acc + zs[t, t] * zs[1 - t, t], jnp.float32(0.0)
    )


def read_up_to(theta, keys, rv, ctl):
    """A loop that draws nothing reads one that does: an entry depends on the steps before it."""
    draw = lambda c, k: (c, rv("z", k, theta[0]))
    zs = ctl.scan(draw, 0.0, keys[:4])[1]
    read = lambda c, z: (0.5 * c + z, jnp.square(c - theta[1] * z))
    back = ctl.scan(read, jnp.float32(0.0), zs, reverse=True)[1]
    return ctl.scan(read, jnp.float32(0.0), zs)[1].sum() + jnp.exp(back).sum()


PROGRAMS = {
    fn.__name__: fn
    for fn in (
        in_jit, in_checkpoint, in_custom_vjp, in_branch, branch_on_a_choice, three_way, markov,
        accumulating, backwards, not_carried, two_sites, upstream, two_loops,
        loops_of_unequal_length, counted, nested,
        branch_in_loop, table_at_a_choice, choices_at_a_choice, map_in_loop, map_within_map, diagonal,
        read_up_to,
    )
}  # fmt: skip
ESTIMATORS = {
    "score": vt.ScoreFunction(),
    "leave one out": vt.ScoreFunction(num_samples=2, baseline="leave_one_out"),
    "enumerate": vt.Enumerate(),
    "automatic": vt.Automatic(max_samples=2),
    "measure valued": vt.MeasureValued(),
}


class _MoreChoices(Exception):
    pass


def outcomes(program, theta):
    """Every outcome of every choice, followed in Python."""
    total, stack = 0.0, [()]
    while stack:
        prefix = stack.pop()
        seen, log_prob = [], [0.0]

        def rv(name, key, logits):
            if len(seen) == len(prefix):
                raise _MoreChoices
            z = prefix[len(seen)]
            seen.append(z)
            log_prob[0] += jax.nn.log_sigmoid(logits if z else -logits)
            return jnp.float32(z)

        try:
            value = program(theta, jax.random.split(KEY, 5), rv, PYTHON)
            total += jnp.exp(log_prob[0]) * value
        except _MoreChoices:
            stack += [(*prefix, 0), (*prefix, 1)]
    return total


@functools.cache
def exact(name):
    return jax.value_and_grad(functools.partial(outcomes, PROGRAMS[name]))(THETA)


def estimate(name, estimator):
    """``(theta, key) -> (estimate, None)`` of a program, through JAX's control flow."""

    def fn(theta, key):
        def rv(site, k, logits):
            return 1.0 * vt.sample(k, dist.Bernoulli(logits=logits), estimator, name=site)

        return PROGRAMS[name](theta, jax.random.split(key, 5), rv, JAX), None

    return lambda theta, key: vt.surrogate(fn)(theta, key)[0]


def check(drawn, want):
    value, slope = (np.asarray(x, np.float64) for x in drawn)
    for got, wanted in ((value[:, None], want[0]), (slope, want[1])):
        wanted = np.atleast_1d(np.asarray(wanted))
        error = got.std(0) / len(got) ** 0.5
        size = np.abs(np.concatenate([np.atleast_1d(want[0]), want[1]])).max()
        assert error.max() < 0.05 * size / 3, f"too few draws: {error} of {size}"
        np.testing.assert_array_less(np.abs(got.mean(0) - wanted), 4.5 * error + 2e-5 * (1 + size))


# in a loop the default is to leave one out, and what is unrolled is so for all alike
SOME = {"automatic": ("in_branch", "markov", "upstream"), "measure valued": ("three_way", "nested")}
ROWS = [(name, kind) for name in PROGRAMS for kind in ESTIMATORS if name in SOME.get(kind, [name])]


@pytest.mark.few(4)
@pytest.mark.parametrize("name, kind", ROWS)
def test_value_and_gradient(name, kind):
    run = jax.value_and_grad(estimate(name, ESTIMATORS[kind]))
    draws = 4 if kind == "enumerate" else 60_000
    keys = jax.random.split(jax.random.key(1), draws)
    drawn = jax.jit(jax.vmap(run, in_axes=(None, 0)))(THETA, keys)
    if kind == "enumerate":
        for got, want in zip(drawn, exact(name), strict=True):
            np.testing.assert_allclose(got[0], want, rtol=2e-4, atol=2e-5)
    else:
        check(drawn, exact(name))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["accumulating", "two_sites", "two_loops"])
def test_lanes_inside_and_around(name):
    """Under vmap, each lane its own keys and parameters: the mean of the lanes' expectations."""
    thetas = THETA[None] + jnp.array([[0.0, 0.0], [0.5, 0.2], [-0.3, 0.4]])
    estimator = vt.ScoreFunction(num_samples=2, baseline="leave_one_out")

    def fn(thetas, key):
        def rv(site, k, logits):
            return 1.0 * vt.sample(k, dist.Bernoulli(logits=logits), estimator, name=site)

        one = lambda t, k: PROGRAMS[name](t, jax.random.split(k, 5), rv, JAX)
        return jax.vmap(one)(thetas, jax.random.split(key, 3)).sum(), None

    run = jax.value_and_grad(lambda t, k: vt.surrogate(fn)(t, k)[0])
    value, slope = jax.jit(jax.vmap(run, in_axes=(None, 0)))(
        thetas, jax.random.split(jax.random.key(1), 60_000)
    )
    exactly = jax.jit(jax.value_and_grad(functools.partial(outcomes, PROGRAMS[name])))
    wanted = [exactly(t) for t in thetas]
    want = sum(v for v, _ in wanted), jnp.concatenate([g for _, g in wanted])
    check((value, slope.reshape(-1, 6)), want)


def test_a_plate_inside_a_loop_keeps_its_lanes_apart():
    """The noise of one lane's gradient does not grow with the plate."""

    def spread(size):
        def fn(theta, key):
            def step(total, k):
                logits = theta - 0.5 * total
                z = vt.sample(k, dist.Bernoulli(logits=logits), vt.ScoreFunction(), name="z")
                return 0.5 * total + z, jnp.square(z - 0.2 * total)

            total, costs = jax.lax.scan(step, jnp.zeros(size), jax.random.split(key, 5))
            return costs.sum() + total.sum(), None

        run = jax.grad(lambda t, k: vt.surrogate(fn)(t, k)[0])
        drawn = jax.jit(jax.vmap(run, in_axes=(None, 0)))(
            jnp.full(size, 0.3), jax.random.split(KEY, 20_000)
        )
        return float(drawn.std(0).mean())

    one, many = spread(1), spread(16)
    assert abs(many / one - 1) < 0.05, (one, many)


def test_credit_is_reward_to_go():
    """T steps carried along: the last step's noise must not see all T costs.

    With cost c_t = z_t at step t and a logit of its own at each step, whole-trajectory credit
    has per-step variance growing with T; reward-to-go that of the steps that are left. Where no
    step's logit reads what was carried, each cost is credited to its own step alone.
    """
    length = 50

    def fn(logits, key, mix, reads):
        def step(carry, given):
            k, logit = given
            logit = logit + 0.0 * carry if reads else logit
            z = vt.sample(k, dist.Bernoulli(logits=logit), vt.ScoreFunction(), name="z") * 1.0
            return carry + 0.0 * z, z

        total, costs = jax.lax.scan(step, 0.0, (jax.random.split(key, length), logits))
        # exp(log(.)) mixes all steps: whole-trajectory credit
        return (jnp.exp(jnp.log(costs.sum() + 1e-9)) if mix else costs.sum()) + total, None

    def spread(mix, reads=True):
        run = jax.grad(lambda t, k: vt.surrogate(fn)(t, k, mix, reads)[0])
        keys = jax.random.split(KEY, 20_000)
        return np.asarray(
            jax.jit(jax.vmap(run, in_axes=(None, 0)))(jnp.full(length, 1e-4), keys)
        ).var(0)

    to_go, whole = spread(False), spread(True)
    # costs of n coins times a score of +-1/2: E[S^2] / 4 - 1 / 16 with E[S^2] = n (n + 1) / 4
    left = np.arange(length, 0, -1)
    np.testing.assert_allclose(to_go, left * (left + 1) / 16 - 1 / 16, rtol=0.15, atol=0.1)
    np.testing.assert_allclose(spread(False, reads=False), 1 / 16, rtol=0.15)
    np.testing.assert_allclose(whole, length * (length + 1) / 16 - 1 / 16, rtol=0.15)
    theory = (left * (left + 1) / 16).mean() / (length * (length + 1) / 16)
    np.testing.assert_allclose(to_go.mean() / whole.mean(), theory, rtol=0.1)


def test_pathwise_in_loops_costs_nothing():
    def fn(theta, key):
        def step(x, k):
            x = theta * x + vt.sample(k, dist.Normal(), vt.Pathwise(), name="x")
            return x, x**2

        return jax.lax.scan(step, 0.0, jax.random.split(key, 10))[1].sum(), None

    assert not vt.plan(fn, 0.5, KEY).program.sites


@pytest.mark.thorough
@pytest.mark.parametrize("lengths", [(10, 100, 1000)])
def test_compile_time_does_not_grow_with_the_loop(lengths):
    """The program has as many equations whatever the number of steps; operations are linear."""

    def fn(theta, key, length):
        def step(total, k):
            z = vt.sample(k, dist.Bernoulli(logits=theta - total), vt.ScoreFunction(), name="z")
            return 0.9 * total + z, z * total

        return jax.lax.scan(step, 0.0, jax.random.split(key, length))[1].sum(), None

    def size(jaxpr):
        return sum(1 + sum(map(size, _inside(eqn))) for eqn in jaxpr.eqns)

    counts = []
    for length in lengths:
        run = jax.grad(lambda t, k, n=length: vt.surrogate(fn)(t, k, n)[0])
        counts.append(size(jax.make_jaxpr(run)(0.3, KEY).jaxpr))
    assert max(counts) == min(counts), counts


def _inside(eqn):
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner


def _root(x, draw):
    return jax.lax.cond(x > 0, lambda k: jnp.sqrt(x) * draw(k, x), lambda k: 1.0 * x, KEY)


def _log(x, draw):
    low, high = lambda k: x + x**2, lambda k: jnp.log(x) * draw(k, x)
    return jax.lax.switch(jnp.int32(x > 0) + jnp.int32(x > 1), [low, high, low], KEY)


def _nested(x, draw):
    inner = lambda k: jax.lax.cond(x > -1, lambda: jnp.sqrt(x) * draw(k, x), lambda: x)
    return jax.lax.cond(x > 0, inner, lambda k: x**2 + x, KEY)


def _in_a_loop(x, draw):
    def step(c, k):
        yes = lambda: c / x * draw(k, x)
        return jax.lax.cond(x > 0, yes, lambda: c + x), None

    return jax.lax.scan(step, 1.0, jax.random.split(KEY, 3))[0]


def _of_lanes(x, draw):
    one = lambda k, y: jax.lax.cond(y > 0, lambda: jnp.sqrt(y) * draw(k, y), lambda: y)
    return jax.vmap(one)(jax.random.split(KEY, 2), x * jnp.array([1.0, -2.0])).sum()


SKIPPED = {fn.__name__.strip("_"): fn for fn in (_root, _log, _nested, _in_a_loop, _of_lanes)}
SKIPPING = [vt.Enumerate(), vt.ScoreFunction(), vt.ScoreFunction(2, "leave_one_out")]


@pytest.mark.few(3)
@pytest.mark.parametrize("name", SKIPPED)
@pytest.mark.parametrize("estimator", SKIPPING, ids=["enumerate", "score", "leave one out"])
def test_a_branch_not_taken_gets_no_gradient(name, estimator):
    """Where its derivative is infinite, and with it that of what it draws."""

    def f(x):
        def draw(k, x):
            return 1.0 * vt.sample(k, dist.Bernoulli(logits=x), estimator, name="z")

        return SKIPPED[name](x, draw), None

    got = jax.jit(jax.value_and_grad(lambda x: vt.surrogate(f)(x)[0]))(0.0)
    want = jax.jit(jax.value_and_grad(lambda x: SKIPPED[name](x, lambda k, x: 0.5)))(0.0)
    np.testing.assert_allclose(got, want)


def _at_once(x, draw):
    """At -1 what is drawn where nothing is taken has parameters, values and terms that are none."""

    def root(k):
        z = draw(k, jnp.sqrt(x))
        return jnp.log(x * z) + jnp.sqrt(x)

    return jax.lax.cond(x > 0, root, lambda k: x**2 + 2.0 * x, KEY)


def _one_in_another(x, draw):
    def twice(k):
        y = jnp.sqrt(x)
        return jax.lax.cond(y > 0.5, lambda: draw(k, y), lambda: y * draw(k, 1 - y))

    def loop(k):
        step = lambda c, k: (c + draw(k, jnp.sqrt(x * jnp.ones(2))).sum(), None)
        return jax.lax.scan(step, x, jax.random.split(k, 2))[0]

    def infinite_slope(k):
        return draw(k, 0.5 + 0.1 * jnp.sqrt(jnp.abs(x + 1.0)))

    number = jnp.int32(x > 0) + 2 * jnp.int32(x > 1)
    neither = lambda k: x**2 + 2.0 * x
    return jax.lax.switch(number, [neither, twice, loop, infinite_slope], KEY)


NO_NUMBERS = {
    "enumerate": (dist.Bernoulli, vt.Enumerate()),
    "leave one out": (dist.Bernoulli, vt.ScoreFunction(2, "leave_one_out")),
    "optimal": (dist.Bernoulli, vt.ScoreFunction(3, jnp.float32(0.3), coefficient="optimal")),
    "finite": (dist.Bernoulli, vt.MeasureValued()),
    "disarm": (dist.Bernoulli, vt.DisARM()),
    "rebar": (dist.Bernoulli, vt.REBAR()),
    "mix": (dist.Bernoulli, vt.Mix(vt.ARM(), vt.ScoreFunction(2, antithetic=True), 0.4)),
    "sparse": (dist.Bernoulli, vt.SparseMixer()),
    "measure valued": (lambda p: dist.Normal(p, p), vt.MeasureValued()),
    "antithetic": (lambda p: dist.Normal(p, p), vt.Pathwise(2, antithetic=True)),
    "taylor": (lambda p: dist.Normal(p, p), vt.Pathwise(control_variate="taylor")),
}


NO_NUMBER_ROWS = [
    *((_at_once, name) for name in NO_NUMBERS),
    *((_one_in_another, name) for name in ("enumerate", "leave one out", "rebar", "taylor")),
]


@pytest.mark.few(2)
@pytest.mark.parametrize("program, name", NO_NUMBER_ROWS)
def test_a_branch_not_taken_makes_no_numbers(program, name):
    make, estimator = NO_NUMBERS[name]

    def f(x):
        draw = lambda k, p: 1.0 * vt.sample(k, Answering(make(p)), estimator, name="z")
        return program(x, draw), None

    got = jax.jit(jax.value_and_grad(lambda x: vt.surrogate(f)(x)[0]))(-1.0)
    np.testing.assert_allclose(got, (-1.0, 0.0), atol=1e-6)


CALLED = {
    "print": lambda z, note: jax.debug.callback(note, z),
    "callback": lambda z, note: jax.experimental.io_callback(note, None, z),
    "in a loop": lambda z, note: jax.lax.fori_loop(
        0, 1, lambda i, c: [jax.debug.callback(note, z), c + z][1], 0.0),
    "in a branch": lambda z, note: jax.lax.cond(
        z > -1, lambda: jax.debug.callback(note, z), lambda: None),
    "in a checkpoint": lambda z, note: jax.checkpoint(
        lambda z: [jax.debug.callback(note, z), z][1])(z),
}  # fmt: skip


@pytest.mark.few(3)
@pytest.mark.parametrize("name", CALLED)
@pytest.mark.parametrize("estimator", SKIPPING, ids=["enumerate", "score", "leave one out"])
def test_what_is_only_called_is_called_once(name, estimator):
    seen = []

    def f(p):
        z = 1.0 * vt.sample(KEY, dist.Bernoulli(p), estimator, name="z")
        used = CALLED[name](z, lambda z: seen.append(float(z)))
        return 3.0 * z + (0.0 if used is None else 0.0 * used), None

    value, slope = jax.jit(jax.value_and_grad(lambda p: vt.surrogate(f)(p)[0]))(0.5)
    jax.effects_barrier()
    assert len(seen) == 1 and seen[0] in (0.0, 1.0)
    if isinstance(estimator, vt.Enumerate):
        np.testing.assert_allclose((value, slope), (1.5, 3.0))


def _result_of(callback, **kwargs):
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    return lambda z: callback(lambda z: np.float32(3.0 * z), shape, z, **kwargs)


RESULTS = {
    "pure": (_result_of(jax.pure_callback), "vmap_method='sequential'"),
    "pure, one by one": (_result_of(jax.pure_callback, vmap_method="sequential"), None),
    "input and output": (_result_of(jax.experimental.io_callback), "jax.pure_callback"),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", RESULTS)
def test_a_callback_for_its_result(name):
    callback, way_out = RESULTS[name]

    def f(p):
        z = 1.0 * vt.sample(KEY, dist.Bernoulli(p), vt.Enumerate(), name="z")
        return callback(z), None

    estimate = jax.value_and_grad(lambda p: vt.surrogate(f)(p)[0])
    if way_out is None:
        np.testing.assert_allclose(estimate(0.5), (1.5, 3.0))
    else:
        with pytest.raises(vt.SiteError, match=f"Site 'z' .*_callback.*Fix: .*{way_out}"):
            estimate(0.5)


def test_while_is_refused():
    def fn(key):
        def step(carry):
            k, n = carry
            k, now = jax.random.split(k)
            return k, n + vt.sample(now, dist.Bernoulli(0.5), vt.ScoreFunction(), name="z")

        return 1.0 * jax.lax.while_loop(lambda c: c[1] < 3, step, (key, 0))[1], None

    with pytest.raises(vt.SiteError, match="Site 'z' is drawn inside 'while' with ScoreFunction"):
        vt.surrogate(fn)(KEY)


def test_long_loops_of_other_estimators_are_refused():
    def fn(key):
        def step(total, k):
            return total + vt.sample(k, dist.Bernoulli(0.5), vt.Enumerate(), name="z"), None

        return 1.0 * jax.lax.scan(step, 0, jax.random.split(key, 1_000))[0], None

    with pytest.raises(vt.SiteError, match="Site 'z' .*Enumerate.*each of the 1000 steps"):
        vt.surrogate(fn)(KEY)


def test_enumerated_chain_in_a_loop_is_exact():
    """64 steps of five states, by unrolling and dynamic programming."""
    table = jax.nn.log_softmax(jax.random.normal(jax.random.key(4), (5, 5)))
    costs = jax.random.normal(jax.random.key(5), (5, 5))

    def fn(table, key):
        def step(before, k):
            z = vt.sample(k, dist.Categorical(logits=table[before]), vt.Enumerate(), name="z")
            return z, costs[before, z]

        return jax.lax.scan(step, 0, jax.random.split(key, 64))[1].sum(), None

    def forward(table):
        alpha, total = jnp.eye(5)[0], 0.0
        for _ in range(64):
            joint = alpha[:, None] * jnp.exp(jax.nn.log_softmax(table))
            total, alpha = total + (joint * costs).sum(), joint.sum(0)
        return total

    got = jax.jit(jax.value_and_grad(lambda t: vt.surrogate(fn)(t, KEY)[0]))(table)
    want = jax.jit(jax.value_and_grad(forward))(table)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-4)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-3, atol=1e-4)
