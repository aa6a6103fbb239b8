"""Every distribution with a pathwise gradient: how to make it, and the exact expectation."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.stats import norm
from numpyro.distributions import constraints, transforms
from numpyro.distributions.flows import InverseAutoregressiveTransform
from numpyro.nn import AutoregressiveNN


class Row(NamedTuple):
    """``make(*params)`` is the distribution, ``exact(*params)`` the expectation of ``f`` under it.

    ``covers``: the class tested, where it is not the type of ``make(*params)``. ``lanes``: draw
    under ``vmap``, for parameters that take no batch axis.
    """

    make: Any
    params: tuple
    f: Any
    exact: Any
    lanes: bool = False


def curve(x):
    return 1 + jnp.tanh(x - 0.3) + 1 / (1 + x**2)


def turn(x):
    """Continuous on the circle."""
    return 1.5 + jnp.cos(x - 0.8) + 0.3 * jnp.cos(2 * x + 1)


def wave(x):
    """Of several coordinates; its Gaussian expectation is known."""
    x = x.reshape((x.shape[0], -1))
    return 1 + jnp.sin(x @ weights(x.shape[-1]) + 0.9)


def one_wave(x):
    return wave(x[None])[0]


def weights(size):
    return jnp.linspace(0.7, -0.4, size) + 0.15 * (-1.0) ** jnp.arange(size)


# Quadrature of f(x) p(x) over x = place(u, *params): the trapezoidal rule in u


def real(u, *params):
    return jnp.sinh(u)


def positive(u, *params):
    return jnp.exp(u)


def unit(u, *params):
    return jax.nn.sigmoid(u)


def above(low):
    return lambda u, *params: low(*params) + jnp.exp(u)


def below(high):
    return lambda u, *params: high(*params) - jnp.exp(u)


def between(low, high):
    def place(u, *params):
        start, end = low(*params), high(*params)
        return start + (end - start) * jax.nn.sigmoid(u)

    return place


def line(make, params, place, f=curve, density=None, width=None):
    width = width or (14.0 if place in (real, unit) else 24.0)

    def exact(*params):
        u = jnp.linspace(-width, width, 6001)
        x, slope = jax.jvp(lambda u: place(u, *params), (u,), (jnp.ones_like(u),))
        p = jnp.exp((density or make)(*params).log_prob(x))
        return (f(x) * p * abs(slope)).sum() * (u[1] - u[0])

    return Row(make, params, f, exact)


def angle(make, params):
    return line(make, params, lambda u, *params: u, turn, width=math.pi)


def plane(make, params, place=real, width=4.0, f=wave):
    """Quadrature over two coordinates."""

    def exact(*params):
        u = jnp.linspace(-width, width, 201)
        x, slope = jax.jvp(place, (u,), (jnp.ones_like(u),))
        pairs = jnp.stack(jnp.meshgrid(x, x, indexing="ij"), -1).reshape((-1, 2))
        area = (slope[:, None] * slope).reshape(-1) * (u[1] - u[0]) ** 2
        return (f(pairs) * jnp.exp(make(*params).log_prob(pairs)) * area).sum()

    return Row(make, params, f, exact)


def gaussian(make, params, moments, lanes=False):
    def exact(*params):
        mean, cov = moments(*params)
        w = weights(cov.shape[-1])
        return 1 + jnp.sin(w @ mean + 0.9) * jnp.exp(-w @ cov @ w / 2)

    return Row(make, params, one_wave if lanes else wave, exact, lanes)


TRIL = jnp.array([[0.8, 0.0], [0.4, 0.6]])
COV = TRIL @ TRIL.T


def spd(scale):
    """A covariance from an unconstrained matrix, so that every entry is free."""
    return scale @ jnp.swapaxes(scale, -1, -2) + 0.3 * jnp.eye(scale.shape[-1])


def lower(scale):
    return jnp.tril(scale, -1) + jnp.exp(scale * jnp.eye(scale.shape[-1])) * jnp.eye(
        scale.shape[-1]
    )


RAW = jnp.array([[-0.3, 0.0], [0.5, -0.4]])


def second_wishart(df, tril):
    v = lower(tril) @ lower(tril).T
    diag = jnp.diagonal(v)
    square = df**2 * v**2 + df * (v**2 + diag[:, None] * diag)
    return (jnp.array([[0.1, 0.2], [0.2, -0.05]]) * square).sum()


def quadratic(x):
    return (jnp.array([[0.1, 0.2], [0.2, -0.05]]) * x**2).sum((-2, -1))


def gram(x):
    return x @ jnp.swapaxes(x, -1, -2)


def wishart(cls, f):
    def make(df, scale):
        return cls(df, scale_tril=lower(scale))

    return Row(make, (jnp.array(6.0), RAW), f, second_wishart)


def inverse_wishart(cls, f):
    """Its inverse is a Wishart with the inverse scale."""

    def exact(df, scale):
        inverse = jnp.linalg.inv(lower(scale))
        v = inverse.T @ inverse
        square = df**2 * v**2 + df * (v**2 + jnp.diagonal(v)[:, None] * jnp.diagonal(v))
        return (jnp.array([[0.1, 0.2], [0.2, -0.05]]) * square).sum()

    return Row(lambda df, s: cls(df, scale_tril=lower(s)), (jnp.array(6.0), RAW), f, exact)


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

# Gaussian families


def matrix_normal(loc, row, column):
    return dist.MatrixNormal(loc, lower(row), lower(column))


def walk_moments(scale):
    times = jnp.arange(1.0, 4.0)
    return jnp.zeros(3), scale**2 * jnp.minimum(times[:, None], times)


ADJACENCY = jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


def car(loc, correlation, precision):
    return dist.CAR(loc, correlation, precision, ADJACENCY)


def car_moments(loc, correlation, precision):
    within = precision * (jnp.diag(ADJACENCY.sum(0)) - correlation * ADJACENCY)
    return loc, jnp.linalg.inv(within)


def state_moments(transition, scale):
    q, covs, powers = gram(lower(scale)), [], [jnp.eye(2)]
    for _ in range(2):
        powers.append(transition @ powers[-1])
    for s in range(2):
        covs.append(
            [
                sum(powers[s - k] @ q @ powers[t - k].T for k in range(min(s, t) + 1))
                for t in range(2)
            ]
        )
    return jnp.zeros(4), jnp.block(covs)


def diffusion(drift, noise, start):
    return dist.EulerMaruyama(
        jnp.array([0.0, 0.4, 1.0]), lambda x, t: (drift * x, noise), dist.Normal(start, 0.7)
    )


def diffusion_moments(drift, noise, start):
    a, b = 1 + 0.4 * drift, 1 + 0.6 * drift
    mean = start * jnp.array([1.0, a, a * b])
    root = jnp.array(
        [
            [0.7, 0.0, 0.0],
            [0.7 * a, math.sqrt(0.4) * noise, 0.0],
            [0.7 * a * b, math.sqrt(0.4) * noise * b, math.sqrt(0.6) * noise],
        ]
    )
    return mean, root @ root.T


def circulant_moments(loc, rfft):
    row = jnp.fft.irfft(rfft, 4)
    return loc, row[(jnp.arange(4)[:, None] - jnp.arange(4)) % 4]


INIT, APPLY = AutoregressiveNN(2, [4])
NET = INIT(jax.random.key(3), (2,))[1]


def flow(net, loc):
    steps = [
        InverseAutoregressiveTransform(lambda x: APPLY(net, x)),
        transforms.AffineTransform(loc, 0.8),
    ]
    return dist.TransformedDistribution(dist.Normal(jnp.zeros(2), 1.0).to_event(1), steps)


def flow_exact(net, loc):
    u = jnp.linspace(-6.0, 6.0, 121)
    base = jnp.stack(jnp.meshgrid(u, u, indexing="ij"), -1).reshape((-1, 2))
    moved = base
    for step in flow(net, loc).transforms:
        moved = step(moved)
    return (wave(moved) * jnp.exp(norm.logpdf(base).sum(-1))).sum() * (u[1] - u[0]) ** 2


def peak(x):
    return 1 / (1 + (2 * x - 0.3) ** 2)


def student_exact(df, loc, scale):
    """A projection of it is a scalar Student's t."""
    w = weights(2)
    width = jnp.sqrt(w @ gram(lower(scale)) @ w)
    row = line(dist.StudentT, (), real, peak, width=16.0)
    return row.exact(df, w @ loc, width)


