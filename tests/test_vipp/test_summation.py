"""Exact marginals against brute force: plated models, chains in loops, what was summed out."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoLaplaceApproximation, AutoNormal
from numpyro.infer.util import log_density
from scipy.special import logsumexp

import plated
import vipp
from vipp.programs.composed import Binding

pytestmark = pytest.mark.uncompiled


def log_marginal(model, given=None, *args, parallel=None):
    """The log density of the kept values, all other latent sites summed out."""
    given = given or {}
    marginal = vipp.marginal(model, keep=list(given), exact=True, parallel=parallel)
    p = marginal.bind(Binding({}, args))
    with handlers.seed(rng_seed=0):
        return jax.jit(lambda given: p.log_density(vipp.Trace(given)))(given)


def normal(x, mean):
    return -0.5 * (float(x) - mean) ** 2 - 0.5 * math.log(2 * math.pi)


@pytest.mark.few(1)
@pytest.mark.parametrize("seed", range(12))
def test_random_plated_models(seed, reference):
    spec = plated.specification(seed)
    got = log_marginal(plated.model_of(spec), {"mu": jnp.asarray(plated.MU)})
    np.testing.assert_allclose(got, plated.brute_force(spec, reference.unmasked), rtol=2e-4)


# -- chains ----------------------------------------------------------------------------------------

KEY = jax.random.key(0)
RNG = np.random.RandomState(0)
A2, A3, B, W = (
    RNG.dirichlet(np.ones(s[-1]), size=s[:-1]) for s in ((2, 2), (3, 3), (2, 2, 2), (2, 3, 2))
)
X = RNG.randn(6)
sigmoid = lambda a: 1 / (1 + math.exp(-a))


def choose(name, table, *index):
    return numpyro.sample(name, dist.Categorical(probs=jnp.asarray(table)[index]))


def see(x, mean):
    numpyro.sample("x", dist.Normal(1.0 * mean, 1.0), obs=x)


def first_order(reverse=False):
    def step(z, x):
        z = choose("z", A3, z)
        see(x, z)
        return z, None

    return lambda: scan(step, 1, X, reverse=reverse)


def second_order(xs=X):
    def step(before, x):
        z = choose("z", B, *before)
        see(x, z + 0.3 * before[1])
        return (z, before[0]), None

    scan(step, (0, 1), xs)


def two_chains():
    def step(before, x):
        z = choose("z", A2, before[0])
        w = choose("w", W, z, before[1])
        see(x, z - w + u)
        return (z, w), None

    u = numpyro.sample("u", dist.Bernoulli(0.3))
    scan(step, (0, 2), X[:4])


def function_of_choice_and_time():
    def step(carry, x):
        m, t = carry
        z = numpyro.sample("z", dist.Bernoulli(jax.nn.sigmoid(m)))
        see(x, z * t - m)
        return (1.5 * z - 0.2 * t, t + 0.5), None

    scan(step, (0.1, 0.0), X)


def accumulator():
    def step(total, x):
        z = numpyro.sample("z", dist.Bernoulli(jax.nn.sigmoid(-total)))
        see(x, total)
        return total + z, None

    scan(step, 0.0, X)


def seen_outside():
    def step(z, _):
        z = choose("z", A3, z)
        return z, z

    last, all_of_them = scan(step, 1, None, length=6)
    see(X, all_of_them)
    numpyro.factor("last", 0.7 * last)


def coupled_lanes():
    def step(z, x):
        with numpyro.plate("m", 3):
            z = choose("z", A2, z)
        see(x, z @ jnp.array([1.0, 2.0, -1.0]))
        return z, None

    scan(step, jnp.zeros(3, int), X[:3])


def scaled():
    with handlers.scale(scale=2.5):
        first_order()()


def one_step():
    scan(lambda z, x: (z, see(x, choose("z", A3, z))), 1, X[:1])


def path_of(table, start, mean, xs=X, order=1):
    """The sum over all paths of a chain whose choices depend on the ``order`` last ones."""
    terms = []
    for path in itertools.product(range(table.shape[-1]), repeat=len(xs)):
        before, total = list(start), 0.0
        for z, x in zip(path, xs):
            total += math.log(table[tuple(before)][z]) + normal(x, mean(z, before))
            before = [z, *before][:order]
        terms.append(total)
    return np.logaddexp.reduce(terms)


def sum_two_chains():
    terms = []
    quadruples = list(itertools.product((0, 1), repeat=4))
    for u, zs, ws in itertools.product((0, 1), quadruples, quadruples):
        total, z0, w0 = math.log(0.3 if u else 0.7), 0, 2
        for z, w, x in zip(zs, ws, X):
            total += math.log(A2[z0, z] * W[z, w0, w]) + normal(x, z - w + u)
            z0, w0 = z, w
        terms.append(total)
    return np.logaddexp.reduce(terms)


def sum_coins(start, probability, mean, carry):
    terms = []
    for zs in itertools.product((0, 1), repeat=6):
        total, c, t = 0.0, start, 0.0
        for z, x in zip(zs, X):
            p = sigmoid(probability(c))
            total += math.log(p if z else 1 - p) + normal(x, mean(c, z, t))
            c, t = carry(c, z, t), t + 0.5
        terms.append(total)
    return np.logaddexp.reduce(terms)


def sum_seen_outside():
    tilted = np.exp(0.7 * np.arange(3))
    alpha = np.eye(3)[1]
    for x in X:
        alpha = (alpha @ A3) * np.exp([normal(x, k) for k in range(3)])
    return np.log(alpha @ tilted)


def sum_coupled_lanes():
    states = list(itertools.product((0, 1), repeat=3))
    move = np.array([[math.prod(A2[a, b] for a, b in zip(s, t)) for t in states] for s in states])
    alpha = np.eye(8)[0]
    for x in X[:3]:
        alpha = (alpha @ move) * np.exp([normal(x, s[0] + 2 * s[1] - s[2]) for s in states])
    return np.log(alpha.sum())


CHAINS = {
    "first order": (first_order(), lambda: path_of(A3, [1], lambda z, _: z)),
    "in reverse": (first_order(reverse=True), lambda: path_of(A3, [1], lambda z, _: z, X[::-1])),
    "second order": (second_order, lambda: path_of(B, [0, 1], lambda z, b: z + 0.3 * b[1], order=2)),
    "two chains, and a choice outside": (two_chains, sum_two_chains),
    "a function of the choice and of time": (
        function_of_choice_and_time,
        lambda: sum_coins(0.1, lambda c: c, lambda c, z, t: z * t - c, lambda c, z, t: 1.5 * z - 0.2 * t),
    ),
    "an accumulator": (
        accumulator, lambda: sum_coins(0.0, lambda c: -c, lambda c, z, t: c, lambda c, z, t: c + z)
    ),
    "seen outside": (seen_outside, sum_seen_outside),
    "lanes that an observation couples": (coupled_lanes, sum_coupled_lanes),
    "scaled": (scaled, lambda: 2.5 * path_of(A3, [1], lambda z, _: z)),
    "one step": (one_step, lambda: path_of(A3, [1], lambda z, _: z, X[:1])),
}  # fmt: skip


@pytest.mark.few(1)
@pytest.mark.parametrize("case", CHAINS)
def test_chains(case):
    model, wanted = CHAINS[case]
    np.testing.assert_allclose(log_marginal(model), wanted(), rtol=1e-4)


@pytest.mark.few(1)
@pytest.mark.parametrize("case", [c for c in CHAINS if c != "second order"])
def test_chains_whose_steps_are_multiplied_two_by_two(case):
    model, wanted = CHAINS[case]
    np.testing.assert_allclose(log_marginal(model, parallel=True), wanted(), rtol=1e-4)


def test_steps_that_look_back_further_are_not_multiplied():
    with pytest.raises(ValueError, match="'z' cannot.*one step before it.*Fix: "):
        log_marginal(lambda: second_order(jnp.zeros(6)), parallel=True)


@pytest.mark.thorough
@pytest.mark.parametrize("parallel", [False, True])
def test_sequences_of_different_lengths_in_a_plate(parallel):
    xs, lengths, first = RNG.randn(6, 3), [6, 2, 4], np.array([0.5, 0.3, 0.2])

    def model():
        def step(carry, x):
            z, t = carry
            with numpyro.plate("n", 3), handlers.mask(mask=t < jnp.array(lengths)):
                z = choose("z", A3, z)
                see(x, z)
            return (z, t + 1), None

        with numpyro.plate("n", 3):
            z0 = numpyro.sample("z0", dist.Categorical(probs=jnp.asarray(first)))
        scan(step, (z0, 0), jnp.asarray(xs))

    wanted = 0.0
    for n, length in enumerate(lengths):
        alpha = first
        for x in xs[:length, n]:
            alpha = (alpha @ A3) * np.exp([normal(x, k) for k in range(3)])
        wanted += np.log(alpha.sum())
    np.testing.assert_allclose(log_marginal(model, parallel=parallel), wanted, rtol=1e-4)


def hidden_markov(xs):
    p = numpyro.sample("p", dist.Beta(2.0, 2.0))

    def step(z, x):
        z = numpyro.sample("z", dist.Bernoulli(jnp.where(z == 1, 1 - p, p)))
        see(x, z)
        return z, None

    scan(step, 0, xs)


@pytest.mark.thorough
def test_a_long_chain_costs_to_compile_what_a_short_one_does():
    """Equations do not grow with the number of steps; single precision stays right."""
    p = vipp.marginal(hidden_markov, ["p"], exact=True)

    def equations(xs):
        def fn(q):
            with handlers.seed(rng_seed=0):
                return p.bind(Binding({}, (xs,))).log_density(vipp.Trace({"p": q}))

        return fn, str(jax.make_jaxpr(fn)(0.3)).count("\n")

    short, long = np.tile(X, 2), np.tile(X, 1000)
    assert equations(short)[1] == equations(long)[1]
    alpha, wanted = np.array([1.0, 0.0]), 0.0
    for x in long:
        alpha = (alpha @ np.array([[0.7, 0.3], [0.3, 0.7]])) * np.exp([normal(x, 0), normal(x, 1)])
        wanted, alpha = wanted + np.log(alpha.sum()), alpha / alpha.sum()
    got = jax.jit(equations(long)[0])(0.3) - dist.Beta(2.0, 2.0).log_prob(0.3)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


# -- tables whose entries differ by more than a number holds ----------------------------------------

START = np.array([0.0, -np.inf, -np.inf, -np.inf])


def path_through_tables(move, seen):
    """Log evidence, and its derivatives: how often each move is made, and what is seen."""
    move, seen = np.float64(move) - math.log(4), np.float64(seen)
    before, after = [START], [np.zeros(4)]
    for e in seen:
        before.append(logsumexp(before[-1][:, None] + move + e, axis=0))
    for e in seen[::-1]:
        after.insert(0, logsumexp(move + e + after[0], axis=1))
    total = logsumexp(before[-1])
    if total == -np.inf:
        return total, np.zeros_like(move), np.zeros_like(seen)
    pairs = [
        np.exp(b[:, None] + move + e + a - total)
        for b, e, a in zip(before, seen, after[1:], strict=False)
    ]
    return total, sum(pairs), np.array([p.sum(0) for p in pairs])


def spread_tables(row, rng):
    """Tables that are dense or not, some entries impossible, spread over up to ``e^-200..e^0``."""
    move = -[1, 20, 50, 200][row % 4] * rng.random((4, 4))
    seen = -[1, 20, 80, 200][row // 4 % 4] * rng.random((7, 4))
    if row % 3 == 1:
        move[rng.random((4, 4)) < 0.4] = -np.inf
    if row % 5 == 1:
        seen[rng.random((7, 4)) < 0.3] = -np.inf
    if row % 7 == 1:
        move[np.tril_indices(4, -1)] = -np.inf
    return np.float32(move), np.float32(seen)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.few(1)
@pytest.mark.parametrize(("width", "parallel"), [(1, False), (50, False), (1, True)])
def test_unequal_tables_lose_nothing_in_single_precision(width, parallel):
    """A density that takes more room than a message stays in the loop."""

    def model(move, seen):
        def step(z, e):
            new = numpyro.sample("z", dist.Categorical(logits=jnp.zeros(4)))
            numpyro.factor("move", move[z, new])
            numpyro.factor("see", jnp.min(jnp.broadcast_to(e[new], (width,))))
            return new, None

        scan(step, 0, seen)

    fn = lambda *tables: log_marginal(model, None, *tables, parallel=parallel)
    run, rng = jax.jit(jax.value_and_grad(fn, (0, 1))), np.random.default_rng(0)
    impossible = 0
    for row in range(100):
        tables = spread_tables(row, rng)
        (got, slopes), (wanted, *others) = run(*tables), path_through_tables(*tables)
        np.testing.assert_allclose(got, wanted, rtol=2e-5)
        for slope, other in zip(slopes, others, strict=True):
            np.testing.assert_allclose(slope, other, rtol=2e-3, atol=1e-5)
        impossible += wanted == -np.inf
    assert 0 < impossible < 50


@pytest.mark.thorough
def test_two_hundred_sites_without_a_loop():
    def model():
        z = 0
        for t in range(200):
            z = choose(f"z{t}", A2, z)
        see(0.3, z)

    move = np.linalg.matrix_power(A2, 200)[0]
    wanted = np.log(move @ np.exp([normal(0.3, 0), normal(0.3, 1)]))
    np.testing.assert_allclose(log_marginal(model), wanted, rtol=1e-4)


# -- what may be summed out -------------------------------------------------------------------------


PROBS, WEIGHTS, SEEN, LABELS = [0.2, 0.5, 0.3], [1.0, -0.5, 2.0], [True, False], [0, 1]


def splits():
    with numpyro.plate("N", 2):
        counts = numpyro.sample("counts", dist.Multinomial(3, probs=jnp.array(PROBS)))
        see(X[:2], counts @ jnp.array(WEIGHTS))


def totals(total, **parameter):
    def model():
        with numpyro.plate("N", 2):
            see(X[:2], numpyro.sample("count", dist.Binomial(np.array(total), **parameter)))

    return model


def labels_some_of_which_are_seen():
    with numpyro.plate("N", 2):
        label = dist.Bernoulli(jnp.array(0.3))
        z = numpyro.sample("z", label, obs=jnp.array(LABELS), obs_mask=jnp.array(SEEN))
        see(X[:2], z)


def data_some_of_which_are_seen():
    def step(z, given):
        z = choose("z", A2, z)
        coin = numpyro.sample("coin", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=given[0], obs_mask=given[1])
        return z, coin * given[0]

    scan(step, 0, (X[:4], jnp.array([True, True, False, True])))


def sum_data():
    alpha = np.eye(2)[0]
    for i, x in enumerate(X[:4]):
        alpha = (alpha @ A2) * ([1, 1] if i == 2 else np.exp([normal(x, 0), normal(x, 1)]))
    return np.log(alpha.sum())


def sum_splits():
    rows = [c for c in itertools.product(range(4), repeat=3) if sum(c) == 3]
    ways = lambda c: (
        6 / math.prod(map(math.factorial, c)) * math.prod(p**k for p, k in zip(PROBS, c))
    )
    return sum(
        np.logaddexp.reduce([math.log(ways(c)) + normal(x, np.dot(c, WEIGHTS)) for c in rows])
        for x in X[:2]
    )


def sum_totals(p=0.3):
    term = lambda n, k: math.log(math.comb(n, k) * p**k * (1 - p) ** (n - k))
    return sum(
        np.logaddexp.reduce([term(n, k) + normal(x, k) for k in range(n + 1)])
        for n, x in zip((3, 1), X)
    )


def sum_labels():
    term = lambda z, x: math.log(0.3 if z else 0.7) + normal(x, z)
    return term(0, X[0]) + np.logaddexp(term(0, X[1]), term(1, X[1]))


def unit_vectors():
    with numpyro.plate("n", 6):
        z = numpyro.sample("z", vipp.OneHotCategorical(probs=jnp.array(PROBS)))
        see(X, z @ jnp.array(WEIGHTS))


def sum_unit_vectors():
    terms = [[math.log(p) + normal(x, w) for p, w in zip(PROBS, WEIGHTS)] for x in X]
    return np.logaddexp.reduce(terms, axis=1).sum()


SUPPORTS = {
    "multinomial": (splits, sum_splits),
    "unit vectors": (unit_vectors, sum_unit_vectors),
    "a total for each lane": (totals(np.array([3, 1]), probs=0.3), sum_totals),
    "a total for each lane, logits": (totals(np.array([3, 1]), logits=math.log(3 / 7)), sum_totals),
    "data some of which are seen": (data_some_of_which_are_seen, sum_data),
    "labels some of which are seen": (labels_some_of_which_are_seen, sum_labels),
}


def test_supports_in_double_precision(x64, monkeypatch):
    # JAX keeps the single-precision copy of a NumPy array for as long as any program holds it, and
    # gives it to later programs in double precision too: these arrays are this test's own
    for name in ("A2", "A3", "B", "W", "X"):
        monkeypatch.setitem(globals(), name, globals()[name].copy())
    cases = {
        **SUPPORTS,
        "first order": CHAINS["first order"],
        "lanes": CHAINS["lanes that an observation couples"],
    }
    got = jax.jit(lambda: {case: log_marginal(model) for case, (model, _) in cases.items()})()
    assert {x.dtype for x in got.values()} == {jnp.dtype("float64")}
    for case, (_, wanted) in cases.items():
        np.testing.assert_allclose(got[case], wanted(), rtol=1e-12, err_msg=case)


def test_gradient_where_totals_differ():
    """A count that a lane cannot have is of probability zero, and has no gradient."""
    total = jnp.array([3, 1])
    slope = jax.jit(jax.grad(lambda p: log_marginal(totals(total, probs=p))))(0.3)
    wanted = (sum_totals(0.3 + 1e-5) - sum_totals(0.3 - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope, wanted, rtol=1e-4)


# -- derivatives -----------------------------------------------------------------------------------


@pytest.mark.thorough
def test_second_derivatives_and_impossible_values():
    def model():
        q = numpyro.sample("q", dist.Uniform(0.0, 1.0))
        z = numpyro.sample("z", dist.Categorical(logits=jnp.array([0.0, 1.0, 0.0]) * q))
        w = numpyro.sample("w", dist.Bernoulli(0.5))
        numpyro.factor("impossible", jnp.where((z == 2) | (z + w == 0), -jnp.inf, q * z * w))

    def by_hand(q):
        first = jax.nn.log_softmax(jnp.array([0.0, q, 0.0])) + jnp.log(0.5)
        return jnp.logaddexp(first[0], jnp.logaddexp(first[1], first[1] + q))

    def derivatives(f):
        return [float(d(0.3)) for d in (f, jax.grad(f), jax.grad(jax.grad(f)))]

    got = derivatives(lambda q: log_marginal(model, {"q": q}))
    np.testing.assert_allclose(got, derivatives(by_hand), rtol=1e-4, atol=1e-6)


# -- refused ---------------------------------------------------------------------------------------


def scaled_in_part():
    z = numpyro.sample("z", dist.Bernoulli(0.3))
    with handlers.scale(scale=2.0):
        see(0.3, z)


def many_lanes():
    with numpyro.plate("N", 20):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
    see(0.3, z.sum())


def crossed():
    rows, columns = numpyro.plate("rows", 2, dim=-1), numpyro.plate("columns", 3, dim=-2)
    with rows:
        b = numpyro.sample("b", dist.Bernoulli(0.3))
    with columns:
        c = numpyro.sample("c", dist.Bernoulli(0.3))
    with rows, columns:
        see(0.3, b + c)


def many_parents():
    zs = [numpyro.sample(f"z{i}", dist.Bernoulli(0.3)) for i in range(30)]
    see(0.3, sum(zs))


def subsampled_beside():
    z = numpyro.sample("z", dist.Bernoulli(0.3))
    with numpyro.plate("N", 4, subsample_size=2):
        see(jnp.zeros(2), z)


def counting_to_300():
    scan(
        lambda n, _: (n + numpyro.sample("z", dist.Bernoulli(0.3)), see(0.0, n)),
        0,
        None,
        length=300,
    )


def under_an_array(handler):
    def model():
        with handler:
            first_order()()

    return model


def a_number_that_matters():
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    see(0.1, w + numpyro.sample("z", dist.Bernoulli(0.3)))


REFUSED = {
    "a part scaled": (scaled_in_part, "'z' and 'x' are summed over together but scaled differently"),
    "many lanes mixed": (many_lanes, r"'z' has lanes of shape \(20,\).*'x' depends on 20.*2\*\*20"),
    "crossed plates": (crossed, "'b' and 'c' are in different plates.*coupled.*'x'"),
    "many parents": (many_parents, "density of 'x' depends on sites 'z0'.*a table of 1073741824"),
    "a minibatch of a part": (subsampled_beside, "scaled differently"),
    "no chain": (counting_to_300, "'z' is drawn in a loop of 300 steps that is no finite chain"),
    "totals of several multinomials": (
        lambda: numpyro.factor(
            "f", numpyro.sample("c", dist.Multinomial(np.array([3, 1]), jnp.array(PROBS))).max()
        ),
        "'c' cannot be summed out, as MultinomialProbs has no finite support",
    ),
    "an array scale around a scan": (
        under_an_array(handlers.scale(scale=jnp.ones(6))), "scale or mask that is an array"
    ),
    "an array mask around a scan": (
        under_an_array(handlers.mask(mask=jnp.ones(6, bool))), "scale or mask that is an array"
    ),
    "a number that matters": (a_number_that_matters, "'w' cannot be summed out, as Normal has no"),
    "a count without bound": (lambda: see(0.1, numpyro.sample("z", dist.Poisson(2.0))), "'z' cannot be summed"),
}  # fmt: skip


@pytest.mark.few(4)
@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    model, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"(?s){message}.*Fix: "):
        log_marginal(model)


# -- drawn back ------------------------------------------------------------------------------------


def with_a_mean():
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))

    def step(z, x):
        z = choose("z", A3, z)
        see(x, mu * z)
        return z, None

    scan(step, choose("z0", A3, 1), X[:4])


def posterior(mu):
    paths = {}
    for path in itertools.product(range(3), repeat=5):
        total = math.log(A3[1, path[0]])
        for a, b, x in zip(path, path[1:], X):
            total += math.log(A3[a, b]) + normal(x, mu * b)
        paths[path] = total
    total = np.logaddexp.reduce(list(paths.values()))
    return {path: math.exp(p - total) for path, p in paths.items()}


def test_paths_are_drawn_back_exactly():
    summed = vipp.marginal(with_a_mean, ["mu"], exact=True)
    draws = vipp.infer_discrete(jax.random.key(0), summed, {"mu": jnp.full(20_000, 0.8)})
    paths = np.concatenate([np.asarray(draws["z0"])[:, None], draws["z"]], axis=1)
    wanted = posterior(0.8)
    for pair in ((0, 1), (2, 3), (1, 4)):
        for a, b in itertools.product(range(3), repeat=2):
            got = ((paths[:, pair[0]] == a) & (paths[:, pair[1]] == b)).mean()
            exact = sum(p for z, p in wanted.items() if (z[pair[0]], z[pair[1]]) == (a, b))
            np.testing.assert_allclose(got, exact, atol=4.5 * math.sqrt(exact / 20_000) + 1e-3)


def test_the_most_probable_path():
    summed = vipp.marginal(with_a_mean, ["mu"], exact=True)
    means = jnp.array([0.8, -1.5, 0.1])
    got = vipp.infer_discrete(jax.random.key(0), summed, {"mu": means}, temperature=0)
    for mu, z0, z in zip(means, got["z0"], got["z"]):
        paths = posterior(float(mu))
        assert (int(z0), *z.tolist()) == max(paths, key=paths.get)


def test_the_most_probable_lanes():
    def model():
        with numpyro.plate("N", 3):
            die = numpyro.sample("die", dist.DiscreteUniform(1, 3))
            unseen = numpyro.sample("unseen", dist.Bernoulli(jnp.array([0.2, 0.9])).to_event(1))
            numpyro.sample("y", dist.Normal(1.0 * die, 1.0), obs=jnp.array([3.0, 1.0, 2.0]))
        pair = numpyro.sample("pair", dist.Bernoulli(0.4).expand([2]))
        numpyro.sample("x", dist.Normal(die.sum() + pair @ jnp.array([1.0, 2.0]), 1.0), obs=7.0)
        return unseen

    got = vipp.infer_discrete(
        jax.random.key(0), vipp.marginal(model, [], exact=True), {}, temperature=0
    )
    wanted = {"die": [3, 1, 2], "pair": [1, 0], "unseen": [[0, 1]] * 3}
    assert {n: x.tolist() for n, x in got.items()} == wanted


@pytest.mark.thorough
def test_a_trained_guide_draws_what_was_summed_out():
    def model(x):
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        logit = numpyro.param("logit", -0.5)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(logits=logit))
            numpyro.deterministic("mean", mu * z)
            see(x, mu * z)

    def guide(x):
        numpyro.sample("mu", dist.Normal(numpyro.param("loc", 0.7), 1e-5))

    summed, arguments = vipp.marginal(model, ["mu"], exact=True), (optax.sgd(0.1), 3, X[:3])
    result = vipp.fit(KEY, vipp.ELBO(), summed, guide, *arguments, progress_bar=False)
    draws = result.sample_posterior(KEY, 10_000, discrete=True)
    assert set(draws) == {"mu", "z", "mean"}
    assert (draws["mean"] == draws["mu"][:, None] * draws["z"]).all()
    mu, logit = float(draws["mu"][0]), float(result.params["logit"])
    wanted = [sigmoid(logit + normal(x, mu) - normal(x, 0)) for x in X[:3]]
    np.testing.assert_allclose(draws["z"].mean(0), wanted, atol=0.025)


def test_a_model_that_summed_nothing_out_has_nothing_to_draw_back():
    alone = lambda: numpyro.sample("mu", dist.Normal(numpyro.param("loc", 0.0), 1.0))
    fitted = vipp.fit(KEY, vipp.ELBO(), alone, alone, optax.sgd(0.1), 1, progress_bar=False)
    with pytest.raises(ValueError, match="expected what vipp.marginal"):
        fitted.sample_posterior(KEY, discrete=True)


def test_what_nothing_depends_on_has_no_values_to_be_summed():
    """A number that is not seen has mass one, and is not drawn back; a choice is."""
    summed = vipp.marginal(data_some_of_which_are_seen, [], exact=True)
    draws = vipp.infer_discrete(KEY, summed, {}, temperature=0)
    assert {n: x.shape for n, x in draws.items()} == {"z": (4,), "coin": (4,)}
    assert not draws["coin"].any()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((hidden_markov, {}), "needs what vipp.marginal"),
        (
            (vipp.marginal(hidden_markov, ["p"], exact=True), {}),
            "'p' is kept but was given no value",
        ),
        (
            (vipp.marginal(with_a_mean, ["mu"], exact=True), {"mu": 0.4}),
            r"have shapes {'mu': \(\)}, expected one leading axis",
        ),
    ],
)
def test_what_cannot_be_drawn_back(arguments, message):
    with pytest.raises(ValueError, match=message):
        vipp.infer_discrete(jax.random.key(0), *arguments, X)


# -- in good standing ------------------------------------------------------------------------------


def mixture(x):
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        w = numpyro.sample("w", dist.Normal(z * mu, 1.0))
        numpyro.sample("x", dist.Normal(w + z, 1.0), obs=x)


DATA, LOCAL = jnp.array([1.3, 0.2, 2.1, 0.9]), jnp.array([0.1, 0.2, 0.3, 0.4])
SUMMED = vipp.marginal(mixture, ["mu", "w"], exact=True)


def mixture_density(mu, w):
    part = lambda z: dist.Normal(z * mu, 1).log_prob(w) + dist.Normal(w + z, 1).log_prob(DATA)
    local = jnp.logaddexp(jnp.log(0.7) + part(0), jnp.log(0.3) + part(1)).sum()
    return dist.Normal(0, 2).log_prob(mu) + local


STANDING = {
    "substituted": lambda f: (f, {"mu": 2.0, "w": LOCAL}),
    "another seed": lambda f: (handlers.seed(f, 7), {"mu": 2.0, "w": LOCAL}),
    "conditioned": lambda f: (handlers.seed(handlers.condition(f, {"mu": 2.0}), 1), {"w": LOCAL}),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("case", STANDING)
def test_log_density_under_numpyro(case):
    program, values = STANDING[case](SUMMED)
    got, record = log_density(program, (DATA,), {}, values)
    np.testing.assert_allclose(got, mixture_density(2.0, LOCAL), rtol=1e-5)
    assert [n for n, s in record.items() if s["type"] == "sample"] == ["mu", "w", "summed_out"]


@pytest.mark.thorough
def test_guides_and_predictions_of_numpyro():
    for guide in (AutoNormal(SUMMED), AutoLaplaceApproximation(SUMMED)):
        svi = SVI(SUMMED, guide, optax.adam(0.01), Trace_ELBO())
        assert np.isfinite(svi.run(jax.random.key(0), 3, DATA, progress_bar=False).losses).all()
    draws = Predictive(SUMMED, num_samples=3)(jax.random.key(0), DATA)
    assert {n: x.shape for n, x in draws.items() if n != "summed_out"} == {"mu": (3,), "w": (3, 4)}


@pytest.mark.thorough
def test_nuts_of_a_change_point():
    """Rates before and after a change whose time is summed out."""
    counts = jnp.array([2.0, 3.0, 1.0, 9.0, 11.0, 8.0])

    def model():
        rates = numpyro.sample("rates", dist.Gamma(2.0, 0.5).expand([2]).to_event(1))
        change = numpyro.sample("change", dist.DiscreteUniform(1, 5))
        with numpyro.plate("days", 6):
            rate = rates[(jnp.arange(6) >= change).astype(int)]
            numpyro.sample("counts", dist.Poisson(rate), obs=counts)

    evidence, means = [], []
    for change in range(1, 6):
        parts = (counts[:change], counts[change:])
        post = [(2.0 + float(c.sum()), 0.5 + len(c)) for c in parts]
        evidence.append(sum(math.lgamma(a) - a * math.log(b) for a, b in post))
        means.append([a / b for a, b in post])
    weights = np.exp(np.array(evidence) - np.logaddexp.reduce(evidence))
    summed = vipp.marginal(model, ["rates"], exact=True)
    mcmc = MCMC(NUTS(summed), num_warmup=200, num_samples=1500, progress_bar=False)
    mcmc.run(jax.random.key(0))
    got = mcmc.get_samples()["rates"]
    np.testing.assert_allclose(got.mean(0), weights @ np.array(means), atol=0.25)


def two_means():
    return numpyro.sample("locs", dist.Normal(jnp.array([-1.0, 1.0]), 0.5).to_event(1))


def of_lanes(y):
    locs = two_means()
    with numpyro.plate("N", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(locs[z], 0.6), obs=y)


STAY = np.array([[0.9, 0.1], [0.2, 0.8]])


def of_a_chain(y):
    locs = two_means()

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(STAY)[z]))
        numpyro.sample("y", dist.Normal(locs[z], 0.6), obs=y)
        return z, None

    scan(step, 0, y)


@pytest.mark.thorough
@pytest.mark.parametrize("model", [of_lanes, of_a_chain], ids=lambda f: f.__name__)
def test_nuts_of_means(model):
    """Moments of what is kept, against a grid over it."""
    y = np.array([-0.8, -1.4, 0.9, 1.3, 0.4, 1.1, -1.0, -0.7, 1.6, 0.8])
    axis = np.linspace(-4, 4, 161)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    seen = np.exp([normal(x / 0.6, grid / 0.6) for x in y])
    if model is of_lanes:
        likelihood = (seen @ np.array([0.6, 0.4])).prod(0)
    else:
        state = np.zeros_like(grid) + [1.0, 0.0]
        for each in seen:
            state = (state @ STAY) * each
        likelihood = state.sum(-1)
    weight = likelihood * np.exp(-2.0 * ((grid - np.array([-1.0, 1.0])) ** 2).sum(-1))
    weight /= weight.sum()
    means = np.einsum("ij,ijk->k", weight, grid)
    variances = np.einsum("ij,ijk->k", weight, (grid - means) ** 2)
    mcmc = MCMC(
        NUTS(vipp.marginal(model, ["locs"], exact=True)),
        num_warmup=200,
        num_samples=3_000,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), jnp.asarray(y))
    got = np.asarray(mcmc.get_samples()["locs"])
    np.testing.assert_allclose(got.mean(0), means, atol=0.03)
    np.testing.assert_allclose(got.std(0), variances**0.5, rtol=0.08)


def test_analytic_divergence_beside_what_is_summed_out(bound_and_grad):
    x = jnp.array([0.3, 2.1, -0.8])

    def model():
        m = numpyro.sample("m", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
        with numpyro.plate("N", 3):
            c = numpyro.sample("c", dist.Bernoulli(0.3))
            numpyro.sample("x", dist.Normal(m[c], 1.0), obs=x)

    def guide():
        loc = numpyro.param("loc", jnp.array([0.5, -0.3]))
        numpyro.sample("m", dist.Normal(loc, 1e-3).to_event(1))

    def wanted(loc):
        parts = [jnp.log(p) + dist.Normal(m, 1.0).log_prob(x) for p, m in zip((0.7, 0.3), loc)]
        q, p = dist.Normal(loc, 1e-3).to_event(1), dist.Normal(0.0, 2.0).expand([2]).to_event(1)
        return jnp.logaddexp(*parts).sum() - dist.kl_divergence(q, p)

    loc = jnp.array([0.5, -0.3])
    summed = vipp.marginal(model, ["m"], exact=True)
    got = bound_and_grad(vipp.ELBO(kl="analytic"), summed, guide, {"loc": loc})
    value, slope = jax.jit(jax.value_and_grad(wanted))(loc)
    np.testing.assert_allclose(got[0], value, atol=0.01)
    np.testing.assert_allclose(got[1]["loc"], slope, atol=0.01)
