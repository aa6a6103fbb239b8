"""Minibatches: distinct indices, every sequence of them equally probable."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import vipp
from vipp.language.subsample import subsample

DRAWS = 20_000


def spread(counts):
    """Chi squared over its degrees of freedom, which is 1 give or take ``sqrt(2 / cells)``."""
    expected = counts.sum() / counts.size
    return ((counts - expected) ** 2 / expected).sum() / (counts.size - 1)


@pytest.mark.parametrize("size, count", [(9, 2), (200, 20)], ids=["permuted", "drawn"])
def test_every_sequence_of_distinct_indices_is_equally_probable(size, count):
    draw = jax.jit(jax.vmap(lambda key: subsample(key, size, count)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), DRAWS)))
    assert (np.diff(np.sort(drawn, axis=1), axis=1) > 0).all()
    assert drawn.min() == 0 and drawn.max() == size - 1
    limit = lambda cells: 1 + 5 * (2 / cells) ** 0.5
    for position in (0, count // 2, count - 1):
        assert spread(np.bincount(drawn[:, position], minlength=size)) < limit(size)
    pairs = np.bincount(drawn[:, 0] * size + drawn[:, -1], minlength=size**2)
    pairs = pairs.reshape(size, size)[~np.eye(size, dtype=bool)]
    assert spread(pairs) < limit(size * (size - 1))


@pytest.mark.parametrize("size, count", [(1, 1), (5, 5), (10**6, 10**6 // 4), (10**9, 3)])
def test_of_any_size(size, count):
    drawn = np.asarray(subsample(jax.random.key(1), size, count))
    assert drawn.shape == (count,) == np.unique(drawn).shape
    assert 0 <= drawn.min() and drawn.max() < size


def test_model_and_guide_see_one_minibatch_at_no_cost_of_the_whole():
    """Under an objective a plate's indices are drawn so, and not by a shuffle of all."""

    def model():
        with numpyro.plate("N", 10**6, subsample_size=4) as i:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=i / 1e6)

    def guide():
        with numpyro.plate("N", 10**6, subsample_size=4) as i:
            numpyro.sample("z", dist.Normal(numpyro.param("a", 0.0) * i / 1e6, 1.0))

    loss = lambda a: vipp.ELBO().loss(jax.random.key(0), {"a": a}, model, guide)
    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss))(jnp.float32(0.3))
    assert "1000000]" not in str(jaxpr)
