"""Each mistake the engine names: what it says, and that nothing near it is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

import vipp_transforms as vt
from vipp.distributions.answers import Answering

pytestmark = pytest.mark.uncompiled

KEY = jax.random.key(0)
T = jnp.float32(0.3)
LOO = r"ScoreFunction\(num_samples=2, baseline='leave_one_out'\)"


def draw(d, estimator, name="z"):
    return vt.sample(KEY, d, estimator, name=name) * 1.0


def run(fn, *args):
    return vt.surrogate(lambda *xs: (fn(*xs), None))(*(args or (T,)))[0]


def coins(t, n, estimator=None):
    return draw(dist.Bernoulli(jnp.full(n, t)), estimator or vt.Enumerate())


@pytest.mark.parametrize("lanes", [17, 1100, 5000])
def test_enumeration_of_too_many_mixed_lanes(lanes):
    match = (
        rf"Site 'z': a term depends on {lanes} of its lanes together.*2\*\*{lanes}.*65536.*{LOO}"
    )
    with pytest.raises(vt.SiteError, match=match):
        run(lambda t: jnp.prod(1 + coins(t, lanes)))


def test_enumeration_of_many_lanes_apart_is_fine():
    np.testing.assert_allclose(run(lambda t: coins(t, 5000).sum()), 1500, rtol=1e-4)


def test_enumeration_limit_is_the_estimators_own():
    product = lambda limit: lambda t: jnp.prod(1 + coins(t, 3, vt.Enumerate(max_evaluations=limit)))
    np.testing.assert_allclose(run(product(8)), 1.3**3, rtol=1e-5)
    with pytest.raises(vt.SiteError, match=r"3 of its lanes together.*= 8 evaluations.*at most 7"):
        run(product(7))


@pytest.mark.parametrize(
    ("distribution", "kind"),
    [(dist.Poisson(1.0), "Poisson"), (dist.Normal(0.0, 1.0), "Normal"),
     (dist.Geometric(0.5), "Geometric"),
     (dist.Binomial(jnp.array([2, 3]), 0.5), "Binomial"),
     (Answering(dist.Normal(0.0, 1.0).expand([2]).to_event(1)), "Normal"),
     (Answering(dist.Bernoulli(jnp.full(3, 0.5)).to_event(1)), "Bernoulli")],
)  # fmt: skip
def test_enumeration_needs_a_finite_support(distribution, kind):
    with pytest.raises(
        vt.SiteError, match=rf"Site 'z': .*finite support.*got {kind}.*Fix: .*{LOO}"
    ):
        run(lambda t: draw(distribution, vt.Enumerate()).sum())


@pytest.mark.parametrize(
    ("value", "got"),
    [(lambda z: jnp.stack([z, z]), r"float32\[2\]"),
     (lambda z: z[None], r"float32\[1\]"),
     (lambda z: z.astype(int), r"int32\[\]"),
     (lambda z: z > 0, r"bool\[\]"),
     (lambda z: 1j * z, r"complex64\[\]"),
     (lambda z: {"z": z}, r"float32\[\] in a dict"),
     (lambda z: None, "nothing")],
)  # fmt: skip
def test_the_value_must_be_a_real_scalar(value, got):
    with pytest.raises(ValueError, match=rf"real scalar.*got {got}.*Fix: sum"):
        run(lambda t: value(draw(dist.Bernoulli(t), vt.Enumerate())))


def inside(construct, body, t):
    """``body(carry, key)`` in a construct of JAX's own, with a key for each step."""
    keys = jax.random.split(KEY, 2)
    branch = lambda c, key: lax.cond(c > 0, body, lambda c, key: c, c, key)
    return {
        "scan": lambda: lax.scan(lambda c, key: (body(c, key), None), t, keys)[0],
        "while": lambda: lax.while_loop(
            lambda s: s[0] < 2, lambda s: (body(*s), jax.random.split(s[1])[0]), (t, KEY)
        )[0],
        "cond": lambda: branch(t, KEY),
        "checkpoint": lambda: jax.checkpoint(body)(t, KEY),
        "scan of cond": lambda: lax.scan(lambda c, key: (branch(c, key), None), t, keys)[0],
    }[construct]()


