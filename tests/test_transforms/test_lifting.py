"""Named axes: what depends on an expanded site carries its axis, and nothing else does."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

import vipp_transforms as vt
from vipp_transforms.lifting import Axes, Lifted

KEY = jax.random.key(0)


@pytest.fixture
def axes():
    made = Axes()
    made.register(vt.Axis("a", 2))
    made.register(vt.Axis("b", 3))
    return made


def test_apply_maps_over_the_union_in_one_order(axes):
    x = Lifted(jnp.arange(6.0).reshape(3, 2), ("b",))
    y = Lifted(jnp.array([10.0, 20.0]), ("a",))
    (z,) = axes.apply(lambda u, v: [u * v], x, y)
    assert z.axes == ("a", "b")
    np.testing.assert_array_equal(z.array, np.array([10.0, 20.0])[:, None, None] * x.array[None])


def test_apply_without_axes_is_a_plain_call(axes):
    (z,) = axes.apply(lambda u: [u.shape[0] + u], Lifted(jnp.ones(4)))
    assert z.axes == ()
    np.testing.assert_array_equal(z.array, np.full(4, 5.0))


@pytest.mark.parametrize("name", ["a", "b"])
def test_front_and_named_are_inverse(axes, name):
    x = Lifted(jnp.arange(24.0).reshape(2, 3, 4), ("a", "b"))
    fronted = axes.first(x, name)
    assert name not in fronted.axes
    back = axes.named(fronted, name, at=0)
    assert back.axes == ("a", "b")
    np.testing.assert_array_equal(back.array, x.array)


def test_front_repeats_what_does_not_depend_on_the_axis(axes):
    x = axes.first(Lifted(jnp.arange(8.0).reshape(2, 4), ("a",)), "b")
    assert (x.axes, x.array.shape) == (("a",), (3, 2, 4))
    np.testing.assert_array_equal(x.array[1], np.arange(8.0).reshape(2, 4))


def test_axes_of_equal_name_are_one(axes):
    axes.register(vt.Axis("a", 2))
    assert axes.sizes == {"a": 2, "b": 3}


# -- cost: how often is each operation evaluated ---------------------------------------------


def shapes_of(primitive, fn, *args):
    """Shapes of the results of every such equation in the estimate."""
    estimate = lambda *xs: vt.surrogate(lambda *ys: (fn(*ys), None))(*xs)[0]
    found = []

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == primitive:
                found.append(eqn.outvars[0].aval.shape)
            for value in eqn.params.values():
                if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                    walk(getattr(value, "jaxpr", value))

    walk(jax.make_jaxpr(estimate)(*args).jaxpr)
    return found


def three(name, *shape, estimator=None):
    d = dist.Categorical(logits=jnp.zeros((*shape, 3)))
    return vt.sample(KEY, d, estimator or vt.Enumerate(), name=name) * 1.0


def test_what_does_not_depend_on_a_site_is_evaluated_once():
    def program(x):
        z, y = three("z"), three("y")
        fixed = lax.erf_inv(jnp.tanh(x)).sum()
        return fixed * lax.lgamma(z + 2.0) + lax.digamma(y + z + jnp.sum(x))

    x = jnp.ones(4)
    assert shapes_of("erf_inv", program, x) == [(4,)]
    assert shapes_of("lgamma", program, x) == [(3,)]
    assert shapes_of("digamma", program, x) == [(3, 3)]


def test_lanes_apart_are_enumerated_side_by_side():
    program = lambda x: lax.lgamma(three("z", 5) + x).sum()
    assert shapes_of("lgamma", program, jnp.arange(5.0)) == [(3, 5)]


def test_what_all_lanes_share_is_evaluated_once():
    program = lambda x: (lax.lgamma(three("z", 5) + x) * jnp.arange(5.0)).sum()
    assert shapes_of("lgamma", program, jnp.float32(2.0)) == [(3, 1)]


def test_lanes_together_are_enumerated_jointly():
    program = lambda x: lax.lgamma(three("z", 2) + x).prod()
    assert shapes_of("lgamma", program, jnp.float32(2.0)) == [(9, 2)]


def test_trajectories_are_shared():
    def program(x):
        score = vt.ScoreFunction(4)
        z, y = three("z", estimator=score), three("y", estimator=score)
        return lax.digamma(z + y + x)

    assert shapes_of("digamma", program, jnp.float32(2.0)) == [(4,)]


# -- equations with several results, some of which do not depend on what others do -----------

PAIRS = {
    "scan": lambda t, z: lax.scan(lambda c, x: ((c[0] * 1.1, c[1] + x), None), (t, z), jnp.ones(3))[0],
    "checkpoint": jax.checkpoint(lambda t, z: (jnp.sin(t), jnp.exp(z * t))),
    "cond": lambda t, z: lax.cond(t > 0, lambda: (t, z * t), lambda: (2 * t, z)),
    "fori_loop": lambda t, z: lax.fori_loop(0, 3, lambda i, c: (c[0] + t, c[1] * z), (t, z)),
    "while_loop": lambda t, z: lax.while_loop(
        lambda c: c[1] < 3, lambda c: (c[0], c[1] + z + 1), (t, z)
    ),
    "jit": jax.jit(lambda t, z: (jnp.sin(t), z * t)),
}  # fmt: skip
COMBINE = {"sum": lambda a, b: a + b, "product": lambda a, b: jnp.sin(a) * b,
           "first": lambda a, b: a, "separate": lambda a, b: a**2 + jnp.cos(b).sum()}  # fmt: skip


@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize("pair", PAIRS)
def test_results_that_do_not_depend_on_a_site(exact, pair, combine):
    """A call is mapped as a whole; the result that depends on nothing must stay one number."""

    def program(theta, rv):
        z = rv("z", dist.Bernoulli(logits=theta[0]))
        return COMBINE[combine](*PAIRS[pair](theta[1], 1.0 * z))

    exact.check(program, jnp.array([0.4, 0.8]), default=vt.Enumerate(), orders=1)


def test_a_key_may_depend_on_a_drawn_value(exact):
    """Which key it was makes no difference to what is expected."""

    def staged(theta):
        a = vt.sample(KEY, dist.Bernoulli(logits=theta[0]), vt.Enumerate(), name="a")
        key = jax.random.fold_in(KEY, a)
        b = vt.sample(key, dist.Bernoulli(logits=theta[1]), vt.ScoreFunction(), name="b")
        return jnp.sin(1.0 * b), None

    got = exact.estimate(staged, jnp.array([0.4, 0.8]))
    p = jax.nn.sigmoid(0.8)
    np.testing.assert_allclose(got.value, p * np.sin(1.0), rtol=1e-5)
    np.testing.assert_allclose(got.grad, [0, p * (1 - p) * np.sin(1.0)], rtol=1e-5, atol=1e-6)
