"""Posteriors to approximate, with the largest bound of their guide where it has a closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

# Brownlee's stack loss data, as statsmodels has them: loss; air flow, temperature, acid
STACK_LOSS = """
42 80 27 89  37 80 27 88  37 75 25 90  28 62 24 87  18 62 22 87  18 62 23 87  19 62 24 93
20 62 24 93  15 58 23 87  14 58 18 80  14 58 18 89  13 58 17 88  11 58 18 82  12 58 19 93
8 50 18 89  7 50 18 86  8 50 19 72  8 50 19 79  9 50 20 80  15 56 20 82  15 70 20 91
"""
# executions in the states of the USA in 1997, as statsmodels has them: their number; income, poverty,
# black population, crimes, south, degree
EXECUTIONS = """
37 34453 16.7 12.2 644 1 .16  9 41534 12.5 20.0 351 1 .27  6 35802 10.6 11.2 591 0 .21
4 26954 18.4 16.1 524 1 .16  3 31468 14.8 25.9 565 1 .19  2 32552 18.8 3.5 632 0 .25
2 40873 11.6 15.3 886 0 .25  2 34861 13.1 30.1 997 1 .21  1 42562 9.4 4.3 405 0 .31
1 31900 14.3 15.4 1051 1 .24  1 37421 8.2 8.2 537 0 .19  1 33305 16.4 7.2 321 0 .16
1 32108 18.4 32.1 929 1 .18  1 45844 9.3 27.4 931 0 .29  1 34743 10.0 4.0 435 0 .24
1 29709 15.2 7.7 597 0 .21  1 36777 11.7 1.8 463 0 .25
"""


class Posterior(NamedTuple):
    """A model and a guide for it.

    Attributes:
      model: a NumPyro program.
      guide: makes a NumPyro program.
      args: of both.
      best: the largest bound that the guide can have, where it is known.
      bound: of parameter values by name, where it needs no draws.
    """

    model: Callable[..., Any]
    guide: Callable[[], Callable[..., Any]]
    args: tuple[Any, ...]
    best: float | None = None
    bound: Callable[[dict[str, Any]], float] | None = None


def _table(text: str, columns: int) -> np.ndarray:
    return np.array(text.split(), float).reshape(-1, columns)


def _standard(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / x.std(0)


def _normal_mean() -> Posterior:
    x = np.random.default_rng(0).normal(3.0, 2.0, 20)

    def model(x: jax.Array) -> None:
        mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(mean, 2.0), obs=x)

    evidence = _evidence(np.ones((20, 1)), x, 10.0, 2.0)
    return Posterior(model, lambda: AutoNormal(model), (jnp.array(x),), evidence)


def _evidence(x: np.ndarray, y: np.ndarray, prior: float, noise: float) -> float:
    """The log density of the data of a linear regression with independent normal weights."""
    cov = prior**2 * x @ x.T + noise**2 * np.eye(len(y))
    return float(-0.5 * (y @ np.linalg.solve(cov, y) + np.linalg.slogdet(2 * np.pi * cov)[1]))


def _mean_field(x: np.ndarray, y: np.ndarray, prior: float, noise: float) -> float:
    """The same minus the divergence of the best independent normals from the posterior."""
    precision = x.T @ x / noise**2 + np.eye(x.shape[1]) / prior**2
    gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    return _evidence(x, y, prior, noise) - float(gap)


def _linear(prior: float, noise: float) -> Callable[..., None]:
    def model(x: jax.Array, y: jax.Array) -> None:
        weights = numpyro.sample(
            "weights", dist.Normal(0.0, prior).expand([x.shape[1]]).to_event(1)
        )
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", dist.Normal(x @ weights, noise), obs=y)

    return model


def _conjugate_regression() -> Posterior:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, 5)) @ rng.normal(size=(5, 5))
    y = x @ rng.normal(size=5) + rng.normal(size=50)
    model = _linear(3.0, 1.0)
    guide = lambda: AutoMultivariateNormal(model)
    return Posterior(model, guide, (jnp.array(x), jnp.array(y)), _evidence(x, y, 3.0, 1.0))


def _stack_loss() -> Posterior:
    y, *columns = _table(STACK_LOSS, 4).T
    x = np.stack([np.ones(len(y)), *columns], 1)
    model = _linear(100.0, 3.0)
    best = _mean_field(x, y, 100.0, 3.0)
    return Posterior(model, lambda: AutoNormal(model), (jnp.array(x), jnp.array(y)), best)


def _breast_cancer() -> Posterior:
    x, y = load_breast_cancer(return_X_y=True)
    x = np.concatenate([_standard(x), np.ones((len(y), 1))], 1)

    def model(x: jax.Array, y: jax.Array) -> None:
        weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", dist.Bernoulli(logits=x @ weights), obs=y)

    return Posterior(model, lambda: AutoNormal(model), (jnp.array(x), jnp.array(y)))


def _executions() -> Posterior:
    y, *columns = _table(EXECUTIONS, 7).T
    x = np.concatenate([_standard(np.stack(columns, 1)), np.ones((len(y), 1))], 1)

    def model(x: jax.Array, y: jax.Array) -> None:
        weights = numpyro.sample("weights", dist.Normal(0.0, 2.0).expand([x.shape[1]]).to_event(1))
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", dist.Poisson(jnp.exp(x @ weights)), obs=y)

    guide = lambda: AutoMultivariateNormal(model)
    return Posterior(model, guide, (jnp.array(x), jnp.array(y, int)))


def _diabetes() -> Posterior:
    x, y = load_diabetes(return_X_y=True)  # the target is not standardised

    def model(x: jax.Array, y: jax.Array) -> None:
        noise = numpyro.sample("noise", dist.HalfNormal(100.0))
        centre = numpyro.sample("centre", dist.Normal(0.0, 500.0))
        prior = dist.Normal(0.0, 1_000.0).expand([x.shape[1]]).to_event(1)
        weights = numpyro.sample("weights", prior)
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", dist.Normal(centre + x @ weights, noise), obs=y)

    return Posterior(model, lambda: AutoNormal(model), (jnp.array(x), jnp.array(y)))


def _eight_schools() -> Posterior:
    y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model(y: jax.Array) -> None:
        centre = numpyro.sample("centre", dist.Normal(0.0, 5.0))
        spread = numpyro.sample("spread", dist.HalfCauchy(5.0))
        with numpyro.plate("schools", 8):
            effect = numpyro.sample("effect", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(centre + spread * effect, errors), obs=y)

    return Posterior(model, lambda: AutoNormal(model), (y,))


def _funnel() -> Posterior:
    def model() -> None:
        width = numpyro.sample("width", dist.Normal(0.0, 3.0))
        numpyro.sample("z", dist.Normal(0.0, jnp.exp(width / 2)).expand([9]).to_event(1))

    return Posterior(model, lambda: AutoNormal(model), ())


def _gaussian_process() -> Posterior:
    rng = np.random.default_rng(2)
    x = np.sort(rng.uniform(0.0, 10.0, 25))
    y = np.sin(x) + 0.2 * rng.normal(size=25)

    def model(x: jax.Array, y: jax.Array) -> None:
        length = numpyro.sample("length", dist.LogNormal(0.0, 1.0))
        height = numpyro.sample("height", dist.LogNormal(0.0, 1.0))
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        kernel = height**2 * jnp.exp(-0.5 * ((x[:, None] - x) / length) ** 2)
        factor = jnp.linalg.cholesky(kernel + 1e-4 * jnp.eye(len(x)))
        white = numpyro.sample("white", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1))
        numpyro.sample("y", dist.Normal(factor @ white, noise).to_event(1), obs=y)

    return Posterior(model, lambda: AutoNormal(model), (jnp.array(x), jnp.array(y)))


def _scales() -> Posterior:
    scales = jnp.array([1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3])

    def model() -> None:
        numpyro.sample("z", dist.Normal(3.0 * scales, scales).to_event(1))

    return Posterior(model, lambda: AutoNormal(model), (), 0.0)


def _correlated() -> Posterior:
    cov = 0.9 * np.ones((10, 10)) + 0.1 * np.eye(10)
    scales = np.logspace(-1, 1, 10)
    cov = cov * scales * scales[:, None]

    def model() -> None:
        centre = jnp.arange(10.0)
        numpyro.sample("z", dist.MultivariateNormal(centre, covariance_matrix=jnp.array(cov)))

    return Posterior(model, lambda: AutoMultivariateNormal(model), (), 0.0)


def _factors() -> Posterior:
    """Digits by a linear model of 8 factors, its weights parameters, with an amortised guide."""
    x = load_digits().data
    x = (x - x.mean(0)) / x.std()
    spectrum = np.linalg.eigvalsh(x.T @ x / len(x))[::-1]
    noise = spectrum[8:].mean()
    log_det = np.log(spectrum[:8]).sum() + 56 * np.log(noise)
    best = float(-0.5 * len(x) * (64 * np.log(2 * np.pi) + log_det + 64))

    def model(x: jax.Array) -> None:
        weights = numpyro.param("weights", 0.1 * jax.random.normal(jax.random.key(1), (8, 64)))
        noise = numpyro.param("noise", 1.0, constraint=dist.constraints.positive)
        with numpyro.plate("data", len(x), subsample_size=100):
            batch = numpyro.subsample(x, event_dim=1)
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
            numpyro.sample("x", dist.Normal(z @ weights, noise).to_event(1), obs=batch)

    def guide(x: jax.Array) -> None:
        slope = numpyro.param("slope", jnp.zeros((64, 8)))
        scale = numpyro.param("scale", jnp.ones(8), constraint=dist.constraints.positive)
        with numpyro.plate("data", len(x), subsample_size=100):
            batch = numpyro.subsample(x, event_dim=1)
            numpyro.sample("z", dist.Normal(batch @ slope, scale).to_event(1))

    def bound(params: dict[str, Any]) -> float:
        weights, noise, slope, scale = (
            np.asarray(params[n], float) for n in ("weights", "noise", "slope", "scale")
        )
        mean = x @ slope
        wrong = ((x - mean @ weights) ** 2).sum() + len(x) * (scale**2 * (weights**2).sum(1)).sum()
        fit = -0.5 * wrong / noise**2 - 0.5 * x.size * np.log(2 * np.pi * noise**2)
        entropy = len(x) * (0.5 * (scale**2 - 1) - np.log(scale)).sum()
        return float(fit - 0.5 * (mean**2).sum() - entropy)

    return Posterior(model, lambda: guide, (jnp.array(x),), best, bound)


POSTERIORS: dict[str, Callable[[], Posterior]] = {
    "normal mean": _normal_mean,
    "linear regression, full rank": _conjugate_regression,
    "stack loss, raw columns": _stack_loss,
    "breast cancer, logistic": _breast_cancer,
    "executions, Poisson, full rank": _executions,
    "diabetes": _diabetes,
    "eight schools": _eight_schools,
    "funnel": _funnel,
    "Gaussian process": _gaussian_process,
    "scales 1e-3 to 1e3": _scales,
    "correlated normal, full rank": _correlated,
    "digits, 8 factors, minibatches": _factors,
}
