"""Objectives and estimators under jax_enable_x64: traced, never compiled, and in doubles throughout."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import vipp
from labels import label

K2 = {"num_particles": 2}
OBJECTIVES = [
    vipp.ELBO(kl="analytic"), vipp.ELBO(stick_the_landing=True), vipp.IWAE(**K2), vipp.VIMCO(**K2),
    vipp.Renyi(alpha=0.5, **K2), vipp.PIWAE(num_bounds=2, **K2), vipp.CIWAE(beta=0.5, **K2),
    vipp.TVO(**K2), vipp.VarGrad(**K2), vipp.CUBO(**K2), vipp.ForwardKL(**K2),
    vipp.ReweightedWakeSleep(**K2),
    *(vipp.FilteringBound(resample=way, **K2) for way in ("multinomial", "systematic", "soft")),
]  # fmt: skip
ESTIMATORS = [
    None, vipp.ScoreFunction(2, "leave_one_out"), vipp.Enumerate(), vipp.DisARM(), vipp.ARMS(3),
    vipp.DoubleControlVariates(3),
    vipp.MeasureValued(), vipp.REBAR(), vipp.LocalExpectation(), vipp.GumbelSoftmax(0.5),
    vipp.StraightThrough(), vipp.ReinMax(), vipp.Mix(vipp.ScoreFunction(), vipp.DisARM()),
]  # fmt: skip


def step(guide, a):
    """Two sequences of three steps; of each a choice and a number."""

    def body(c, x):
        with numpyro.plate("N", 3, subsample_size=2) as index:
            c = numpyro.sample("c", dist.Bernoulli(logits=a[index] + c))
            z = numpyro.sample("z", dist.Normal(a[index] + c, 1.2))
            if not guide:
                numpyro.sample("x", dist.Normal(z, 1.0), obs=x[index])
        return 1.0 * c, None

    return body


def looped(guide):
    def run():
        a = numpyro.param("a", jnp.zeros(3)) if guide else jnp.arange(3.0)
        scan(step(guide, a), jnp.zeros(2), jnp.ones((3, 3)))

    return run


def flat(guide):
    def run():
        a = numpyro.param("a", jnp.zeros(3)) if guide else jnp.arange(3.0)
        step(guide, a)(0.0, jnp.ones(3))

    return run


def check(objective, model, guide):
    run = vipp.value_and_grad(objective, model, guide)
    found = jax.eval_shape(run, jax.random.key(0), {"a": jnp.zeros(3)})
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("float64")}


@pytest.mark.few(6)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=label)
def test_objectives(objective, x64):
    program = looped if isinstance(objective, vipp.FilteringBound) else flat
    check(objective, program(False), program(True))


@pytest.mark.few(6)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=label)
def test_estimators(estimator, x64):
    guide = flat(True) if estimator is None else vipp.with_estimators(flat(True), {"c": estimator})
    check(vipp.ELBO(), flat(False), guide)
