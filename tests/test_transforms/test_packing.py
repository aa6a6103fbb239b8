"""Packing: the same results, in one equation for each kind on a level."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipp_transforms as vt
from vipp_transforms import packed_gradient, packing, stacking
from vipp_transforms.flattening import flatten
from vipp_transforms.layout import Layout
from vipp_transforms.surrogate import packed_estimate

SIZE = 6


def families(xs, key):
    """Two kinds of sites, partial groups, a chain of additions, draws, and a shared factor."""
    keys = jax.random.split(key, len(xs))
    draws = [x + jax.random.normal(k) for x, k in zip(xs, keys)]
    heavy = [jnp.exp(0.1 * x) if i % 2 else jnp.log1p(x**2) for i, x in enumerate(draws)]
    total = 0.0
    for i, x in enumerate(heavy):
        total = total + (i + 1.0) * x
    return total, [jnp.where(x > 0, x, 2 * x) for x in draws]


def chain(xs, key):
    """Each step depends on the one before: there is nothing to group."""
    x = xs[0]
    for y in xs[1:]:
        x = jnp.sin(x) * y
    return x


def vectors(xs, key):
    """Small arrays of several shapes, integers, booleans, and a large one left alone."""
    rows = [jnp.stack([x, -x, x * x]) for x in xs]
    large = jnp.arange(1_000.0).reshape(100, 10) * xs[0]
    picked = [row[jnp.argmax(row)] for row in rows]
    return jnp.stack([row @ row for row in rows]), picked, large.sum(0)


def inner(xs, key):
    """A loop, a branch, a call and a function with a derivative of its own."""
    looped = [jax.lax.fori_loop(0, 3, lambda _, y: y * 1.5 + x, x) for x in xs]
    taken = [jax.lax.cond(x > 0, jnp.sin, jnp.cos, x) for x in looped]
    return [jax.nn.softplus(jax.jit(jnp.tanh)(x)) + jax.nn.relu(x) for x in taken]


def constants(xs, key):
    """What does not depend on the inputs, equal equations, and inputs as results."""
    table = np.arange(6.0, dtype=np.float32)
    return [jnp.float32(table[i]) + jnp.sin(xs[0]) for i in range(SIZE)], xs[1], 3.0


def parts(xs, key):
    """Parts of a vector, as an autoguide takes its sites out of it: side by side, and not."""
    vector = jnp.concatenate([jnp.stack(xs) * jnp.cos(i) for i in range(30)])
    pairs = [jnp.sin(vector[i : i + 2]) for i in range(0, 24, 2)]
    across = [jnp.exp(0.1 * vector[i : i + 3]).sum() for i in (50, 4, 7, 90, 5)]
    return pairs, across, vector[::7], vector[3:200].sum()


PROGRAMS = [families, chain, vectors, inner, constants, parts]
XS = [jnp.float32(0.3 * i - 0.7) for i in range(SIZE)]


@pytest.mark.few(1)
@pytest.mark.parametrize("fn", PROGRAMS, ids=lambda fn: fn.__name__)
def test_the_same_results_and_derivatives(fn):
    key = jax.random.key(1)
    packed = vt.pack(fn, worthwhile=1)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)
    jax.tree.map(close, jax.jit(packed)(XS, key), jax.jit(fn)(XS, key))
    moved = [x + 0.01 for x in XS]
    for inner_fn in (packed, fn):
        shapes = (jax.eval_shape(f, XS, key) for f in (inner_fn, fn))
        assert operator.eq(*map(jax.tree.structure, shapes))
    grads = [jax.jit(jax.jacrev(lambda xs: jax.tree.leaves(f(xs, key)))) for f in (packed, fn)]
    jax.tree.map(close, grads[0](moved), grads[1](moved))


def test_maps():
    key = jax.random.split(jax.random.key(0), 3)
    batch = [jnp.stack([x, x + 1, x + 2]) for x in XS]
    got, want = (
        jax.jit(jax.vmap(f))(batch, key) for f in (vt.pack(families, worthwhile=1), families)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)


@jax.custom_jvp
def refuses(x):
    return x**2


@refuses.defjvp
def _(primals, tangents):
    raise NotImplementedError("differentiated")


def test_what_does_not_move_has_no_tangent(monkeypatch):
    """Values that depend on data alone, or are stopped, and like ones that do not."""
    monkeypatch.setattr(packed_gradient, "WORTHWHILE", 1)

    def fn(theta, data):
        sines = [jnp.sin(x) for x in (*theta, *data, *jax.lax.stop_gradient(theta))]
        fixed = sum(refuses(2 * x) for x in sines[len(theta) :])
        return sum(x * x * fixed for x in sines), None

    packed = lambda theta, data: packed_estimate(lambda aux, _: aux, fn, theta, data)[0]
    plain = lambda theta, data: vt.surrogate(fn)(theta, data)[0]
    args = XS, [x + 1 for x in XS[:3]]
    got, want = (jax.jit(jax.value_and_grad(f))(*args) for f in (packed, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)
    with packing.around():  # within a step that is packed as a whole
        jaxpr = jax.make_jaxpr(jax.grad(packed))(*args)
    assert sum(e.primitive.name == "cos" for e in jaxpr.eqns) == 1
    with pytest.raises(NotImplementedError, match="differentiated"):
        jax.grad(packed, argnums=1)(*args)


def test_stacks_and_their_entries():
    """One is the other's derivative; forwards, backwards, mapped, of keys and of unused entries."""
    x = jnp.arange(6.0).reshape(3, 2)

    def fn(x):
        a, _, c = stacking.unstack(x)
        return stacking.stack(jnp.sin(c), a * c, jnp.ones(2))

    want = lambda x: jnp.stack([jnp.sin(x[2]), x[0] * x[2], jnp.ones(2)])
    for f in (lambda f: f, jax.jacfwd, jax.jacrev, lambda f: jax.hessian(lambda x: f(x).sum())):
        np.testing.assert_allclose(jax.jit(f(fn))(x), f(want)(x), rtol=1e-6)
    mapped = jax.vmap(fn, in_axes=2, out_axes=1)(jnp.stack([x, x + 1], 2))
    np.testing.assert_allclose(mapped, jnp.stack([want(x), want(x + 1)], 1), rtol=1e-6)
    keys = jax.random.split(jax.random.key(0), 3)
    assert (stacking.stack(*stacking.unstack(keys)) == keys).all()


