"""What derived gradients cost: operations, bytes and time against hand-written JAX.

A 784-200-20 variational autoencoder on a batch of 64, multilayer perceptrons in plain JAX. Each
row is the value and gradient of one loss. The hand-written loss of a group is its reference;
it takes log probabilities from NumPyro's distributions, as a careful user would.

    python benchmarks/cost.py [--rounds 40]
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from _common import apply, compiled, counted, dense, paired, table, verdict
from numpyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO

import vipp
from vipp.distributions.densities import guarded

PIXELS, HIDDEN, LATENT, BATCH = 784, 200, 20, 64
stop = jax.lax.stop_gradient


# -- the models as NumPyro programs -------------------------------------------------------------


def normal_model(x: Any) -> None:
    decoder = numpyro.param("decoder", None)
    with numpyro.plate("rows", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(LATENT), 1.0).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=apply(decoder, z)).to_event(1), obs=x)


def normal_guide(x: Any) -> None:
    encoder = numpyro.param("encoder", None)
    mean, log_scale = jnp.split(apply(encoder, x), 2, axis=-1)
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("z", dist.Normal(mean, jnp.exp(log_scale)).to_event(1))


def binary_model(x: Any) -> None:
    decoder = numpyro.param("decoder", None)
    with numpyro.plate("rows", x.shape[0]):
        z = numpyro.sample("z", dist.Bernoulli(probs=jnp.full(LATENT, 0.5)).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=apply(decoder, z)).to_event(1), obs=x)


def binary_guide(x: Any) -> None:
    encoder = numpyro.param("encoder", None)
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("z", dist.Bernoulli(logits=apply(encoder, x)).to_event(1))


# -- the same losses by hand --------------------------------------------------------------------


FORM = {"bernoulli": lambda logits: dist.Bernoulli(logits=logits)}


def same_form(loss: Any) -> Any:
    """A loss below with vipp's Bernoulli log probability instead of NumPyro's."""

    def rewritten(*args: Any) -> Any:
        kept = FORM["bernoulli"]
        FORM["bernoulli"] = lambda logits: guarded(dist.Bernoulli(logits=logits), observed=True)
        try:
            return loss(*args)
        finally:
            FORM["bernoulli"] = kept

    return rewritten


def log_likelihood(decoder: Any, z: Any, x: Any) -> Any:
    return FORM["bernoulli"](apply(decoder, z)).log_prob(x).sum(-1)


def normal_log_weight(params: Any, key: Any, x: Any, particles: tuple[int, ...] = ()) -> Any:
    mean, log_scale = jnp.split(apply(params["encoder"], x), 2, axis=-1)
    scale = jnp.exp(log_scale)
    z = mean + scale * jax.random.normal(key, (*particles, *mean.shape))
    log_q = dist.Normal(mean, scale).log_prob(z).sum(-1)
    log_prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    return log_likelihood(params["decoder"], z, x) + log_prior - log_q


def elbo(params: Any, key: Any, x: Any) -> Any:
    return -normal_log_weight(params, key, x).sum()


def iwae(params: Any, key: Any, x: Any, particles: int) -> Any:
    log_w = normal_log_weight(params, key, x, (particles,))
    return -(jax.nn.logsumexp(log_w, axis=0) - jnp.log(particles)).sum()


def binary_log_weight(params: Any, key: Any, x: Any, samples: tuple[int, ...] = ()) -> Any:
    logits = apply(params["encoder"], x)
    shape = (*samples, *logits.shape)
    z = jax.random.bernoulli(key, jax.nn.sigmoid(stop(logits)), shape).astype(jnp.int32)
    log_q = FORM["bernoulli"](logits).log_prob(z).sum(-1)
    log_prior = dist.Bernoulli(probs=jnp.full(LATENT, 0.5)).log_prob(z).sum(-1)
    return log_likelihood(params["decoder"], z, x) + log_prior - log_q, log_q


def reinforce(params: Any, key: Any, x: Any) -> Any:
    f, log_q = binary_log_weight(params, key, x)
    return -(f + stop(f) * (log_q - stop(log_q))).sum()


def leave_one_out(params: Any, key: Any, x: Any, samples: int = 2) -> Any:
    f, log_q = binary_log_weight(params, key, x, (samples,))
    advantage = stop(f - (f.sum(0) - f) / (samples - 1))
    return -(f + advantage * (log_q - stop(log_q))).mean(0).sum()


# -- the comparison -----------------------------------------------------------------------------


def of_objective(objective: Any, model: Any, guide: Any) -> Any:
    return lambda params, key, x: objective.loss(key, params, model, guide, x)


def of_estimator(estimator: Any) -> Any:
    return of_objective(
        vipp.ELBO(), binary_model, vipp.with_estimators(binary_guide, {"z": estimator})
    )


def groups() -> dict[str, tuple[bool, float | None, dict[str, Any]]]:
    """Per group: whether latents are binary, the target, and the losses, the reference first."""
    normal = (normal_model, normal_guide)
    return {
        "ELBO, pathwise": (False, 1.02, {
            "by hand": elbo,
            "by hand, vipp's Bernoulli": same_form(elbo),
            "vipp.ELBO()": of_objective(vipp.ELBO(), *normal),
            "numpyro Trace_ELBO": of_objective(Trace_ELBO(), *normal),
        }),
        "IWAE, 1 particle": (False, 1.02, {
            "by hand": lambda *a: iwae(*a, 1),
            "vipp.IWAE(1)": of_objective(vipp.IWAE(num_particles=1), *normal),
        }),
        "IWAE, 8 particles": (False, 1.02, {
            "by hand": lambda *a: iwae(*a, 8),
            "by hand, vipp's Bernoulli": same_form(lambda *a: iwae(*a, 8)),
            "vipp.IWAE(8)": of_objective(vipp.IWAE(num_particles=8), *normal),
            "numpyro RenyiELBO(0, 8)": of_objective(RenyiELBO(0.0, 8), *normal),
        }),
        "ELBO, score function": (True, 1.05, {
            "by hand": reinforce,
            "by hand, vipp's Bernoulli": same_form(reinforce),
            "vipp ScoreFunction()": of_estimator(vipp.ScoreFunction()),
            "numpyro TraceGraph_ELBO": of_objective(TraceGraph_ELBO(), binary_model, binary_guide),
        }),
        "ELBO, leave one out of 2": (True, None, {
            "by hand": leave_one_out,
            "by hand, vipp's Bernoulli": same_form(leave_one_out),
            "vipp ScoreFunction(2, 'leave_one_out')": of_estimator(
                vipp.ScoreFunction(2, "leave_one_out")
            ),
        }),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    k1, k2, k3, k4 = jax.random.split(jax.random.key(0), 4)
    x = jax.random.bernoulli(k1, 0.2, (BATCH, PIXELS)).astype(jnp.float32)
    rows = []
    for group, (binary, target, losses) in groups().items():
        params = {
            "encoder": dense(k2, (PIXELS, HIDDEN, LATENT if binary else 2 * LATENT)),
            "decoder": dense(k3, (LATENT, HIDDEN, PIXELS)),
        }
        args = (params, k4, x)
        programs = {n: compiled(jax.value_and_grad(fn), *args) for n, fn in losses.items()}
        times = paired({n: (p, args) for n, p in programs.items()}, rounds)
        reference = next(iter(programs))
        flops0, bytes0 = counted(programs[reference])
        for name, program in programs.items():
            flops, accessed = counted(program)
            judged = verdict(flops / flops0, target) if target and name.startswith("vipp") else ""
            rows.append(
                (group, name, flops / 1e6, flops / flops0, judged, accessed / 1e6,
                 accessed / bytes0, 1e3 * times[name], times[name] / times[reference])
            )  # fmt: skip
    header = ("loss", "written as", "Mflop", "ratio", "target", "MB", "ratio", "ms", "ratio")
    table("Value and gradient on a 784-200-20 VAE, batch 64", header, rows)


if __name__ == "__main__":
    main()
