"""What the tests of the contract share: distributions of a site, and programs around it.

A context is a program of ``(theta, rv, family)`` as conftest.py describes it, with the site "z".
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.nn import log_sigmoid, logsumexp, softplus

import vipp


class Family(NamedTuple):
    make: Callable[[Any], Any]  # from one unconstrained number per lane
    size: int  # values that a draw is averaged over
    finite: bool = True
    feature: Callable[[Any], Any] = lambda z: z  # one number per lane
    grid: tuple[Any, Any] | None = None  # values, log weights (conftest.Grid)


class ExactBernoulli(dist.BernoulliLogits):
    """NumPyro's (0.22) log density has a wrong gradient at logits of exactly zero."""

    def log_prob(self, value, intermediates=None):
        return log_sigmoid((2 * value - 1) * self.logits)


class FloatBernoulli(ExactBernoulli):
    """Draws 0.0 or 1.0, in single precision whatever the parameters have."""

    # what it inherits beside a sampler of its own is not taken for an answer
    enumerate_support = dist.BernoulliLogits.enumerate_support

    def sample(self, key, sample_shape=()):
        return super().sample(key, sample_shape).astype(jnp.float32)


class ByteBernoulli(ExactBernoulli):
    """Draws small integers."""

    enumerate_support = dist.BernoulliLogits.enumerate_support

    def sample(self, key, sample_shape=()):
        return super().sample(key, sample_shape).astype(jnp.int8)


def zero(eta):
    """Exactly zero, with the gradient of ``eta``."""
    return eta - jax.lax.stop_gradient(eta)


def three(eta):
    """Three logits per lane."""
    return jnp.stack([eta, 0.3 - 0.5 * eta, jnp.zeros_like(eta)], -1)


def pairs(eta):
    """Two locations per lane."""
    return jnp.stack([eta, 0.2 - 0.5 * eta], -1)


def line(size, step, shift=0.0):
    values = (np.arange(size) - (size - 1) / 2) * step + shift
    return values, np.full(size, math.log(step))


def positive(size, step, shift):
    """``x = exp(u)`` with ``u`` on a line."""
    u, log_weights = line(size, step, shift)
    return np.exp(u), log_weights + u


def unit(size, step):
    u, log_weights = line(size, step)
    x = 1 / (1 + np.exp(-u))
    return x, log_weights + np.log(x * (1 - x))


def plane(size, step):
    u, log_weights = line(size, step)
    return (
        np.stack(np.meshgrid(u, u, indexing="ij"), -1).reshape(-1, 2),
        np.add.outer(log_weights, log_weights).reshape(-1),
    )


def circle(size):
    return np.arange(size) * 2 * np.pi / size - np.pi, np.full(size, math.log(2 * np.pi / size))


def counts(size):
    return np.arange(size), np.zeros(size)


def mvn(eta):
    loc = jnp.stack([eta, -0.5 * eta], -1)
    tril = jnp.array([[0.9, 0.0], [0.3, 1.1]])
    return dist.MultivariateNormal(loc, scale_tril=jnp.broadcast_to(tril, (*eta.shape, 2, 2)))