def dirichlet_exact(alpha):
    total = alpha.sum()
    return 1 + (jnp.array([1.0, -0.5, 0.3]) * alpha * (alpha + 1)).sum() / (total * (total + 1))


def projected_exact(concentration):
    t = jnp.linspace(-math.pi, math.pi, 2001)[:-1]
    x = jnp.stack([jnp.cos(t), jnp.sin(t)], -1)
    return (wave(x) * jnp.exp(dist.ProjectedNormal(concentration).log_prob(x))).mean() * 2 * math.pi


class PowerLaw:
    """NumPyro's (0.22) log density has a wrong derivative in the bounds, unlike its sampler."""

    def __init__(self, alpha, low, high):
        self.alpha = alpha
        self.total = (high ** (alpha + 1) - low ** (alpha + 1)) / (alpha + 1)

    def log_prob(self, x):
        return self.alpha * jnp.log(x) - jnp.log(self.total)


def a(*values):
    return tuple(jnp.asarray(v, float) for v in values)


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
        "LowerTruncatedPowerLaw": line(d.LowerTruncatedPowerLaw, a(-2.7, 0.5), above(second)),
        "Normal": line(d.Normal, normal, real),
        "Pareto": line(d.Pareto, a(0.5, 2.2), above(first)),
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
            lambda l, s: d.FoldedDistribution(d.Normal(l, s)), normal, positive
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
            a(0.9, 1.3),
            between(lambda *p: 0.0, lambda *p: math.pi),
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
            of_probs, a([0.3, 0.7], [1.3, 2.5], [1.9, 0.8]), positive
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


