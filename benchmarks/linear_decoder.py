"""What exact gradients of a linear decoder cost: `Analytic()` against pathwise and by hand.

Rows of 784 pixels, 64 at a time, Gaussian likelihood, an encoder 784-200-2K. Operations, bytes and
time of value and gradient, relative to the pathwise gradient, vipp's default; by hand the formula
for mean and variance of the likelihood, and the closed divergence.

    python benchmarks/linear_decoder.py [--rounds 40] [--latents 2 32 128]
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from _common import apply, compiled, counted, dense, paired, table

import vipp

PIXELS, HIDDEN, ROWS = 784, 200, 64


def model(x: Any) -> None:
    loading, bias = numpyro.param("loading", None), numpyro.param("bias", None)
    scale = jnp.exp(numpyro.param("log_scale", None))
    with numpyro.plate("rows", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(len(loading)), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z @ loading + bias, scale).to_event(1), obs=x)


def guide(x: Any) -> None:
    mean, log_scale = jnp.split(apply(numpyro.param("encoder", None), x), 2, axis=-1)
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("z", dist.Normal(mean, jnp.exp(log_scale)).to_event(1))


def derived(objective: Any, estimator: Any) -> Any:
    own = vipp.with_estimators(guide, {"z": estimator})
    return lambda key, params, x: vipp.value_and_grad(objective, model, own)(key, params, x)


def by_hand(key: Any, params: Any, x: Any) -> Any:
    """The bound in closed form: expected squares, and the divergence of two Gaussians."""

    def bound(params: Any) -> Any:
        mean, log_scale = jnp.split(apply(params["encoder"], x), 2, axis=-1)
        variance, loading = jnp.exp(2.0 * log_scale), params["loading"]
        residual = x - mean @ loading - params["bias"]
        squares = jnp.square(residual).sum() + (variance @ jnp.square(loading).sum(1)).sum()
        constant = x.size * (params["log_scale"] + 0.5 * jnp.log(2.0 * jnp.pi))
        likelihood = -0.5 * squares * jnp.exp(-2.0 * params["log_scale"]) - constant
        return likelihood - 0.5 * (variance + mean**2 - 1.0 - 2.0 * log_scale).sum()

    return jax.value_and_grad(bound)(params)


PROGRAMS = {
    "Pathwise(), the default": derived(vipp.ELBO(), vipp.Pathwise()),
    "Analytic()": derived(vipp.ELBO(), vipp.Analytic()),
    'Analytic(), kl="analytic"': derived(vipp.ELBO(kl="analytic"), vipp.Analytic()),
    "by hand": by_hand,
}


def measured(latents: int, rounds: int) -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (ROWS, PIXELS))
    params = {
        "loading": 0.1 * jax.random.normal(keys[1], (latents, PIXELS)),
        "bias": jnp.zeros(PIXELS),
        "log_scale": jnp.float32(-0.4),
        "encoder": dense(keys[2], (PIXELS, HIDDEN, 2 * latents)),
    }
    given = keys[3], params, x
    programs = {name: compiled(fn, *given) for name, fn in PROGRAMS.items()}
    exact, *rest = (programs[n](*given) for n in reversed(PROGRAMS))
    for other in rest[:-1]:
        near = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3 * abs(b).max())
        jax.tree.map(near, other, exact)
    times = paired({n: (p, given) for n, p in programs.items()}, rounds, repeats=5)
    figures = {n: (*counted(p), times[n]) for n, p in programs.items()}
    base = next(iter(figures.values()))
    rows = [
        (n, *(f / b for f, b in zip(fs, base, strict=True)), 1e3 * fs[2])
        for n, fs in figures.items()
    ]
    table(f"{latents} latent numbers", ("gradient", "operations", "bytes", "time", "ms"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--latents", type=int, nargs="*", default=(2, 32, 128))
    options = parser.parse_args()
    for latents in options.latents:
        measured(latents, options.rounds)


if __name__ == "__main__":
    main()
