"""Rows in several dimensions, most with a formula for the exact expectation."""

import math

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.stats import norm
from numpyro.distributions import transforms
from numpyro.distributions.flows import InverseAutoregressiveTransform
from numpyro.nn import AutoregressiveNN

from .pathwise_rows import (
    RAW,
    Row,
    a,
    gaussian,
    gram,
    line,
    lower,
    one_wave,
    plane,
    real,
    spd,
    wave,
    weights,
)


def second_wishart(df, tril):
    v = lower(tril) @ lower(tril).T
    diag = jnp.diagonal(v)
    square = df**2 * v**2 + df * (v**2 + diag[:, None] * diag)
    return (jnp.array([[0.1, 0.2], [0.2, -0.05]]) * square).sum()


def quadratic(x):
    return (jnp.array([[0.1, 0.2], [0.2, -0.05]]) * x**2).sum((-2, -1))


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
    return 1 / (1 + (2 * x - 0.3) ** 2) + 0.5 * jnp.tanh(x)


def student_exact(df, loc, scale):
    """A projection of it is a scalar Student's t."""
    w = weights(2)
    width = jnp.sqrt(w @ gram(lower(scale)) @ w)
    row = line(dist.StudentT, (), real, peak, width=16.0)
    return row.exact(df, w @ loc, width)


def dirichlet_exact(alpha):
    total = alpha.sum()
    return 1 + (jnp.array([1.0, -0.5, 0.3]) * alpha * (alpha + 1)).sum() / (total * (total + 1))


def slope(x):
    return 1 + jnp.tanh(x @ jnp.array([1.5, 0.7]))


def projected_exact(concentration):
    t = jnp.linspace(-math.pi, math.pi, 2001)[:-1]
    x = jnp.stack([jnp.cos(t), jnp.sin(t)], -1)
    return (
        (slope(x) * jnp.exp(dist.ProjectedNormal(concentration).log_prob(x))).mean() * 2 * math.pi
    )


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
            bias=0.15,
        ),
        "ProjectedNormal": Row(d.ProjectedNormal, (loc + 0.5,), slope, projected_exact, bias=0.08),
        "Wishart": wishart(d.Wishart, quadratic),
        "WishartCholesky": wishart(d.WishartCholesky, lambda x: quadratic(gram(x))),
        "ZeroSumNormal": gaussian(
            lambda s: d.ZeroSumNormal(s, (3,)),
            a(0.8),
            lambda s: (jnp.zeros(3), s**2 * (jnp.eye(3) - 1 / 3)),
            lanes=True,
        ),
    }
