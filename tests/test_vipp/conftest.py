"""References that know nothing of vipp: brute-force bounds, and a test of unbiasedness."""

import copy
import itertools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions.distribution import ExpandedDistribution, Independent, MaskedDistribution
from numpyro.handlers import seed, substitute, trace

import vipp
import vipp_transforms as vt
from vipp_transforms.evaluation import Evaluation


def unmasked(fn):
    """What ``fn`` draws from: its masks taken off."""
    if isinstance(fn, MaskedDistribution):
        return unmasked(fn.base_dist)
    if isinstance(fn, Independent | ExpandedDistribution):
        fn = copy.copy(fn)
        fn.base_dist = unmasked(fn.base_dist)
    return fn


def _run(program, data, args):
    return trace(seed(substitute(program, data=data), 0)).get_trace(*args)


def _latent(record):
    return {n: s for n, s in record.items() if s["type"] == "sample" and not s["is_observed"]}


def _assignments(record):
    """All joint values of the latent sites, each with a leading axis."""
    choices = {}
    for name, site in _latent(record).items():
        base = site["fn"]
        while isinstance(base, MaskedDistribution | Independent | ExpandedDistribution):
            base = base.base_dist
        with jax.ensure_compile_time_eval():
            support = np.asarray(base.enumerate_support(expand=False)).reshape(-1)
        shape = np.shape(site["value"])
        rows = list(itertools.product(support, repeat=math.prod(shape)))
        choices[name] = [np.array(r).reshape(shape) for r in rows]
    joint = list(itertools.product(*choices.values()))
    return {n: jnp.asarray(np.stack([j[i] for j in joint])) for i, n in enumerate(choices)}


def _log_density(record, plates):
    """Scaled log density per element of ``plates`` (without their subsampling)."""
    total = 0.0
    for site in record.values():
        if site["type"] != "sample":
            continue
        log_prob = site["fn"].log_prob(site["value"])
        log_prob = jnp.broadcast_to(log_prob, site["fn"].batch_shape)
        scale = 1.0 if site["scale"] is None else site["scale"]
        frames = {f.name: f for f in site["cond_indep_stack"]}
        for name in plates:
            scale = scale * frames[name].size / record[name]["args"][0]
        keep = [frames[name].dim + log_prob.ndim for name in plates]
        log_prob = scale * log_prob
        total = total + log_prob.sum(tuple(a for a in range(log_prob.ndim) if a not in keep))
    return total


def outcomes(guide, params, args=(), fixed=None):
    """Every joint value of the guide's latent sites (leading axis), and their log probability."""
    fixed = fixed or {}
    joint = _assignments(_run(guide, {**params, **fixed}, args))

    def log_prob(values):
        record = _run(guide, {**params, **fixed, **values}, args)
        return sum(unmasked(s["fn"]).log_prob(s["value"]).sum() for s in _latent(record).values())

    return joint, jax.vmap(log_prob)(joint)


def _picks(num, count):
    """All ways to draw ``count`` times from ``num`` outcomes."""
    return np.array(list(itertools.product(range(num), repeat=count)))


def _importance_weighted(log_w):
    return jax.scipy.special.logsumexp(log_w, axis=0) - math.log(len(log_w))


def exact_bound(
    model, guide, args=(), *, particles=None, plates=(), fixed=None, formula=_importance_weighted
):
    """``params -> bound``, enumerated over all draws of all particles (None: the ELBO).

    ``plates``: one bound for each of their elements. ``fixed``: values of subsampled plates.
    ``formula``: the bound of log weights, particles along the first axis.
    """
    fixed = fixed or {}

    def bound(params):
        joint, log_q = outcomes(guide, params, args, fixed)

        def log_weight(values):
            q = _run(guide, {**params, **fixed, **values}, args)
            p = _run(model, {**params, **fixed, **values}, args)
            return _log_density(p, plates) - _log_density(q, plates)

        log_w, count = jax.vmap(log_weight)(joint), particles or 1
        picks = _picks(len(log_q), count)
        several = jax.vmap(formula)(log_w[picks])
        each = several.reshape((len(picks), -1)).sum(1)
        record = _run(guide, {**params, **fixed}, args)
        sizes = [(record[n]["args"][0], np.size(record[n]["value"])) for n in plates if n in record]
        ratio = math.prod(full / taken for full, taken in sizes)
        return ratio * (jnp.exp(log_q[picks].sum(1)) * each).sum()

    return jax.jit(bound)


