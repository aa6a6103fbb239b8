"""The score function's gradient noise per coordinate does not grow with an independent plate.

``n`` independent Bernoulli sites under one plate, each with its own logit and its own term of the
objective. Crediting every site with the whole sum makes each coordinate's standard deviation grow
with ``n``; crediting it with its own term keeps it flat.

    python benchmarks/plate.py [--draws 20000]
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from _common import table
from numpyro.infer import TraceGraph_ELBO

import vipp

SIZES = (1, 4, 16, 64)
GENJAX = {1: 1.0, 4: 4.4, 16: 16.5, 64: 64.5}  # GenJAX 1.0, measured on an example of this kind


def model(n: int) -> None:
    with numpyro.plate("rows", n):
        z = numpyro.sample("z", dist.Bernoulli(probs=jnp.full(n, 0.5)))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=jnp.full(n, -0.5))


def guide(n: int) -> None:
    logits = numpyro.param("logits", None)
    with numpyro.plate("rows", n):
        vipp.sample("z", dist.Bernoulli(logits=logits), vipp.ScoreFunction())


def naive(key: Any, params: Any, n: int) -> jax.Array:
    """One multiplier for everything: what credit assignment avoids."""
    q = dist.Bernoulli(logits=params["logits"])
    z = jax.lax.stop_gradient(q.sample(key))
    log_q = q.log_prob(z).sum()
    f = (dist.Normal(z, 0.5).log_prob(-0.5) + jnp.log(0.5)).sum() - log_q
    return f * jnp.exp(log_q - jax.lax.stop_gradient(log_q))


def spread(value: Any, n: int, draws: int) -> float:
    """Standard deviation of a gradient coordinate, averaged over coordinates."""
    params = {"logits": jnp.full(n, 0.3)}
    keys = jax.random.split(jax.random.key(n), draws)
    one = jax.grad(lambda p, k: value(k, p, n))
    grads = jax.jit(jax.vmap(lambda k: one(params, k)["logits"]))(keys)
    return float(grads.std(0).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=20_000)
    draws = parser.parse_args().draws

    def of(loss: Any) -> Any:
        return lambda key, params, n: -loss.loss(key, params, model, guide, n)

    ways = {
        "vipp ScoreFunction()": of(vipp.ELBO()),
        "numpyro TraceGraph_ELBO": of(TraceGraph_ELBO()),
        "one multiplier for all": naive,
    }
    rows = []
    for name, value in ways.items():
        spreads = [spread(value, n, draws) for n in SIZES]
        flat = max(spreads) / min(spreads) < 1.1 if name.startswith("vipp") else None
        judged = "" if flat is None else "met (flat)" if flat else "MISSED (flat)"
        rows.append((name, *spreads, judged))
    rows.append(("GenJAX 1.0", *(GENJAX[n] for n in SIZES), ""))
    header = ("standard deviation per coordinate", *(f"plate {n}" for n in SIZES), "target")
    table("Score function under an independent plate", header, rows)


if __name__ == "__main__":
    main()
