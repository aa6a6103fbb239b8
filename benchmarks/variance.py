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
import numpy as np
from _common import compiled, moments, paired, table
from _digits import BATCH, binary_guide, binary_model, digits, trained
from numpyro.infer import TraceGraph_ELBO

import vipp

TARGET = 100
REFERENCE, DEFAULT = "numpyro TraceGraph_ELBO", "vipp default"


def losses() -> dict[str, Any]:
    def under(estimator: Any) -> Any:
        return vipp.ELBO(), vipp.with_estimators(binary_guide, {"z": estimator})

    return {
        REFERENCE: (TraceGraph_ELBO(), binary_guide),
        "numpyro TraceGraph_ELBO(2)": (TraceGraph_ELBO(num_particles=2), binary_guide),
        DEFAULT: (vipp.ELBO(), binary_guide),
        "vipp ScoreFunction()": under(vipp.ScoreFunction()),
        "vipp ScoreFunction(2, 'leave_one_out')": under(vipp.ScoreFunction(2, "leave_one_out")),
        "vipp ScoreFunction(4, 'leave_one_out')": under(vipp.ScoreFunction(4, "leave_one_out")),
        "vipp ScoreFunction(8, 'leave_one_out')": under(vipp.ScoreFunction(8, "leave_one_out")),
    }


def flat(gradients: Any) -> jax.Array:
    return jnp.concatenate([g.ravel() for g in jax.tree.leaves(gradients["encoder"])])


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
            lambda params, key, x, loss=loss, guide=guide: loss.loss(
                key, params, binary_model, guide, x
            )
        )
        for name, (loss, guide) in losses().items()
    }
    keys = jax.random.split(jax.random.key(2), options.draws)
    for when, params in trained(binary_model, binary_guide, x, options.steps).items():
        args = (params, jax.random.key(3), batch)
        programs = {name: (compiled(g, *args), args) for name, g in gradients.items()}
        times = paired(programs, options.rounds)
        found = {
            name: moments(lambda key: flat(program(params, key, batch)[1])[None], keys)
            for name, (program, _) in programs.items()
        }
        reference, default = found[REFERENCE][0] * times[REFERENCE], found[DEFAULT][1]
        rows = []
        for name, (variance, mean) in found.items():
            product = variance * times[name]
            better = reference / product
            judged = "" if name != DEFAULT else "met" if better >= TARGET else "MISSED"
            gap = float(np.linalg.norm(mean - default) / np.linalg.norm(default))
            rows.append((name, variance, 1e6 * times[name], product, better,
                         judged and f"{judged} (>= {TARGET})", gap))  # fmt: skip
        header = ("estimator", "variance", "us", "variance x s", "times better", "target",
                  "mean gap")  # fmt: skip
        table(f"Encoder gradient, {when}", header, rows)


if __name__ == "__main__":
    main()