def count(jaxpr, name):
    return sum(eqn.primitive.name == name for eqn in jaxpr.eqns)


def test_one_equation_for_each_kind():
    key = jax.random.key(0)
    jaxpr = jax.make_jaxpr(vt.pack(families, worthwhile=1))(XS, key)
    assert count(jaxpr, "exp") == count(jaxpr, "log1p") == count(jaxpr, "random_bits") == 1
    fewer, more = (
        len(jax.make_jaxpr(vt.pack(lambda xs: sum(map(jnp.sin, xs)), worthwhile=1))(xs).eqns)
        for xs in (XS, XS * 4)
    )
    assert more - fewer <= 2 * 3 * SIZE  # that of taking the inputs together, and no more


def test_parts_of_a_vector_are_taken_together():
    jaxpr = jax.make_jaxpr(vt.pack(parts, worthwhile=1))(XS, jax.random.key(0))
    sliced = [e for e in jaxpr.eqns if e.primitive.name in ("slice", "gather")]
    taken = [e for e in sliced if e.outvars[0].aval.size in (24, 15)]  # twelve pairs, five threes
    assert [e.primitive.name for e in taken] == ["slice", "gather"]


def test_what_does_nothing_is_left_out_and_fillings_are_of_a_number():
    def plain(x):
        filled = jnp.broadcast_to(0.0, (2, 3))
        return jnp.where(x > 0, x, filled).sum(1)

    def roundabout(x):
        copied = jnp.copy(jax.lax.slice(x, (0, 0), (2, 3)).reshape(2, 3))
        filled = jax.lax.broadcast_in_dim(jnp.broadcast_to(0.0, (1, 1)), (2, 3), (0, 1))
        turned = jax.lax.transpose(jnp.where(copied > 0, copied, filled), (0, 1))
        turned = jax.lax.squeeze(jnp.expand_dims(1.0 * turned / 1.0, 1), (1,))
        return turned.sum(()).sum(1), jnp.where(x > 0, x, filled).sum(1)

    x = jnp.arange(6.0).reshape(2, 3) - 3.0
    flat = flatten(jax.make_jaxpr(roundabout)(x))
    named = lambda nodes: sorted(node.eqn.primitive.name for node in nodes)
    assert named(flat.nodes) == named(flatten(jax.make_jaxpr(plain)(x)).nodes)
    assert flat.outs[0] is flat.outs[1]
    for got in packing.one_by_one(flat, [x]):
        np.testing.assert_array_equal(got, plain(x))


def test_small_programs_are_left_as_they_are():
    key = jax.random.key(0)
    jaxpr = jax.make_jaxpr(vt.pack(families))(XS, key)
    names = lambda j: [eqn.primitive.name for eqn in j.eqns]
    assert names(jaxpr) == names(jax.make_jaxpr(families)(XS, key))


def test_what_has_an_effect_is_left_as_it_is(capfd):
    def noisy(xs):
        jax.debug.print("x = {}", xs[0])
        return sum(map(jnp.sin, xs))

    assert jnp.isfinite(vt.pack(noisy, worthwhile=1)(XS))
    jax.effects_barrier()
    assert "x = -0.69999" in capfd.readouterr().out