def exact_mean(objective, model, guide, params, args=(), *, draws=1, fixed=None):
    """The expected value and gradient of the estimator itself, over all it may draw.

    ``draws``: how many independent draws it takes of each site, particles times samples.
    """

    def estimate(params, pick):
        planned = vt.plan(objective.draw, jax.random.key(0), params, model, guide, args, {})

        def drawn(site, shape):
            values = joint[site.template.name][pick]
            return values.reshape(shape).astype(site.var.aval.dtype)

        return Evaluation(planned, drawn).value()

    joint, log_q = jax.jit(lambda p: outcomes(guide, p, args, fixed))(params)
    picks = _picks(len(log_q), draws)
    weight = jnp.exp(log_q[picks].sum(1))

    def mean(params):
        return (weight * jax.vmap(estimate, in_axes=(None, 0))(params, picks)).sum()

    return jax.jit(jax.value_and_grad(mean))(params)


def check_unbiased(drawn, exact, bias=0.05):
    """The means of ``drawn``, a value and gradients with a leading axis of draws, are ``exact``.

    Fails too when there are too few draws to see a relative ``bias`` in the value, or in the
    largest entry of the gradient.
    """
    _check_mean(drawn[:1], exact[:1], bias)
    _check_mean(drawn[1:], exact[1:], bias)


def _check_mean(drawn, exact, bias):
    got = [np.asarray(x, np.float64) for x in jax.tree.leaves(drawn)]
    want = [np.asarray(x, np.float64) for x in jax.tree.leaves(exact)]
    size = max(np.abs(x).max() for x in want)
    for g, w in zip(got, want, strict=True):
        error = g.std(0) / math.sqrt(len(g))
        assert np.isfinite(g).all()
        assert error.max() <= bias * size / 4, f"too few draws: error {error.max()} of {size}"
        np.testing.assert_array_less(np.abs(g.mean(0) - w), 4.5 * error + 1e-5 * (1 + size))


def _enough(drawn, exact, bias=0.05):
    """Whether a relative ``bias`` would be seen 39 times out of 40: it is 6.5 standard errors."""

    def seen(drawn, exact):
        error = max(x.std(0, np.float64).max() / len(x) ** 0.5 for x in jax.tree.leaves(drawn))
        return error <= bias / 6.5 * max(np.abs(x).max() for x in jax.tree.leaves(exact))

    return seen(drawn[:1], exact[:1]) and seen(drawn[1:], exact[1:])


@pytest.fixture(scope="session")
def reference():
    """The brute-force references."""
    return SimpleNamespace(
        bound=exact_bound,
        outcomes=outcomes,
        mean=exact_mean,
        unmasked=unmasked,
        check_unbiased=check_unbiased,
    )


def _evaluation(objective, model, guide, args):
    """``(key, params, data) -> (bound, gradient)``, and the data: no constants to fold."""
    one = vipp.value_and_grad(objective, model, guide)
    data = {i: x for i, x in enumerate(args) if isinstance(x, jax.Array)}
    each = lambda key, params, data: one(key, params, *(data.get(i, x) for i, x in enumerate(args)))
    return each, data


@pytest.fixture
def bound_and_grad():
    """``(objective, model, guide, params, *args, keys=None) -> (bound, gradient)``, compiled."""

    def evaluate(objective, model, guide, params, *args, keys=None):
        each, data = _evaluation(objective, model, guide, args)
        if keys is None:
            return jax.jit(each)(jax.random.key(7), params, data)
        run = jax.jit(jax.vmap(each, in_axes=(0, None, None)))
        return run(jax.random.split(jax.random.key(11), keys), params, data)

    return evaluate


BATCH = 4_000  # draws that are evaluated at once


@pytest.fixture
def check_bound():
    """``(wanted, objective, model, guide, params, *args, most)``: bound and gradient are unbiased.

    From as many draws as it takes to see a bias, at most ``most``.
    """

    def check(wanted, objective, model, guide, params, *args, most):
        each, data = _evaluation(objective, model, guide, args)

        @jax.jit
        def batch(number, params, data):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(11), number), BATCH)
            return jax.vmap(each, in_axes=(0, None, None))(keys, params, data)

        drawn = jax.tree.map(np.asarray, batch(0, params, data))
        joined = lambda *xs: np.concatenate(xs)
        for number in range(1, -(-most // BATCH)):
            if _enough(drawn, wanted):
                break
            drawn = jax.tree.map(joined, drawn, batch(number, params, data))
        check_unbiased(drawn, wanted)

    return check