FAMILIES = {
    "bernoulli-logits-zero": Family(lambda e: ExactBernoulli(zero(e)), 2),
    "bernoulli-logits": Family(lambda e: dist.Bernoulli(logits=e), 2),
    "bernoulli-relaxed": Family(lambda e: dist.Bernoulli(logits=e, validate_args=False), 2),
    "bernoulli-probs": Family(lambda e: dist.Bernoulli(jax.nn.sigmoid(e)), 2),
    "bernoulli-floats": Family(lambda e: FloatBernoulli(e), 2),
    "bernoulli-bytes": Family(
        lambda e: ByteBernoulli(e), 2, feature=lambda z: z * jnp.ones((), jnp.int8)
    ),
    "bernoulli-expanded": Family(
        lambda e: dist.Bernoulli(logits=e.sum()).expand(e.shape) if e.shape else
        dist.Bernoulli(logits=e), 2
    ),
    "categorical-logits": Family(lambda e: dist.Categorical(logits=three(e)), 3),
    "categorical-probs": Family(lambda e: dist.Categorical(jax.nn.softmax(three(e))), 3),
    "binomial-logits": Family(lambda e: dist.Binomial(2, logits=e), 3),
    "binomial-probs": Family(lambda e: dist.Binomial(2, jax.nn.sigmoid(e)), 3),
    "discrete-uniform": Family(
        lambda e: dist.DiscreteUniform(-1, 1).expand(e.shape), 3
    ),
    "poisson": Family(lambda e: dist.Poisson(jnp.exp(e)), 18, False, grid=counts(18)),
    "geometric": Family(
        lambda e: dist.Geometric(jax.nn.sigmoid(3 + e)), 10, False, grid=counts(10)
    ),
    "normal": Family(
        lambda e: dist.Normal(e, jnp.exp(0.2 * e)), 21, False, grid=line(21, 0.7)
    ),
    "gamma": Family(
        lambda e: dist.Gamma(2.5, jnp.exp(e)), 38, False, grid=positive(38, 0.3, -2.4)
    ),
    "beta": Family(
        lambda e: dist.Beta(1.7 + e**2, 1.9), 50, False, grid=unit(50, 0.45)
    ),
    "gamma-shape": Family(
        lambda e: dist.Gamma(1.5 + e**2, jnp.exp(e)), 60, False, grid=positive(60, 0.3, -5.0)
    ),
    "exponential": Family(
        lambda e: dist.Exponential(jnp.exp(e)), 80, False, grid=positive(80, 0.25, -5.0)
    ),
    "weibull": Family(
        lambda e: dist.Weibull(jnp.exp(e), 1.5 + e**2), 80, False, grid=positive(80, 0.2, -3.0)
    ),
    "log-normal": Family(
        lambda e: dist.LogNormal(0.5 * e, 0.5 + 0.1 * e**2), 40, False, grid=positive(40, 0.25, 0.0)
    ),
    "affine-normal": Family(
        lambda e: dist.TransformedDistribution(
            dist.Normal(e, 0.5), dist.transforms.AffineTransform(0.2, jnp.asarray(-1.5))
        ), 41, False, grid=line(41, 0.3)
    ),
    "normal-event": Family(
        lambda e: dist.Normal(pairs(e), 0.6 + 0.1 * pairs(e) ** 2).to_event(1), 289, False,
        lambda z: z[..., 0] - 0.5 * z[..., 0] * z[..., 1], plane(17, 0.5)
    ),
    "one-hot": Family(
        lambda e: vipp.OneHotCategorical(logits=three(e)), 3,
        feature=lambda z: z @ jnp.array([1.0, -0.7, 0.4])
    ),
    "von-mises": Family(lambda e: dist.VonMises(e, 1.5), 22, False, grid=circle(22)),
    "multivariate-normal": Family(
        mvn, 289, False, lambda z: z[..., 0] - 0.5 * z[..., 0] * z[..., 1], plane(17, 0.75)
    ),
}  # fmt: skip


def eta(theta, *shape):
    """One unconstrained parameter per lane."""
    index = np.arange(math.prod(shape)).reshape(shape)
    return theta[0] + theta[1] * index


def curve(theta, x):
    """A term of one lane, smooth and not linear."""
    return jnp.sin(theta[2] * x + 0.3) + 0.1 * x * theta[1]


# What surrounds the site "z": lanes, and programs of (theta, rv, family).


def scalar(theta, rv, family):
    z = family.feature(rv("z", family.make(eta(theta))))
    return curve(theta, z) + theta[0] ** 2


def plate(theta, rv, family):
    z = family.feature(rv("z", family.make(eta(theta, 3))))
    return (curve(theta, z) * jnp.array([1.0, -2.0, 0.5])).sum()


def pair(theta, rv, family):
    """Two lanes, terms of one lane each and one of both."""
    z = family.feature(rv("z", family.make(eta(theta, 2))))
    return curve(theta, z).sum() + jnp.prod(jnp.cos(0.4 * z))


