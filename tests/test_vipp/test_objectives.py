"""ELBO and IWAE against bounds computed by brute force, in value and gradient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import vipp

pytestmark = pytest.mark.uncompiled

X3 = jnp.array([0.3, -1.2, 2.0])
X23 = jnp.array([[0.5, -0.4, 1.1], [2.0, 0.1, -0.7]])
X22 = X23[:, :2]
PLATED = {"l": jnp.array([1.4, -0.9, -1.2])}  # far from the optimum: large gradients


class Case(NamedTuple):
    """A model, a guide, parameters, and the plates that enclose both."""

    model: object
    guide: object
    params: dict
    plates: tuple = ()


def scalar():
    def model():
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=1.7)

    def guide():
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("l", 0.0)))

    return Case(model, guide, {"l": jnp.array(-1.0)})


def plate():
    def model():
        with numpyro.plate("N", 3):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=X3)

    def guide():
        with numpyro.plate("N", 3):
            numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("l", jnp.zeros(3))))

    return Case(model, guide, PLATED, ("N",))


def shared_parameter():
    def model():
        w = numpyro.param("w", 1.0)
        with numpyro.plate("N", 3):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
            numpyro.sample("x", dist.Normal(w * z, 1.0), obs=X3)

    def guide():
        with numpyro.plate("N", 3):
            numpyro.sample("z", dist.Categorical(logits=numpyro.param("l", jnp.zeros(3))))

    return Case(model, guide, {**PLATED, "w": jnp.array(0.7)}, ("N",))


def nested_plates():
    def model():
        with numpyro.plate("B", 2, dim=-1):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            with numpyro.plate("A", 2, dim=-2):
                y = numpyro.sample("y", dist.Bernoulli(0.2 + 0.5 * z))
                numpyro.sample("x", dist.Normal(2.0 * y - z, 1.0), obs=X22)

    def guide():
        w = numpyro.param("w", 0.3)
        with numpyro.plate("B", 2, dim=-1):
            z = numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("l", jnp.zeros(2))))
            with numpyro.plate("A", 2, dim=-2):
                numpyro.sample("y", dist.Bernoulli(logits=w + z))

    return Case(model, guide, {"l": jnp.array([1.4, -0.9]), "w": jnp.array(-0.6)}, ("B",))


def crossed_plates():
    """Two plates around everything: one bound per pair."""

    def model():
        with numpyro.plate("A", 2, dim=-2), numpyro.plate("B", 3, dim=-1):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=X23)

    def guide():
        rows, columns = numpyro.param("r", jnp.zeros((2, 1))), numpyro.param("l", jnp.zeros(3))
        with numpyro.plate("A", 2, dim=-2), numpyro.plate("B", 3, dim=-1):
            numpyro.sample("z", dist.Bernoulli(logits=rows * columns[None]))

    return Case(model, guide, {**PLATED, "r": jnp.array([[0.5], [-1.1]])}, ("A", "B"))


def global_and_local():
    def model():
        g = numpyro.sample("g", dist.Bernoulli(0.6))
        with numpyro.plate("N", 3):
            z = numpyro.sample("z", dist.Bernoulli(0.3 + 0.4 * g))
            numpyro.sample("x", dist.Normal(2.0 * z - g, 1.0), obs=X3)

    def guide():
        g = numpyro.sample("g", dist.Bernoulli(logits=numpyro.param("w", 0.3)))
        with numpyro.plate("N", 3):
            numpyro.sample("z", dist.Bernoulli(logits=g - numpyro.param("l", jnp.zeros(3))))

    return Case(model, guide, {**PLATED, "w": jnp.array(0.3)})


def scaled():
    """Tempered terms: the draw still has the unscaled density."""

    def model():
        with numpyro.plate("N", 3), handlers.scale(scale=0.25):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            with handlers.scale(scale=6.0):
                numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=X3)

    def guide():
        with numpyro.plate("N", 3), handlers.scale(scale=0.5):
            numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("l", jnp.zeros(3))))

    return Case(model, guide, PLATED, ("N",))


def masked():
    """A masked latent is drawn all the same, and the likelihood still depends on it."""
    keep = jnp.array([True, False, True])

    def model():
        with numpyro.plate("N", 3), handlers.mask(mask=keep):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            with numpyro.plate("A", 2), handlers.mask(mask=jnp.array([[False], [True]])):
                numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=X23)

    def guide():
        with numpyro.plate("N", 3), handlers.mask(mask=keep):
            numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("l", jnp.zeros(3))))

    return Case(model, guide, PLATED, ("N",))


def masked_guide_only():
    def model():
        with numpyro.plate("N", 3):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=X3)

    def guide():
        logits = numpyro.param("l", jnp.zeros(3))
        with numpyro.plate("N", 3):
            numpyro.sample("z", dist.Bernoulli(logits=logits).mask(jnp.array([True, False, True])))

    return Case(model, guide, PLATED, ("N",))


def events():
    """The coordinates of a ``to_event`` latent, all used together."""

    def model():
        z = numpyro.sample("z", dist.Bernoulli(0.3).expand([3]).to_event(1))
        numpyro.sample("x", dist.Normal((z * X3).sum(), 1.0), obs=1.7)
        numpyro.sample("y", dist.Normal(z * X3, 1.0).to_event(1), obs=X3)

    def guide():
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("l", jnp.zeros(3))).to_event(1))

    return Case(model, guide, PLATED)


def events_in_plate():
    def model():
        with numpyro.plate("A", 2):
            z = numpyro.sample("z", dist.Bernoulli(0.3).expand([3]).to_event(1))
            numpyro.sample("x", dist.Normal((z * X23).sum(-1), 1.0), obs=jnp.array([0.3, 2.0]))

    def guide():
        logits = numpyro.param("l", jnp.zeros(3))
        with numpyro.plate("A", 2):
            numpyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))

    return Case(model, guide, PLATED, ("A",))


def mixture():
    """A discrete latent as an index."""

    def model():
        means = numpyro.param("w", jnp.array([-1.0, 0.5, 2.0]))
        with numpyro.plate("N", 3):
            k = numpyro.sample("k", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
            numpyro.sample("x", dist.Normal(means[k], 1.0), obs=X3)

    def guide():
        logits = numpyro.param("l", jnp.zeros(3))
        with numpyro.plate("N", 3):
            numpyro.sample("k", dist.Categorical(logits=logits[:, None] * jnp.arange(3.0)[None]))

    return Case(model, guide, {**PLATED, "w": jnp.array([-1.0, 0.4, 1.5])}, ("N",))


def chain():
    def model():
        state = jnp.array(0)
        steps = jnp.array([[0.7, 0.3], [0.1, 0.9]])
        for t in range(4):
            state = numpyro.sample(f"z{t}", dist.Categorical(steps[state]))
            numpyro.sample(f"x{t}", dist.Normal(1.0 * state, 1.0), obs=X23.ravel()[t])

    def guide():
        l, previous = numpyro.param("l", jnp.zeros(3)), 0
        for t in range(4):
            previous = numpyro.sample(f"z{t}", dist.Bernoulli(logits=l[t % 3] + previous))

    return Case(model, guide, PLATED)


def observed_in_guide_and_factor():
    def model():
        with numpyro.plate("N", 3):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.factor("f", jnp.sin(z + X3))
        numpyro.factor("g", -0.5 * z.sum() ** 2)

    def guide():
        z = numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("l", jnp.zeros(3))))
        numpyro.sample("seen", dist.Normal(z.sum(), 1.0), obs=0.5)

    return Case(model, guide, PLATED)


def wide_support():
    """More values than the automatic estimator enumerates."""

    def model():
        z = numpyro.sample("z", dist.Binomial(20, 0.4))
        numpyro.sample("x", dist.Normal(z, 3.0), obs=5.0)

    def guide():
        numpyro.sample("z", dist.Binomial(20, logits=numpyro.param("l", 0.0)))

    return Case(model, guide, {"l": jnp.array(-1.0)})


CASES = {
    f.__name__: f
    for f in (
        scalar, plate, shared_parameter, nested_plates, crossed_plates, global_and_local, scaled,
        masked, masked_guide_only, events, events_in_plate, mixture, chain,
        observed_in_guide_and_factor, wide_support,
    )
}  # fmt: skip


def with_all(program, estimator):
    """``program`` with one estimator at every latent site."""

    def configure(site):
        return {**site["infer"], "estimator": estimator}

    return handlers.infer_config(program, config_fn=configure)


def agree(got, want):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-4, atol=2e-5), got, want)


@pytest.mark.few(3)
@pytest.mark.parametrize("name", CASES)
def test_elbo(name, reference, bound_and_grad):
    """Enumerated, and the score function's expectation over its own draws, both exactly."""
    model, guide, params, _ = CASES[name]()
    exact = jax.jit(jax.value_and_grad(reference.bound(model, guide)))(params)
    agree(bound_and_grad(vipp.ELBO(), model, with_all(guide, vipp.Enumerate()), params), exact)
    guide = with_all(guide, vipp.ScoreFunction(num_samples=2, baseline="leave_one_out"))
    agree(reference.mean(vipp.ELBO(), model, guide, params, draws=2), exact)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", CASES)
