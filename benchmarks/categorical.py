"""Training a categorical autoencoder under six gradient estimators until the bound is flat.

20 latents of 10 categories per image, multilayer perceptrons in plain JAX, scikit-learn's digits
(or binarised MNIST), the ELBO on minibatches. Held out: the importance weighted bound.

    python benchmarks/categorical.py [--steps 16000] [--data mnist.npz] [--output outputs]
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from _common import moments, paired, table
from _digits import BATCH, categorical_guide, categorical_model, digits
from numpyro.infer import SVI

import vipp

OBJECTIVE, OPTIMISER, PARTICLES = vipp.ELBO(), optax.adam(3e-3), 200
COMMON, LEARNED = "leave-one-out, 2", "$estimator"
ESTIMATORS = {
    COMMON: vipp.ScoreFunction(2, "leave_one_out"),
    "leave-one-out, 4": vipp.ScoreFunction(4, "leave_one_out"),
    "RELAX": vipp.RELAX(),
    "LocalExpectation": vipp.LocalExpectation(),
    "ReinMax": vipp.ReinMax(),
    "ST-Gumbel": vipp.GumbelSoftmax(hard=True),
}
COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#000000", "#D55E00", "#E69F00")


def load(path: str | None) -> tuple[jax.Array, jax.Array]:
    """Training and held-out images, one row each, of zeros and ones."""
    if path is None:
        images = np.random.default_rng(0).permutation(np.asarray(digits()))
        train, held_out = images[:1437], images[1437:]
    else:
        file = np.load(path)
        train, held_out = (np.unpackbits(file[n], axis=1)[:, :784] for n in ("train", "test"))
    return jnp.asarray(train, float), jnp.asarray(held_out[:500], float)


def under(estimator: Any) -> Any:
    return vipp.with_estimators(categorical_guide, {"z": estimator})


def programs_only(params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if not name.endswith(LEARNED)}


def bound(objective: Any, repeats: int) -> Any:
    """A compiled function of parameters and images: nats per image, with plain draws."""
    guide = under(vipp.ScoreFunction())

    @jax.jit
    def of(params: Any, images: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.key(2), repeats)
        loss = lambda key: objective.loss(key, params, categorical_model, guide, images)
        return -jax.lax.map(loss, keys).mean() / len(images)

    return of


elbo, iwae = bound(vipp.ELBO(), 8), bound(vipp.IWAE(num_particles=PARTICLES), 4)


def refusal(images: jax.Array) -> str:
    """What vipp says when asked to enumerate the latents jointly."""
    try:
        vipp.explain(OBJECTIVE, categorical_model, under(vipp.Enumerate()), images)
    except vipp.SiteError as error:
        return str(error)
    raise AssertionError("20 latents of 10 categories were enumerated")


def train(guide: Any, data: Any, checkpoints: list[int]) -> tuple[Any, Any, Any]:
    """The result, the losses per image, and the bounds at every checkpoint."""
    images, held_out = data
    losses, curve, state, done = [], [], None, 0
    for step in checkpoints:
        result = vipp.fit(
            jax.random.key(1), OBJECTIVE, categorical_model, guide, OPTIMISER, step - done, images,
            init_state=state, progress_bar=False, batch_size=BATCH,
        )  # fmt: skip
        state, done = result.state, step
        losses.append(np.asarray(result.losses) / len(images))
        params = programs_only(result.params)
        curve.append((float(elbo(params, images)), float(iwae(params, held_out))))
        print(f"  step {step}: train ELBO {curve[-1][0]:.2f}, held-out IWAE {curve[-1][1]:.2f}",
              flush=True)  # fmt: skip
    return result, np.concatenate(losses), curve


def adapted(guide: Any, params: Any, images: jax.Array, steps: int) -> Any:
    """``params`` with the estimator's own fitted to them, which themselves stay."""
    label = lambda params: {n: "own" if n.endswith(LEARNED) else "rest" for n in params}
    optim = optax.multi_transform({"own": optax.adam(1e-2), "rest": optax.set_to_zero()}, label)
    svi = SVI(categorical_model, guide, optim, loss=OBJECTIVE)
    state = svi.init(jax.random.key(5), images, batch_size=BATCH, init_params=dict(params))
    step = lambda _, state: svi.update(state, images, batch_size=BATCH)[0]
    return svi.get_params(jax.jit(lambda s: jax.lax.fori_loop(0, steps, step, s))(state))