def nested(theta, rv, family):
    z = family.feature(rv("z", family.make(eta(theta, 2, 2))))
    return curve(theta, z).sum() + jnp.prod(1 + 0.3 * z, 0).sum()


def lanes(theta, rv, family):
    one = lambda rv, e: curve(theta, family.feature(rv("z", family.make(e))))
    return rv.lanes(one, 3, eta(theta, 3)).sum()


def lanes_by_parameter(theta, rv, family):
    one = lambda rv, e: curve(theta, family.feature(rv("z", family.make(e))))
    return rv.lanes(one, 3, eta(theta, 3), keys=False).sum()


def lanes_by_key(theta, rv, family):
    one = lambda rv: curve(theta, family.feature(rv("z", family.make(eta(theta)))))
    return rv.lanes(one, 3).prod()


def plate_in_lanes(theta, rv, family):
    """Particles times data, particles averaged inside the logarithm."""
    one = lambda rv: curve(theta, family.feature(rv("z", family.make(eta(theta, 2)))))
    return logsumexp(rv.lanes(one, 2), 0).sum()


def particles_in_plate(theta, rv, family):
    """The other nesting, the sizes differing."""
    one = lambda rv, e: logsumexp(
        rv.lanes(lambda rv: curve(theta, family.feature(rv("z", family.make(e)))), 2)
    )
    return (
        rv.lanes(one, 1, eta(theta, 1)).sum()
        + rv.lanes(
            lambda rv, e: curve(theta, family.feature(rv("y", family.make(e)))), 2, eta(theta, 2)
        ).prod()
    )


def mixing(theta, rv, family):
    """Only one term, of all lanes."""
    z = family.feature(rv("z", family.make(eta(theta, 3))))
    return logsumexp(curve(theta, z)) + theta[1]


def mixing_in_lanes(theta, rv, family):
    one = lambda rv, t: logsumexp(curve(theta, family.feature(rv("z", family.make(eta(t, 2))))))
    return rv.lanes(one, 2, jnp.stack([theta[:2], 0.5 * theta[:2]])).sum()


def particles(theta, rv, family):
    one = lambda rv: curve(theta, family.feature(rv("z", family.make(eta(theta)))))
    return logsumexp(rv.lanes(one, 3)) - math.log(3)


def self_normalised(theta, rv, family):
    def one(rv):
        z = family.feature(rv("z", family.make(eta(theta))))
        return curve(theta, z), z

    log_weight, z = rv.lanes(one, 3)
    return (jax.nn.softmax(log_weight) * z).sum()


def scaled(theta, rv, family):
    """Subsampling: 5/2 of a term that gathers the data's rows."""
    z = family.feature(rv("z", family.make(eta(theta, 2))))
    rows = (theta[1] * jnp.arange(5.0))[jnp.array([3, 1])]
    return 2.5 * (rows * curve(theta, z)).sum() + theta[2] * z.sum()


def masked(theta, rv, family):
    """What the mask hides is not a number."""
    z = family.feature(rv("z", family.make(eta(theta, 3))))
    hidden = curve(theta, z) * jnp.array([1.0, jnp.nan, -1.0])
    return jnp.where(jnp.array([True, False, True]), hidden, 0.0).sum()


def masked_rows(theta, rv, family):
    z = family.feature(rv("z", family.make(eta(theta, 2, 2))))
    rows = curve(theta, z).sum(1) + jnp.array([0.0, jnp.inf])
    return jnp.where(jnp.array([True, False]), rows, 0.0).sum() + (theta[:2] * z.sum(0)).sum()


def upstream(theta, rv, family):
    """A reparameterised value depends on the site."""
    z = family.feature(rv("z", family.make(eta(theta, 2))))
    x = rv.noise("x", curve(theta, z), 0.5 + theta[2] ** 2)
    return (x**2).sum() + jnp.sin(x[0])


