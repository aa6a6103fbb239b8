"""Gradient variance times time on a discrete variational autoencoder.

scikit-learn's handwritten digits, binarised, 64 rows, 32 Bernoulli latents and one Normal latent,
multilayer perceptrons in plain JAX. For each estimator of the Bernoulli site: the variance of the
encoder's gradient summed over its parameters, times the seconds of one gradient, at initialisation
and after 500 steps of training (with vipp's default, the same parameters for all).

    python benchmarks/variance.py [--draws 400] [--steps 500] [--rounds 200]
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from _common import apply, compiled, dense, paired, table
from numpyro.infer import SVI, TraceGraph_ELBO
from sklearn.datasets import load_digits

import vipp

LATENT, HIDDEN, BATCH, TARGET = 32, 128, 64, 100
REFERENCE, DEFAULT = "numpyro TraceGraph_ELBO", "vipp default"


def digits() -> jax.Array:
    return jnp.asarray(load_digits().data > 7, jnp.float32)


def model(x: Any) -> None:
    decoder = numpyro.param("decoder", lambda key: dense(key, (LATENT + 1, HIDDEN, x.shape[-1])))
    with numpyro.plate("rows", x.shape[0]):
        z = numpyro.sample("z", dist.Bernoulli(probs=jnp.full(LATENT, 0.5)).to_event(1))
        style = numpyro.sample("style", dist.Normal(0.0, 1.0))
        hidden = jnp.concatenate([1.0 * z, style[:, None]], axis=-1)
        numpyro.sample("x", dist.Bernoulli(logits=apply(decoder, hidden)).to_event(1), obs=x)


def guide(x: Any) -> None:
    encoder = numpyro.param("encoder", lambda key: dense(key, (x.shape[-1], HIDDEN, LATENT + 2)))
    logits, mean, log_scale = jnp.split(apply(encoder, x), [LATENT, LATENT + 1], axis=-1)
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))
        numpyro.sample("style", dist.Normal(mean[:, 0], jnp.exp(log_scale[:, 0])))


def losses() -> dict[str, Any]:
    def under(estimator: Any) -> Any:
        return vipp.ELBO(), vipp.with_estimators(guide, {"z": estimator})

    return {
        REFERENCE: (TraceGraph_ELBO(), guide),
        "numpyro TraceGraph_ELBO(2)": (TraceGraph_ELBO(num_particles=2), guide),
        DEFAULT: (vipp.ELBO(), guide),
        "vipp ScoreFunction()": under(vipp.ScoreFunction()),
        "vipp ScoreFunction(2, 'leave_one_out')": under(vipp.ScoreFunction(2, "leave_one_out")),
        "vipp ScoreFunction(4, 'leave_one_out')": under(vipp.ScoreFunction(4, "leave_one_out")),
        "vipp ScoreFunction(8, 'leave_one_out')": under(vipp.ScoreFunction(8, "leave_one_out")),
    }


def trained(x: jax.Array, steps: int) -> dict[str, Any]:
    """Parameters at initialisation and after training on batches of all digits."""
    svi = SVI(model, guide, optax.adam(1e-3), loss=vipp.ELBO())
    state = svi.init(jax.random.key(0), x[:BATCH])
    start = svi.get_params(state)

    @jax.jit
    def run(state: Any) -> Any:
        def step(state: Any, key: Any) -> Any:
            rows = jax.random.choice(key, x.shape[0], (BATCH,), replace=False)
            return svi.update(state, x[rows])

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), steps))

    state, history = run(state)
    print(f"loss per row: {history[0] / BATCH:.2f} at the start, "
          f"{history[-50:].mean() / BATCH:.2f} after {steps} steps")  # fmt: skip
    return {"initialisation": start, f"after {steps} steps": svi.get_params(state)}


def moments(gradient: Any, params: Any, x: Any, draws: int) -> tuple[float, jax.Array]:
    """The encoder gradient's variance summed over parameters, and its mean."""

    def one(key: Any) -> jax.Array:
        grads = gradient(params, key, x)[1]["encoder"]
        return jnp.concatenate([g.ravel() for g in jax.tree.leaves(grads)])

    keys = jax.random.split(jax.random.key(2), draws)

    def add(sums: Any, key: Any) -> Any:
        g = one(key)
        return (sums[0] + g, sums[1] + g * g), None

    zero = jnp.zeros_like(one(keys[0]))
    (first, second), _ = jax.jit(lambda ks: jax.lax.scan(add, (zero, zero), ks))(keys)
    mean = first / draws
    return float((second / draws - mean**2).sum() * draws / (draws - 1)), mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    x = digits()
    batch = x[:BATCH]
    gradients = {
        name: jax.value_and_grad(
            lambda params, key, x, loss=loss, guide=guide: loss.loss(key, params, model, guide, x)
        )
        for name, (loss, guide) in losses().items()
    }
    for when, params in trained(x, options.steps).items():
        args = (params, jax.random.key(3), batch)
        programs = {name: (compiled(g, *args), args) for name, g in gradients.items()}
        times = paired(programs, options.rounds)
        found = {n: moments(g, params, batch, options.draws) for n, g in gradients.items()}
        reference, default = found[REFERENCE][0] * times[REFERENCE], found[DEFAULT][1]
        rows = []
        for name, (variance, mean) in found.items():
            product = variance * times[name]
            better = reference / product
            judged = "" if name != DEFAULT else "met" if better >= TARGET else "MISSED"
            gap = float(jnp.linalg.norm(mean - default) / jnp.linalg.norm(default))
            rows.append((name, variance, 1e6 * times[name], product, better,
                         judged and f"{judged} (>= {TARGET})", gap))  # fmt: skip
        header = ("estimator", "variance", "us", "variance x s", "times better", "target",
                  "mean gap")  # fmt: skip
        table(f"Encoder gradient, {when}", header, rows)


if __name__ == "__main__":
    main()
