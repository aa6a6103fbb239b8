"""Mistakes that must not pass: each is told before anything is compiled, by the name at fault."""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import cond, scan
from numpyro.infer.autoguide import AutoDelta, AutoNormal
from numpyro.infer.reparam import LocScaleReparam

import vipp

X = jnp.ones(6)
POSITIVE = dist.constraints.positive


def param(name, value, constraint=dist.constraints.real):
    return numpyro.param(name, value, constraint=constraint)


def draw_mu(*_):
    numpyro.sample("mu", dist.Normal(param("m", 0.0), 1.0))


def nothing(*_):
    pass


def regression(x, size=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("N", size or len(x)):
        numpyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def of_six(x):
    regression(x, 6)


def bare(x):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(mu * jnp.ones(6), 1.0), obs=x)


def column(x):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(mu * jnp.ones((6, 1)), 1.0), obs=x)


def local(subsample_size=None):
    def model(x):
        with numpyro.plate("N", 6, subsample_size=subsample_size) as i:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x[i])

    return model


def draw_minibatch(plate, loc):
    def guide(x):
        with numpyro.plate(plate, 6, subsample_size=3) as i:
            numpyro.sample("z", dist.Normal(loc(i), 1.0))

    return guide


def draw_local(size, plate="N"):
    def guide(x):
        with numpyro.plate(plate, size):
            numpyro.sample("z", dist.Normal(param("m", jnp.zeros(size)), 1.0))

    return guide


def likelihood(make):
    return lambda x: numpyro.sample("x", make(param("w", 0.3)).expand([6]).to_event(1), obs=x)


def one(make):
    return lambda *_: numpyro.sample("mu", make())


def first_rows(x):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("N", 6, subsample_size=2):
        numpyro.sample("x", dist.Normal(mu, 1.0), obs=x[:2])


def discrete(x):
    z = numpyro.sample("z", dist.Bernoulli(0.3))
    numpyro.sample("x", dist.Normal(z, 1.0).expand([6]).to_event(1), obs=x)


def twice(*_):
    draw_mu()
    draw_mu()


def labels(x, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0).expand([6]).to_event(1))


def colliding(*_):
    with numpyro.plate("a", 3, dim=-1), numpyro.plate("b", 4, dim=-1):
        numpyro.sample("mu", dist.Normal())


def too_many(*_):
    with numpyro.plate("a", 3):
        numpyro.sample("mu", dist.Normal(jnp.zeros(5), 1.0))


def covariate(x, y):
    loc = param("w", 1.0) * x
    numpyro.sample("y", dist.Normal(loc, 1.0, validate_args=False).to_event(1), obs=y)


def of_a_sequence(steps):
    step = lambda c, _: (c, numpyro.sample("z", dist.Normal(c, 1.0)))
    return lambda *_: scan(step, 0.0, None, length=steps)


def of_probability(x):
    p = numpyro.sample("p", dist.Beta(1.0, 1.0))
    numpyro.sample("x", dist.Bernoulli(p).expand([6]).to_event(1), obs=x)


def crossed(a, b):
    def program(_):
        with numpyro.plate("a", 3, dim=a), numpyro.plate("b", 3, dim=b):
            numpyro.sample("z", dist.Normal(param("m", jnp.zeros((3, 3))), 1.0))

    return program


def minibatch_of(size):
    def model(x):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("N", size, subsample_size=len(x)):
            numpyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    return model


def scaled_observations(x):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("N", 6), numpyro.handlers.scale(scale=jnp.ones((6, 1))):
        numpyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def by_index(size, subsample_size=None, rows=lambda x, i: x[i]):
    def model(x):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("N", size, subsample_size=subsample_size) as i:
            numpyro.sample("x", dist.Normal(mu, 1.0), obs=rows(x, i))

    return model


def grouped(x, k, size=None):
    with numpyro.plate("G", 2):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    with numpyro.plate("N", 6, subsample_size=size) as i:
        numpyro.sample("x", dist.Normal(a[k[i]], 1.0), obs=x[i])


def grouped_minibatch(x, k):
    grouped(x, k, 3)