def test_a_step_keeps_its_state_packed():
    """Scalars, arrays, integers and keys, in one vector for each dtype."""
    state = {
        "m": [jnp.float32(i) for i in range(5)], "w": jnp.ones((2, 2)), "n": jnp.int32(3),
        "key": jax.random.key(0), "s": jnp.float32(0.5), "large": 2 * [jnp.arange(300.0)],
        "pairs": [(jnp.array([1.0, i]), jnp.float32(i), jnp.ones((2, 2))) for i in range(4)],
    }  # fmt: skip

    def step(state):
        key, now = jax.random.split(state["key"])
        noise = jax.random.normal(now)
        m = [0.9 * x + noise for x in state["m"]]
        w = state["w"] * state["s"]
        pairs = [(a * b, b + a.sum(), c + b) for a, b, c in state["pairs"]]
        rest = {"pairs": pairs[::-1], "large": [x + noise for x in state["large"]]}
        return {"m": m, "w": w, "n": state["n"] + 1, "key": key, "s": sum(m), **rest}, noise

    closed = jax.make_jaxpr(step)(state)
    program, layout = packing.flatten(closed, final=True), Layout(state)
    vectors = layout.ravel(state)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(_data(a), _data(b)),
                 layout.unravel(vectors), state)  # fmt: skip
    new, (noise,) = packing.step(program, layout, vectors)
    want, want_noise = step(state)
    close = lambda a, b: np.testing.assert_allclose(_data(a), _data(b), rtol=1e-6)
    jax.tree.map(close, (layout.unravel(new), noise), (want, want_noise))


def test_leaves_of_one_shape_are_taken_from_a_state_together():
    """However many there are, and whatever lies between them."""

    def equations(number):
        state = {f"a{i}": jnp.ones(6) for i in range(number)}
        state |= {f"a{i}b": jnp.ones(()) for i in range(number)}
        step = lambda state: (jax.tree.map(jnp.sin, state), jnp.ones(()))
        program = packing.flatten(jax.make_jaxpr(step)(state), final=True)
        layout = Layout(state)
        run = lambda vectors: packing.step(program, layout, vectors)
        return len(jax.make_jaxpr(run)(layout.ravel(state)).eqns)

    assert equations(3) == equations(12)


def draws(theta, key, estimators):
    """A site for each estimator, all in one term, and a loop; integers and floats besides."""
    x, keys = 0.0, jax.random.split(key, len(estimators))
    for i, (k, estimator) in enumerate(zip(keys, estimators)):
        d = (
            dist.Normal(theta["m"] + x, 1.0)
            if estimator is None
            else dist.Bernoulli(logits=theta["l"][i] + 0.1 * x)
        )
        x = x + (i + 1.0) * vt.sample(k, d, estimator or vt.Pathwise(), name=f"z{i}")
    steps = jax.lax.scan(lambda c, w: (jnp.sin(c) * w + x, c), theta["m"], theta["l"])[1]
    return jax.nn.softplus(x) + steps.sum(), {"x": x, "count": jnp.int32(3)}


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "estimators",
    [
        (None, None),
        (vt.Enumerate(), None, vt.Enumerate()),
        (vt.ScoreFunction(2, "leave_one_out"), vt.Enumerate()),
    ],
    ids=["pathwise", "enumerated", "scored"],
)
def test_estimates_have_the_same_derivatives(monkeypatch, estimators):
    """The first, the second, forwards and backwards, mapped, with the auxiliary results."""
    fn = lambda theta, key: draws(theta, key, estimators)
    theta = {"m": jnp.float32(0.3), "l": jnp.array([0.2, -0.4, 0.1])}
    keys = jax.random.split(jax.random.key(2), 3)

    def everything(theta, keys):
        value = lambda theta, key: packed_estimate(lambda aux, _: aux, fn, theta, key)
        slopes = jax.vmap(jax.value_and_grad(value, has_aux=True), (None, 0))(theta, keys)
        first = lambda theta: value(theta, keys[0])[0]
        return slopes, jax.hessian(first)(theta), jax.jvp(first, (theta,), (theta,))

    want = jax.jit(everything)(theta, keys)
    monkeypatch.setattr(packed_gradient, "WORTHWHILE", 1)
    got = jax.jit(lambda *args: everything(*args))(theta, keys)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, got, want)


def test_estimates_of_few_equations_are_left_as_they_are(monkeypatch):
    both = lambda theta, key: draws(theta, key, (None, None))
    theta = {"m": jnp.float32(0.3), "l": jnp.array([0.2, -0.4])}
    found = [
        jax.make_jaxpr(jax.grad(lambda *args: fn(*args)[0]))(theta, jax.random.key(0))
        for fn in (
            vt.surrogate(both),
            lambda *args: packed_estimate(lambda aux, _: aux, both, *args),
        )
    ]
    assert operator.eq(*map(str, found))


def _data(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
