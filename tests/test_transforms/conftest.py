"""Expectations without sampling error: an estimator averaged over its own draws, and the truth.

A *program* is a function of ``(theta, rv)`` that draws with ``rv(name, distribution)``, returns a
scalar and knows no engine. `Engine` runs it under `vipp_transforms`; `Given` runs it as plain
Python at given values, lanes one after the other, and adds up their log probabilities. So the two
sides share nothing but the program's formulas.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.extend.core import Primitive

import vipp_transforms as vt
from jaxpr_in_numpy import Interpreter, to_numpy
from vipp.distributions.answers import Answering
from vipp_transforms._jax import evaluator
from vipp_transforms.evaluation import Evaluation
from vipp_transforms.lifting import Lifted

LARGEST = 2**17  # joint assignments of one estimate


class Moments(NamedTuple):
    """The expected value, gradient and Hessian-vector product, and the total probability."""

    value: Any
    grad: Any
    curvature: Any
    mass: Any


class Grid(NamedTuple):
    """A finite stand-in for a support: ``sum_k exp(log_weight_k) q(values_k) f(values_k)``.

    With equal spacing on the real line this is the trapezoid rule, whose error for a smooth density
    and integrand falls off exponentially; other supports are mapped to the real line.
    """

    values: np.ndarray
    log_weights: np.ndarray


class Engine:
    """Draws through the engine."""

    def __init__(self, key, estimators, default=None, noise=None):
        self.key, self.estimators, self.default = key, estimators, default
        self.noise_key = key if noise is None else noise

    def __call__(self, name, distribution):
        estimator = self.estimators.get(name, self.default)
        return vt.sample(_key(self.key, name), Answering(distribution), estimator, name=name)

    def noise(self, name, loc, scale):
        key = _key(self.noise_key, name)
        return vt.sample(key, dist.Normal(loc, scale), vt.Pathwise(), name=name)

    def lanes(self, fn, size, *args, keys=True):
        """``fn(rv, *args[i])`` for every ``i``, stacked; with one key for all lanes or one each."""
        key = jax.random.split(self.key, size) if keys else self.key
        noise = jax.random.split(self.noise_key, size)
        run = lambda k, n, *xs: fn(Engine(k, self.estimators, self.default, n), *xs)
        axes = (0 if keys else None, 0, *(0 for _ in args))
        return jax.vmap(run, in_axes=axes)(key, noise, *args)


class Given:
    """Draws are given, or (``values=None``) recorded as what must be given."""

    def __init__(self, key, grids, values=None, path=(), log_probs=None, needs=None):
        self.key, self.grids, self.values, self.path = key, grids, values, path
        self.log_probs = [] if log_probs is None else log_probs
        self.needs = {} if needs is None else needs

    def __call__(self, name, d):
        label = (name, *self.path)
        if self.values is None:
            grid = self.grids.get(name) or _support(d)
            self.needs[label] = grid, d.batch_shape, d.event_shape
            fill = jnp.asarray(grid.values[0])
            return jnp.broadcast_to(fill, (*d.batch_shape, *d.event_shape))
        self.log_probs.append(d.log_prob(self.values[label]).sum())
        return self.values[label]

    def noise(self, name, loc, scale):
        shape = jnp.broadcast_shapes(jnp.shape(loc), jnp.shape(scale))
        return loc + scale * jax.random.normal(_key(self.key, name), shape)

    def lanes(self, fn, size, *args, keys=True):
        split = jax.random.split(self.key, size)
        each = [
            fn(
                Given(
                    split[i], self.grids, self.values, (*self.path, i), self.log_probs, self.needs
                ),
                *(x[i] for x in args),
            )
            for i in range(size)
        ]
        return jax.tree.map(lambda *xs: jnp.stack(xs), *each)


def _key(key, name):
    return jax.random.fold_in(key, zlib.crc32(name.encode()) >> 1)


def _support(d):
    with jax.ensure_compile_time_eval():
        values = np.asarray(d.enumerate_support(expand=False))
    return Grid(values.reshape(values.shape[0], *d.event_shape), np.zeros(values.shape[0]))


def _assignments(needs):
    """All joint values, ``label -> (n, *shape)``, and the log weight of each."""
    size = math.prod(len(grid.values) ** count for grid, count, _ in needs.values())
    assert size <= LARGEST, f"{size} joint assignments"
    index, values, log_weights = np.arange(size), {}, np.zeros(size)
    for label, (grid, count, shape) in needs.items():
        digits = np.zeros((size, count), int)
        for j in range(count):
            digits[:, j] = index % len(grid.values)
            index = index // len(grid.values)
        values[label] = grid.values[digits].reshape(size, *shape)
        log_weights += grid.log_weights[digits].sum(1)
    return values, log_weights


def _direction(theta):
    return jnp.asarray(np.linspace(1.0, -0.5, theta.size).reshape(theta.shape), theta.dtype)


def _derivatives(fn, theta, orders):
    """Value, gradient, the Hessian times a fixed direction; and ``fn``'s second output."""
    slope = lambda t: jax.value_and_grad(fn, has_aux=True)(t)
    if orders < 2:
        (value, aux), grad = slope(theta)
        return (value, grad, jnp.full_like(grad, jnp.nan)), aux
    ((value, aux), grad), (_, curvature) = jax.jvp(slope, (theta,), (_direction(theta),))
    return (value, grad, curvature), aux


