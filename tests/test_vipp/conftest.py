"""References that know nothing of vipp: brute-force bounds, and a test of unbiasedness."""

import copy
import itertools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vipp
from numpyro.distributions.distribution import ExpandedDistribution, Independent, MaskedDistribution
from numpyro.handlers import seed, substitute, trace


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
    return {n: jnp.stack([j[i] for j in joint]) for i, n in enumerate(choices)}


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


def exact_bound(model, guide, args=(), *, particles=None, plates=(), fixed=None):
    """``params -> bound``: E log q-weighted mean over ``particles`` (None: the ELBO), enumerated.

    ``plates``: one bound for each of their elements. ``fixed``: values of subsampled plates.
    """
    fixed = fixed or {}

    def bound(params):
        joint = _assignments(_run(guide, {**params, **fixed}, args))

        def one(values):
            q = _run(guide, {**params, **fixed, **values}, args)
            p = _run(model, {**params, **fixed, **values}, args)
            log_w = _log_density(p, plates) - _log_density(q, plates)
            drawn = sum(unmasked(s["fn"]).log_prob(s["value"]).sum() for s in _latent(q).values())
            ratio = math.prod(
                q[n]["args"][0] / np.size(q[n]["value"]) for n in plates if n in q
            )
            return log_w, drawn, ratio

        log_w, log_q, ratio = jax.vmap(one)(joint)
        count = particles or 1
        picks = np.array(list(itertools.product(range(len(log_q)), repeat=count)))
        weight = jnp.exp(log_q[picks].sum(1))
        several = jax.scipy.special.logsumexp(log_w[picks], axis=1) - math.log(count)
        return ratio[0] * (weight * several.reshape((len(weight), -1)).sum(1)).sum()

    return bound


def check_unbiased(samples, exact, bias=0.05):
    """The mean of ``samples`` (a pytree, leading axis draws) is ``exact``.

    Fails too when there are too few samples to see a relative ``bias``.
    """
    for got, want in zip(
        jax.tree.leaves(samples), jax.tree.leaves(exact), strict=True
    ):
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        error = got.std(0) / math.sqrt(len(got))
        size = np.abs(want).max()
        assert np.isfinite(got).all()
        assert error.max() <= bias * size / 4, f"too few samples: {error.max()} for {size}"
        np.testing.assert_array_less(np.abs(got.mean(0) - want), 4.5 * error + 1e-5 * (1 + size))


@pytest.fixture
def reference():
    """The brute-force references."""
    return SimpleNamespace(bound=exact_bound, unmasked=unmasked, check_unbiased=check_unbiased)


@pytest.fixture
def bound_and_grad():
    """``(objective, model, guide, params, *args, keys=None) -> (bound, gradient)``, compiled."""

    def evaluate(objective, model, guide, params, *args, keys=None):
        one = vipp.value_and_grad(objective, model, guide)
        if keys is None:
            return jax.jit(lambda k, p: one(k, p, *args))(jax.random.key(7), params)
        run = jax.jit(jax.vmap(lambda k, p: one(k, p, *args), in_axes=(0, None)))
        return run(jax.random.split(jax.random.key(11), keys), params)

    return evaluate
