"""A discrete autoencoder on handwritten digits, trained under three gradient estimators.

Each image has 32 Bernoulli latents, its code, and one Normal latent, its style. The Normal one is
reparameterisable, the Bernoulli ones are not. How their gradient is estimated is one line:

    guide = vipp.with_estimators(guide, {"code": vipp.ScoreFunction()})

What is optimised stays the same. The script prints what vipp derived, trains once per estimator,
and compares the bound on held-out images, the variance of the gradient, and the time.
"""

import argparse
import math
import pathlib
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Predictive
from sklearn.datasets import load_digits

import vipp

CODE, HIDDEN, BATCH = 32, 128, 64
OBJECTIVE = vipp.IWAE(num_particles=4)
OPTIMISER = optax.adam(3e-3)
DEFAULT = "default"
ESTIMATORS = {  # of the site "code"
    "plain score function": vipp.ScoreFunction(),
    "leave-one-out, 2 samples": vipp.ScoreFunction(num_samples=2, baseline="leave_one_out"),
    DEFAULT: None,
}
COLOURS = ("#D55E00", "#0072B2", "#009E73")


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, image):
        h = nn.tanh(nn.Dense(HIDDEN)(image))
        loc, log_scale = jnp.moveaxis(nn.Dense(2)(h), -1, 0)
        return nn.Dense(CODE)(h), loc, jnp.exp(log_scale)


class Decoder(nn.Module):
    pixels: int

    @nn.compact
    def __call__(self, code, style):
        h = nn.tanh(nn.Dense(HIDDEN)(jnp.concatenate([code, style[..., None]], axis=-1)))
        return nn.Dense(self.pixels)(h)


def model(images, batch_size=None):
    """Latents, then pixels; of a random minibatch if there is a batch size."""
    network = Decoder(images.shape[-1])
    decoder = flax_module("decoder", network, jnp.zeros((1, CODE)), jnp.zeros(1))
    with numpyro.plate("images", len(images), subsample_size=batch_size):
        batch = numpyro.subsample(images, event_dim=1)
        code = numpyro.sample("code", dist.Bernoulli(logits=jnp.zeros(CODE)).to_event(1))
        style = numpyro.sample("style", dist.Normal())
        logits = decoder(code, style)
        numpyro.deterministic("intensity", jax.nn.sigmoid(logits))
        numpyro.sample("pixels", dist.Bernoulli(logits=logits).to_event(1), obs=batch)


def guide(images, batch_size=None):
    """Latents, given the pixels."""
    encoder = flax_module("encoder", Encoder(), images[:1])
    with numpyro.plate("images", len(images), subsample_size=batch_size):
        logits, loc, scale = encoder(numpyro.subsample(images, event_dim=1))
        numpyro.sample("code", dist.Bernoulli(logits=logits).to_event(1))
        numpyro.sample("style", dist.Normal(loc, scale))


def load(path):
    """Training and held-out images, one row each, of zeros and ones."""
    if path is None:
        images = np.random.default_rng(0).permutation(load_digits().data > 7.5)
        train, held_out = images[:1437], images[1437:]
    else:
        file = np.load(path)
        train, held_out = (np.unpackbits(file[n], axis=1)[:, :784] for n in ("train", "test"))
    return jnp.asarray(train, float), jnp.asarray(held_out[:500], float)


@jax.jit
def held_out_bound(params, images):
    """IWAE with 200 particles in nats per image, mean of 4 runs."""
    bound = vipp.IWAE(num_particles=200)
    one_draw = vipp.with_estimators(guide, {"code": vipp.ScoreFunction()})  # no gradient wanted
    keys = jax.random.split(jax.random.key(2), 4)
    losses = jax.lax.map(lambda key: bound.loss(key, params, model, one_draw, images), keys)
    return -losses.mean() / len(images)


def gradient_variance(guide, images, points, draws=200):
    """Of the bound in nats per image, given the images; summed over the encoder; at each point."""
    evaluate = vipp.value_and_grad(OBJECTIVE, model, guide)

    @jax.jit
    def variance(params):
        keys = jax.random.split(jax.random.key(3), draws)
        grads = jax.lax.map(lambda key: evaluate(key, params, images)[1]["encoder$params"], keys)
        return sum((g / len(images)).var(0, ddof=1).sum() for g in jax.tree.leaves(grads))

    return [float(variance(params)) for params in points]


def seconds_per_1000_steps(guide, images, steps=25):
    """The fastest of 10 short runs, compilation excluded."""
    svi = SVI(model, guide, OPTIMISER, loss=OBJECTIVE)
    state = svi.init(jax.random.key(0), images, batch_size=BATCH)
    step = lambda _, state: svi.update(state, images, batch_size=BATCH)[0]
    run = jax.jit(lambda state: jax.lax.fori_loop(0, steps, step, state)).lower(state).compile()
    times = [time.perf_counter()]
    for _ in range(10):
        jax.block_until_ready(run(state))
        times.append(time.perf_counter())
    return float(np.diff(times).min()) * 1000 / steps


