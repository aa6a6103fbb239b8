"""Expectations in closed form: linear decoders have no variance, and what is none is refused."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import xlogy

import vipp
import vipp_transforms as vt
from vipp_transforms import _jax

pytestmark = pytest.mark.uncompiled

X = np.array([[0.3, -1.2, 0.5], [1.0, 0.1, -0.4], [-0.7, 0.2, 0.9], [0.4, 0.8, -1.1]], np.float32)
PARAMS = {
    "w": jnp.array([[0.5, -0.3, 1.1], [0.2, 0.7, -0.6]]),
    "b": jnp.array([0.1, -0.2, 0.3]),
    "log_s": jnp.float32(-0.4),
    "e": jnp.array([[0.4, -0.2], [-0.5, 0.3], [0.1, 0.6]]),
    "r": jnp.array([[0.2, 0.1], [-0.3, 0.2], [0.1, -0.4]]),
}
ANALYTIC = vipp.Analytic()


def given(*names):
    return [numpyro.param(name, PARAMS[name]) for name in names]


def decoder(prior):
    def model(x):
        w, b, log_s = given("w", "b", "log_s")
        with numpyro.plate("rows", len(x), subsample_size=2):
            batch = numpyro.subsample(x, event_dim=1)
            z = numpyro.sample("z", prior())
            numpyro.sample("x", dist.Normal(z @ w + b, jnp.exp(log_s)).to_event(1), obs=batch)

    return model


def encoder(make):
    def guide(x):
        e, r = given("e", "r")
        with numpyro.plate("rows", len(x), subsample_size=2):
            batch = numpyro.subsample(x, event_dim=1)
            vipp.sample("z", make(jnp.tanh(batch @ e), batch @ r), ANALYTIC)

    return guide


def tril(r):
    return jnp.exp(r)[..., None] * jnp.array([[1.0, 0.0], [0.4, 0.7]])


def likelihood(p, x, mean, covariance):
    """The expected log density of a row, by the formula for a linear Gaussian decoder."""
    w, b, s = p["w"], p["b"], jnp.exp(p["log_s"])
    spread = jnp.einsum("nij,ik,jk->n", covariance, w, w)
    square = jnp.square(x - mean @ w - b).sum(-1) + spread
    return -0.5 * square / s**2 - 3 * (jnp.log(s) + jnp.log(2 * jnp.pi) / 2)


def diagonal(p, x):
    mean, scale = jnp.tanh(x @ p["e"]), jnp.exp(x @ p["r"])
    kl = dist.kl_divergence(dist.Normal(mean, scale), dist.Normal()).sum(-1)
    return likelihood(p, x, mean, jax.vmap(jnp.diag)(scale**2)) - kl


def full(p, x):
    mean, root = jnp.tanh(x @ p["e"]), tril(x @ p["r"])
    q = dist.MultivariateNormal(mean, scale_tril=root)
    kl = dist.kl_divergence(q, dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))
    return likelihood(p, x, mean, root @ root.mT) - kl


def bits(p, x):
    probs = jax.nn.sigmoid(jnp.tanh(x @ p["e"]) + x @ p["r"])
    kl = sum(xlogy(y, y / prior) for y, prior in ((probs, 0.3), (1 - probs, 0.7))).sum(-1)
    return likelihood(p, x, probs, jax.vmap(jnp.diag)(probs * (1 - probs))) - kl


def exponentials(p, x):
    mean, scale = jnp.tanh(x @ p["e"]), jnp.exp(x @ p["r"])
    first = jnp.exp(mean + scale**2 / 2)
    second = first**2 * jnp.expm1(scale**2)
    kl = dist.kl_divergence(dist.Normal(mean, scale), dist.Normal()).sum(-1)
    return likelihood(p, x, first, jax.vmap(jnp.diag)(second)) - kl


LINEAR = {
    "diagonal": (
        lambda: dist.Normal(jnp.zeros(2), 1.0).to_event(1),
        lambda m, r: dist.Normal(m, jnp.exp(r)).to_event(1), diagonal,
    ),
    "full": (
        lambda: dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
        lambda m, r: dist.MultivariateNormal(m, scale_tril=tril(r)), full,
    ),
    # the last layer of a decoder whose other one is an exponential
    "log-normal": (
        lambda: dist.LogNormal(jnp.zeros(2), 1.0).to_event(1),
        lambda m, r: dist.LogNormal(m, jnp.exp(r)).to_event(1), exponentials,
    ),
    "bits": (
        lambda: dist.Bernoulli(jnp.full(2, 0.3)).to_event(1),
        lambda m, r: dist.Bernoulli(logits=m + r).to_event(1), bits,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LINEAR)
def test_a_linear_decoder_has_no_variance_but_that_of_its_minibatch(case, bound_and_grad):
    """Each draw is the formula on the rows that were drawn, scaled up, with all its derivatives."""
    prior, make, formula = LINEAR[case]
    objective = vipp.ELBO(kl="analytic") if case == "log-normal" else vipp.ELBO()
    drawn = bound_and_grad(objective, decoder(prior), encoder(make), PARAMS, X, keys=12)
    rows = lambda p, i, j: 2.0 * formula(p, X[np.array([i, j])]).sum()
    pairs = [(i, j) for i in range(4) for j in range(i)]
    exact = [jax.jit(jax.value_and_grad(rows), static_argnums=(1, 2))(PARAMS, *ij) for ij in pairs]
    for i in range(12):
        got = jax.tree.map(lambda x, i=i: x[i], drawn)
        near = min(exact, key=lambda e, got=got: abs(float(e[0] - got[0])))
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-4), got, near)


def test_explained():
    prior, make, _ = LINEAR["diagonal"]
    (row,) = vipp.explain(vipp.ELBO(), decoder(prior), encoder(make), X).rows
    assert (row.estimator, row.evaluations) == ("Analytic", 2)


def draw(term, then=lambda z: 0.0, of=None, estimator=ANALYTIC):
    def program():
        z = vipp.sample("z", of or dist.Normal(jnp.zeros(3), 1.0), estimator)
        return term(z) + then(z)

    return lambda: jax.eval_shape(vipp.expectation(program), jax.random.key(0))


HERE = rf"at {pathlib.Path(__file__).name}:\d+"
REFUSED = {
    "a function": (draw(lambda z: jnp.tanh(z).sum()), rf"degree two or less, got 'tanh' of it {HERE}"),
    "a cube": (draw(lambda z: (z * z.sum() ** 2).sum()), rf"got degree 3 {HERE}"),
    "a quotient": (draw(lambda z: (1.0 / z).sum()), "got 'div' of it"),
    "an index": (draw(lambda z: jnp.arange(3.0)[z[0].astype(int)]), "got 'convert_element_type'"),
    "bits": (draw(lambda z: jnp.exp(z.sum()), of=dist.Bernoulli(jnp.full(3, 0.4))),
             r"every term of several of its lanes .* got 'exp' of it"),
    "a later choice": (
        draw(jnp.sum, lambda z: vipp.sample("y", dist.Bernoulli(logits=z[0]), vipp.Enumerate())),
        "got site 'y', whose distribution depends on it"),
    "a loop": (draw(lambda z: jax.lax.fori_loop(0, 3, lambda i, s: s * z[i], 1.0)), "got 'scan'"),
    "an angle": (draw(jnp.sum, of=dist.VonMises(0.0, 1.0)), "which VonMises does not know"),
    "too many": (draw(lambda z: z.sum() ** 2, estimator=vipp.Analytic(max_evaluations=2)),
                 "3 evaluations; expected at most 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    program, message = REFUSED[case]
    with pytest.raises(vt.SiteError, match=rf"Site 'z'.*{message}.*Fix: use Pathwise\(\)"):
        program()


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_bits_one_by_one_may_be_in_any_terms(p):
    """Of one lane each, exactly what a sum over the values gives, whatever is impossible."""

    def program(p, estimator):
        z = vipp.sample("z", dist.Bernoulli(p), estimator)
        return (jnp.exp(z) / p + jnp.log(z + (0.7 * p < 0.5))).sum() + (z.sum() - 0.3) ** 2

    run = lambda e: jax.value_and_grad(lambda p: vipp.expectation(program)(jax.random.key(0), p, e))
    got, wanted = (run(e)(jnp.array([p, p])) for e in (ANALYTIC, vipp.Enumerate()))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5), got, wanted)


def test_a_mixture_is_refused():
    with pytest.raises(TypeError, match="two estimators with variance, got Analytic"):
        vipp.Mix(ANALYTIC, vipp.ScoreFunction(), 0.5)


KERNEL = np.array([[[0.5, -1.0, 0.3]]], np.float32)
TERMS = {
    "a product": lambda t, z: z[0] * z[1] * t + z[2] * 3.0 * z[2] / t,
    "a square of a difference": lambda t, z: jnp.square(t - z).sum() + (z - z[::-1]) @ z,
    "a power": lambda t, z: ((1.0 - z) ** 2).sum() ** 1 + (z**0).sum(),
    "a matrix": lambda t, z: z @ jnp.outer(jnp.sin(t + jnp.arange(3.0)), jnp.arange(3.0)) @ z,
    "a matrix before it": lambda t, z: jnp.square(
        jnp.sin(t + jnp.arange(6.0)).reshape(2, 3) @ z).sum(),
    "an outer product": lambda t, z: (jnp.outer(z, z) * jnp.eye(3)[::-1]).sum(),
    "shapes": lambda t, z: (jnp.pad(z, (1, 2), constant_values=2.0).reshape(2, 3) ** 2 * t).sum(),
    "pieces": lambda t, z: jnp.concatenate([z[:2], z[1:] * t, jnp.ones(1), z * z[0]]).sum(),
    "a sum up to each": lambda t, z: jnp.cumsum(z) @ jnp.stack([z[0], t, z[2]]),
    "a choice": lambda t, z: jnp.where(jnp.arange(3) < 2, z * z[2], t * z).sum(),
    "a mask of a square": lambda t, z: jnp.where(jnp.arange(3) == 1, 4.0, z**2).sum(),
    "an index": lambda t, z: z.at[1].set(t * z[0]).at[0].add(2.0)[np.array([0, 1, 1])] @ z,
    "an index beyond the end": lambda t, z: jnp.square(
        z.at[np.array([0, 5])].get(mode="fill", fill_value=3.0)).sum() * t,
    "multiplied in place": lambda t, z: jnp.square(
        z.at[0].multiply(t, unique_indices=True)).sum(),
    "a slice": lambda t, z: jax.lax.dynamic_slice(z, (1,), (2,)).sum() * z[0],
    "a convolution": lambda t, z: jnp.square(
        jax.lax.conv(z[None, None], jnp.asarray(KERNEL), (1,), "SAME")).sum(),
    "a call": lambda t, z: jax.checkpoint(lambda t, z: (z * t).sum() ** 2 + jnp.sin(t))(t, z),
    "a function with a derivative of its own": lambda t, z: scaled(t, z) * z[0],
    "a density": lambda t, z: dist.Normal(z, jnp.exp(t)).log_prob(np.float32([0.3, 1, -1])).sum(),
    "a density of vectors": lambda t, z: dist.MultivariateNormal(
        t * z, scale_tril=jnp.eye(3) * 1.3).log_prob(2.0 * z),
    "lines alone": lambda t, z: t * z.sum(),
}  # fmt: skip


@jax.custom_jvp
def scaled(t, z):
    return (t * z).sum()


@scaled.defjvp
def _(primals, tangents):
    (t, z), (dt, dz) = primals, tangents
    return scaled(t, z), (t * dz).sum() + dt * z.sum()


@pytest.mark.thorough
def test_every_operation():
    """Against the second differences of the terms, with the derivatives of these."""
    weights = jnp.linspace(0.5, 1.5, len(TERMS))

    def terms(t, z):
        return jnp.stack([term(t, z) for term in TERMS.values()])

    def by_engine(theta, which):
        def program(theta):
            t, m, log_s = theta
            z = vipp.sample("z", dist.Normal(m, jnp.exp(log_s)), ANALYTIC)
            return terms(t, z) @ which

        return vipp.expectation(program)(jax.random.key(0), theta)

    def by_hand(theta, which):
        t, m, log_s = theta
        f = lambda z: terms(t, z) @ which
        steps = jnp.diag(jnp.exp(log_s))
        return sum((f(m + step) + f(m - step)) / 2 for step in steps) - 2 * f(m)

    theta = 0.6, np.array([0.4, -0.3, 0.8]), np.array([-0.2, 0.1, -0.5])
    theta = jax.tree.map(jnp.float32, theta)
    of = lambda fn: jax.jit(jax.vmap(jax.value_and_grad(fn), (None, 0)))
    got, wanted = (of(fn)(theta, jnp.diag(weights)) for fn in (by_engine, by_hand))
    for i, name in enumerate(TERMS):
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(g[i], w[i], rtol=1e-4, atol=1e-5, err_msg=name)


GRIDS = {
    "rows": lambda a, z: jnp.square(z @ a).sum() + z.sum() + jnp.square(z).sum(),
    "columns": lambda a, z: jnp.square(a.T @ jnp.transpose(z) @ jnp.ones((2, 1))).sum(),
    "rows and columns": lambda a, z: jnp.square(z @ a).sum() + 2.0 * jnp.square(z.sum(0)).sum(),
    "all": lambda a, z: (z @ a).sum() ** 2 + jnp.square(z - 1.0).sum() + z[0] @ z[1],
    "numbers": lambda a, z: jnp.square(a[0] * z - 0.3).sum(),
}


@pytest.mark.parametrize("case", GRIDS)
def test_lanes_that_some_terms_mix(case):
    """A term that mixes lanes of one axis, beside others of the other axis, or of each lane."""

    def by_engine(theta):
        a, m, s = theta
        program = lambda: GRIDS[case](a, vipp.sample("z", dist.Normal(m, s), ANALYTIC))
        return vipp.expectation(program)(jax.random.key(0))

    def by_hand(theta):
        a, m, s = theta
        f = lambda z: GRIDS[case](a, z)
        steps = jnp.eye(6).reshape(6, 2, 3) * s
        return sum((f(m + step) + f(m - step)) / 2 for step in steps) - 5 * f(m)

    theta = (
        jnp.array([[0.5, -1.0, 0.2], [0.1, 0.4, 0.9], [1.2, -0.3, 0.6]]),
        jnp.array([[0.3, -0.2, 0.5], [1.0, 0.4, -0.7]]),
        jnp.array([[0.6, 1.1, 0.9], [0.5, 1.3, 0.8]]),
    )
    got, wanted = jax.value_and_grad(by_engine)(theta), jax.value_and_grad(by_hand)(theta)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-4), got, wanted)


def test_the_operations_of_the_formula():
    """No more products than a pathwise gradient, and no number for every two numbers of a row."""
    latents, pixels = 32, 40
    shapes = {"w": (latents, pixels), "b": (pixels,), "log_s": ()}
    shapes |= dict.fromkeys(("e", "r"), (pixels, latents))
    params = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    model = decoder(lambda: dist.Normal(jnp.zeros(latents), 1.0).to_event(1))

    def equations(estimator):
        guide = vipp.with_estimators(
            encoder(lambda m, r: dist.Normal(m, jnp.exp(r)).to_event(1)), {"z": estimator}
        )
        one = vipp.value_and_grad(vipp.ELBO(), model, guide)
        x = jax.ShapeDtypeStruct((4, pixels), jnp.float32)
        return list(_jax.equations(jax.make_jaxpr(one)(jax.random.key(0), params, x).jaxpr))

    products = lambda eqns: sum(e.primitive.name == "dot_general" for e in eqns)
    analytic = equations(ANALYTIC)
    assert products(analytic) == products(equations(vipp.Pathwise()))
    computed = [e for e in analytic if e.primitive.name != "broadcast_in_dim"]
    assert max(v.aval.size for e in computed for v in e.outvars) == latents * pixels


def test_several_choices_and_what_is_drawn_pathwise_from_one():
    """Each exact given the others, whatever comes between; numbers of lanes differ."""

    def program(m):
        a = vipp.sample("a", dist.Normal(m, 0.5), ANALYTIC)
        b = vipp.sample("b", dist.Gamma(jnp.array([2.0, 3.0]), 1.5).expand([3, 2]), ANALYTIC)
        y = vipp.sample("y", dist.Normal(a + 0.3, 0.7), vipp.Pathwise())
        rows = (b @ jnp.array([1.0, -0.4])) ** 2  # of two numbers each
        return (a * b.sum()) ** 2 + rows @ jnp.array([0.5, 1.0, 2.0]) * a + (y - a) ** 2 + y * a

    def exact(m):
        second, total, variance = m**2 + 0.25, 3 * 5 / 1.5, 3 * 5 / 1.5**2
        mean, spread = 2 / 1.5 - 0.4 * 2, 2 / 1.5**2 + 0.16 * 3 / 1.5**2
        return second * (total**2 + variance) + 3.5 * m * (mean**2 + spread) + second + 0.3 * m

    keys = jax.random.split(jax.random.key(3), 4000)
    one = jax.value_and_grad(vipp.expectation(program), argnums=1)
    value, slope = jax.jit(jax.vmap(one, (0, None)))(keys, jnp.float32(0.8))
    wanted = jax.value_and_grad(exact)(0.8)
    # what the pathwise choice adds: the square of its noise and of its shift
    noise = 0.49 + 0.09
    assert abs(value.mean() - wanted[0] - noise) < 5 * value.std() / 63
    assert abs(slope.mean() - wanted[1]) < 5 * slope.std() / 63 + 1e-3
    assert value.std() < 2.0
    one = vipp.value_and_grad(vipp.ELBO(num_particles=2), *two())
    values = jax.jit(jax.vmap(one, (0, None)))(keys[:8], {"m": jnp.float32(0.3)})[0]
    np.testing.assert_allclose(values, values[0], rtol=1e-6)


def two():
    def model():
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z.sum(), 1.0), obs=0.7)

    def guide():
        m = numpyro.param("m", 0.3)
        vipp.sample("z", dist.Normal(jnp.stack([m, 0.1]), 0.5).to_event(1), ANALYTIC)

    return model, guide