def downstream(theta, rv, family):
    """The site's parameters depend on a reparameterised value."""
    x = rv.noise("x", eta(theta, 2), jnp.exp(theta[2]))
    z = family.feature(rv("z", family.make(0.5 * jnp.sin(x))))
    return (curve(theta, z) * x).sum()


def unrelated(theta, rv, family):
    z = family.feature(rv("z", family.make(eta(theta, 2))))
    x = rv.noise("x", theta[1], 1.0)
    return theta[0] * x + curve(theta, z)[1] + softplus(theta).sum()


def log_density_ratio(theta, rv, family):
    """The objective contains the site's own log density, as a bound does."""
    q, p = family.make(eta(theta, 2)), family.make(jnp.full(2, 0.2))
    z = rv("z", q)
    return (p.log_prob(z) - q.log_prob(z) + curve(theta, family.feature(z))).sum()


def after(theta, rv, family):
    """Downstream of a choice; terms of one lane, of both, and of the choice alone."""
    a = rv("a", dist.Bernoulli(logits=theta[1]))
    z = family.feature(rv("z", family.make(eta(theta, 2) - 0.6 * a)))
    return curve(theta, z).sum() + jnp.prod(jnp.cos(0.4 * z)) * (1.0 + a) + theta[0] * a


def before(theta, rv, family):
    """Upstream of a choice that both lanes decide, and of one for each lane."""
    z = family.feature(rv("z", family.make(eta(theta, 2))))
    a = rv("a", dist.Bernoulli(logits=theta[1] + jnp.tanh(z).sum()))
    return (jnp.sin(theta[2] + z) * (0.5 + a)).sum() + theta[0] * a


def between(theta, rv, family):
    """Downstream of one choice and upstream of another."""
    a = rv("a", dist.Bernoulli(logits=theta[1]))
    z = family.feature(rv("z", family.make(eta(theta, 2) - 0.6 * a)))
    b = rv("b", dist.Bernoulli(logits=theta[2] + jnp.tanh(z).sum()))
    return (jnp.sin(theta[2] + z) * (0.5 + b)).sum() + theta[0] * a * jnp.prod(jnp.cos(0.4 * z))


def _numbers(z):
    """One number per lane, linear in a draw."""
    return z if z.ndim == 1 else z @ jnp.array([1.0, -0.7, 0.4])[: z.shape[1]]


def quadratic(theta, rv, family):
    """Terms of degree two or less, of one lane and of both."""
    z = 1.0 * rv("z", family.make(eta(theta, 2)))
    x = _numbers(z)
    both = (theta[0] * x.sum() - 0.3) ** 2 + (theta[2] + x[0]) * jnp.cumsum(x)[1]
    return (jnp.sin(theta[2]) * x).sum() - theta[1] * (z**2).sum() + both / theta[1]


def quadratic_after(theta, rv, family):
    """The same, downstream of a choice, with what is drawn pathwise from it."""
    a = rv("a", dist.Bernoulli(logits=theta[1]))
    x = _numbers(1.0 * rv("z", family.make(eta(theta, 2) - 0.6 * a)))
    return a * x.sum() ** 2 * theta[0] - jnp.exp(theta[2] * a) * x[0] * (x[1] - theta[1])


CONTEXTS = [
    scalar, plate, nested, lanes, lanes_by_parameter, lanes_by_key, plate_in_lanes, particles_in_plate,
    particles, self_normalised, scaled, masked, masked_rows, upstream, downstream, unrelated,
    log_density_ratio,
]  # fmt: skip
SITES = {scalar: 1, pair: 2, nested: 4, plate_in_lanes: 4, masked_rows: 4, particles_in_plate: 4,
         scaled: 2, upstream: 2, downstream: 2, unrelated: 2, log_density_ratio: 2, after: 2,
         before: 2, mixing_in_lanes: 4}  # fmt: skip


@functools.cache
def program(context, family):
    return lambda theta, rv: context(theta, rv, FAMILIES[family])


def grids(exact, *families):
    return {
        site: exact.Grid(*FAMILIES[f].grid)
        for site, f in zip(("z", "y"), families, strict=False)
        if FAMILIES[f].grid
    }
