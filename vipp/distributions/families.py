"""Expectations of log densities in closed form, for distributions of one number.

The log density of a family is a sum of a few statistics of the value (its logarithm, a power, the
square of its distance from a point); where another family knows the expectations of these, the
divergence of the one from the other is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import betaln, digamma, gammaln, i0e, i1e, polygamma, xlogy
from jax.scipy.stats import norm
from numpyro.distributions.transforms import AffineTransform, ExpTransform

from vipp.distributions.kumaraswamy import mean_log_rest
from vipp.distributions.laws import has_law_of
from vipp.distributions.wrappers import unexpanded

Expected = Callable[..., jax.Array]


class Density(NamedTuple):
    """A log density as a sum of multiples of statistics.

    Attributes:
      constant: what does not depend on the value.
      parts: statistics by name, each with its arguments and its coefficient.
      low, high: where the support ends.
    """

    constant: Any
    parts: tuple[tuple[str, tuple[Any, ...], Any], ...] = ()
    low: Any = -jnp.inf
    high: Any = jnp.inf


class Law(NamedTuple):
    """What is known of a distribution.

    Attributes:
      density: its log density, or None.
      entropy: minus the expectation of that, or None.
      expected: expectations of statistics by name, functions of the statistic's arguments.
      low, high: where the support ends.
    """

    density: Density | None
    entropy: Any
    expected: Mapping[str, Expected]
    low: Any = -jnp.inf
    high: Any = jnp.inf


def law_of(fn: Any) -> Law | None:
    r"""What is known of ``fn``, or None; a subclass with a law of its own is not what its base is.

    The statistics are

    - ``square(c)``, ``distance(c)``: :math:`(x - c)^2`, :math:`|x - c|`;
    - ``value``, ``power(k)``: :math:`x`, :math:`x^k`;
    - ``exponential(t, c)``: :math:`e^{t (x - c)}`;
    - ``log``, ``log_square``, ``log_rest``: :math:`\log x`, :math:`\log^2 x`, :math:`\log(1-x)`;
    - ``cosine(c)``: :math:`\cos(x - c)`.
    """
    for kind, make in _LAWS.items():
        if has_law_of(fn, kind):
            return make(fn)
    transformed = has_law_of(fn, dist.TransformedDistribution)
    if transformed and has_law_of(unexpanded(fn.base_dist), dist.Normal):
        return _of_transformed_normal(unexpanded(fn.base_dist), fn.transforms)
    return None


def _of_transformed_normal(base: Any, transforms: Any) -> Law | None:
    """Moved and stretched it is a normal still, and a log-normal once its exponential is taken."""
    *moved, last = transforms
    exponential = type(last) is ExpTransform
    m, s = base.loc, base.scale
    for t in moved if exponential else transforms:
        if type(t) is not AffineTransform:
            return None
        m, s = t.loc + t.scale * m, jnp.abs(t.scale) * s
    return _log_normal(m, s) if exponential else _normal(m, s)


def _moments(mean: Any, variance: Any) -> dict[str, Expected]:
    return {"value": lambda: mean, "square": lambda c: variance + jnp.square(mean - c)}


# -- on the line -----------------------------------------------------------------------------------


def _normal(m: Any, s: Any) -> Law:
    def distance(c: Any) -> jax.Array:
        z = (m - c) / s
        return s * (2 * norm.pdf(z) + z * (2 * norm.cdf(z) - 1))

    expected = _moments(m, jnp.square(s)) | {
        "distance": distance,
        "exponential": lambda t, c: jnp.exp(t * (m - c) + jnp.square(t * s) / 2),
    }
    constant = -jnp.log(s) - math.log(2 * math.pi) / 2
    density = Density(constant, (("square", (m,), -0.5 / jnp.square(s)),))
    return Law(density, 0.5 - constant, expected)


def _laplace(fn: Any) -> Law:
    m, s = fn.loc, fn.scale

    def distance(c: Any) -> jax.Array:
        away = jnp.abs(m - c)
        return away + s * jnp.exp(-away / s)

    def exponential(t: Any, c: Any) -> jax.Array:
        return jnp.exp(t * (m - c)) * _where(jnp.abs(t * s) < 1, lambda u: 1 / (1 - u * u), t * s)

    expected = _moments(m, 2 * jnp.square(s)) | {"distance": distance, "exponential": exponential}
    constant = -jnp.log(2 * s)
    return Law(Density(constant, (("distance", (m,), -1 / s),)), 1 - constant, expected)


def _gumbel(fn: Any) -> Law:
    m, s = fn.loc, fn.scale

    def exponential(t: Any, c: Any) -> jax.Array:
        return jnp.exp(t * (m - c)) * _where(t * s < 1, lambda u: jnp.exp(gammaln(1 - u)), t * s)

    mean, variance = m + jnp.euler_gamma * s, jnp.square(math.pi * s) / 6
    expected = _moments(mean, variance) | {"exponential": exponential}
    parts = (("value", (), -1 / s), ("exponential", (-1 / s, m), -1.0))
    return Law(Density(m / s - jnp.log(s), parts), jnp.log(s) + jnp.euler_gamma + 1, expected)


def _logistic(fn: Any) -> Law:
    m, s = fn.loc, fn.scale

    def distance(c: Any) -> jax.Array:
        away = jnp.abs(m - c) / s
        return s * (away + 2 * jnp.log1p(jnp.exp(-away)))

    def exponential(t: Any, c: Any) -> jax.Array:
        inside = lambda u: 1 / jnp.sinc(u)
        return jnp.exp(t * (m - c)) * _where(jnp.abs(t * s) < 1, inside, t * s)

    variance = jnp.square(math.pi * s) / 3
    expected = _moments(m, variance) | {"distance": distance, "exponential": exponential}
    return Law(None, jnp.log(s) + 2, expected)


def _student(fn: Any) -> Law:
    n, s = fn.df, fn.scale
    half = (n + 1) / 2
    entropy = half * (digamma(half) - digamma(n / 2)) + jnp.log(n) / 2 + betaln(n / 2, 0.5)
    variance = jnp.square(s) * _where(n > 2, lambda u: u / (u - 2), n)
    square = lambda c: variance + jnp.square(fn.loc - c)
    return Law(None, entropy + jnp.log(s), {"square": square})


def _von_mises(fn: Any) -> Law:
    m, k = fn.loc, fn.concentration
    length = i1e(k) / i0e(k)
    constant = -math.log(2 * math.pi) - jnp.log(i0e(k)) - k
    density = Density(constant, (("cosine", (m,), k),), -math.pi, math.pi)
    expected: dict[str, Expected] = {"cosine": lambda c: length * jnp.cos(m - c)}
    return Law(density, -constant - k * length, expected, -math.pi, math.pi)


def _truncated(fn: Any) -> Law | None:
    base = fn.base_dist
    if not has_law_of(base, dist.Normal):
        return None
    sides = [getattr(fn, "low", None), getattr(fn, "high", None)]
    low, high = (end if side is None else side for side, end in zip(sides, _LINE, strict=True))
    inside = low if sides[0] is not None else high
    constant = fn.log_prob(inside) + jnp.square((inside - base.loc) / base.scale) / 2
    expected = _moments(fn.mean, fn.variance)
    part = ("square", (base.loc,), -0.5 / jnp.square(base.scale))
    entropy = -constant - part[2] * expected["square"](base.loc)
    return Law(Density(constant, (part,), low, high), entropy, expected, low, high)


def _uniform(fn: Any) -> Law:
    low, high = fn.low, fn.high
    width = high - low

    def between(integral: Callable[[Any], jax.Array]) -> jax.Array:
        return (integral(high) - integral(low)) / width

    def power(k: Any) -> jax.Array:
        safe = jnp.where(k == -1, 0.0, k)
        inverse = lambda: between(jnp.log)
        return jnp.where(k == -1, inverse(), between(lambda x: x ** (safe + 1) / (safe + 1)))

    def exponential(t: Any, c: Any) -> jax.Array:
        return between(lambda x: jnp.exp(t * (x - c))) / t

    middle = low + width / 2
    expected = _moments(middle, jnp.square(width) / 12) | {
        "distance": lambda c: between(lambda x: (x - c) * jnp.abs(x - c) / 2),
        "exponential": exponential,
        "log": lambda: between(lambda x: xlogy(x, x)) - 1,
        "log_square": lambda: between(lambda x: xlogy(xlogy(x, x), x) - 2 * xlogy(x, x)) + 2,
        "log_rest": lambda: -between(lambda x: xlogy(1 - x, 1 - x)) - 1,
        "power": power,
    }
    density = Density(-jnp.log(width), (), low, high)
    return Law(density, jnp.log(width), expected, low, high)


# -- positive --------------------------------------------------------------------------------------


def _on_half_line(
    mean_log: Any,
    variance_log: Any,
    power: Expected,
    constant: Any,
    parts: Any,
    entropy: Any = None,
) -> Law:
    expected: dict[str, Expected] = {
        "log": lambda: mean_log,
        "log_square": lambda: variance_log + jnp.square(mean_log),
        "power": power,
        "value": lambda: power(1.0),
        "square": lambda c: power(2.0) - 2 * c * power(1.0) + c * c,
    }
    density = Density(constant, parts, 0.0)
    return Law(density, entropy, expected, 0.0)


def _gamma_law(a: Any, b: Any) -> Law:
    def power(k: Any) -> jax.Array:
        moment = _where(a + k > 0, lambda u: jnp.exp(gammaln(u) - gammaln(a)), a + k)
        return moment * b**-k

    parts = (("log", (), a - 1), ("power", (1.0,), -b))
    constant = a * jnp.log(b) - gammaln(a)
    entropy = a - jnp.log(b) + gammaln(a) + (1 - a) * digamma(a)
    return _on_half_line(digamma(a) - jnp.log(b), polygamma(1, a), power, constant, parts, entropy)


def _gamma(fn: Any) -> Law:
    return _gamma_law(fn.concentration, fn.rate)


def _exponential(fn: Any) -> Law:
    return _gamma_law(jnp.ones_like(fn.rate), fn.rate)


def _inverse_gamma(fn: Any) -> Law:
    a, b = fn.concentration, fn.rate
    inverse = _gamma_law(a, b).expected
    mean_log, power = -inverse["log"](), lambda k: inverse["power"](-k)
    parts = (("log", (), -a - 1), ("power", (-1.0,), -b))
    constant = a * jnp.log(b) - gammaln(a)
    entropy = a + jnp.log(b) + gammaln(a) - (1 + a) * digamma(a)
    return _on_half_line(mean_log, polygamma(1, a), power, constant, parts, entropy)


def _log_normal(m: Any, s: Any) -> Law:
    precision = 1 / jnp.square(s)
    parts = (("log", (), m * precision - 1), ("log_square", (), -0.5 * precision))
    constant = -jnp.log(s) - math.log(2 * math.pi) / 2 - jnp.square(m) * precision / 2
    entropy = m + 0.5 + jnp.log(s) + math.log(2 * math.pi) / 2
    power = lambda k: jnp.exp(k * m + jnp.square(k * s) / 2)
    return _on_half_line(m, jnp.square(s), power, constant, parts, entropy)


def _half_normal(fn: Any) -> Law:
    s = fn.scale
    mean_log = jnp.log(s) - (jnp.euler_gamma + math.log(2)) / 2
    constant = math.log(2 / math.pi) / 2 - jnp.log(s)
    parts = (("square", (0.0,), -0.5 / jnp.square(s)),)

    def power(k: Any) -> jax.Array:
        half = jnp.asarray((k + 1) / 2)
        root = math.sqrt(2) * s
        return root**k * _where(half > 0, lambda u: jnp.exp(gammaln(u)), half) / math.sqrt(math.pi)

    return _on_half_line(mean_log, math.pi**2 / 8, power, constant, parts, 0.5 - constant)


def _weibull(fn: Any) -> Law:
    s, k = fn.scale, fn.concentration

    def power(j: Any) -> jax.Array:
        return s**j * _where(1 + j / k > 0, lambda u: jnp.exp(gammaln(u)), 1 + j / k)

    constant = jnp.log(k) - k * jnp.log(s)
    parts = (("log", (), k - 1), ("power", (k,), -(s**-k)))
    entropy = jnp.euler_gamma * (1 - 1 / k) + jnp.log(s / k) + 1
    mean_log = jnp.log(s) - jnp.euler_gamma / k
    variance_log = math.pi**2 / 6 / jnp.square(k)
    return _on_half_line(mean_log, variance_log, power, constant, parts, entropy)


def _pareto(fn: Any) -> Law:
    low, a = fn.scale, fn.alpha
    power = lambda k: low**k * _where(a > k, lambda u: a / u, a - k)
    constant = jnp.log(a) + a * jnp.log(low)
    parts = (("log", (), -a - 1),)
    entropy = jnp.log(low / a) + 1 / a + 1
    law = _on_half_line(jnp.log(low) + 1 / a, 1 / jnp.square(a), power, constant, parts, entropy)
    return law._replace(density=Density(constant, parts, low), low=low)


# -- between zero and one --------------------------------------------------------------------------


def _beta(fn: Any) -> Law:
    a, b = fn.concentration1, fn.concentration0
    mean_log, mean_log_rest = digamma(a) - digamma(a + b), digamma(b) - digamma(a + b)

    def power(k: Any) -> jax.Array:
        return _where(a + k > 0, lambda u: jnp.exp(betaln(u, b) - betaln(a, b)), a + k)

    variance_log = polygamma(1, a) - polygamma(1, a + b)
    parts = (("log", (), a - 1), ("log_rest", (), b - 1))
    entropy = betaln(a, b) - (a - 1) * mean_log - (b - 1) * mean_log_rest
    law = _on_half_line(mean_log, variance_log, power, -betaln(a, b), (), entropy)
    expected = {**law.expected, "log_rest": lambda: mean_log_rest}
    expected |= _moments(a / (a + b), a * b / (jnp.square(a + b) * (a + b + 1)))
    return Law(Density(-betaln(a, b), parts, 0.0, 1.0), entropy, expected, 0.0, 1.0)


def _kumaraswamy(fn: Any) -> Law:
    a, b = fn.concentration1, fn.concentration0
    harmonic = digamma(b + 1) + jnp.euler_gamma
    entropy = 1 - 1 / b + (1 - 1 / a) * harmonic - jnp.log(a * b)
    shape = lambda k: jnp.asarray(1 + k / a)
    power = lambda k: b * _where(shape(k) > 0, lambda u: jnp.exp(betaln(u, b)), shape(k))
    variance = (polygamma(1, jnp.ones_like(b)) - polygamma(1, b + 1)) / jnp.square(a)
    law = _on_half_line(-harmonic / a, variance, power, 0.0, (), entropy)
    expected = {**law.expected, "log_rest": lambda: mean_log_rest(a, b)}
    return law._replace(density=None, expected=expected, high=1.0)


# -- counts ----------------------------------------------------------------------------------------


def _geometric(fn: Any) -> Law:
    p = fn.probs
    constant = jnp.log(p)
    mean = (1 - p) / p
    log_failure = jnp.log1p(-p)
    density = Density(constant, (("count", (), log_failure),), 0.0)
    entropy = -constant - xlogy(mean, 1 - p)
    expected = {"count": lambda: mean, **_moments(mean, mean / p)}
    return Law(density, entropy, expected, 0.0)


def _discrete_uniform(fn: Any) -> Law:
    constant = -jnp.log(fn.high - fn.low + 1.0)
    mean = (fn.low + fn.high) / 2
    density = Density(constant, (), fn.low, fn.high)
    return Law(density, -constant, {"count": lambda: mean}, fn.low, fn.high)


def _where(inside: Any, fn: Callable[[Any], jax.Array], x: Any) -> jax.Array:
    """``fn(x)``, infinite elsewhere, with gradients that are numbers."""
    return jnp.where(inside, fn(jnp.where(inside, x, 0.5)), jnp.inf)


_LINE = (-jnp.inf, jnp.inf)
_LAWS: dict[type, Callable[[Any], Law | None]] = {
    dist.Normal: lambda fn: _normal(fn.loc, fn.scale),
    dist.Laplace: _laplace,
    dist.Gumbel: _gumbel,
    dist.Logistic: _logistic,
    dist.StudentT: _student,
    dist.VonMises: _von_mises,
    dist.LeftTruncatedDistribution: _truncated,
    dist.RightTruncatedDistribution: _truncated,
    dist.TwoSidedTruncatedDistribution: _truncated,
    dist.Uniform: _uniform,
    dist.Gamma: _gamma,
    dist.Exponential: _exponential,
    dist.InverseGamma: _inverse_gamma,
    dist.LogNormal: lambda fn: _log_normal(fn.loc, fn.scale),
    dist.HalfNormal: _half_normal,
    dist.Weibull: _weibull,
    dist.Pareto: _pareto,
    dist.Beta: _beta,
    dist.Kumaraswamy: _kumaraswamy,
    dist.DiscreteUniform: _discrete_uniform,
    dist.GeometricProbs: _geometric,
    dist.GeometricLogits: _geometric,
}
