"""Functions of arrays with a derivative of their own: what they are, and when two are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vipp.distributions import densities, one_hot
from vipp.distributions.softplus import softplus
from vipp_transforms import orders, scaled_sums
from vipp_transforms.elementwise import Elementwise, is_elementwise
from vipp_transforms.flattening import flatten
from vipp_transforms.packing import pack

X = np.array([-1e4, -60.0, -1.5, 0.0, 2.0, 60.0, 1e4], np.float32)


@Elementwise
def times(x, y):
    return x * y


times.defjvps(lambda dx, x, y: 10 * (y * dx), lambda dy, x, y: 10 * (x * dy))


FUNCTIONS = {
    "softplus": softplus,
    "x log y": densities._x_log_y,
    "weighed": one_hot._weighed,
    "log": scaled_sums._log,
    "held": orders.held,
    "of this file": times,
}


def as_custom_jvp(fn):
    """What JAX makes of the same formula and derivative."""
    made = jax.custom_jvp(fn.formula)
    made.defjvps(*(lambda t, out, *xs, f=slope: f(t, *xs) for slope in fn.slopes))
    return made


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_derivatives_are_those_of_a_custom_jvp(name):
    fn = FUNCTIONS[name]
    takes = fn.formula.__code__.co_argcount
    args = (np.linspace(0.1, 0.9, 6, dtype=np.float32), np.linspace(0.3, 2.0, 6, dtype=np.float32))

    def everything(f):
        def all_of(*xs):
            total = lambda *ys: jnp.sum(jnp.sin(f(*ys)))
            first = jax.grad(total, tuple(range(takes)))
            second = jax.grad(lambda *ys: sum(map(jnp.sum, first(*ys))), tuple(range(takes)))
            return f(*xs), first(*xs), second(*xs), jax.vmap(f)(*xs)

        return jax.jit(all_of)(*args[:takes])

    found, expected = everything(fn), everything(as_custom_jvp(fn))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_softplus_at_extremes_and_at_zero():
    grad = jax.vmap(jax.grad(softplus))
    np.testing.assert_allclose(softplus(X), np.logaddexp(X, 0), rtol=1e-6)
    np.testing.assert_allclose(grad(X), 1 / (1 + np.exp(-np.clip(X, -80, 80))), atol=1e-7)
    assert jax.grad(jax.grad(softplus))(0.0) == 0.25


def test_operands_are_broadcast_and_mapped_over_any_axis():
    x, y = np.arange(6.0, dtype=np.float32).reshape(2, 3), np.arange(3.0, dtype=np.float32)
    np.testing.assert_array_equal(times(x, y), x * y)
    np.testing.assert_array_equal(times(2.0, y), 2 * y)
    mapped = jax.vmap(times, in_axes=(1, None), out_axes=1)(x, jnp.arange(2.0))
    np.testing.assert_array_equal(mapped, x * np.arange(2.0)[:, None])
    np.testing.assert_array_equal(jax.vmap(times, in_axes=(None, 0))(jnp.float32(3), y), 3 * y)


def test_types_are_those_of_the_formula():
    assert times(1.0, 2.0).dtype == jnp.result_type(float)
    assert (times(1.0, 2.0) * jnp.bfloat16(1)).dtype == jnp.bfloat16
    assert times(1, jnp.float32(2)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert times(jnp.float64(1), 2.0).dtype == jnp.float64


def test_equal_calls_are_one_however_they_came_about():
    def fn(x):
        return times(x, x) + jax.vmap(lambda y: times(y, y))(x) + jax.jit(times)(x, x)

    program = flatten(jax.make_jaxpr(fn)(X), sums=False)
    assert sum(is_elementwise(n.eqn) for n in program.nodes) == 1


def test_packing_stacks_them():
    fn = lambda *xs: sum(times(x, x + 1) for x in xs)
    jaxpr = jax.make_jaxpr(pack(fn, worthwhile=1))(*X)
    assert sum(is_elementwise(e) for e in jaxpr.eqns) == 1
    np.testing.assert_allclose(jax.jit(pack(fn, worthwhile=1))(*X), fn(*X), rtol=1e-6)


def test_without_a_derivative_there_is_none():
    with pytest.raises(TypeError, match="'square' has no derivative"):
        jax.grad(Elementwise(jnp.square))(1.0)