def branching(x):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    if mu > 0:
        numpyro.factor("f", mu)


def numpy_of_a_value(x):
    numpyro.sample("mu", dist.Normal(np.exp(param("m", 0.0)), 1.0))


def nested_in_itself(_):
    with numpyro.plate("N", 6), numpyro.plate("N", 6):
        numpyro.sample("mu", dist.Normal(0.0, 1.0))


def named_like_a_site(_):
    with numpyro.plate("mu", 6):
        numpyro.sample("mu", dist.Normal(0.0, 1.0))


def of_n(x, n):
    draw_mu()


def of_x(x):
    draw_mu()


class Mistake(NamedTuple):
    model: Any
    guide: Any
    site: str
    says: str
    args: tuple[Any, ...] = (X,)


def with_scale(value=1.0, **kwargs):
    return lambda *_: numpyro.sample("mu", dist.Normal(0.0, param("s", value, **kwargs)))


MISTAKES = {
    "site missing": Mistake(regression, nothing, "mu", "the guide does not draw"),
    "site misspelt": Mistake(
        regression, lambda x: numpyro.sample("mu2", dist.Normal()), "mu", "did you mean 'mu2'"
    ),
    "site too many": Mistake(
        regression, lambda x: (draw_mu(), numpyro.sample("u", dist.Normal())), "u",
        r"the model does not have.*vipp\.marginal",
    ),
    "site observed": Mistake(
        regression, lambda x: (draw_mu(), one(lambda: dist.Normal().expand([6]))) and
        numpyro.sample("x", dist.Normal().expand([6]).to_event(1)), "x", "the model observes",
    ),
    "support wider": Mistake(one(dist.HalfNormal), draw_mu, "mu", r"Normal \(Real.*HalfNormal"),
    "support of a vector": Mistake(
        one(lambda: dist.Dirichlet(jnp.ones(3))), one(lambda: dist.Normal(jnp.zeros(3)).to_event(1)),
        "mu", "Simplex",
    ),
    "support discrete": Mistake(
        one(lambda: dist.Bernoulli(0.5)), one(lambda: dist.Categorical(jnp.ones(3) / 3)),
        "mu", "CategoricalProbs.*BernoulliProbs",
    ),
    "data nan": Mistake(
        regression, draw_mu, "x", r"index \(4,\).*nan", (X.at[4].set(jnp.nan),)
    ),
    "data inf, NumPy": Mistake(
        regression, draw_mu, "x", r"index \(2,\)", (np.where(np.arange(6) == 2, np.inf, 1.0),)
    ),
    "covariate nan": Mistake(
        covariate, nothing, "y", r"argument x is nan at index \(3,\)", (X.at[3].set(jnp.nan), X)
    ),
    "data (N, 1)": Mistake(regression, draw_mu, "x", r"shape \(6, 1\).*\(6,\)", (X[:, None],)),
    "data (N, 1), no plate": Mistake(bare, draw_mu, "x", r"shape \(6, 1\)", (X[:, None],)),
    "data of length 1": Mistake(of_six, draw_mu, "x", r"shape \(1,\)", (X[:1],)),
    "data too short": Mistake(of_six, draw_mu, "x", r"shape \(5,\)", (X[:5],)),
    "location (N, 1)": Mistake(column, draw_mu, "x", r"shape \(6,\).*\(6, 1\)"),
    "data negative": Mistake(
        likelihood(lambda w: dist.Gamma(jnp.exp(w), 1.0)), nothing, "x",
        r"-2.0 at index \(4,\).*Gamma", (X.at[4].set(-2.0),),
    ),
    "data no counts": Mistake(
        likelihood(lambda w: dist.Poisson(jnp.exp(w))), nothing, "x", "0.5 at index", (0.5 * X,)
    ),
    "data no labels": Mistake(
        likelihood(lambda w: dist.Bernoulli(logits=w)), nothing, "x", "2.0 at index", (2 * X,)
    ),
    "plate sizes": Mistake(
        local(), draw_local(3), "N", r"size 3 in the guide, around \['z'\], and 6"
    ),
    "plate missing": Mistake(
        local(), lambda x: numpyro.sample("z", dist.Normal()), "z", r"shape \(\).*\(6,\)"
    ),
    "minibatch in the model alone": Mistake(local(3), draw_local(6), "N", "subsample size 6"),
    "plates collide": Mistake(colliding, draw_mu, "b", "dimension that no enclosing plate has"),
    "plate does not fit": Mistake(too_many, draw_mu, "mu", "fits the plates"),
    "scale unconstrained": Mistake(
        one(dist.Normal), with_scale(), "s", "as the scale of site 'mu'.*positive"
    ),
    "scale of one of unconstrained": Mistake(
        one(dist.Normal), one(lambda: dist.Normal(param("m", 0.0), param("s", jnp.ones(2))[1])), "s",
        "of which the scale of site 'mu' is made.*positive.*softplus",
    ),
    "scale made of unconstrained": Mistake(
        one(dist.Normal), one(lambda: dist.Normal(param("m", 0.0), 1.0 - 0.5 * param("s", 0.0))),
        "s", r"may become -0\.5",
    ),
    "probability made of unconstrained": Mistake(
        likelihood(lambda w: dist.Bernoulli(0.5 + 0.5 * w)), nothing, "w",
        "the probs of site 'x' is made.*unit_interval",
    ),
    "a network's output as a scale": Mistake(
        lambda x: numpyro.sample("x", dist.Normal(0.0, 1 + param("net", {"w": jnp.zeros(6)})["w"])
                                 .to_event(1), obs=x),
        nothing, "net", "the scale of site 'x' is made",
    ),
    "start outside": Mistake(
        one(dist.Normal), with_scale(-1.0, constraint=POSITIVE), "s", r"-1.0.*Positive"
    ),
    "start of integers": Mistake(
        one(dist.Normal), one(lambda: dist.Normal(param("m", np.array(0)))), "m", "of int32.*floats"
    ),
    "steps too few": Mistake(
        of_a_sequence(6), of_a_sequence(3), "z", "values for 3 steps from the guide, expected 6"
    ),
    "steps too many": Mistake(of_a_sequence(6), of_a_sequence(8), "z", "values for 8 steps"),
    "two sites of a name": Mistake(regression, twice, "mu", "two sites of this name in the guide"),
    "argument ignored": Mistake(labels, draw_mu, "y", "does not observe it", (X, X)),
    "minibatch of another plate": Mistake(
        local(3), draw_minibatch("M", lambda i: param("m", jnp.zeros(6))[i]), "z",
        r"minibatch of plates \['M'\] in the guide, and \['N'\]",
    ),
    "minibatch that is not scaled": Mistake(
        local(3), draw_local(3, "M"), "z", r"minibatch of plates \[\] in the guide, and \['N'\]"
    ),
    "parameter by places in a minibatch": Mistake(
        local(3), draw_minibatch("N", lambda i: param("m", jnp.zeros(3))), "m",
        r"by places in the minibatch of plate 'N'.*param\[i\]",
    ),
    "the first rows for those drawn": Mistake(
        first_rows, lambda x: draw_mu(), "x", r"first 2 rows of argument x, .* 6 plate 'N' draws",
        (jnp.arange(6.0),),
    ),
    "concentrations unconstrained": Mistake(
        one(lambda: dist.Dirichlet(jnp.ones(3))), one(lambda: dist.Dirichlet(param("c", jnp.ones(3)))),
        "c", "as the concentration of site 'mu'.*positive",
    ),
    "a plate in itself": Mistake(nested_in_itself, draw_mu, "N", "another of this name.*site 'mu'"),
    "a plate named like a site": Mistake(named_like_a_site, draw_mu, "mu", "a name of its own"),
    "probability unconstrained": Mistake(
        one(lambda: dist.Bernoulli(0.3)), one(lambda: dist.Bernoulli(param("p", 0.3))), "p",
        "as the probs of site 'mu'.*unit_interval",
    ),
    "probabilities unconstrained": Mistake(
        one(lambda: dist.Categorical(jnp.ones(2) / 2)),
        one(lambda: dist.Categorical(param("p", jnp.ones(2) / 2))), "p", "expected one of simplex",
    ),
    "factor unconstrained": Mistake(
        one(lambda: dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))),
        one(lambda: dist.MultivariateNormal(jnp.zeros(2), scale_tril=param("L", jnp.eye(2)))), "L",
        "as the scale_tril of site 'mu'.*lower_cholesky",
    ),
    "parameter of two constraints": Mistake(
        lambda x: (param("m", 1.0, POSITIVE), regression(x)), draw_mu, "m",
        r"constraint Positive.*constraint Real\(\), as before in the guide",
    ),
    "parameter of two shapes": Mistake(
        regression, lambda x: (draw_mu(), param("m", jnp.zeros(3))), "m", r"shape \(3,\).*shape \(\)"
    ),
    "observed in the guide": Mistake(
        regression, lambda x: numpyro.sample("mu", dist.Normal(), obs=0.3), "mu", "guide observes"
    ),
    "data a list": Mistake(regression, draw_mu, "x", "that are a list.*asarray", ([1.0, 2.0],)),
    "data complex": Mistake(regression, draw_mu, "x", "array of complex64", (X * 1j,)),
    "data nan, autoguide": Mistake(
        regression, AutoNormal(regression), "x", r"index \(4,\).*nan", (X.at[4].set(jnp.nan),)
    ),
    "data nan, an event": Mistake(
        likelihood(lambda w: dist.Normal(w, 1.0)), nothing, "x", r"index \(4,\).*nan",
        (X.at[4].set(jnp.nan),),
    ),
    "discrete under an autoguide": Mistake(discrete, AutoNormal(discrete), "z", "vipp.marginal"),
    "data outside, autoguide": Mistake(
        of_probability, AutoNormal(of_probability), "x", "3.0 at index .*Bernoulli", (3 * X,)
    ),
    "data a dict, autoguide": Mistake(regression, AutoNormal(regression), "x", "a dict", ({0: X},)),
    "data of strings": Mistake(regression, draw_mu, "x", "an array of <U1", (np.array(["a"]),)),
    "data masked by NumPy": Mistake(
        regression, draw_mu, "x", "MaskedArray.*obs_mask", (np.ma.masked_array(np.ones(6)),)
    ),
    "scale of zero": Mistake(
        one(lambda: dist.Normal(0.0, 0.0)), draw_mu, "mu", "Normal whose scale is 0.0.*Positive"
    ),
    "scale of data": Mistake(
        lambda x: numpyro.sample("x", dist.Normal(param("m", 0.0), x - 1.0).to_event(1), obs=x),
        nothing, "x", r"Normal whose scale is -2.0 at index \(4,\)", (2 * X.at[4].set(-0.5),),
    ),
    "probabilities that are none": Mistake(
        one(lambda: dist.Categorical(jnp.array([0.5, 0.6]))), draw_mu, "mu", "Categorical.*Simplex"
    ),
    "covariance that is none": Mistake(
        one(lambda: dist.MultivariateNormal(jnp.zeros(2), 1.0 - jnp.eye(2))), draw_mu, "mu",
        "(?s)covariance_matrix.*PositiveDefinite",
    ),
    "events and elements": Mistake(
        one(lambda: dist.Normal(jnp.zeros(3), 1.0).to_event(1)),
        one(lambda: dist.Normal(param("m", jnp.zeros(3)), 1.0)), "mu",
        "event_dim=0 in the guide, expected event_dim=1.*to_event",
    ),
    "plates exchanged": Mistake(
        crossed(-2, -1), crossed(-1, -2), "z", "dimension -[12] for plate '[ab]' in the guide"
    ),
    "minibatch larger than its plate": Mistake(
        minibatch_of(2), draw_mu, "N", "size 2 for a minibatch of 6.*number_of_all_data"
    ),
    "scale (N, 1)": Mistake(
        numpyro.handlers.scale(regression, scale=jnp.ones((6, 1))), draw_mu, "mu",
        r"a scale of shape \(6, 1\)",
    ),
    "scale (N, 1) in a plate": Mistake(
        scaled_observations, draw_mu, "x", r"a scale of shape \(6, 1\).*elements, \(6,\)"
    ),
    "model and guide exchanged": Mistake(
        draw_mu, regression, "x", "observations in the guide.*wrong order"
    ),
    "data in both": Mistake(
        regression, lambda x: (draw_mu(), unplated(x)), "x", "observations in the guide"
    ),
    "parameter without a value": Mistake(
        regression, one(lambda: dist.Normal(numpyro.param("m"), 1.0)), "m", "without a value"
    ),
    "constraint that is none": Mistake(
        one(dist.Normal), with_scale(constraint="positive"), "s", "the constraint 'positive'"
    ),
    "data shorter than their plate": Mistake(
        by_index(8), draw_mu, "x", r"argument x, of shape \(6,\).*plate 'N' of size 8"
    ),
    "NumPy data shorter than their minibatch's plate": Mistake(
        by_index(8, 2), draw_mu, "x", r"argument x, .*plate 'N' of size 8", (np.ones(6),)
    ),
    "columns of data shorter than their plate": Mistake(
        by_index(8, 2, lambda x, i: x[i, 0]), draw_mu, "x", r"\(6, 2\).*plate 'N'",
        (jnp.ones((6, 2)),),
    ),
    "parameter shorter than its plate": Mistake(
        local(3), draw_minibatch("N", lambda i: param("m", jnp.zeros(4))[i]), "m",
        r"the parameter, of shape \(4,\).*plate 'N' of size 6",
    ),
    "groups counted from 1": Mistake(
        grouped, AutoNormal(grouped), "k", r"of shape \(2,\) at the values of argument k, up to 2",
        (X, jnp.array([1, 1, 1, 2, 2, 2])),
    ),
    "groups of a minibatch counted from 1": Mistake(
        grouped_minibatch, AutoNormal(grouped_minibatch), "k", "values of argument k, up to 2",
        (X, np.array([1, 1, 1, 2, 2, 2])),
    ),
    "data for a site that is not there": Mistake(
        numpyro.handlers.condition(regression, {"xx": X}), draw_mu, "xx",
        "handlers.condition is to change .*did you mean 'x'",
    ),
    "another parameterisation of a site that is not there": Mistake(
        numpyro.handlers.reparam(regression, config={"m": LocScaleReparam(0.0)}), draw_mu, "m",
        "handlers.reparam is to change .*'mu'",
    ),
    "a branch by a value": Mistake(
        branching, draw_mu, "branching", "(?s)after site 'mu', in `if mu > 0:`.*jnp.where"
    ),
    "NumPy of a value": Mistake(
        regression, numpy_of_a_value, "numpy_of_a_value", "(?s)in `.*np.exp.*jax.numpy for NumPy"
    ),
    "a part of the data by a condition": Mistake(
        lambda x: regression(x[x > 0]), draw_mu, "<lambda>", r"(?s)in `.*x\[x > 0\].*a mask for",
    ),
    "a size that is an array": Mistake(
        regression, of_n, "regression", "(?s)in `.*plate.*Python's numbers for sizes",
        (X, jnp.array(6)),
    ),
    "a number for a distribution": Mistake(
        one(lambda: 3.0), draw_mu, "mu", "what is no distribution .*float.*dist.Normal"
    ),
    "an argument too few": Mistake(
        regression, draw_mu, "regression", r"no positional.*'x'.*regression\(x, size=None\)", ()
    ),
    "an argument too many for the guide": Mistake(
        regression, of_x, "of_x", r"a guide called with 2 positional.*those of of_x\(x\)", (X, 6)
    ),
    "a guide that is none": Mistake(regression, None, "guide", "None, expected a NumPyro program"),
    "a model that is data": Mistake(X, draw_mu, "model", "expected a NumPyro program"),
    "an autoguide's class": Mistake(
        regression, AutoNormal, "guide", r"the class AutoNormal.*AutoNormal\(model\)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told(mistake):
    with pytest.raises(vipp.CheckError, match=mistake.says) as caught:
        vipp.check(mistake.model, mistake.guide, vipp.ELBO(), *mistake.args)
    assert caught.value.site == mistake.site
    assert f"'{mistake.site}'" in str(caught.value) and "Fix: " in str(caught.value)


def in_a_scan(*_):
    scan(lambda c, _: (c, numpyro.sample("mu", dist.Normal(param("a", 0.0)))), 0.0, None, length=2)


def in_a_branch(*_):
    draw = lambda _: numpyro.sample("mu", dist.Normal(param("a", 0.0)))
    cond(True, draw, draw, 0.0)


@pytest.mark.parametrize("guide", [in_a_scan, in_a_branch], ids=lambda f: f.__name__)
def test_a_parameter_of_a_step_is_refused(guide):
    """NumPyro gives it no value, or stops at it with a KeyError."""
    refused = pytest.raises(vipp.SiteError, match="Parameter 'a' is declared in the body.*Fix: ")
    with refused:
        vipp.check(regression, guide, vipp.ELBO(), X)
    with refused:
        vipp.ELBO().loss(jax.random.key(0), {}, guide, guide)


def masked(x):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("N", 6), numpyro.handlers.mask(mask=~jnp.isnan(x)):
        numpyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def outside_masked(x):
    rate = numpyro.param("rate", 1.0, constraint=POSITIVE)
    with numpyro.plate("N", 6), numpyro.handlers.mask(mask=x >= 0):
        numpyro.sample("x", dist.Poisson(rate), obs=x)


def unplated(x):
    numpyro.sample("x", dist.Normal(param("w", 0.0), 1.0), obs=x)


@numpyro.handlers.scale(scale=2.0)
def scaled_by_hand(x):
    with numpyro.plate("M", 3):
        numpyro.sample("z", dist.Normal(param("m", 0.0), 1.0))


SOUND = {
    "data of a scalar distribution": (unplated, nothing, (X,)),
    "a scalar for all": (lambda x: regression(jnp.float32(0.5), 6), draw_mu, (X,)),
    "an autoguide": (regression, AutoNormal(regression), (X,)),
    "missing data": (masked, draw_mu, (X.at[2].set(jnp.nan),)),
    "masked and impossible": (outside_masked, nothing, (X.at[2].set(-1),)),
    "a guide of narrower support": (one(dist.Normal), one(dist.HalfNormal), ()),
    "a minibatch of both": (local(3), AutoNormal(local(3)), (X,)),
    "a minibatch scaled by hand": (local(3), scaled_by_hand, (X,)),
    "a minibatch of indices": (
        local(3),
        draw_minibatch("N", lambda i: param("m", jnp.zeros(6))[i]),
        (X,),
    ),
    "a minibatch of one law": (
        local(3),
        draw_minibatch("N", lambda i: param("m", jnp.zeros(1))),
        (X,),
    ),
    "a parameter of both": (lambda x: (param("m", 0.0), regression(x)), draw_mu, (X,)),
    "a scale made of what is positive": (
        one(dist.Normal),
        one(lambda: dist.Normal(param("m", 0.0), jax.nn.softplus(param("s", -2.0)) + 1e-4)),
        (),
    ),
    "the last entry for those beyond": (
        by_index(8, 2, lambda x, i: x.at[i].get(mode="clip")),
        draw_mu,
        (X,),
    ),
    "two elements of a plate for each datum": (
        by_index(12, None, lambda x, i: x[i // 2]),
        draw_mu,
        (X,),
    ),
    "NumPy data in a minibatch": (by_index(6, 2), draw_mu, (np.ones(6),)),
    "rows that are the first of another argument": (
        grouped_minibatch,
        AutoNormal(grouped_minibatch),
        (X, jnp.array([1, 1, 1, 0, 0, 0])),
    ),
    "groups by minus one": (grouped, AutoNormal(grouped), (X, jnp.array([-1, 0, 1, 0, 1, -1]))),
    "a point": (regression, one(lambda: dist.Delta(param("m", 0.0))), (X,)),
    "a point of an autoguide": (regression, AutoDelta(regression), (X,)),
    "a factor of the guide": (
        regression,
        lambda x: (draw_mu(), numpyro.factor("f", 0.5)),
        (X,),
    ),
    "a site that is conditioned on": (
        numpyro.handlers.condition(lambda x: regression(None, 6), {"x": X}),
        draw_mu,
        (X,),
    ),
    "keywords": (
        lambda x, *, n=None, **more: regression(x),
        functools.partial(lambda y, x, **more: draw_mu(), None),
        (X,),
    ),
    "a scale for each datum": (
        numpyro.handlers.scale(unplated, scale=jnp.ones(6)),
        nothing,
        (X,),
    ),
    "a probability made of logits": (
        likelihood(lambda w: dist.Bernoulli(jax.nn.sigmoid(5.0 * w))),
        nothing,
        (X,),
    ),
}


@pytest.mark.parametrize("model, guide, args", SOUND.values(), ids=SOUND)
def test_what_is_right_passes(model, guide, args):
    assert vipp.check(model, guide, vipp.ELBO(), *args) is None


def idle(x):
    param("unused", 1.0)
    rounded, stopped = (
        jnp.round(param("rounded", 1.2)),
        jax.lax.stop_gradient(param("stopped", 0.2)),
    )
    net, zero = param("net", {"w": jnp.ones(3), "b": jnp.ones(2)}), param("zero", 0.0)
    z = numpyro.sample("z", dist.Normal(param("prior", 0.0), 1.0))
    c = numpyro.sample("c", dist.Bernoulli(0.3))
    loc = z + c + rounded + stopped + net["w"].sum() + zero**2  # a slope of 0 at 0 is one
    numpyro.sample("x", dist.Normal(loc, 1.0).expand([6]).to_event(1), obs=x)


def of_idle(x):
    numpyro.sample("z", dist.Normal(param("m", 0.0), 1.0))
    numpyro.sample("c", dist.Bernoulli(param("p", 0.4, dist.constraints.unit_interval)))


@pytest.mark.parametrize(
    "objective, more",
    [
        (vipp.ELBO(), []),
        (vipp.IWAE(num_particles=2), []),
        (vipp.ForwardKL(num_particles=2), ["net['w']", "prior", "zero"]),  # of the model
    ],
    ids=["ELBO", "IWAE", "ForwardKL"],
)
def test_a_parameter_without_gradient_is_told(objective, more):
    with pytest.warns(vipp.NoGradientWarning) as caught:
        vipp.check(idle, of_idle, objective, X)
    found = str(caught[0].message).split(" have ")[0]
    names = sorted([*more, "net['b']", "rounded", "stopped", "unused"])
    assert found == "check: parameters " + ", ".join(f"'{n}'" for n in names)


def test_fit_tells_of_a_parameter_without_gradient_each_time():
    def model(x):
        param("unused", 1.0)
        regression(x)

    optim = optax.adam(0.1)
    run = lambda: vipp.fit(
        jax.random.key(0), vipp.ELBO(), model, draw_mu, optim, 1, X, progress_bar=False
    )
    for _ in range(2):
        with pytest.warns(vipp.NoGradientWarning, match="fit: parameter 'unused' has no gradient"):
            run()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", vipp.NoGradientWarning)
        assert run().params["unused"] == 1.0


def test_a_branch_by_a_value_is_told_where_training_is_traced():
    train = vipp.trainer(vipp.ELBO(), branching, draw_mu, optax.adam(0.1), 2)
    with pytest.raises(vipp.CheckError, match="'branching'.*after site 'mu', in `if mu > 0:`"):
        jax.jit(train)(jax.random.key(0), X)


def test_another_error_has_its_place_in_a_note():
    def wrong(x):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        scan(lambda c, _: (c, None), mu, x, length=4)

    with pytest.raises(ValueError, match="length") as caught:
        vipp.check(wrong, draw_mu, vipp.ELBO(), X)
    assert "in 'wrong' after site 'mu', in `scan(lambda c" in "".join(caught.value.__notes__)


def test_fit_checks_before_it_compiles():
    with jax.log_compiles(False), pytest.raises(vipp.CheckError, match="'mu'.*HalfNormal"):
        vipp.fit(
            jax.random.key(0), vipp.ELBO(), one(dist.HalfNormal), draw_mu, optax.adam(0.1), 10,
            progress_bar=False,
        )  # fmt: skip
