"""The pictures of docs/training.md: a logistic regression by a factorised guide, and by MCMC.

python benchmarks/pictures.py [--folder docs/images]
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC, NUTS
from numpyro.infer.autoguide import AutoNormal

import vipp

KEYS = jax.random.split(jax.random.key(1), 5)


def data(seed: int) -> tuple[jax.Array, jax.Array]:
    """60 outcomes of two correlated covariates."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(60, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]])
    y = draw.uniform(size=60) < 1 / (1 + np.exp(-(x @ [1.5, -0.5] + 0.5)))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def regression(x: Any, y: Any) -> None:
    """A logistic regression."""
    weights = numpyro.sample("weights", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    bias = numpyro.sample("bias", dist.Normal(0.0, 2.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=x @ weights + bias), obs=y)


def normal(x: Any) -> None:
    """A model whose posterior is known: precision 5 for four data."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    narrow = numpyro.sample("narrow", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(jnp.stack([mean, narrow]), 0.5).to_event(1), obs=x)


def amortised(x: Any) -> None:
    """A guide that is right for one site, and too narrow for the other."""
    slope, scale = numpyro.param("slope", 0.8), 0.2**0.5
    numpyro.sample("mean", dist.Normal(slope * x[0], scale))
    numpyro.sample("narrow", dist.Normal(slope * x[1], 0.5 * scale))


def main(folder: str) -> None:
    """Write the pictures."""
    matplotlib.use("Agg")
    place, (x, y) = pathlib.Path(folder), data(0)
    guide = AutoNormal(regression)
    result = vipp.fit(
        KEYS[0], vipp.ELBO(), regression, guide, optax.adam(0.01), 3_000, x, y,
        validate=data(1), metrics=True, log_every=50, progress_bar=False,
    )  # fmt: skip
    mcmc = MCMC(NUTS(regression), num_warmup=500, num_samples=2_000, progress_bar=False)
    mcmc.run(KEYS[1], x, y)
    found = vipp.fit(
        KEYS[2], vipp.ELBO(), normal, amortised, optax.sgd(0.0), 1, jnp.zeros(2), progress_bar=False
    )
    calibration = vipp.calibration(KEYS[3], found, num_simulations=400)
    pictures = {
        "losses": vipp.plot_losses(result).figure,
        "gradient_noise": vipp.plot_signal_to_noise(result).figure,
        "pairs": vipp.plot_pairs(result.sample_posterior(KEYS[4], 2_000), mcmc.get_samples()),
        "calibration": vipp.plot_calibration(calibration),
    }
    for name, figure in pictures.items():
        figure.savefig(place / f"{name}.png", dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    default = pathlib.Path(__file__).parents[1] / "docs" / "images"
    parser.add_argument("--folder", default=str(default))
    main(**vars(parser.parse_args()))
