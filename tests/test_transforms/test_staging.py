"""From a function to equations and sites: whatever JAX does in between must not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipp_transforms as vt
from vipp_transforms.sites import sample_p
from vipp_transforms.staging import stage

pytestmark = pytest.mark.uncompiled

KEY = jax.random.key(0)
T = jnp.float32(0.3)


def bernoulli(name, p, estimator=None, key=KEY):
    return vt.sample(key, dist.Bernoulli(p), estimator or vt.Enumerate(), name=name) * 1.0


def value_and_grad(fn, *args):
    estimate = lambda *xs: vt.surrogate(lambda *ys: (fn(*ys), None))(*xs)[0]
    return jax.value_and_grad(estimate)(*args)


def expect(fn, value, grad, *args):
    got = value_and_grad(fn, *(args or (T,)))
    np.testing.assert_allclose(got[0], value, rtol=1e-6)
    np.testing.assert_allclose(got[1], grad, rtol=1e-6)


# -- values that are hardly programs ---------------------------------------------------------


def test_a_constant():
    expect(lambda t: jnp.float32(2.0), 2.0, 0.0)


def test_a_python_number():
    expect(lambda t: 2.0, 2.0, 0.0)


def test_a_constant_array():
    table = jnp.arange(3.0)
    expect(lambda t: table[1], 1.0, 0.0)


def test_an_input():
    expect(lambda t: t, 0.3, 1.0)


def test_an_input_with_an_unused_site():
    def program(t):
        bernoulli("z", t)
        return t

    expect(program, 0.3, 1.0)


def test_a_site_itself():
    expect(lambda t: bernoulli("z", t), 0.3, 1.0)


def test_nothing_random():
    expect(lambda t: jnp.sin(t), np.sin(0.3), np.cos(0.3))


def test_a_value_used_twice():
    def program(t):
        z = bernoulli("z", t)
        return z + z * z - 0.5 * z

    expect(program, 0.45, 1.5)


def test_an_empty_plate():
    def program(t):
        z = bernoulli("z", jnp.full(0, t))
        return z.sum() + jnp.prod(1 + z) + t

    expect(program, 1.3, 1.0)


# -- calls and constants -----------------------------------------------------------------------


@jax.jit
def inner(p, key):
    return bernoulli("z", p, key=key)


def test_one_compiled_function_called_twice():
    keys = jax.random.split(KEY)
    program = lambda t: inner(t, keys[0]) * inner(t**2, keys[1])
    expect(program, 0.3**3, 3 * 0.3**2)
    plan = vt.plan(lambda t: (program(t), None), T)
    assert [s.name for s in plan.program.sites.values()] == ["z", "z#2"]


@pytest.mark.parametrize("transform", [lambda f: f, jax.value_and_grad], ids=["value", "grad"])
def test_a_compiled_function_that_was_traced_before(transform):
    """JAX keeps its jaxpr, so that its Python code does not run again."""

    @jax.jit
    def compiled(p):
        return bernoulli("z", p)

    estimate = transform(lambda t: vt.surrogate(lambda t: (compiled(t) * t, None))(t)[0])
    first, second = estimate(T), estimate(T)
    np.testing.assert_allclose(first, second, rtol=1e-6)
    np.testing.assert_allclose(jax.tree.leaves(first)[0], 0.09, rtol=1e-6)


def test_calls_in_calls():
    outer = jax.jit(lambda t: jax.jit(lambda u: inner(u, KEY) * u)(t) + t)
    expect(outer, 0.3**2 + 0.3, 2 * 0.3 + 1)


def test_a_call_that_passes_its_input_through():
    expect(lambda t: jax.jit(lambda u, v: (v, u))(bernoulli("z", t), t)[1] * t, 0.09, 0.6)


def test_a_call_that_returns_a_constant():
    expect(lambda t: jax.jit(lambda z: (z, 3.0))(bernoulli("z", t))[1] * t, 0.9, 3.0)


def test_array_constants_of_a_compiled_function():
    table = jnp.array([1.0, 5.0])
    look_up = jax.jit(lambda z: table[z.astype(int)])
    expect(lambda t: look_up(bernoulli("z", t)), 0.7 + 1.5, 4.0)


@pytest.mark.parametrize("transform", ["jit", "vmap", "grad", "jit of vmap of grad"])
def test_values_of_an_enclosing_transformation(transform):
    """What the program closes over belongs to a transformation around the estimate."""

    def outer(scale):
        program = lambda t: (scale * bernoulli("z", jnp.sin(scale) * t), None)
        return vt.surrogate(program)(T)[0]

    truth = lambda s: 0.3 * s * jnp.sin(s)
    slope = jax.grad(truth)
    scales = jnp.array([0.5, 1.0])
    got, want = {
        "jit": lambda: (jax.jit(outer)(scales[0]), truth(scales[0])),
        "vmap": lambda: (jax.vmap(outer)(scales), truth(scales)),
        "grad": lambda: (jax.grad(outer)(scales[0]), slope(scales[0])),
        "jit of vmap of grad": lambda: (
            jax.jit(jax.vmap(jax.grad(outer)))(scales),
            jax.vmap(slope)(scales),
        ),
    }[transform]()
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_arguments_that_are_no_arrays():
    def program(t, n, flags, *, mode):
        z = bernoulli("z", jnp.full(n, t) if flags["wide"] else t)
        return (z * np.arange(1.0, n + 1, dtype=np.float32)).sum() if mode == "sum" else t

    got = vt.surrogate(lambda *a, **k: (program(*a, **k), None))(T, 3, {"wide": True}, mode="sum")
    np.testing.assert_allclose(got[0], 0.3 * 6, rtol=1e-6)


# -- sites ----------------------------------------------------------------------------------------


def test_what_nothing_needs_is_dropped():
    def program(t):
        bernoulli("unused", t)
        z = bernoulli("z", t)
        jnp.linalg.inv(jnp.eye(2) * t)
        return z, None

    staged = stage(program, (T,), {})
    assert [s.name for s in staged.sites.values()] == ["z"]
    assert all(e.primitive.name != "lu" for e in staged.eqns)


def test_equations_and_sites_in_program_order():
    def program(t):
        a = bernoulli("a", t)
        b = bernoulli("b", t * a)
        return a + b, None

    staged = stage(program, (T,), {})
    drawn = [e.outvars[0] for e in staged.eqns if e.primitive is sample_p]
    assert drawn == list(staged.sites)
    assert [s.index for s in staged.sites.values()] == [0, 1]


def test_lanes_of_a_site():
    def program(t):
        one = lambda k, p: bernoulli("z", jnp.full(4, p), key=k)
        two = lambda k: jax.vmap(one, in_axes=(0, 0))(jax.random.split(k, 3), jnp.full(3, t))
        return jax.vmap(two)(jax.random.split(KEY, 2)).sum(), None

    (site,) = stage(program, (T,), {}).sites.values()
    assert site.lane_shape == (2, 3, 4)
    assert [(lane.size, *lane.varies) for lane in site.lanes] == [(2, False), (3, True)]


def test_names_stay_apart_whatever_a_user_calls_sites():
    """Two sites of equal name would be enumerated along one axis, silently as one."""

    def program(t):
        a = bernoulli("z", t, key=jax.random.key(1))
        b = bernoulli("z#2", t, key=jax.random.key(2))
        c = bernoulli("z", t, key=jax.random.key(3))
        return a + b * c

    names = [s.name for s in vt.plan(lambda t: (program(t), None), T).program.sites.values()]
    assert len(set(names)) == 3
    expect(program, 0.3 + 0.09, 1.6)


# -- auxiliary outputs ---------------------------------------------------------------------------


def test_auxiliary_outputs_are_those_of_one_plain_run():
    def program(t, estimator):
        z = vt.sample(KEY, dist.Bernoulli(jnp.full(64, t)), estimator, name="z")
        y = vt.sample(jax.random.key(1), dist.Normal(z * t, 1.0), vt.Pathwise(), name="y")
        return (z * y).sum(), {"z": z, "y": y, "t": t, "n": 3, "key": KEY, "none": None}

    plain = program(T, vt.ScoreFunction())[1]
    for estimator in (vt.Enumerate(), vt.ScoreFunction(3), vt.Automatic()):
        _, aux = vt.surrogate(program)(T, estimator)
        assert jax.tree.structure(aux) == jax.tree.structure(plain)
        assert aux["z"].shape == aux["y"].shape == (64,)
        assert set(np.unique(aux["z"])) == {0, 1}
        assert (aux["n"], aux["key"]) == (3, KEY)
        noise = plain["y"] - plain["z"] * T
        np.testing.assert_allclose(aux["y"], aux["z"] * T + noise, rtol=1e-5, atol=1e-6)


def test_auxiliary_outputs_go_with_the_score_functions_draw():
    def program(t):
        z = bernoulli("z", jnp.full(32, t), vt.ScoreFunction())
        return (z * jnp.arange(32.0)).sum(), z

    value, z = vt.surrogate(program)(T)
    np.testing.assert_allclose(value, (z * np.arange(32.0)).sum(), rtol=1e-6)


def test_auxiliary_outputs_pass_through_grad_without_gradient():
    def estimate(t):
        def program(t):
            z = bernoulli("z", t)
            return z * t, (z, t)

        value, (z, again) = vt.surrogate(program)(t)
        return value + 100 * again + z, (z, again)

    grad, (z, again) = jax.jit(jax.grad(estimate, has_aux=True))(T)
    np.testing.assert_allclose(grad, 0.6, rtol=1e-6)
    assert z in (0, 1) and again == T


def test_auxiliary_outputs_of_a_pathwise_program_have_no_gradient_either():
    def estimate(t):
        def program(t):
            x = vt.sample(KEY, dist.Normal(t, 1.0), vt.Pathwise(), name="x")
            return x, t * x

        value, aux = vt.surrogate(program)(t)
        return value + 100 * aux

    np.testing.assert_allclose(jax.jit(jax.grad(estimate))(T), 1.0, rtol=1e-6)


def test_a_site_only_an_auxiliary_output_needs():
    value, z = vt.surrogate(lambda t: (t, bernoulli("z", t)))(T)
    assert value == T and z in (0, 1)