def test_iwae(name, reference, bound_and_grad):
    model, guide, params, plates = CASES[name]()
    exact = jax.jit(jax.value_and_grad(reference.bound(model, guide, particles=2, plates=plates)))
    objective, exact = vipp.IWAE(num_particles=2), exact(params)
    agree(bound_and_grad(objective, model, with_all(guide, vipp.Enumerate()), params), exact)
    guide = with_all(guide, vipp.ScoreFunction())
    agree(reference.mean(objective, model, guide, params, draws=2), exact)


@pytest.mark.parametrize("kind", ["probs", "logits"])
@pytest.mark.parametrize(
    "estimator", [vipp.GumbelSoftmax(), vipp.REBAR(), vipp.SparseMixer()], ids=repr
)
def test_a_relaxed_choice_is_scored_by_either_kind_of_bernoulli(kind, estimator):
    def program(name):
        number = numpyro.param(name, jnp.full(3, 0.3))
        vipp.sample("z", dist.Bernoulli(**{kind: number}).to_event(1), estimator=estimator)

    evaluate = jax.jit(
        vipp.value_and_grad(vipp.ELBO(), lambda: program("prior"), lambda: program("posterior"))
    )
    params = {"prior": jnp.full(3, 0.3), "posterior": jnp.full(3, 0.6)}
    value, grad = evaluate(jax.random.key(0), params)
    assert np.isfinite(value)
    assert np.isfinite(grad["posterior"]).all()
    assert (grad["prior"] != 0).all()
