"""What all lanes of an enumerated choice share is computed once, and its tables are no gathers."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

import vipp_transforms as vt
from jaxpr_in_numpy import Interpreter, to_numpy

N, K, V, D = 4, 3, 5, 2
KEY = jax.random.key(0)
SHAPES = {
    "row": (K,), "own": (N, K), "square": (K, K), "wide": (V,), "words": (K, V), "vectors": (K, D),
    "blocks": (N, K, D), "lanes": (N, V),
}  # fmt: skip
KEYS = jax.random.split(jax.random.key(1), len(SHAPES))
TABLES = {n: jax.random.normal(k, s) for (n, s), k in zip(SHAPES.items(), KEYS, strict=True)}
WORDS = np.array([4, 0, 2, 2])
EACH = jnp.arange(N)

# a term for each lane, of two choices z and y of that lane, each one of 0, 1, 2
TERMS = {
    "a table": lambda t, z, y: t["row"][z],
    "a table of each lane": lambda t, z, y: t["own"][EACH, z],
    "along an axis": lambda t, z, y: jnp.take_along_axis(t["own"], z[:, None], -1)[:, 0],
    "of both": lambda t, z, y: t["square"][z, y],
    "the diagonal": lambda t, z, y: t["square"][z, z],
    "one then the other": lambda t, z, y: t["square"][z][EACH, y],
    "of a sum": lambda t, z, y: t["wide"][z + y],
    "from the second on": lambda t, z, y: t["wide"][z + 2],
    "from behind": lambda t, z, y: t["wide"][-1 - z],
    "out of order": lambda t, z, y: t["wide"][(2 * z + 1) % 5],
    "beyond the end": lambda t, z, y: t["row"].at[z + 1].get(mode="fill", fill_value=2.0),
    "clipped": lambda t, z, y: t["row"].at[z + 1].get(mode="clip"),
    "at words": lambda t, z, y: t["words"][z, WORDS],
    "softmax at words": lambda t, z, y: jax.nn.log_softmax(t["words"][z])[EACH, WORDS],
    "vectors": lambda t, z, y: (t["vectors"][z] ** 2).sum(-1),
    "vectors of each lane": lambda t, z, y: (t["blocks"][EACH, z] * t["vectors"][y]).sum(-1),
    "normalised rows": lambda t, z, y: jax.nn.log_softmax(t["square"][z])[EACH, y],
    "products": lambda t, z, y: (t["vectors"][z] @ t["vectors"].T)[EACH, y],
    "a table of what is chosen": lambda t, z, y: jnp.stack([t["row"][z], t["row"][y]], -1)[EACH, z % 2],
    "by vmap": lambda t, z, y: jax.vmap(lambda i, row: row[i])(z, t["own"]),
    "a slice by vmap": lambda t, z, y: jax.vmap(
        lambda i: lax.dynamic_slice(t["words"], (i, 1), (1, 2)).sum()
    )(z),
    "no table": lambda t, z, y: jnp.where(z == 1, t["wide"][0], jnp.exp(t["row"][y])) * EACH,
    "one hot": lambda t, z, y: jax.nn.one_hot(z, K) @ t["row"],
    "softplus": lambda t, z, y: jax.nn.softplus(t["row"][z]) * t["own"][:, 1],
    "in a loop": lambda t, z, y: lax.map(lambda i: t["row"][i], z),
}  # fmt: skip


def expected(term, t):
    """By hand, one pair of values after the other."""
    log_z, log_y = jax.nn.log_softmax(t["own"], -1), jax.nn.log_softmax(t["row"])
    total = 0.0
    for i, j in itertools.product(range(K), range(K)):
        z, y = jnp.full(N, i), jnp.full(N, j)
        total += (jnp.exp(log_z[:, i] + log_y[j]) * term(t, z, y)).sum()
    return total


def estimate(term, t):
    def program(t):
        key_z, key_y = jax.random.split(KEY)
        z = vt.sample(key_z, dist.Categorical(logits=t["own"]), vt.Enumerate(), name="z")
        logits = jnp.broadcast_to(t["row"], (N, K))
        y = vt.sample(key_y, dist.Categorical(logits=logits), vt.Enumerate(), name="y")
        return term(t, z, y).sum(), None

    return vt.surrogate(program)(t)[0]


def test_tables_read_at_choices():
    fns = {n: (partial(estimate, f), partial(expected, f)) for n, f in TERMS.items()}
    operands = [to_numpy(x) for x in jax.tree.leaves(TABLES)]
    for name, both in fns.items():
        traced = (jax.make_jaxpr(jax.value_and_grad(f))(TABLES) for f in both)
        found, wanted = (Interpreter({}).run(t, operands) for t in traced)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(
    "name", ["a table", "a table of each lane", "of both", "from the second on", "by vmap"]
)
def test_such_tables_are_not_gathered(name):
    jaxpr = str(jax.make_jaxpr(jax.grad(partial(estimate, TERMS[name])))(TABLES))
    assert " gather[" not in jaxpr and "scatter" not in jaxpr
