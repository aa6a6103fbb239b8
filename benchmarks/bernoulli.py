"""Forms of the Bernoulli log probability in logits: operations, time, and what each gets right.

python benchmarks/bernoulli.py [--rounds 200]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from _common import compiled, counted, paired, table

from vipp.distributions.densities import guarded

ROWS, PIXELS = 64, 784


def numpyro_form(logits: Any, value: Any) -> jax.Array:
    return dist.Bernoulli(logits=logits).log_prob(value)


def vipp_form(logits: Any, value: Any) -> jax.Array:
    return guarded(dist.Bernoulli(logits=logits)).log_prob(value)


def logaddexp_form(logits: Any, value: Any) -> jax.Array:
    return value * logits - jnp.logaddexp(logits, 0.0)


@jax.custom_jvp
def whole_form(logits: Any, value: Any) -> jax.Array:
    """One custom derivative for everything: no cancellation, infinite logits without clipping."""
    miss = (logits > 0) - value
    return -jnp.where(miss == 0, 0.0, logits * miss) - jnp.log1p(jnp.exp(-jnp.abs(logits)))


@whole_form.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (logits, value), (dlogits, dvalue) = primals, tangents
    return whole_form(logits, value), (value - jax.nn.sigmoid(logits)) * dlogits + logits * dvalue


@jax.custom_jvp
def shared_sigmoid(logits: Any) -> jax.Array:
    """The sigmoid from ``exp(-abs(logits))``, which the log probability computes anyway."""
    small = jnp.exp(-jnp.abs(logits))
    return jnp.where(logits > 0, 1.0, small) / (1.0 + small)


@shared_sigmoid.defjvp
def _(primals: Any, tangents: Any) -> Any:
    p = shared_sigmoid(primals[0])
    return p, p * (1.0 - p) * tangents[0]


@jax.custom_jvp
def shared_form(logits: Any, value: Any) -> jax.Array:
    """As ``whole_form``, its derivative sharing the exponential."""
    return whole_form(logits, value)


@shared_form.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (logits, value), (dlogits, dvalue) = primals, tangents
    slope = value - shared_sigmoid(logits)
    return shared_form(logits, value), slope * dlogits + logits * dvalue


FORMS: dict[str, Callable[..., jax.Array]] = {
    "numpyro": numpyro_form,
    "vipp": vipp_form,
    "value * logits - logaddexp": logaddexp_form,
    "one custom_jvp": whole_form,
    "one custom_jvp, shared exp": shared_form,
}


def accuracy(form: Any) -> list[Any]:
    """Slope and curvature at zero, certain outcomes, relative error far out, slope in value."""
    form = jax.jit(form)  # traced parameters are not validated
    slope = jax.grad(form)
    at_zero = [float(slope(0.0, v)) for v in (0.0, 1.0)]
    curve = float(jax.grad(slope)(0.0, 1.0))
    infinite = [float(form(x, v)) for x in (np.inf, -np.inf) for v in (1.0, 0.0)]
    slopes = [float(slope(x, v)) for x in (np.inf, -np.inf) for v in (1.0, 0.0)]
    far = float(form(12.0, 1.0))
    relative = abs(far / -np.log1p(np.exp(-12.0)) - 1)
    return [at_zero, curve, infinite, slopes, relative, float(jax.grad(form, 1)(1.5, 0.3))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    keys = jax.random.split(jax.random.key(0), 2)
    logits = 3 * jax.random.normal(keys[0], (ROWS, PIXELS))
    value = jax.random.bernoulli(keys[1], 0.3, logits.shape).astype(jnp.float32)
    args = (logits, value)
    for what, wrap in (
        ("log probability", lambda f: lambda x, v: f(x, v).sum()),
        ("value and gradient in logits", lambda f: jax.value_and_grad(lambda x, v: f(x, v).sum())),
        ("value and both gradients",
         lambda f: jax.value_and_grad(lambda x, v: f(x, v).sum(), argnums=(0, 1))),
    ):  # fmt: skip
        programs = {name: compiled(wrap(form), *args) for name, form in FORMS.items()}
        times = paired({n: (p, args) for n, p in programs.items()}, rounds, repeats=5)
        flops0, bytes0 = counted(programs["numpyro"])
        rows = []
        for name, program in programs.items():
            flops, accessed = counted(program)
            rows.append((name, flops / 1e3, flops / flops0, accessed / bytes0,
                         1e6 * times[name], times[name] / times["numpyro"]))  # fmt: skip
        header = ("form", "kflop", "ratio", "bytes ratio", "us", "ratio")
        table(f"{what}, {ROWS} x {PIXELS}", header, rows)
    header = ("form", "slope at 0", "curvature at 0", "at +inf, -inf", "slope at +inf, -inf",
              "relative error at 12", "slope in value at 1.5")  # fmt: skip
    table("accuracy (right: [-0.5, 0.5], -0.25, [0, -inf, -inf, 0], [0, -1, 1, 0], 0, 1.5)", header,
          [(name, *accuracy(form)) for name, form in FORMS.items()])  # fmt: skip


if __name__ == "__main__":
    main()
