"""What an optimiser does alike to many small arrays, done once: each entry is what it was."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vipp_transforms.flattening import flatten
from vipp_transforms.horizontal_fusion import fused

PARAMS = {
    "a": np.array(0.3),
    "b": np.array([0.5, -1.0, 2.0]),
    "c": np.array(-0.7),
    "d": np.arange(6.0).reshape(2, 3) / 5,
    "large": np.linspace(-1.0, 2.0, 300),
}


def loss(p):
    inner = jnp.sin(p["a"]) * (p["b"] ** 2).sum() + jnp.exp(p["c"]) * (p["d"] ** 2).sum()
    return inner + (p["b"] * p["c"]).sum() ** 2 + (p["large"] * p["a"]).mean() ** 2


def decaying_only(names):
    return lambda params: {n: n in names for n in params}


def by_leaf(updates, state, params=None):
    scale = {n: 1.0 / (1.0 + jnp.linalg.norm(g)) for n, g in updates.items()}
    return jax.tree.map(jnp.multiply, updates, scale), state


def all_apart(updates, state, params=None):
    ways = dict(zip(PARAMS, (jnp.sin, jnp.tanh, jnp.arctan, jnp.negative, jnp.cos), strict=True))
    return {n: ways[n](g) for n, g in updates.items()}, state


OPTIMISERS = {  # and whether most of what it does is the same for all arrays
    "adam": (optax.adam(0.1), True),
    "adam, weight decay": (optax.adamw(0.1), True),
    "a scale of all gradients": (
        optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1)),
        True,
    ),
    "a schedule": (optax.adam(optax.cosine_decay_schedule(0.1, 3)), True),
    "momentum": (optax.sgd(0.01, momentum=0.9), True),
    "nesterov": (optax.sgd(0.01, momentum=0.9, nesterov=True), True),
    "rmsprop": (optax.rmsprop(0.1), True),
    "a scale of each array": (
        optax.chain(optax.GradientTransformation(lambda p: (), by_leaf), optax.adam(0.1)),
        True,
    ),
    "decay of some": (optax.adamw(0.1, mask=decaying_only("bd")), True),
    "two optimisers": (
        optax.partition({"x": optax.adam(0.1), "y": optax.sgd(0.1)}, dict(zip(PARAMS, "xyxyx"))),
        True,
    ),
    "each in its own way": (optax.GradientTransformation(lambda p: (), all_apart), False),
}


def step_of(optim):
    def step(params, state, count):
        value, slope = jax.value_and_grad(loss)(params)
        updates, state = optim.update(slope, state, params)
        largest = jnp.max(jnp.abs(params["b"]))
        return optax.apply_updates(params, updates), state, count + 1, value, largest

    return step


def roles_of(params, state):
    """The positions of the trees like the parameters'."""
    count = len(jax.tree.leaves((params, state)))
    numbered = jax.tree.unflatten(jax.tree.structure((params, state)), range(count))
    alike = jax.tree.structure(params)
    parts = jax.tree.leaves(numbered, is_leaf=lambda x: jax.tree.structure(x) == alike)
    return [jax.tree.leaves(x) for x in parts if jax.tree.structure(x) == alike]


def started(optim):
    params = jax.tree.map(jnp.asarray, PARAMS)
    return params, optim.init(params), jnp.array(0)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_each_entry_is_what_it_was(name, x64):
    optim, alike = OPTIMISERS[name]
    state = started(optim)
    step = step_of(optim)
    program = flatten(jax.make_jaxpr(step)(*state), final=True, sums=False)
    leaves, treedef = jax.tree.flatten(state)
    joint = fused(program, len(leaves), roles_of(*state[:2]))
    assert (joint is not None) == alike
    if joint is None:
        return
    want, carried = state, joint.carried(leaves)
    for _ in range(4):
        *want, value, largest = jax.jit(step)(*want)
        carried, others = jax.jit(joint.step)(carried)
        np.testing.assert_allclose(others, (value, largest), rtol=1e-10)
    for x, y in zip(joint.leaves(carried), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-10)
    assert jax.tree.unflatten(treedef, joint.leaves(carried))[2] == 4


def test_adam_is_evaluated_on_vectors():
    """Of four small arrays, with their moments: three vectors, and one more of their slopes."""
    optim = optax.adam(0.1)
    state = started(optim)
    program = flatten(jax.make_jaxpr(step_of(optim))(*state), final=True, sums=False)
    joint = fused(program, len(jax.tree.leaves(state)), roles_of(*state[:2]))
    carried = joint.carried(jax.tree.leaves(state))
    assert [x.shape for x in carried[:3]] == [(11,)] * 3
    jaxpr = jax.make_jaxpr(joint.step)(carried).jaxpr
    roots = [e for e in jaxpr.eqns if e.primitive.name == "sqrt"]
    assert sorted(e.outvars[0].aval.shape for e in roots) == [(11,), (300,)]
    assert sum(e.primitive.name == "concatenate" for e in jaxpr.eqns) == 1


def test_what_is_done_at_once_may_be_read_one_by_one():
    """The new parameters, and a moment, are read behind the update."""

    def step(params, moments):
        slope = jax.grad(loss)(params)
        moments = jax.tree.map(lambda m, g: 0.9 * m + g, moments, slope)
        params = jax.tree.map(lambda p, m: p - 0.1 * m, params, moments)
        return params, moments, params["a"] * moments["b"].sum(), loss(params)

    params = jax.tree.map(jnp.asarray, PARAMS)
    state = (params, jax.tree.map(jnp.ones_like, params))
    program = flatten(jax.make_jaxpr(step)(*state), final=True, sums=False)
    joint = fused(program, 10, roles_of(*state))
    carried, others = jax.jit(joint.step)(joint.carried(jax.tree.leaves(state)))
    *want, product, value = jax.jit(step)(*state)
    np.testing.assert_allclose(others, (product, value), rtol=1e-5)
    for x, y in zip(joint.leaves(carried), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6)


def test_few_arrays_and_other_types_stay_as_they_are():
    step = lambda a, b: (a + 1.0, b + 1.0)
    program = flatten(jax.make_jaxpr(step)(jnp.ones(2), jnp.ones(3)), final=True, sums=False)
    assert fused(program, 2, [[0, 1]]) is None
    whole = tuple(jnp.arange(n) for n in (1, 2, 3))
    closed = jax.make_jaxpr(lambda *xs: tuple(x + 1 for x in xs))(*whole)
    assert fused(flatten(closed, final=True, sums=False), 3, [[0, 1, 2]]) is None