def _antithetic(site):
    """Whether a site's estimator is driven by uniform numbers in place of draws."""
    return isinstance(site.template.estimator, vt.ARM | vt.DisARM)


# A pair's estimate is a polynomial in each uniform number between the two where its values change:
# two Gauss-Legendre nodes on each of three pieces are exact up to the third degree.
PIECES = Grid(np.arange(6), np.zeros(6))
NODES = np.tile((1 - 3**-0.5) / 2 + np.array([0.0, 3**-0.5]), 3)


def _quadrature(index, probability):
    """Uniform numbers in (0, 1) and their weights, the pieces being those of ``probability``."""
    low, high = jnp.minimum(probability, 1 - probability), jnp.maximum(probability, 1 - probability)
    edges = jnp.stack([jnp.zeros_like(low), low, high, jnp.ones_like(low)])
    start, end = (jnp.take_along_axis(edges, (index // 2 + i)[None], 0)[0] for i in (0, 1))
    return start + (end - start) * jnp.asarray(NODES, low.dtype)[index], (end - start) / 2


# What an estimator draws is an input of the traced estimate.
GIVEN = Primitive("given")
GIVEN.def_abstract_eval(lambda index, shape, dtype: jax.core.ShapedArray(shape, dtype))


def exact_estimate(
    fn, theta, grids: Mapping[str, Grid] | None = None, orders: int = 2, compiled: bool = False
) -> Moments:
    """The engine's estimate for ``fn(theta) -> (value, aux)``, averaged over all of its draws."""
    needs = {}
    estimate = _on_given_draws(fn, theta, grids or {}, needs)

    def average(t, values, log_weight):
        each, log_prob = jax.vmap(estimate, (None, 0), axis_size=len(log_weight))(t, values)
        weight = jax.lax.stop_gradient(jnp.exp(log_weight + log_prob))
        return (weight * each).sum(), weight.sum()

    return _summed(average, theta, *_assignments(needs), orders, compiled)


def _on_given_draws(fn, theta, grids, needs):
    """``(theta, draws) -> value, log probability``, traced once.

    Notes in ``needs`` what must be drawn: for each site a grid, how many draws, and their shape.
    """

    def estimate(t):
        log_prob = jnp.zeros((), t.dtype)

        def draw(site, shape):
            nonlocal log_prob
            name, support = site.template.name, site.template.support
            grid = PIECES if _antithetic(site) else grids.get(name)
            grid = grid or Grid(support, np.zeros(len(support)))
            needs[site.index] = (
                grid,
                math.prod(shape) // math.prod(site.template.event_shape),
                shape,
            )
            if not _antithetic(site):
                return GIVEN.bind(index=site.index, shape=shape, dtype=site.var.aval.dtype)
            piece = GIVEN.bind(index=site.index, shape=shape, dtype=np.dtype("int32"))
            ones = Lifted(jnp.ones(site.var.aval.shape, site.var.aval.dtype))
            probability = jnp.exp(jax.lax.stop_gradient(evaluation.log_prob(site, ones).array))
            assert probability.shape == shape
            u, weight = _quadrature(piece, probability)
            log_prob += jnp.log(weight).sum()
            return u

        evaluation = Evaluation(vt.plan(fn, t), draw)
        value = evaluation.value()
        assert value.shape == (), value.shape
        for site in evaluation.plan.program.sites.values():
            if site.index in needs and not _antithetic(site):
                each = evaluation.log_prob(site, evaluation.drawn[site.index]).array
                assert each.size == needs[site.index][1]  # one entry per independent draw
                log_prob += each.sum()
        return value, log_prob

    closed = jax.make_jaxpr(estimate)(theta)
    jaxpr = closed.jaxpr
    drawn = [e for e in jaxpr.eqns if e.primitive is GIVEN]
    assert {e.params["index"] for e in drawn} == {*needs}
    run = evaluator(
        [e for e in jaxpr.eqns if e.primitive is not GIVEN],
        [*jaxpr.constvars, *jaxpr.invars, *(e.outvars[0] for e in drawn)],
        jaxpr.outvars,
    )

    def given(t, values):
        draws = (values[e.params["index"]].astype(e.params["dtype"]) for e in drawn)
        return run(*closed.consts, t, *draws)

    return given


CHUNK = 2048  # joint assignments at a time


def _summed(average, theta, values, log_weights, orders, compiled=False):
    """The moments of a sum over joint assignments, of ``(theta, values, log weights) -> part``.

    Compilation for a single use would take most of the time: NumPy evaluates the traced sum, in
    double precision whatever ``theta`` has, unless it is to be ``compiled``.
    """
    size = len(log_weights)
    numbers = np.arange(size) if compiled else np.arange(min(size, CHUNK))

    def part(t, values, log_weights):
        return _derivatives(lambda t: average(t, values, log_weights), t, orders)

    def arguments(start):
        """Past the end, the first ones again, of no weight."""
        index = start + numbers
        weight = np.where(index < size, log_weights[index % size], -np.inf).astype(theta.dtype)
        return {k: x[index % size] for k, x in values.items()}, weight

    if compiled:
        return Moments(*jax.tree.leaves(jax.jit(part)(theta, *arguments(0))))
    traced, parts = jax.make_jaxpr(part)(theta, *arguments(0)), []
    with np.errstate(all="ignore"):
        for start in range(0, size, len(numbers)):
            leaves = jax.tree.leaves((theta, *arguments(start)))
            parts.append(Interpreter({}).run(traced, [to_numpy(x) for x in leaves]))
    return Moments(*map(sum, zip(*parts, strict=True)))


def true_expectation(program, theta, grids: Mapping[str, Grid] | None = None) -> Moments:
    """The moments of a program's exact expectation, by summing over the joint support."""
    key, grids = jax.random.key(0), grids or {}
    listing = Given(key, grids)
    jax.eval_shape(lambda t: program(t, listing), theta)
    needs = {
        label: (grid, math.prod(batch), (*batch, *event))
        for label, (grid, batch, event) in listing.needs.items()
    }

    def average(t, values, log_weight):
        def one(given, log_weight):
            rv = Given(key, grids, given)
            value = program(t, rv)
            weight = jnp.exp(sum(rv.log_probs, start=log_weight))
            return weight, jnp.where(weight > 0, weight * value, 0.0)

        weights, parts = jax.vmap(one)(values, log_weight)
        return parts.sum(), weights.sum()

    return _summed(average, theta, *_assignments(needs), 2)


BATCH, MOST = 10_000, 400_000  # draws


def estimates(program, theta, estimators=None, default=None, batch=BATCH):
    """``seed -> batch`` independent values and gradients; `Given`'s reparameterised noise."""

    def one(key):
        def estimate(t):
            rv = Engine(key, estimators or {}, default, jax.random.key(0))
            return vt.surrogate(lambda t: (program(t, rv), None))(t)[0]

        return jax.value_and_grad(estimate)(theta)

    keys = lambda seed: jax.random.split(jax.random.key(seed), batch)
    run = jax.jit(jax.vmap(one))
    return lambda seed: tuple(np.asarray(x, np.float64) for x in run(keys(seed)))


def precise(drawn, exact, bias=0.05):
    """Whether there are enough draws to see a relative ``bias`` in the mean.

    At a sixth of it per standard error, one of its size is seen 39 times out of 40.
    """
    assert np.isfinite(drawn).all()
    error = drawn.std(0).max() / math.sqrt(len(drawn))
    return error <= bias * np.abs(exact).max() / 6


def check_mean(drawn, exact):
    """The mean of ``drawn`` is ``exact``, and a bias of 5% would have been seen."""
    exact = np.asarray(exact, np.float64)
    assert precise(drawn, exact), f"too few draws: {len(drawn)}"
    error, size = drawn.std(0) / math.sqrt(len(drawn)), np.abs(exact).max()
    np.testing.assert_array_less(np.abs(drawn.mean(0) - exact), 4 * error + 1e-4 * (1 + size))


class Exact:
    """What the tests use of this file."""

    Grid = Grid
    estimate = staticmethod(exact_estimate)
    expectation = staticmethod(true_expectation)
    estimates = staticmethod(estimates)
    check_mean = staticmethod(check_mean)

    def __init__(self):
        self._known = {}

    @staticmethod
    def staged(program, estimators=None, default=None):
        """The program as the function that `vipp_transforms.surrogate` takes."""
        estimators = estimators or {}
        return lambda theta: (program(theta, Engine(jax.random.key(0), estimators, default)), None)

    def check(
        self, program, theta, estimators=None, default=None, grids=None, orders=2, rtol=None,
        compiled=False,
    ):  # fmt: skip
        """The averaged estimate has the true value and (up to ``orders``) derivatives."""
        fn = self.staged(program, estimators, default)
        got = exact_estimate(fn, theta, grids, orders, compiled)
        want = self._expectation(program, theta, grids)
        rtol = rtol or (1e-7 if theta.dtype == jnp.float64 else 5e-4)
        assert abs(float(want.mass) - 1) < rtol, "the assignments don't exhaust the support"
        for order, name in enumerate(Moments._fields[: orders + 1]):
            a, b = getattr(got, name), getattr(want, name)
            atol = rtol * max(1.0, float(jnp.abs(b).max()))
            np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=f"{name}, order {order}")
        assert abs(float(got.mass) - 1) < rtol
        return want

    def check_sampled(self, program, theta, estimators=None, default=None, grids=None):
        """The mean of as many estimates as it takes is the true value and gradient."""
        want = self._expectation(program, theta, grids)
        assert abs(float(want.mass) - 1) < 1e-4, "the assignments don't exhaust the support"
        run = estimates(program, theta, estimators, default)
        drawn = [run(0)]
        enough = lambda: all(map(precise, map(np.concatenate, zip(*drawn)), want[:2]))
        while not enough() and len(drawn) * BATCH < MOST:
            drawn.append(run(len(drawn)))
        for got, exact in zip(map(np.concatenate, zip(*drawn)), want[:2], strict=True):
            check_mean(got, exact)

    def _expectation(self, program, theta, grids):
        """Programs that are module constants or cached are summed once for all estimators."""
        label = program, str(theta.dtype), theta.tobytes()
        if label not in self._known:
            self._known[label] = true_expectation(program, theta, grids)
        return self._known[label]


@pytest.fixture(scope="session")
def exact():
    return Exact()
