"""What the benchmarks share: discrete variational autoencoders of handwritten digits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from _common import apply, dense
from numpyro.infer import SVI
from sklearn.datasets import load_digits

import vipp

LATENT, HIDDEN, BATCH = 32, 128, 64
GROUPS, CHOICES, NARROW = 20, 10, 64


def digits() -> jax.Array:
    """scikit-learn's 1,797 images of 8 x 8 pixels, binarised."""
    return jnp.asarray(load_digits().data > 7, jnp.float32)


def binary_model(x: Any) -> None:
    """32 Bernoulli latents and one Normal latent per row."""
    decoder = numpyro.param("decoder", lambda key: dense(key, (LATENT + 1, HIDDEN, x.shape[-1])))
    with numpyro.plate("rows", x.shape[0]):
        z = numpyro.sample("z", dist.Bernoulli(probs=jnp.full(LATENT, 0.5)).to_event(1))
        style = numpyro.sample("style", dist.Normal(0.0, 1.0))
        hidden = jnp.concatenate([1.0 * z, style[:, None]], axis=-1)
        numpyro.sample("x", dist.Bernoulli(logits=apply(decoder, hidden)).to_event(1), obs=x)


def binary_guide(x: Any) -> None:
    encoder = numpyro.param("encoder", lambda key: dense(key, (x.shape[-1], HIDDEN, LATENT + 2)))
    logits, mean, log_scale = jnp.split(apply(encoder, x), [LATENT, LATENT + 1], axis=-1)
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))
        numpyro.sample("style", dist.Normal(mean[:, 0], jnp.exp(log_scale[:, 0])))


def categorical_model(x: Any, batch_size: int | None = None) -> None:
    """20 latents of 10 categories per row; of a random minibatch if there is a batch size."""
    sizes = (GROUPS * CHOICES, NARROW, x.shape[-1])
    decoder = numpyro.param("decoder", lambda key: dense(key, sizes))
    with numpyro.plate("rows", x.shape[0], subsample_size=batch_size):
        pixels = numpyro.subsample(x, event_dim=1)
        prior = vipp.OneHotCategorical(logits=jnp.zeros((GROUPS, CHOICES)))
        z = numpyro.sample("z", prior.to_event(1))
        logits = apply(decoder, z.reshape(*z.shape[:-2], GROUPS * CHOICES))
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=pixels)


def categorical_guide(x: Any, batch_size: int | None = None) -> None:
    sizes = (x.shape[-1], NARROW, GROUPS * CHOICES)
    encoder = numpyro.param("encoder", lambda key: dense(key, sizes))
    with numpyro.plate("rows", x.shape[0], subsample_size=batch_size):
        logits = apply(encoder, numpyro.subsample(x, event_dim=1))
        logits = logits.reshape(*logits.shape[:-1], GROUPS, CHOICES)
        numpyro.sample("z", vipp.OneHotCategorical(logits=logits).to_event(1))


def trained(model: Any, guide: Any, x: jax.Array, steps: int) -> dict[str, Any]:
    """Parameters at initialisation and after training on batches, with vipp's default."""
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
