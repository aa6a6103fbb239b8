"""The hash with its rounds written out gives JAX's bits."""

import jax
import numpy as np
import pytest

from vipp_transforms import threefry


@pytest.mark.parametrize("shape", [(2,), (5,), (2, 3)])
@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_splits_are_those_of_jax(seed, shape):
    key = jax.random.fold_in(jax.random.key(seed), 7)
    got, want = threefry.split(key, shape), jax.random.split(key, shape)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(jax.random.key_data(got), jax.random.key_data(want))


def test_other_keys_are_left_to_jax():
    assert threefry.splits_alike(jax.random.key(0))
    assert not threefry.splits_alike(jax.random.key(0, impl="rbg"))
    assert not threefry.splits_alike(jax.random.split(jax.random.key(0)))
