"""Rows whose exact expectation is a quadrature of the density: scalars, wrappers, mixtures."""

import math

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints, transforms

from .pathwise_rows import (
    RAW,
    Row,
    a,
    above,
    angle,
    below,
    between,
    curve,
    line,
    lower,
    plane,
    positive,
    real,
    turn,
    unit,
)


class PowerLaw:
    """NumPyro's (0.22) log density has a wrong derivative in the bounds, unlike its sampler."""

    def __init__(self, alpha, low, high):
        self.alpha = alpha
        self.total = (high ** (alpha + 1) - low ** (alpha + 1)) / (alpha + 1)

    def log_prob(self, x):
        return self.alpha * jnp.log(x) - jnp.log(self.total)


def scalars():
    d, num = dist, lambda v: lambda *params: v
    first, second = (lambda *p: p[0]), (lambda *p: p[1])
    normal, gamma = a(0.3, 0.9), a(1.7, 1.2)
    return {
        "AsymmetricLaplace": line(d.AsymmetricLaplace, a(0.3, 1.2, 0.7), real),
        "AsymmetricLaplaceQuantile": line(d.AsymmetricLaplaceQuantile, a(0.3, 0.6, 0.4), real),
        "Beta": line(d.Beta, a(1.7, 2.4), unit),
        "BetaProportion": line(d.BetaProportion, a(0.4, 3.0), unit),
        "Cauchy": line(d.Cauchy, a(0.4, 0.7), real, width=16.0),
        "Chi2": line(d.Chi2, a(2.6), positive, jnp.tanh),
        "Dagum": line(d.Dagum, a(1.4, 2.2, 0.9), positive),
        "Delta": Row(d.Delta, a(0.4, 0.2), curve, lambda v, _: curve(v)),
        "DoublyTruncatedPowerLaw": line(
            d.DoublyTruncatedPowerLaw,
            a(-1.6, 0.4, 2.0),
            between(second, lambda *p: p[2]),
            density=PowerLaw,
        ),
        "Exponential": line(d.Exponential, a(1.3), positive),
        "Gamma": line(d.Gamma, gamma, positive),
        "Gompertz": line(d.Gompertz, a(0.7, 1.3), between(num(0.0), num(4.5))),
        "Gumbel": line(d.Gumbel, normal, above(num(-4.0))),
        "HalfCauchy": line(d.HalfCauchy, a(0.9), positive),
        "HalfNormal": line(d.HalfNormal, a(0.9), positive),
        "InverseGamma": line(d.InverseGamma, a(2.3, 1.1), positive),
        "Kumaraswamy": line(d.Kumaraswamy, a(1.6, 2.1), unit),
        "Laplace": line(d.Laplace, normal, real),
        "LeftTruncatedDistribution": line(
            lambda l, s, low: d.LeftTruncatedDistribution(d.Normal(l, s), low),
            a(0.3, 0.9, -0.5),
            above(lambda *p: p[2]),
        ),
        "LeftTruncatedGamma": line(
            lambda c, r, low: d.LeftTruncatedGamma(d.Gamma(c, r), low),
            a(1.7, 1.2, 0.4),
            above(lambda *p: p[2]),
        ),
        "Levy": line(d.Levy, a(-0.2, 0.6), above(lambda *p: p[0] + 5e-3), width=30.0),
        "LogNormal": line(d.LogNormal, normal, positive),
        "LogUniform": line(d.LogUniform, a(0.3, 2.0), between(first, second)),
        "Logistic": line(d.Logistic, a(0.3, 0.5), real),
        "LowerTruncatedPowerLaw": line(
            d.LowerTruncatedPowerLaw, a(-2.7, 0.5), above(second), width=14.0
        ),
        "Normal": line(d.Normal, normal, real),
        "Pareto": line(d.Pareto, a(0.5, 2.2), above(first), width=14.0),
        "RelaxedBernoulliLogits": line(
            d.RelaxedBernoulliLogits,
            a(0.7, 0.4),
            real,
            lambda u: curve(jax.nn.sigmoid(u)),
            density=lambda t, l: d.Logistic(l / t, 1 / t),
        )._replace(f=curve),
        "RightTruncatedDistribution": line(
            lambda l, s, high: d.RightTruncatedDistribution(d.Logistic(l, s), high),
            a(0.2, 0.6, 0.8),
            below(lambda *p: p[2]),
        ),
        "RightTruncatedGamma": line(
            lambda c, r, high: d.RightTruncatedGamma(d.Gamma(c, r), high),
            a(1.7, 1.2, 1.9),
            between(num(0.0), lambda *p: p[2]),
        ),
        "SoftLaplace": line(d.SoftLaplace, normal, real),
        "StudentT": line(d.StudentT, a(1.5, 0.4, 0.8), real, width=16.0),
        "TwoSidedTruncatedDistribution": line(
            lambda l, s, low, high: d.TruncatedDistribution(d.Logistic(l, s), low, high),
            a(0.3, 0.5, -0.9, 1.3),
            between(lambda *p: p[2], lambda *p: p[3]),
        ),
        "TwoSidedTruncatedGamma": line(
            lambda c, r, low, high: d.TwoSidedTruncatedGamma(d.Gamma(c, r), low, high),
            a(1.7, 1.2, 0.3, 2.1),
            between(lambda *p: p[2], lambda *p: p[3]),
        ),
        "Uniform": line(d.Uniform, a(-0.6, 1.1), between(first, second)),
        "VonMises": angle(d.VonMises, a(0.4, 1.3)),
        "VonMises across the seam": angle(d.VonMises, a(2.9, 4.0)),
        "Weibull": line(d.Weibull, a(0.9, 1.6), positive),
    }