def table(bounds, variances, seconds):
    line = "{:<27} {:>14} {:>18} {:>18} {:>12}".format
    row = "{:<27} {:14.2f} {:18,.1f} {:18,.1f} {:12.2f}".format
    lines = [
        line("", "held-out bound", "gradient variance", "gradient variance", "seconds per"),
        line("estimator", "nats per image", "at the start", "once trained", "1,000 steps"),
        line(*("─" * width for width in (27, 14, 18, 18, 12))),
    ]
    return "\n".join([*lines, *(row(n, bounds[n], *variances[n], seconds[n]) for n in bounds)])


def picture(path, losses, variances, strips):
    """Loss curves, gradient variances, and strips of images."""
    plt.rcParams.update({"axes.titlelocation": "left", "font.size": 11})
    figure = plt.figure(figsize=(11, 8.5), layout="constrained")
    grid = figure.add_gridspec(1 + len(strips), 3, height_ratios=[4.5, *[1] * len(strips)])
    curves, bars = figure.add_subplot(grid[0, :2]), figure.add_subplot(grid[0, 2])
    for i, (name, loss) in enumerate(losses.items()):
        window = max(1, len(loss) // 40)
        smooth = np.convolve(loss, np.full(window, 1 / window), "valid")
        curves.plot(np.arange(window, len(loss) + 1), smooth, color=COLOURS[i], label=name)
        bars.bar(np.arange(2) + 0.27 * (i - 1), variances[name], 0.25, color=COLOURS[i])
    curves.set(xlabel="training step", ylabel="minus the bound (nats per image)")
    curves.set(title=f"Training loss, mean of {window} steps")
    curves.legend(frameon=False, loc="upper right")
    bars.set(yscale="log", ylabel="variance (nats² per image²)", title="Variance of the gradient")
    bars.set_xticks([0, 1], ["at the start", "once trained"])
    for row, (title, images) in enumerate(strips.items(), start=1):
        side = math.isqrt(images.shape[-1])
        tiles = np.pad(images.reshape(-1, side, side), ((0, 0), (0, 0), (side // 8, side // 8)))
        axes = figure.add_subplot(grid[row, :], title=title)
        axes.imshow(np.hstack(tiles), cmap="gray_r", vmin=0, vmax=1)
        axes.axis("off")
    figure.savefig(path, dpi=130)


def main(steps, data, output):
    train, held_out = load(data)
    derived = vipp.explain(OBJECTIVE, model, guide, train, batch_size=BATCH)
    print(f"What vipp derives when no estimator is named:\n\n{derived}\n")
    print(f"So the default for 'code' is {derived['code'].estimator}.", flush=True)

    guides, results = {}, {}
    for name, estimator in ESTIMATORS.items():
        print(f"\nTraining: {name}", flush=True)
        guides[name] = vipp.with_estimators(guide, {"code": estimator} if estimator else {})
        problem = (OBJECTIVE, model, guides[name], OPTIMISER, steps, train)
        results[name] = vipp.fit(jax.random.key(1), *problem, batch_size=BATCH)

    print("\nMeasuring ...", flush=True)
    svi = SVI(model, guide, OPTIMISER, loss=OBJECTIVE)
    initial = svi.get_params(svi.init(jax.random.key(1), train, batch_size=BATCH))
    trained = results[DEFAULT].params
    bounds = {n: float(held_out_bound(r.params, held_out)) for n, r in results.items()}
    points = [initial, trained]  # the same for all
    variances = {n: gradient_variance(g, train[:BATCH], points) for n, g in guides.items()}
    seconds = {n: seconds_per_1000_steps(g, train) for n, g in guides.items()}

    shown, key = held_out[:16], jax.random.key(4)
    posterior = Predictive(model, guide=guide, params=trained, num_samples=50)
    prior = Predictive(model, params=trained, num_samples=1)
    strips = {
        "Held-out digits": shown,
        "Their reconstructions (default estimator)": posterior(key, shown)["intensity"].mean(0),
        "New digits, drawn from the prior": prior(key, shown)["intensity"][0],
    }
    losses = {name: np.asarray(result.losses) / len(train) for name, result in results.items()}
    output.mkdir(parents=True, exist_ok=True)
    picture(output / "digits_vae.png", losses, variances, strips)
    text = table(bounds, variances, seconds)
    (output / "digits_vae.txt").write_text(text + "\n")
    print(f"\n{text}\n\nSaved in {output}/: digits_vae.txt, digits_vae.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="training steps per estimator")
    parser.add_argument("--data", help="npz of bit-packed binarised MNIST, instead of the digits")
    parser.add_argument("--output", type=pathlib.Path, default="outputs", help="a folder")
    main(**vars(parser.parse_args()))