def gradient_variance(guide: Any, params: Any, images: jax.Array, draws: int) -> float:
    """Of the bound in nats per image, one minibatch, summed over the encoder."""
    evaluate = vipp.value_and_grad(OBJECTIVE, categorical_model, guide)
    batch = images[:BATCH]

    @jax.jit
    def draw(key: Any) -> jax.Array:
        leaves = jax.tree.leaves(evaluate(key, params, batch)[1]["encoder"])
        return jnp.concatenate([g.ravel() for g in leaves])[None] / len(batch)

    return moments(draw, jax.random.split(jax.random.key(3), draws))[0]


def seconds_of_training(images: jax.Array, rounds: int, steps: int = 10) -> dict[str, float]:
    """Per 1,000 steps, taken in turns so that load hits all alike."""
    programs = {}
    for name, estimator in ESTIMATORS.items():
        svi = SVI(categorical_model, under(estimator), OPTIMISER, loss=OBJECTIVE)
        state = svi.init(jax.random.key(0), images, batch_size=BATCH)
        step = lambda _, state, svi=svi: svi.update(state, images, batch_size=BATCH)[0]
        run = lambda state, step=step: jax.lax.fori_loop(0, steps, step, state)
        programs[name] = (jax.jit(run).lower(state).compile(), (state,))
    return {name: t * 1000 / steps for name, t in paired(programs, rounds).items()}


def picture(path: pathlib.Path, losses: Any, curves: Any, checkpoints: list[int]) -> None:
    plt.rcParams.update({"axes.titlelocation": "left", "font.size": 11})
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for (name, loss), colour in zip(losses.items(), COLOURS, strict=True):
        window = max(1, len(loss) // 40)
        smooth = np.convolve(loss, np.full(window, 1 / window), "valid")
        left.plot(np.arange(window, len(loss) + 1), smooth, color=colour, label=name)
        right.plot(checkpoints, [-b for _, b in curves[name]], "o-", color=colour, label=name)
    # the first steps are off the chart: the curves differ at the end
    last = [loss[-len(loss) // 10 :].mean() for loss in losses.values()]
    left.set(ylim=(min(last) - 0.5, max(last) + 6.0), ylabel="minus the ELBO (nats per image)")
    left.set(xlabel="training step", title=f"Training loss, mean of {window} steps")
    ends = [-b for curve in curves.values() for _, b in curve]
    right.set(ylim=(min(ends) - 0.3, min(ends) + 6.0), ylabel="minus the bound (nats per image)")
    right.set(xlabel="training step", title=f"Held out, {PARTICLES} particles")
    handles, names = right.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=16000, help="training steps per estimator")
    parser.add_argument("--draws", type=int, default=200, help="of gradients, for the variance")
    parser.add_argument("--rounds", type=int, default=10, help="of timing")
    parser.add_argument("--data", help="npz of bit-packed binarised MNIST, instead of the digits")
    parser.add_argument("--output", type=pathlib.Path, default="outputs", help="a folder")
    options = parser.parse_args()
    data = load(options.data)
    checkpoints = [max(1, options.steps * part // 8) for part in range(1, 9)]
    print(f"Joint enumeration is refused: {refusal(data[0][:BATCH])}", flush=True)

    # training is compiled once per estimator, not once per checkpoint
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
    results, losses, curves = {}, {}, {}
    for name, estimator in ESTIMATORS.items():
        print(f"\n{name}", flush=True)
        results[name], losses[name], curves[name] = train(under(estimator), data, checkpoints)
    options.output.mkdir(parents=True, exist_ok=True)
    picture(options.output / "categorical.png", losses, curves, checkpoints)

    times = seconds_of_training(data[0], options.rounds)
    common, rows = programs_only(results[COMMON].params), []
    for name, estimator in ESTIMATORS.items():
        params = adapted(under(estimator), common, data[0], 500) if name == "RELAX" else common
        variance = gradient_variance(under(estimator), params, data[0], options.draws)
        biased = "yes" if estimator.traits.biased else "no"
        train_elbo, last = curves[name][-1]
        best, step = max((b, s) for s, (_, b) in zip(checkpoints, curves[name], strict=True))
        rows.append((name, biased, train_elbo, last, best, step, variance, times[name],
                     times[name] / times[COMMON]))  # fmt: skip
    header = ("estimator", "biased", "train ELBO", "held-out IWAE", "best", "at step",
              "gradient variance", "s / 1,000 steps", "time ratio")  # fmt: skip
    table(f"After {options.steps} steps, nats per image", header, rows)
    table("Held-out bound by training step", ("estimator", *checkpoints),
          [(name, *(b for _, b in curve)) for name, curve in curves.items()])  # fmt: skip


if __name__ == "__main__":
    main()