def wrapped():
    d, normal = dist, a(0.3, 0.9)
    affine = lambda base: (
        lambda loc, *p: d.TransformedDistribution(base(*p), transforms.AffineTransform(loc, 1.4))
    )
    return {
        "ExpandedDistribution": line(
            lambda c, r: d.Gamma(c[..., None], r[..., None]).expand((*c.shape, 2)).to_event(1),
            a(1.7, 1.2),
            positive,
            density=d.Gamma,
        )._replace(f=lambda x: curve(x).mean(-1)),
        "FoldedDistribution": line(
            lambda l, s: d.FoldedDistribution(d.Normal(l, s)), a(1.2, 0.5), positive, jnp.tanh
        ),
        "Independent": line(
            lambda l, k: d.VonMises(l[..., None], k[..., None]).to_event(1),
            a(0.4, 1.3),
            lambda u, *p: u,
            turn,
            density=d.VonMises,
            width=math.pi,
        )._replace(f=lambda x: turn(x).sum(-1)),
        "MaskedDistribution": line(
            lambda l, k: d.VonMises(l, k).mask(False),
            a(0.4, 1.3),
            lambda u, *p: u,
            turn,
            density=d.VonMises,
            width=math.pi,
        ),
        "TransformedDistribution": line(
            affine(d.StudentT), a(0.2, 2.5, 0.1, 0.8), real, width=16.0
        ),
        "of a mixture": line(
            lambda *p: d.TransformedDistribution(mixture(d.Normal)(*p), transforms.ExpTransform()),
            (LOGITS, LOCS, SCALES),
            positive,
        ),
        "folded angle": line(
            lambda l, k: d.FoldedDistribution(d.VonMises(l, k)),
            a(1.8, 2.0),
            between(lambda *p: 0.0, lambda *p: math.pi),
            lambda x: 2 + jnp.cos(x),
        ),
        "LeftCensoredDistribution": line(
            lambda l, s: d.LeftCensoredDistribution(d.Normal(l, s), True),
            normal,
            real,
            density=d.Normal,
        ),
        "RightCensoredDistribution": line(
            lambda l, s: d.RightCensoredDistribution(d.Normal(l, s), True),
            normal,
            real,
            density=d.Normal,
        ),
        "IntervalCensoredDistribution": line(
            lambda l, s: d.IntervalCensoredDistribution(d.Normal(l, s), True, False),
            normal,
            real,
            density=d.Normal,
        ),
    }


def mixtures():
    d, two = dist, (LOGITS, LOCS, SCALES)
    shapes = (LOGITS, *a([1.3, 2.5], [1.9, 0.8]))
    return {
        "MixtureSameFamily": line(mixture(d.Normal), two, real),
        "MixtureSameFamily of Gamma, by probs": line(
            of_probs, a([0.3, 0.7], [1.3, 2.5], [1.9, 0.8]), positive, jnp.tanh
        ),
        "MixtureSameFamily of Beta": line(mixture(d.Beta), shapes, unit),
        "MixtureSameFamily of StudentT": line(
            mixture(d.StudentT), (LOGITS, *a([1.8, 3.0]), LOCS, SCALES), real, width=16.0
        ),
        "MixtureSameFamily of LogNormal": line(mixture(d.LogNormal), two, positive),
        "MixtureSameFamily of VonMises": angle(
            mixture(d.VonMises), (LOGITS, *a([-0.7, 2.8], [1.3, 2.0]))
        ),
        "MixtureSameFamily of vectors": plane(
            mixture(lambda l, s: d.Normal(l, s).to_event(1)), (LOGITS, LOCS2, SCALES2)
        ),
        "MixtureSameFamily of MultivariateNormal": plane(
            mixture(lambda l, s: d.MultivariateNormal(l, scale_tril=lower(s))),
            (LOGITS, LOCS2, TRILS),
        ),
        "MixtureGeneral": line(general(d.Normal, d.Cauchy), two, real, width=16.0),
        "MixtureGeneral of supports": line(
            general(d.Normal, lambda l, s: d.HalfNormal(s), support=constraints.real), two, real
        )._replace(params=(LOGITS, LOCS, SCALES)),
        "MixtureGeneral of vectors": plane(
            lambda w, l, s: d.MixtureGeneral(
                d.Categorical(logits=w),
                [
                    d.Normal(l[..., 0, :], s[..., 0, :]).to_event(1),
                    d.Logistic(l[..., 1, :], s[..., 1, :]).to_event(1),
                ],
            ),
            (LOGITS, LOCS2, SCALES2),
        ),
    }


# Mixtures


def mixture(kind):
    return lambda logits, *params: dist.MixtureSameFamily(
        dist.Categorical(logits=logits), kind(*params)
    )


def of_probs(probs, *params):
    mixing = dist.Categorical(probs=probs / probs.sum(-1, keepdims=True))
    return dist.MixtureSameFamily(mixing, dist.Gamma(*params))


def general(*kinds, support=None):
    def make(logits, *params):
        parts = [k(*(p[..., i] for p in params)) for i, k in enumerate(kinds)]
        return dist.MixtureGeneral(dist.Categorical(logits=logits), parts, support=support)

    return make


LOGITS = jnp.array([0.3, -0.5])
LOCS = jnp.array([-0.8, 0.9])
SCALES = jnp.array([0.7, 0.5])
LOCS2 = jnp.array([[-0.6, 0.4], [0.5, -0.3]])
SCALES2 = jnp.array([[0.6, 0.9], [0.8, 0.5]])
TRILS = jnp.stack([RAW, jnp.array([[-0.5, 0.0], [-0.6, -0.2]])])
