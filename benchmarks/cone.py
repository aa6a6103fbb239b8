"""The cone of Becker, Lew et al. (PLDI 2024, table 4): five bounds, two guides, one posterior ring.

x, y ~ N(0, 10), z ~ N(x^2 + y^2, 0.1 + (x^2 + y^2) / 100), observed z = 5. The naive guide is a
Gaussian; the ring guide has an auxiliary angle, which `vipp.marginal` integrates out:

    ring = vipp.marginal(ring_guide, keep=["x", "y"], num_particles=5)

so that the hierarchical bounds are ELBO and IWAE with that guide. The ring is trained from the
paper's initial point, the Gaussian from (3, 0) with scales e; the bound reached is estimated from
many draws and compared with the true optimum.
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

import vipp

LOG_EVIDENCE = -5.3232  # by quadrature


def model():
    x = numpyro.sample("x", dist.Normal(0.0, 10.0))
    y = numpyro.sample("y", dist.Normal(0.0, 10.0))
    rs = x**2 + y**2
    numpyro.sample("z", dist.Normal(rs, 0.1 + rs / 100), obs=5.0)


def naive():
    numpyro.sample("x", dist.Normal(numpyro.param("mx", 3.0), jnp.exp(numpyro.param("sx", 1.0))))
    numpyro.sample("y", dist.Normal(numpyro.param("my", 0.0), jnp.exp(numpyro.param("sy", 1.0))))


def ring():
    angle = 2 * jnp.pi * numpyro.sample("u", dist.Uniform(0.0, 1.0))
    scales = jnp.exp(numpyro.param("sx", 0.0)), jnp.exp(numpyro.param("sy", 0.0))
    numpyro.sample("x", dist.Normal(jnp.sqrt(5.0) * jnp.cos(angle), scales[0]))
    numpyro.sample("y", dist.Normal(jnp.sqrt(5.0) * jnp.sin(angle), scales[1]))


def around(auxiliary):
    return vipp.marginal(ring, keep=["x", "y"], num_particles=auxiliary)


# bound: guide, particles of the outer bound, the true optimum
CASES = {
    "ELBO": (naive, 1, -8.0745),
    "IWELBO(5)": (naive, 5, -7.535),
    "HVI": (around(1), 1, -9.748),
    "IWHVI(5)": (around(5), 1, -8.179),
    "DIWHVI(5, 5)": (around(5), 5, -7.305),
}


def train(guide, particles, steps, batch, init=None):
    objective = vipp.MIWAE(num_bounds=batch, num_particles=particles)
    schedule = optax.cosine_decay_schedule(0.02, steps)
    optimiser = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule))
    return vipp.fit(
        jax.random.key(0), objective, model, guide, optimiser, steps, init_params=init,
        progress_bar=False,
    )  # fmt: skip


def bound(guide, particles, params, draws, at_once=20_000):
    """The bound's mean, and its standard error."""
    objective = vipp.IWAE(num_particles=particles)
    one = lambda key: -objective.loss(key, params, model, guide)
    run = jax.jit(jax.vmap(one))
    keys = jax.random.split(jax.random.key(1), draws)
    blocks = [np.asarray(run(k), np.float64) for k in jnp.split(keys, draws // at_once)]
    values = np.concatenate(blocks)
    return float(values.mean()), float(values.std() / draws**0.5)


def picture(samples, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(samples), figsize=(3 * len(samples), 3.4), sharey=True)
    for axis, (name, draws) in zip(axes, samples.items(), strict=True):
        axis.add_patch(plt.Circle((0, 0), 5**0.5, fill=False, color="black", lw=1))
        axis.scatter(draws["x"], draws["y"], s=3, alpha=0.3, color="#0072B2", linewidths=0)
        axis.set(title=name, xlim=(-4, 4), ylim=(-4, 4), aspect="equal", xlabel="x")
    axes[0].set_ylabel("y")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--draws", type=int, default=400_000)
    parser.add_argument("--many", type=int, default=16_000, help="auxiliary particles")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs"))
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)

    rows, samples = [], {}
    for name, (guide, particles, optimum) in CASES.items():
        result = train(guide, particles, args.steps, args.batch)
        value, error = bound(guide, particles, result.params, args.draws)
        rows.append([name, value, error, optimum, value - optimum])
        shown = guide
        if particles > 1:  # what the bound is the ELBO of
            shown = vipp.normalize(model, guide, particles)
        predictive = numpyro.infer.Predictive(shown, params=result.params, num_samples=3_000)
        samples[name] = predictive(jax.random.key(2))
    guide = around(args.many)
    result = train(guide, 1, args.steps, 8, init=result.params)
    value, error = bound(guide, 1, result.params, 20_000, at_once=500)
    rows.append([f"IWHVI({args.many})", value, error, LOG_EVIDENCE, value - LOG_EVIDENCE])
    table(
        f"Bounds after {args.steps} steps (log evidence {LOG_EVIDENCE})",
        ["bound", "reached", "standard error", "true optimum", "difference"],
        rows,
    )
    picture(samples, args.out / "cone.png")
    print(f"Saved {args.out / 'cone.png'}")


if __name__ == "__main__":
    main()
