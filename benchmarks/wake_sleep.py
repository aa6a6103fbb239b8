"""Wake-sleep covers modes that the ELBO loses: which digit is it, seen through a keyhole?

Sixteen digit templates (the means of clusters of scikit-learn's digits), numbered by four bits in a
Gray code along their first principal component: neighbours look alike and differ in one bit. The
model draws the bits, then the template's pixels; only part of the image is observed, so several
templates remain possible. The guide draws the four bits independently: it cannot be right, and what
it does instead is the objective's choice. Everything is compared with the exact posterior.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from _common import table
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

import vipp

BITS, SEEN = 4, slice(24, 40)  # the two rows in the middle of 8 x 8 pixels
POWERS = jnp.array([8, 4, 2, 1])


def templates():
    images = load_digits().data / 16.0
    centres = KMeans(16, n_init=3, random_state=0).fit(images).cluster_centers_
    first = np.linalg.svd(centres - centres.mean(0))[2][0]
    order = np.argsort(centres @ first)
    numbered = np.empty_like(centres)
    numbered[[i ^ (i >> 1) for i in range(16)]] = centres[order]
    return jnp.asarray(np.clip(numbered, 0.02, 0.98), jnp.float32)


def programs(table_of_means):
    def model(seen):
        bits = numpyro.sample("bits", dist.Bernoulli(jnp.full(BITS, 0.5)).to_event(1))
        means = table_of_means[bits @ POWERS, SEEN]
        numpyro.sample("seen", dist.Normal(means, 0.25).to_event(1), obs=seen)

    def guide(seen):
        logits = numpyro.param("logits", jnp.zeros(BITS))
        numpyro.sample("bits", dist.Bernoulli(logits=logits).to_event(1))

    return model, guide


def of_templates(logits):
    """The guide's probability of each template."""
    bits = (jnp.arange(16)[:, None] // POWERS) % 2
    return np.exp(np.asarray(dist.Bernoulli(logits=logits).log_prob(bits).sum(1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs"))
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    means = templates()
    model, guide = programs(means)

    def posterior(seen):
        log_p = dist.Normal(means[:, SEEN], 0.25).log_prob(seen).sum(1)
        return np.asarray(jax.nn.softmax(log_p))

    # the most ambiguous view: the template whose middle leaves the most others possible
    views = [means[i, SEEN] for i in range(16)]
    seen = max(views, key=lambda view: -(posterior(view) * np.log(posterior(view) + 1e-12)).sum())
    exact = posterior(seen)
    objectives = {
        "ELBO": vipp.ELBO(),
        "IWAE(16), by VIMCO": vipp.VIMCO(num_particles=16),
        "wake-sleep (wake)": vipp.ReweightedWakeSleep(num_particles=512),
        "forward KL": vipp.ForwardKL(num_particles=512),
    }
    found, rows = {"exact posterior": exact}, []
    for name, objective in objectives.items():
        result = vipp.fit(
            jax.random.key(0), objective, model, guide,
            optax.adam(optax.cosine_decay_schedule(0.03, args.steps)), args.steps, seen,
            init_params={"logits": jnp.array([0.1, -0.1, 0.1, -0.1])}, progress_bar=False,
        )  # fmt: skip
        q = found[name] = of_templates(result.params["logits"])
        reverse = float((q * (np.log(q + 1e-30) - np.log(exact + 1e-30))).sum())
        forward = float((exact * (np.log(exact + 1e-30) - np.log(q + 1e-30))).sum())
        kept = float(exact[q > 0.02].sum())
        rows.append([name, kept, reverse, forward])
    table(
        "One keyhole, 16 templates, a guide of independent bits",
        ["objective", "posterior mass it covers (q > 0.02)", "KL(q, p)", "KL(p, q)"],
        rows,
    )
    picture(means, seen, found, args.out / "wake_sleep.png")
    print(f"Saved {args.out / 'wake_sleep.png'}")


def picture(means, seen, found, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 1.2 + 1.15 * (len(found) + 1)))
    grid = figure.add_gridspec(len(found) + 1, 17, hspace=0.5)
    for i in range(16):
        axis = figure.add_subplot(grid[0, i + 1])
        axis.imshow(means[i].reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
        axis.set_axis_off()
    axis = figure.add_subplot(grid[0, 0])
    view = np.full(64, np.nan)
    view[SEEN] = seen
    axis.imshow(view.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
    axis.set(title="seen", xticks=[], yticks=[])
    for row, (name, q) in enumerate(found.items(), start=1):
        axis = figure.add_subplot(grid[row, 1:])
        axis.bar(range(16), q, color="black" if row == 1 else "#0072B2")
        axis.set(ylim=(0, 1), xlim=(-0.5, 15.5), xticks=[], yticks=[0, 1])
        axis.set_title(name, loc="left", fontsize=9, pad=2)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main()
