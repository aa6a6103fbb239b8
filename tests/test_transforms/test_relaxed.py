"""Relaxed values that reach a decision: refused where the relaxation is to be unbiased."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

import vipp
import vipp_transforms as vt
from vipp.distributions.densities import guarded

pytestmark = pytest.mark.uncompiled

KEY = jax.random.key(0)
STEPS = jnp.arange(3.0)


def planned(estimator, fn, distribution=None):
    d = dist.Bernoulli(0.4) if distribution is None else distribution
    return vt.plan(lambda: (jnp.sum(fn(vt.sample(KEY, d, estimator, name="z")) * 1.0), None))


def estimators(plan):
    return {site.template.name: site.template.estimator for site in plan.program.sites.values()}


def _own(fn):
    """``fn``, said to have the derivative one."""
    call = jax.custom_jvp(fn)
    call.defjvp(lambda primals, tangents: (call(*primals), tangents[0]))
    return call


_spike, _rounded = _own(lambda z: jnp.where(z > 0.5, 3.0, 1.0)), _own(lambda z: jnp.round(z))
_spike_backwards = jax.custom_vjp(lambda z: jnp.where(z > 0.5, 3.0, 1.0))
_spike_backwards.defvjp(lambda z: (_spike_backwards(z), None), lambda _, slope: (slope,))

DECIDES = {
    "a comparison": ("gt", lambda z: jnp.where(z > 0.5, 3.0, 1.0)),
    "with one of the choices": ("eq", lambda z: jnp.where(z == 1, 3.0, 1.0)),
    "a truth value": ("ne", lambda z: jnp.where(z, 3.0, 1.0)),
    "an index": ("convert_element_type", lambda z: STEPS[z.astype(int)]),
    "a sign": ("sign", lambda z: jnp.sign(z - 0.5)),
    "a floor": ("floor", lambda z: jnp.floor(z + 0.5)),
    "rounding": ("round", jnp.round),
    "a remainder": ("rem", lambda z: (3 * z) % 1.0),
    "the largest": ("argmax", lambda z: jnp.argmax(jnp.stack([z, 1 - z]))),
    "what is sorted along": ("sort", lambda z: lax.sort_key_val(z * STEPS, STEPS)[1][0]),
    "a branch": ("gt", lambda z: lax.cond(z > 0.5, lambda: 3.0, lambda: 1.0)),
    "one of several": (
        "convert_element_type",
        lambda z: lax.switch(jnp.int32(2 * z), [lambda: 1.0, lambda: 2.0, lambda: 3.0]),
    ),
    "in a scan": (
        "gt", lambda z: lax.scan(lambda c, x: (c + (z * x > 1.0), None), 0.0, STEPS)[0],
    ),
    "how often": ("lt", lambda z: lax.while_loop(lambda c: c < 3 * z, lambda c: c + 1.0, 0.0)),
    "in lanes": ("gt", lambda z: jax.vmap(lambda a: jnp.where(a * z > 0.3, a, 2.0))(STEPS)),
    "in a library's loop": ("(lt_to|call_hi_primitive)", lambda z: jnp.digitize(z, STEPS[:2] - 0.5)),
    "in a library's search": ("(le_to|call_hi_primitive)", lambda z: jnp.searchsorted(STEPS[:2] + 0.2, z)),
    "how often, counted": ("gt", lambda z: lax.fori_loop(0, 3, lambda i, c: c + (z > 0.3), 0)),
    "in a loop of integers": (
        "gt",
        lambda z: lax.while_loop(lambda c: c[1] < 3, lambda c: (c[0] + (z > 0.5), c[1] + 1), (0, 0))[0],
    ),
    "in a branch of integers": (
        "gt", lambda z: lax.cond(jnp.array(True), lambda z: (z > 0.5).astype(int), lambda z: 1, z),
    ),
    "in a map": ("gt", lambda z: lax.map(lambda a: a > 0.5, z * STEPS)),
    "in a reduction": ("reduce", lambda z: lax.reduce(
        (z * STEPS, STEPS), (-1.0, 0.0),
        lambda a, b: (jnp.maximum(a[0], b[0]), jnp.where(a[0] > b[0], a[1], b[1])), (0,))[1]),
    "with a derivative of its own": ("gt", lambda z: _spike(z)),
    "with a derivative of its own, in lanes": ("gt", lambda z: jax.vmap(_spike)(z * STEPS)),
    "with a derivative of its own, in a loop": (
        "gt", lambda z: lax.scan(lambda c, x: (c + _spike(x * z), None), 0.0, STEPS)[0],
    ),
    "with a derivative of its own, backwards": ("gt", lambda z: _spike_backwards(z)),
    "rounded, with a derivative of its own": ("round", lambda z: _rounded(z)),
    "in a call": ("gt", jax.checkpoint(lambda z: jnp.where(z > 0.5, 1.0, 2.0))),
    "a jump that a softmax hides from equal entries": (
        "gt", lambda z: jax.nn.softmax(jnp.where(z * STEPS > 0.5, 3.0, 1.0))[0],
    ),
    "at two values, equal at one": (
        "gt", lambda z: jnp.where(z - 0.2 > 0, jnp.where(z > 0.6, 5.0, z - 0.2), 0.0),
    ),
}  # fmt: skip

two = lambda z: jnp.stack([z, 1 - z])
HARMLESS = {
    "linear": lambda z: 3 * z + 1,
    "relu": lambda z: jax.nn.relu(z - 0.5),
    "leaky_relu": lambda z: jax.nn.leaky_relu(z - 0.5),
    "elu": lambda z: jax.nn.elu(z - 0.5),
    "hard_tanh": lambda z: jax.nn.hard_tanh(3 * z - 1.5),
    "huber": lambda z: jnp.where(abs(z - 0.5) < 0.3, (z - 0.5) ** 2, 0.6 * abs(z - 0.5) - 0.09),
    "clip": lambda z: jnp.clip(z, 0.2, 0.7),
    "sort": lambda z: jnp.sort(jnp.stack([z, 0.5, 1 - z]))[0],
    "median": lambda z: jnp.median(jnp.stack([z, 0.5, 1 - z])),
    "xlogy": lambda z: jax.scipy.special.xlogy(z, 0.3),
    "xlogy of itself": lambda z: jax.scipy.special.xlogy(z, z),
    "entropy": jax.scipy.special.entr,
    "gelu": jax.nn.gelu,
    "silu": lambda z: jax.nn.silu(z - 0.5),
    "relu6": lambda z: jax.nn.relu6(8 * z),
    "softplus": jax.nn.softplus,
    "logaddexp": lambda z: jnp.logaddexp(z, 0.3),
    "softmax": lambda z: jax.nn.softmax(two(z)),
    "one of two results": lambda z: jnp.linalg.slogdet(jnp.eye(2) * (1 + z))[1],
    "a sine with a derivative of its own": _own(jnp.sin),
    "not a number": jnp.nan_to_num,
    "logsumexp": lambda z: jax.nn.logsumexp(two(z)),
    "solve": lambda z: jnp.linalg.solve(jnp.eye(2) * (1 + z), jnp.ones(2)),
    "Bernoulli, itself": lambda z: dist.BernoulliLogits(0.3).mean * z,
    "Bernoulli": lambda z: dist.Bernoulli(z * 0.5 + 0.2).log_prob(1),
    "Bernoulli, by logits": lambda z: dist.Bernoulli(logits=z).log_prob(1),
    "Categorical": lambda z: dist.Categorical(two(z) * 0.5 + 0.25).log_prob(1),
    "Binomial": lambda z: dist.Binomial(3, z * 0.5 + 0.2).log_prob(2),
    "Poisson": lambda z: dist.Poisson(z + 1).log_prob(2),
    "Normal": lambda z: dist.Normal(z, 1 + z).log_prob(0.3),
    "TruncatedNormal": lambda z: dist.TruncatedNormal(z, 1.0, low=0.0).log_prob(2.0),
    "Beta": lambda z: dist.Beta(z + 1, z + 2).log_prob(0.3),
    "VonMises": lambda z: dist.VonMises(z, 1.0).log_prob(0.4),
    "MixtureSameFamily": lambda z: dist.MixtureSameFamily(
        dist.Categorical(logits=two(z)), dist.Normal(two(z), 1.0)
    ).log_prob(0.4),
    "scored by its own density": lambda z: _exact(z),
}


def _exact(z):
    return guarded(dist.Bernoulli(0.3)).log_prob(z) + guarded(dist.Bernoulli(logits=0.3)).log_prob(
        z
    )


@pytest.mark.parametrize("make", [vt.REBAR, vt.GumbelSoftmax])
@pytest.mark.parametrize(
    "scored",
    [
        lambda l: guarded(dist.Bernoulli(logits=l)).log_prob(0.0),
        lambda l: guarded(dist.Bernoulli(logits=l), observed=True).log_prob(0.0),
        lambda l: guarded(dist.Binomial(3, logits=l)).log_prob(2),
    ],
    ids=["drawn", "observed", "counted"],
)
def test_a_density_decides_nothing_at_logits_of_any_size(make, scored):
    """Of a parameter times the choice nothing is known."""

    def program(weight):
        return scored(weight * vt.sample(KEY, dist.Bernoulli(0.4), make(), name="z")), None

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert estimators(vt.plan(program, jnp.float32(2.0))) == {"z": make()}


if jax.__version_info__ < (0, 11):  # later ones round and compare within, and are refused
    HARMLESS |= {
        "relative entropy": lambda z: jax.scipy.special.rel_entr(z + 0.1, 0.5),
        "sinc": jnp.sinc,
    }


@pytest.mark.few(8)
@pytest.mark.rank_promotion("allow")
@pytest.mark.parametrize("name", DECIDES)
def test_a_decision_is_refused(name):
    primitive, fn = DECIDES[name]
    match = rf"Site 'z': the relaxed value of REBAR reaches '{primitive}'.*biased. Fix: "
    with pytest.raises(vt.SiteError, match=match):
        planned(vt.REBAR(), fn)


@pytest.mark.few(8)
@pytest.mark.rank_promotion("allow")
@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_continuous_is_not(name):
    assert estimators(planned(vt.REBAR(), HARMLESS[name])) == {"z": vt.REBAR()}


@pytest.mark.parametrize(
    "estimator", [vt.GumbelSoftmax(), vt.GumbelSoftmax(hard=True), vt.StraightThrough(),
                  vt.ReinMax(), vt.ReSTE(), vt.SparseMixer()],
)  # fmt: skip
def test_a_biased_relaxation_warns(estimator):
    with pytest.warns(vipp.RelaxedDecisionWarning, match=r"'z'.*reaches 'gt'.*no gradient.*Fix"):
        planned(estimator, DECIDES["a comparison"][1])


def test_a_unit_vector_that_is_compared():
    d = vipp.OneHotCategorical(logits=jnp.zeros(3))
    with pytest.raises(vt.SiteError, match="reaches 'argmax'"):
        planned(vt.REBAR(), lambda z: jnp.argmax(z, -1), d)
    plan = planned(vt.REBAR(), lambda z: d.log_prob(z) + z @ STEPS, d)
    assert estimators(plan) == {"z": vt.REBAR()}


def test_a_decision_that_the_value_does_not_see():
    """What is reported beside it may compare."""
    fn = lambda: ((z := vt.sample(KEY, dist.Bernoulli(0.4), vt.REBAR(), name="z")), z > 0.5)
    assert estimators(vt.plan(fn)) == {"z": vt.REBAR()}


def test_another_choice_that_depends_on_it_is_no_decision():
    def program():
        z = vt.sample(KEY, dist.Bernoulli(0.4), vt.REBAR(), name="z")
        x = vt.sample(KEY, dist.Bernoulli(0.2 + 0.5 * z), vt.ScoreFunction(), name="x")
        return jnp.where(x > 0.5, 3.0, 1.0) + z, None

    assert estimators(vt.plan(program)) == {"z": vt.REBAR(), "x": vt.ScoreFunction()}


def test_an_estimator_that_keeps_the_values_may_compare():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = planned(vt.LocalExpectation(), DECIDES["a comparison"][1])
    assert estimators(plan) == {"z": vt.LocalExpectation()}


def test_a_density_of_an_impossible_category():
    d = vipp.OneHotCategorical(probs=jnp.array([0.0, 0.25, 0.75]))
    slope = jax.jit(jax.grad(d.log_prob))(jnp.array([0.0, 1.0, 0.0]))
    np.testing.assert_allclose(slope, [0.0, np.log(0.25), np.log(0.75)], rtol=1e-6)
    assert d.log_prob(jnp.array([1.0, 0.0, 0.0])) == -jnp.inf