def vectors():
    d = dist
    loc, eye = jnp.array([0.3, -0.4]), jnp.eye(2)
    factor = jnp.array([[0.6], [-0.4]])
    return {
        "CAR": gaussian(car, (jnp.array([0.2, -0.3, 0.4]), *a(0.6, 1.4)), car_moments),
        "CirculantNormal": gaussian(
            lambda l, c: d.CirculantNormal(l, covariance_rfft=c),
            a([0.2, -0.1, 0.3, 0.4], [1.2, 0.8, 0.5]),
            circulant_moments,
        ),
        "Dirichlet": Row(
            d.Dirichlet,
            a([1.2, 2.0, 0.8]),
            lambda x: 1 + (x**2) @ jnp.array([1.0, -0.5, 0.3]),
            dirichlet_exact,
        ),
        "EulerMaruyama": gaussian(diffusion, a(-0.6, 0.8, 0.5), diffusion_moments, lanes=True),
        "flow": Row(flow, (NET, loc), one_wave, flow_exact, lanes=True),
        "GaussianCopula": plane(
            lambda s, r: d.GaussianCopula(
                d.HalfNormal(s),
                correlation_cholesky=jnp.stack(
                    [
                        jnp.stack([jnp.ones_like(r), jnp.zeros_like(r)], -1),
                        jnp.stack([r, jnp.sqrt(1 - r**2)], -1),
                    ],
                    -2,
                ),
            ),
            a([0.8, 1.3], 0.5),
            lambda u: jnp.exp(u),
            width=7.0,
        ),
        "GaussianRandomWalk": gaussian(
            lambda s: d.GaussianRandomWalk(s, num_steps=3), a(0.8), walk_moments
        ),
        "GaussianStateSpace": gaussian(
            lambda t, s: d.GaussianStateSpace(2, t, scale_tril=lower(s)),
            (jnp.array([[0.7, 0.2], [-0.3, 0.5]]), RAW),
            state_moments,
            lanes=True,
        ),
        "InverseWishart": inverse_wishart(d.InverseWishart, lambda x: quadratic(jnp.linalg.inv(x))),
        "InverseWishartCholesky": inverse_wishart(
            d.InverseWishartCholesky, lambda x: quadratic(jnp.linalg.inv(gram(x)))
        ),
        "LKJ": Row(
            lambda c: d.LKJ(3, c),
            a(1.5),
            lambda x: x[..., 0, 1] ** 2 + x[..., 1, 2] ** 2,
            lambda c: 2 / (2 * c + 2),
        ),
        "LKJCholesky": Row(
            lambda c: d.LKJCholesky(3, c),
            a(1.5),
            lambda x: gram(x)[..., 0, 2] ** 2,
            lambda c: 1 / (2 * c + 2),
        ),
        "LKJCholesky by the C-vine": Row(
            lambda c: d.LKJCholesky(3, c, sample_method="cvine"),
            a(1.5),
            lambda x: gram(x)[..., 0, 2] ** 2,
            lambda c: 1 / (2 * c + 2),
        ),
        "LowRankMultivariateNormal": gaussian(
            d.LowRankMultivariateNormal,
            (loc, factor, jnp.array([0.5, 0.8])),
            lambda l, w, c: (l, w @ w.T + jnp.diag(c)),
        ),
        "MatrixNormal": gaussian(
            matrix_normal,
            (0.3 * eye, RAW, RAW.at[1, 0].set(-0.2)),
            lambda l, r, c: (l.reshape(-1), jnp.kron(gram(lower(r)), gram(lower(c)))),
        ),
        "MultivariateNormal": gaussian(
            lambda l, s: d.MultivariateNormal(l, scale_tril=lower(s)),
            (loc, RAW),
            lambda l, s: (l, gram(lower(s))),
        ),
        "MultivariateNormal by covariance": gaussian(
            lambda l, s: d.MultivariateNormal(l, covariance_matrix=spd(s)),
            (loc, RAW),
            lambda l, s: (l, spd(s)),
        ),
        "MultivariateNormal by precision": gaussian(
            lambda l, s: d.MultivariateNormal(l, precision_matrix=spd(s)),
            (loc, RAW + eye),
            lambda l, s: (l, jnp.linalg.inv(spd(s))),
        ),
        "MultivariateStudentT": Row(
            lambda n, l, s: d.MultivariateStudentT(n, l, lower(s)),
            (jnp.array(1.8), loc, RAW + eye),
            lambda x: peak(x @ weights(2)),
            student_exact,
        ),
        "ProjectedNormal": Row(d.ProjectedNormal, (loc + 0.5,), wave, projected_exact),
        "Wishart": wishart(d.Wishart, quadratic),
        "WishartCholesky": wishart(d.WishartCholesky, lambda x: quadratic(gram(x))),
        "ZeroSumNormal": gaussian(
            lambda s: d.ZeroSumNormal(s, (3,)),
            a(0.8),
            lambda s: (jnp.zeros(3), s**2 * (jnp.eye(3) - 1 / 3)),
            lanes=True,
        ),
    }


ROWS = {**scalars(), **wrapped(), **mixtures(), **vectors()}
