"""Mistakes of a model or guide: what NumPyro's ``SVI`` makes of them, and what ``vipp.fit`` says.

The mistakes of tests/test_vipp/test_check.py, and those below. NumPyro trains for some steps: what
it raises or warns of is shown, or that it says nothing, with the loss that it ends at.

    python benchmarks/mistakes.py [--steps 50] [--only NAME]
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from _common import table
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO

import vipp

TESTS = pathlib.Path(__file__).parents[1] / "tests"
sys.path += [str(TESTS / "test_vipp"), str(TESTS / "support")]
from test_check import MISTAKES, X, draw_mu, in_a_scan, regression  # noqa: E402

KEY = jax.random.key(0)


class Tried(NamedTuple):
    """A mistake, made in both libraries.

    Attributes:
      name: what an error should name.
      vipp: trains with vipp.
      numpyro: trains with NumPyro for some steps, and returns the losses; None if it has no such.
    """

    name: str
    vipp: Callable[[], Any]
    numpyro: Callable[[int], Any] | None


def tried(
    name: str,
    model: Any,
    guide: Any,
    *args: Any,
    objective: Any = None,
    loss: Any = None,
    **kwargs: Any,
) -> Tried:
    """The same programs and data in both."""
    objective = vipp.ELBO() if objective is None else objective
    optim = optax.adam(0.01)

    def numpyro_(steps: int) -> Any:
        svi = SVI(model, guide, optim, Trace_ELBO() if loss is None else loss)
        return svi.run(KEY, steps, *args, progress_bar=False, **kwargs).losses

    def vipp_() -> Any:
        fit = vipp.fit
        return fit(KEY, objective, model, guide, optim, 20, *args, progress_bar=False, **kwargs)

    return Tried(name, vipp_, numpyro_)


def coin(infer: Any) -> Callable[..., Any]:
    """A guide of one discrete choice."""
    return lambda *_: numpyro.sample(
        "z", dist.Bernoulli(logits=numpyro.param("l", 0.0)), infer=infer
    )


def fair(*_: Any) -> None:
    """A model of one discrete choice."""
    z = numpyro.sample("z", dist.Bernoulli(0.3))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=1.0)


def no_gradient(x: Any) -> None:
    """A guide with a parameter that nothing depends on."""
    numpyro.param("unused", 1.0)
    draw_mu(x)


def outside(x: Any) -> None:
    """A model with a latent value outside of its subsampled plate."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("N", 6, subsample_size=2) as i:
        numpyro.sample("x", dist.Normal(mu, 1.0), obs=x[i])


def exploding(x: Any) -> None:
    """A model with a term that ends within a few steps of training."""
    regression(x)
    m = numpyro.param("edge", 0.0)
    numpyro.factor("f", 100 * m + 1e-3 * jnp.log(0.045 - m))


def stepwise(x: Any) -> None:
    """A model of a sequence."""
    step = lambda c, y: (numpyro.sample("mu", dist.Normal(c, 1.0)), None)
    scan(step, 0.0, x)


def long(x: Any) -> None:
    """A model of 10^5 rows."""
    with numpyro.plate("N", len(x)):
        numpyro.sample("x", dist.Normal(numpyro.param("m", 0.0), 1.0), obs=x)


NAN = np.ones(10**5, np.float32)
NAN[7] = np.nan
MORE = {
    "misspelt init_params": tried("mm", regression, draw_mu, X, init_params={"mm": 0.3}),
    "misspelt key in infer": tried("z", fair, coin({"estimater": vipp.Enumerate()})),
    "no estimator in infer": tried("z", fair, coin({"estimator": "enumerate"})),
    "estimator that does not fit": tried("z", fair, coin({"estimator": vipp.Pathwise()})),
    "latent outside the minibatch under IWAE": tried(
        "x", outside, draw_mu, X, objective=vipp.IWAE(num_particles=2),
        loss=RenyiELBO(alpha=0.0, num_particles=2),
    ),
    "another length of the guide's scan": tried(
        "mu", stepwise, lambda x: stepwise(x[:3]), X
    ),
    "parameter in the body of a scan": tried("a", stepwise, in_a_scan, X[:2]),
    "parameter without gradient": tried("unused", regression, no_gradient, X),
    "NaN in row 7 of 100,000": tried("x", long, lambda x: None, NAN),
    "loss that becomes NaN": tried("f", exploding, draw_mu, X),
    "integers where floats are due": tried("m", regression, lambda x: numpyro.sample(
        "mu", dist.Normal(numpyro.param("m", jnp.array(0)), 1.0)), X),
}  # fmt: skip


def outcome(run: Callable[[], Any], name: str) -> tuple[str, bool]:
    """What it said, and whether that has the name in it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = run()
        except Exception as error:
            text = " ".join(str(error).split())
            return f"{type(error).__name__}: {text}", f"'{name}'" in text
    told = [w for w in caught if f"'{name}'" in str(w.message)]
    if told:
        return f"{told[0].category.__name__}: {' '.join(str(told[0].message).split())}", True
    losses = getattr(result, "losses", result)
    return f"silent, loss {float(losses[-1]):.4g}", False


def main(steps: int, only: str) -> None:
    """Print the table."""
    made = {k: tried(m.site, m.model, m.guide, *m.args) for k, m in MISTAKES.items()} | MORE
    rows, silent, bare, started = [], 0, 0, time.process_time()
    for key, each in made.items():
        if only not in key:
            continue
        of_numpyro, _ = outcome(lambda each=each: each.numpyro(steps), each.name)
        said, named = outcome(each.vipp, each.name)
        silent += said.startswith("silent")
        bare += not named
        rows.append([key, of_numpyro[:70], said[:110], "yes" if named else "NO"])
    table("Mistakes", ["mistake", "NumPyro's SVI", "vipp.fit", "names it"], rows)
    print(f"\n{len(rows)} mistakes; vipp: {silent} silent, {bare} without the name; "
          f"{time.process_time() - started:.0f} CPU s")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--only", default="")
    main(**vars(parser.parse_args()))