@pytest.mark.parametrize("estimator", [vt.Enumerate(), vt.ScoreFunction(), vt.Automatic()])
def test_a_site_inside_a_while_loop(estimator):
    match = r"Site 'z' is drawn inside 'while'.*Pathwise.*Fix: .*outside"
    body = lambda c, key: c + vt.sample(key, dist.Bernoulli(T), estimator, name="z")
    with pytest.raises(vt.SiteError, match=match):
        run(lambda t: inside("while", body, t))


@pytest.mark.parametrize("construct", ["scan", "cond", "checkpoint", "scan of cond"])
def test_a_pathwise_site_inside_control_flow(construct):
    """Also where its parameters depend on a site outside that is enumerated."""

    def program(t):
        z = draw(dist.Bernoulli(t), vt.Enumerate(), name="outside")
        noise = lambda c, key: vt.sample(key, dist.Normal(c, 2.0), vt.Pathwise(), name="x")
        return inside(construct, noise, t + z)

    shift = lambda c, key: c + 2.0 * jax.random.normal(key)
    low, high = (inside(construct, shift, T + z) for z in (0.0, 1.0))
    value, grad = jax.jit(jax.value_and_grad(lambda t: run(program, t)))(T)
    np.testing.assert_allclose(value, 0.7 * low + 0.3 * high, rtol=1e-5)
    np.testing.assert_allclose(grad, 1 + high - low, rtol=1e-5)


@pytest.mark.parametrize("derive", [
    lambda f, t: jax.grad(f)(t),
    lambda f, t: jax.jvp(f, (t,), (t,))[1],
    lambda f, t: jax.vjp(f, t)[1](t)[0],
    lambda f, t: jax.vmap(jax.grad(f))(jnp.stack([t, t])).sum(),
])  # fmt: skip
def test_differentiating_inside_the_program(derive):
    inner = lambda s: draw(dist.Bernoulli(s), vt.Enumerate()) * s
    with pytest.raises(
        vt.SiteError, match="'z' is differentiated inside.*around the whole estimate"
    ):
        run(lambda t: derive(inner, t))


def test_differentiating_inside_what_does_not_reach_a_site():
    def program(t):
        z = draw(dist.Bernoulli(t), vt.Enumerate())
        return jax.grad(lambda s: s**2 * z)(t)

    value, grad = jax.jit(jax.value_and_grad(lambda t: run(program, t)))(T)
    np.testing.assert_allclose((value, grad), (0.18, 1.2), rtol=1e-5)


@pytest.mark.parametrize(
    ("args", "match"),
    [((0,), "positive int, got 0"), ((-1,), "positive int, got -1"),
     ((2.0,), "positive int, got 2.0"), ((True,), "positive int, got True"), ((1, "leave_one_out"), "at least 2, got 1"),
     ((2, "mean"), "None or 'leave_one_out', MovingAverage.*got 'mean'")],
)  # fmt: skip
def test_arguments_of_the_score_function(args, match):
    with pytest.raises(ValueError, match=match):
        vt.ScoreFunction(*args)


@pytest.mark.parametrize("limit", [0, -3, 2.5, "8"])
def test_arguments_of_enumerate(limit):
    with pytest.raises(ValueError, match="max_evaluations must be a positive int"):
        vt.Enumerate(limit)


@pytest.mark.parametrize("estimator", [vt.Enumerate(), vt.ScoreFunction()])
def test_a_mask_is_no_part_of_what_is_drawn(exact, estimator):
    """Its log density leaves lanes out that were drawn: refused, or averaged all the same."""

    def staged(t):
        masked = dist.Bernoulli(jnp.full(2, t[0])).mask(jnp.array([True, False]))
        return draw(masked, estimator).sum(), None

    try:
        got = exact.estimate(staged, jnp.array([0.3]), orders=1)
    except vt.SiteError as error:
        assert "mask" in str(error)
    else:
        np.testing.assert_allclose(got.mass, 1.0, rtol=1e-5)
        np.testing.assert_allclose(got.value, 0.6, rtol=1e-5)


def test_a_pathwise_choice_needs_a_sampler_with_a_gradient():
    with pytest.raises(vt.SiteError, match=r"'z'.*Pathwise.*Bernoulli"):
        run(lambda t: draw(dist.Bernoulli(t), vt.Pathwise()))
