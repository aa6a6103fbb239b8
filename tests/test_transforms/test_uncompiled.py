"""Without compiling: NumPy gives what XLA gives, of the same types, and JAX what there is no rule for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vipp_transforms.uncompiled import uncompiled

X = jnp.array([[0.3, -1.2, 2.0], [0.7, 0.1, -0.4]])
KEY = jax.random.key(3)
NUMBERS = jnp.array([3, -7, 12], jnp.int32)


def gathers(x):
    """Rows, entries, what a mode clips, and the slopes, which are scattered."""
    rows = jnp.array([1, 0, 1])
    pick = lambda x: (x[rows] * jnp.arange(9.0).reshape(3, 3)).sum() + x[rows, rows].sum()
    taken = jnp.take(x, jnp.array([0, 9]), axis=1, mode="clip")
    along = jnp.take_along_axis(x, jnp.array([[2], [0]]), 1)
    return jax.grad(pick)(x), x[1], taken, along, jax.vmap(lambda r, i: r[i])(x, rows[:2])


def draws(x):
    """Keys of two kinds, split, folded, cloned, in arrays; every kind of bits."""
    keys = jax.random.split(KEY, 3)
    drawn = jax.vmap(lambda k, s: jax.random.normal(k, (2,)) * s)(keys, x[0])
    other = jax.random.clone(jax.random.fold_in(jax.random.key(7), NUMBERS[0]))
    bits = [jax.random.bits(other, (5,), t) for t in ("uint8", "uint16", "uint32")]
    integers = jax.random.randint(keys[1], (4,), 0, 9)
    same = keys == keys[1], jax.jit(jnp.not_equal)(keys, other)
    return (
        drawn,
        keys,
        bits,
        same,
        integers,
        jax.random.permutation(keys[2], 5),
        jax.random.PRNGKey(1),
    )


CASES = {
    "elementwise": lambda x: [f(x) for f in (jnp.exp, jnp.tanh, jnp.sign, jnp.floor, jnp.isfinite)],
    "special": lambda x: [
        f(jnp.abs(x) + 0.1)
        for f in (jnp.log, lax.lgamma, lax.digamma, lax.erf, lax.rsqrt, jnp.log1p, lax.cbrt)
    ],
    "not numbers": lambda x: (jnp.log(-x), jnp.sqrt(-jnp.abs(x)), x / 0.0, lax.erf_inv(x)),
    "comparisons": lambda x: (
        x > 0,
        x != x[0],
        (x > 0) & (x < 1),
        ~(x > 0),
        jnp.where(x > 0, x, 2),
    ),
    "integers": lambda x: (NUMBERS // 2, NUMBERS % 5, lax.div(NUMBERS, jnp.int32(5)), NUMBERS**2),
    "shifts": lambda x: (
        NUMBERS << 3,
        lax.shift_right_logical(NUMBERS, jnp.int32(40)),
        lax.shift_right_logical(NUMBERS, jnp.int32(4)),
    ),
    "types": lambda x: (
        x.astype(int),
        x > 0.5,
        x.astype(jnp.bfloat16) * 2,
        lax.convert_element_type(1, float),
    ),
    "weak": lambda x: (jnp.asarray(1.0) + 1, jnp.sin(0.3), lax.full((), 2.0), x * jnp.asarray(2)),
    "shapes": lambda x: (x.T, x.reshape(3, 2), x[:, None], x[:, ::2], jnp.pad(x, 1), x[::-1]),
    "joined": lambda x: (jnp.stack([x, x]), jnp.concatenate([x, x], 1), jnp.split(x, 3, 1), [*x]),
    "reduced": lambda x: (x.sum(0), x.prod(), x.max(1), x.argmax(1), (x > 0).all(), (x > 9).any()),
    "empty": lambda x: (x[:0].sum(), x[:, :0], jnp.zeros((0, 2)) + 1),
    "in order": lambda x: (jnp.sort(x, 1), jnp.argsort(x[0]), jnp.cumsum(x, 1), jnp.median(x)),
    "backwards": lambda x: (lax.cumsum(x, 1, reverse=True), lax.cummax(x, 0), lax.cumprod(x, 1)),
    "products": lambda x: (x @ x.T, jnp.einsum("bi,bj->bij", x, x), jnp.dot(x[0], x[1])),
    "windows": lambda x: (
        lax.dynamic_slice(x, (5, 1), (1, 2)),
        lax.dynamic_update_slice(x, jnp.zeros((1, 2)), (0, 9)),
    ),
    "gathers": gathers,
    "scatters": lambda x: (
        x.at[1, 1:].set(0.0),
        x.at[jnp.array([0, 5])].add(x, mode="drop"),
        x.at[:, jnp.array([2, 0])].add(1.0),
        x.at[jnp.array(1)].multiply(2.0),
        jnp.repeat(x, jnp.array([2, 1]), 0, total_repeat_length=3),
    ),
    "padded": lambda x: (
        lax.pad(x, 1.0, ((-1, 2, 0), (0, -1, 2))),
        lax.pad(x, 1.0, ((1, 1, 1), (-2, 3, 0))),
        lax.pad(x[:0], 1.0, ((2, 0, 3), (0, 0, 0))),
    ),
    "draws": draws,
    "of another kind": lambda x: jax.random.normal(jax.random.key(0, impl="rbg"), (3,)),
    "no rule": lambda x: (jnp.linalg.cholesky(x @ x.T + jnp.eye(2)), jax.random.gamma(KEY, 2.0)),
    "a loop": lambda x: lax.scan(lambda c, r: (c + r.sum(), c), 0.0, x),
    "derivatives": lambda x: jax.value_and_grad(lambda x: (jax.nn.softplus(x) * x).sum())(x),
    "second": lambda x: jax.hessian(lambda x: jax.nn.logsumexp(x @ x.T))(x),
    "mapped": lambda x: jax.vmap(lambda r: jax.nn.softmax(r) * jnp.arange(3))(x),
    "compiled": lambda x: jax.jit(lambda x: jnp.where(x > 0, jnp.log(x), x**3))(x),
    "checkpoint": lambda x: jax.grad(jax.checkpoint(lambda x: jnp.sin(x).sum()))(x),
    "NumPy": lambda x: jnp.asarray(np.arange(3)) + np.float64(0.5) * np.arange(3.0),
}


def plain(x):
    x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return np.asarray(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x)


@pytest.mark.rank_promotion("allow")
@pytest.mark.parametrize("case", CASES)
def test_the_same_values_and_types(case):
    with uncompiled():
        ours = CASES[case](X)
    theirs = CASES[case](X)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for got, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert isinstance(got, jax.Array)
        assert jax.typeof(got) == jax.typeof(wanted)
        np.testing.assert_allclose(plain(got), plain(wanted), rtol=2e-6, atol=1e-6)


@pytest.fixture
def compiled():
    """The names of what was compiled."""
    found = []

    def listen(event, duration, **kwargs):
        if event.endswith("backend_compile_duration"):
            found.append(kwargs.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def odd(x, key):
    """Of a shape that nothing else has."""
    noise = jax.random.normal(key, x.shape)
    return jax.value_and_grad(lambda x: jnp.tanh(x * noise)[jnp.array([3, 5])].sum())(x)


def test_nothing_is_compiled(compiled):
    x = jax.device_put(np.linspace(0.0, 1.0, 37, dtype=np.float32))
    with uncompiled():
        odd(x, KEY)
        assert compiled == []
        jnp.linspace(0.0, 1.0, 2**19 + 1).sum()  # of many numbers
    assert compiled


def test_an_array_stays_where_it_was_put(compiled):
    x = jax.device_put(np.linspace(0.0, 1.0, 41, dtype=np.float32), jax.devices()[0])
    with uncompiled():
        assert (x * 2).committed
    assert compiled


def test_within_a_transformation_nothing_changes():
    def fn(x):
        with uncompiled():
            return jnp.sin(x) * 2

    assert str(jax.make_jaxpr(fn)(X)) == str(jax.make_jaxpr(lambda x: jnp.sin(x) * 2)(X))
    with uncompiled():
        jaxpr = jax.make_jaxpr(fn)(X)
    assert str(jaxpr) == str(jax.make_jaxpr(fn)(X))


def test_an_error_is_that_of_jax():
    with pytest.raises(TypeError, match="incompatible shapes"):
        with uncompiled():
            lax.add(X, X.T)
    assert jnp.sin(X).shape == X.shape  # and it is over


def test_data_may_change_afterwards():
    data = np.arange(3.0, dtype=np.float32)
    with uncompiled():
        kept = jnp.asarray(data).reshape(3, 1)
    data[:] = 7.0
    assert kept[:, 0].tolist() == [0.0, 1.0, 2.0]
