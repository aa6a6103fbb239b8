"""Noise drawn for many steps at once: that of the steps one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vipp_transforms as vt
from vipp_transforms import packing
from vipp_transforms.drawing_ahead import MOST_NUMBERS, MOST_STEPS, ahead

DATA = jnp.arange(3_000.0).reshape(1_000, 3)


def step(state, size=4):
    """A minibatch of data too large to be copied for every step, and noise scaled by the state."""
    key, now = jax.random.split(state["key"])
    rows = DATA[jax.random.randint(jax.random.fold_in(now, 1), (2,), 0, 1_000)]
    noise = 1.0 + jax.random.normal(now, (size,)) * jnp.sqrt(2.0)
    return {"key": key, "m": 0.9 * state["m"] + noise.sum() * rows.mean()}, state["m"]


def programs(size=4):
    state = {"key": jax.random.key(3), "m": jnp.float32(1.0)}
    closed = jax.make_jaxpr(lambda s: step(s, size))(state)
    return state, packing.flatten(closed, final=True, sums=False)


def names(program):
    return [node.eqn.primitive.name for node in program.nodes]


def test_the_same_steps():
    state, program = programs()
    parts = ahead(program)
    noise = parts.draw(packing.one_by_one, [state["key"]])
    assert parts.count == MOST_STEPS == len(noise[0])
    assert not any(n.startswith("random") or n == "erf_inv" for n in names(parts.rest))
    assert "gather" in names(parts.rest) and "gather" not in names(parts.noise)
    leaves = jax.tree.leaves(state)
    for i in range(3):
        state, loss = step(state)
        *leaves, got = packing.one_by_one(parts.rest, [*leaves, *(x[i] for x in noise)])
        np.testing.assert_allclose([leaves[1], got], [state["m"], loss], rtol=1e-5)
        assert (leaves[0] == state["key"]).all()


def test_much_noise_is_drawn_step_by_step():
    assert ahead(programs(MOST_NUMBERS // 4)[1]) is None
    assert 8 <= ahead(programs(MOST_NUMBERS // 16)[1]).count < MOST_STEPS


def test_keys_that_depend_on_the_state_are_followed_step_by_step():
    def turning(state):
        key = jax.random.fold_in(state["key"], jnp.int32(state["m"]))
        return {"key": key, "m": state["m"] + jax.random.normal(key)}, state["m"]

    state = {"key": jax.random.key(3), "m": jnp.float32(1.0)}
    assert ahead(packing.flatten(jax.make_jaxpr(turning)(state), final=True, sums=False)) is None


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_whose_numbers_depend_on_their_company_are_drawn_with_one_by_one(impl):
    def step(key, x):
        key, now = jax.random.split(key)
        return key, x + jax.random.normal(now, (3,)).sum()

    def alike(key):
        return [jnp.sin(jax.random.normal(k)) for k in jax.random.split(key, 4)]

    key = jax.random.key(0, impl=impl)
    assert ahead(packing.flatten(jax.make_jaxpr(step)(key, 0.0))) is None
    np.testing.assert_array_equal(vt.pack(alike, worthwhile=1)(key), alike(key))
