"""Signal-to-noise ratios of gradients, after Rainforth et al. (ICML 2018), figure 1.

Their Gaussian model: z ~ N(mu, I), x | z ~ N(z, I) in 20 dimensions, q(z | x) = N(A x + b, 2/3 I),
parameters near the optimum. As K grows, theory says: the guide's gradient under IWAE drowns in
noise, SNR ~ K^-1/2; the model's gains, K^1/2; MIWAE gains with the number of bounds, M^1/2; the
doubly reparameterised gradient restores the guide's, K^1/2.
"""

import argparse
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from _common import table

import vipp

SIZE = 20


def model(x):
    mu = numpyro.param("mu", jnp.zeros(SIZE))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(mu, 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide(x):
    slope = numpyro.param("A", jnp.eye(SIZE) / 2)
    shift = numpyro.param("b", jnp.zeros(SIZE))
    with numpyro.plate("data", len(x)):
        loc = x @ slope.T + shift
        numpyro.sample("z", dist.Normal(loc, math.sqrt(2 / 3)).to_event(1))


def setting(num_data, distance=0.01, seed=0):
    """Data, and parameters ``distance`` from the optimum in each coordinate."""
    keys = jax.random.split(jax.random.key(seed), 5)
    truth = jax.random.normal(keys[0], (SIZE,))
    x = truth + math.sqrt(2.0) * jax.random.normal(keys[1], (num_data, SIZE))
    mu = x.mean(0)
    best = {"mu": mu, "A": jnp.eye(SIZE) / 2, "b": mu / 2}
    noise = dict(zip(best, keys[2:], strict=True))
    off = {n: v + distance * jax.random.normal(noise[n], v.shape) for n, v in best.items()}
    return x, off


def moments(objective, params, x, draws, at_once):
    """Mean and variance of the gradient, by parameter, over ``draws`` estimates."""
    one = lambda key: vipp.value_and_grad(objective, model, guide)(key, params, x)[1]

    @jax.jit
    def several(keys):
        gradient = jax.vmap(one)(keys)
        return {n: gradient[n] for n in ("mu", "b")}

    blocks = [several(k) for k in jax.random.split(jax.random.key(1), (draws // at_once, at_once))]
    rows = {n: np.concatenate([np.asarray(b[n], np.float64) for b in blocks]) for n in blocks[0]}
    return {n: (r.mean(0), r.var(0, ddof=1)) for n, r in rows.items()}


def slope(counts, ratios):
    return float(np.polyfit(np.log(counts), np.log(ratios), 1)[0])


def picture(lines, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4.2))
    for (name, (counts, ratios, _)), colour in zip(
        lines.items(), plt.cm.tab10.colors, strict=False
    ):
        axis.loglog(counts, ratios, "o-", label=name, color=colour)
    axis.set(xlabel="particles K (MIWAE: bounds M)", ylabel="signal-to-noise ratio")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=int, default=32, help="number of data points")
    parser.add_argument("--draws", type=int, default=2_048)
    parser.add_argument("--most", type=int, default=1_024, help="the largest K and M")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs"))
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    x, params = setting(args.data)
    counts = [2**i for i in range(int(math.log2(args.most)) + 1)]
    found = {"IWAE": [], "DReG": [], "MIWAE": []}
    for count in counts:
        at_once = max(1, min(256, 4_096 // count))
        cases = {
            "IWAE": vipp.IWAE(num_particles=count),
            "DReG": vipp.IWAE(num_particles=count, doubly_reparameterised=True),
            "MIWAE": vipp.MIWAE(num_bounds=count, num_particles=8),
        }
        for name, objective in cases.items():
            if name == "MIWAE" and count * 8 > args.most:
                continue
            found[name].append(moments(objective, params, x, args.draws, at_once))

    lines = {}

    def line(label, method, parameter, signal_of, theory):
        ratios = []
        for i, case in enumerate(found[method]):
            variance = case[parameter][1]
            mean, spread = found[signal_of][i][parameter]  # unbiased alike, and more exact
            signal = (mean**2).sum() - spread.sum() / args.draws
            ratios.append(math.sqrt(max(signal, 1e-30) / variance.sum()))
        used = counts[: len(ratios)]
        start = 0 if method == "MIWAE" else len(used) // 2
        lines[label] = used, ratios, (slope(used[start:], ratios[start:]), theory)

    line("IWAE, guide", "IWAE", "b", "DReG", -0.5)
    line("IWAE, model", "IWAE", "mu", "IWAE", 0.5)
    line("DReG, guide", "DReG", "b", "DReG", 0.5)
    line("MIWAE(M, 8), guide", "MIWAE", "b", "MIWAE", 0.5)
    rows = [
        [name, *(f"{r:.3f}" for r in (ratios[0], ratios[-1])), got, theory, abs(got - theory)]
        for name, (_, ratios, (got, theory)) in lines.items()
    ]
    table(
        f"Signal-to-noise ratios, {args.data} data points, {args.draws} estimates",
        ["gradient", "at 1", "at the most", "log-log slope", "theory", "difference"],
        rows,
    )
    picture(lines, args.out / "signal_to_noise.png")
    print(f"Saved {args.out / 'signal_to_noise.png'}")


if __name__ == "__main__":
    main()
