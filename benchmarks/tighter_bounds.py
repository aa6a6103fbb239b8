"""IWAE, MIWAE, PIWAE and CIWAE on handwritten digits, after Rainforth et al. (ICML 2018), table 1.

One variational autoencoder is trained with each objective, all with 64 draws per image; then, on
held-out images: IWAE-64, the log likelihood (a large importance weighted bound), and minus the
divergence from the guide to the posterior (ELBO less log likelihood). Tighter bounds train better
models; looser ones better guides; PIWAE and CIWAE want both.

    python benchmarks/tighter_bounds.py [--data binarized_mnist.npz] [--steps 3000]
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from _common import apply, dense, table
from _digits import digits

import vipp

OBJECTIVES = {
    "IWAE(64)": vipp.IWAE(num_particles=64),
    "MIWAE(4, 16)": vipp.MIWAE(num_bounds=4, num_particles=16),
    "PIWAE(4, 16)": vipp.PIWAE(num_bounds=4, num_particles=16),
    "CIWAE(64, 0.05)": vipp.CIWAE(num_particles=64, beta=0.05),
    "CIWAE(64, 0.5)": vipp.CIWAE(num_particles=64, beta=0.5),
    "VAE (ELBO, 64 draws)": vipp.MIWAE(num_bounds=64, num_particles=1),
}


def programs(pixels, latent, hidden):
    def model(x, batch_size=None):
        decoder = numpyro.param("decoder", lambda k: dense(k, (latent, hidden, hidden, pixels)))
        with numpyro.plate("images", len(x), subsample_size=batch_size):
            batch = numpyro.subsample(x, event_dim=1)
            z = numpyro.sample("z", dist.Normal(jnp.zeros(latent), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=apply(decoder, z)).to_event(1), obs=batch)

    def guide(x, batch_size=None):
        encoder = numpyro.param("encoder", lambda k: dense(k, (pixels, hidden, hidden, 2 * latent)))
        with numpyro.plate("images", len(x), subsample_size=batch_size):
            out = apply(encoder, numpyro.subsample(x, event_dim=1))
            loc, scale = jnp.split(out, 2, axis=-1)
            numpyro.sample("z", dist.Normal(loc, jax.nn.softplus(scale)).to_event(1))

    return model, guide


def images(path):
    """Training and held-out images, binary."""
    if path is None:
        x = np.asarray(digits())
        order = np.random.default_rng(0).permutation(len(x))
        return jnp.asarray(x[order[:1500]]), jnp.asarray(x[order[1500:]])
    packed = np.load(path)
    unpack = lambda rows: jnp.asarray(np.unpackbits(rows, axis=1)[:, :784], jnp.float32)
    return unpack(packed["train"]), unpack(packed["test"][:1000])


def per_image(objective, params, model, guide, x, at_once, repeats=1):
    """The bound's mean over images and repetitions."""
    one = jax.jit(lambda key, rows: -objective.loss(key, params, model, guide, rows))
    total = 0.0
    for r in range(repeats):
        for i in range(0, len(x), at_once):
            total += float(one(jax.random.fold_in(jax.random.key(5 + r), i), x[i : i + at_once]))
    return total / len(x) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, help="binarized_mnist.npz; else digits")
    parser.add_argument("--steps", type=int, default=4_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--latent", type=int, default=None)
    parser.add_argument("--hidden", type=int, default=None)
    parser.add_argument("--particles", type=int, default=5_000, help="of the log likelihood")
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    train, test = images(args.data)
    latent = args.latent or (10 if args.data is None else 50)
    hidden = args.hidden or (100 if args.data is None else 200)
    model, guide = programs(train.shape[1], latent, hidden)
    rows = []
    for name, objective in OBJECTIVES.items():
        found = []
        for seed in range(args.seeds):
            schedule = optax.cosine_decay_schedule(2e-3, args.steps)
            result = vipp.fit(
                jax.random.key(seed), objective, model, guide, optax.adam(schedule), args.steps,
                train, batch_size=args.batch, progress_bar=False,
            )  # fmt: skip
            bound = lambda objective, size, repeats=1, params=result.params: per_image(
                objective, params, model, guide, test, size, repeats
            )
            elbo = bound(vipp.ELBO(num_particles=64), 50)
            log_p = bound(vipp.IWAE(num_particles=args.particles), 4)
            found.append((bound(vipp.IWAE(num_particles=64), 50), log_p, elbo - log_p))
        mean, spread = np.mean(found, 0), np.std(found, 0)
        cells = [f"{m:.2f} ± {s:.2f}" for m, s in zip(mean, spread, strict=True)]
        rows.append([name, *cells])
        print(name, *cells, flush=True)
    table(
        f"Held-out images, {args.steps} steps, {args.seeds} seeds (± their standard deviation)",
        [
            "objective",
            "IWAE-64",
            f"log likelihood (IWAE-{args.particles})",
            "-KL(guide, posterior)",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
