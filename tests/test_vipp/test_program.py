"""Programs, traces, replication and expectations: what objectives are written in."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import vipp

pytestmark = pytest.mark.uncompiled

KEY = jax.random.key(0)
X4 = jnp.array([0.3, -1.2, 2.0, 1.1])


def coin(logit=None):
    logit = numpyro.param("l", 0.0) if logit is None else logit
    z = numpyro.sample("z", dist.Bernoulli(logits=logit), infer={"estimator": vipp.Enumerate()})
    numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=1.5)
    return 10.0 * z


def run(fn, key=KEY):
    """``fn()`` with a key, outside any expectation."""
    with handlers.seed(rng_seed=key):
        return fn()


# -- Program -------------------------------------------------------------------------------------


def test_simulate_and_log_density_agree():
    q = vipp.Program(coin, {"l": jnp.array(0.7)})
    trace, log_q = run(q.simulate)
    z = trace["z"]
    exact = dist.Bernoulli(logits=0.7).log_prob(z) + dist.Normal(2.0 * z, 1.0).log_prob(1.5)
    np.testing.assert_allclose(log_q, exact, rtol=1e-6)
    np.testing.assert_allclose(run(lambda: q.log_density(trace)), exact, rtol=1e-6)
    for value in (0, 1):
        exact = dist.Bernoulli(logits=0.7).log_prob(value) + dist.Normal(2.0 * value).log_prob(1.5)
        got = run(lambda v=value: q.log_density(vipp.Trace({"z": jnp.array(v)})))
        np.testing.assert_allclose(got, exact, rtol=1e-6)


def test_call_returns_the_return_value():
    q = vipp.Program(coin, {}, (0.7,))
    value, slope = jax.jit(
        jax.value_and_grad(vipp.expectation(lambda l: vipp.Program(coin, {"l": l})()), argnums=1)
    )(KEY, 0.7)
    p = jax.nn.sigmoid(0.7)
    np.testing.assert_allclose((value, slope), (10 * p, 10 * p * (1 - p)), rtol=1e-5)
    assert run(q) in (0.0, 10.0)


def test_stop_gradient_makes_parameters_constant():
    def both(l):
        q = vipp.Program(coin, {"l": l})
        return q() + 3.0 * q.stop_gradient()()

    p = jax.nn.sigmoid(0.7)
    value, slope = jax.jit(jax.value_and_grad(vipp.expectation(both), argnums=1))(KEY, 0.7)
    np.testing.assert_allclose((value, slope), (40 * p, 10 * p * (1 - p)), rtol=1e-5)


def normal_guide():
    scale = numpyro.param("s", 1.0, constraint=dist.constraints.positive)
    numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), scale))


@vipp.objective
def sticking(p, q):
    z, log_q = q.simulate(stick_the_landing=True)
    return p.log_density(z) - log_q


def test_stick_the_landing_has_no_variance_at_the_optimum(bound_and_grad):
    model = lambda: numpyro.sample("z", dist.Normal(1.5, 0.5))
    best = {"m": jnp.array(1.5), "s": jnp.array(0.5)}
    bound, slope = bound_and_grad(sticking(), model, normal_guide, best, keys=100)
    np.testing.assert_allclose(bound, 0.0, atol=1e-5)
    np.testing.assert_allclose(slope["m"], 0.0, atol=1e-4)
    np.testing.assert_allclose(slope["s"], 0.0, atol=1e-4)
    _, plain = bound_and_grad(vipp.ELBO(), model, normal_guide, best, keys=100)
    assert min(plain["m"].std(), plain["s"].std()) > 0.5


def test_stick_the_landing_is_unbiased(bound_and_grad, reference):
    model = lambda: numpyro.sample("z", dist.Normal(1.5, 0.5))
    params = {"m": jnp.array(0.3), "s": jnp.array(0.8)}

    def exact(p):
        variance = (p["s"] ** 2 + (p["m"] - 1.5) ** 2) / 0.5**2
        return jnp.log(p["s"] / 0.5) - variance / 2 + 0.5

    drawn = bound_and_grad(sticking(), model, normal_guide, params, keys=20_000)
    reference.check_unbiased(drawn, jax.jit(jax.value_and_grad(exact))(params))


def test_stick_the_landing_with_a_discrete_site(bound_and_grad):
    """The score of a constant guide has mean zero, so the gradient is the ELBO's."""
    results = [bound_and_grad(o, coin, coin, {"l": jnp.array(0.7)}) for o in (sticking(),)]

    def guide():
        logits = numpyro.param("g", 0.0)
        numpyro.sample("z", dist.Bernoulli(logits=logits), infer={"estimator": vipp.Enumerate()})

    params = {"l": jnp.array(0.7), "g": jnp.array(-0.4)}
    one, other = (bound_and_grad(o, coin, guide, params) for o in (sticking(), vipp.ELBO()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)
    assert jnp.isfinite(results[0][0])


def test_missing_latent_is_named():
    p = vipp.Program(coin, {"l": jnp.array(0.7)})
    with pytest.raises(
        ValueError, match=r"Site 'z' is latent here but was given no value.*\['y'\]"
    ):
        run(lambda: p.log_density(vipp.Trace({"y": jnp.array(1)})))


def test_value_without_a_site_is_named():
    p = vipp.Program(coin, {"l": jnp.array(0.7)})
    with pytest.raises(ValueError, match="Site 'extra' has a value but the program has no such"):
        run(lambda: p.log_density(vipp.Trace({"z": jnp.array(1), "extra": jnp.array(1)})))


@pytest.mark.parametrize("renamed", ["Z", "zz"])
def test_misspelt_guide_site_is_named(renamed):
    guide = lambda: numpyro.sample(renamed, dist.Bernoulli(0.5))
    with pytest.raises(ValueError, match=f"'z'.*{renamed}|{renamed}.*'z'"):
        vipp.value_and_grad(vipp.ELBO(), coin, guide)(KEY, {"l": 0.1})


def test_shapes_that_disagree_are_named():
    def model():
        with numpyro.plate("N", 4):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        with numpyro.plate("M", 3):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"Site 'z'.*\(3,\).*\(4,\)"):
        vipp.value_and_grad(vipp.ELBO(), model, guide)(KEY, {})


def test_program_without_a_key():
    with pytest.raises(ValueError, match="without a random key.*seed"):
        vipp.Program(coin, {"l": jnp.array(0.7)}).simulate()
    with pytest.raises(ValueError, match="random key"):
        vipp.replicate(lambda: 0.0, 2)
    with (
        vipp.language.handler.estimated(),
        pytest.raises(ValueError, match="Site 'z' has no random key"),
    ):
        numpyro.sample("z", dist.Normal())


def test_per_plate_densities():
    """One entry per element, without the scale of the plate's subsampling."""

    def program():
        with numpyro.plate("N", 8, subsample_size=4), handlers.scale(scale=3.0):
            numpyro.sample("x", dist.Normal(0.0, 1.0), obs=X4)

    p = vipp.Program(program, {})
    each = 3.0 * dist.Normal(0.0, 1.0).log_prob(X4)
    np.testing.assert_allclose(run(lambda: p.log_density(vipp.Trace({}), "N")), each, rtol=1e-5)
    np.testing.assert_allclose(run(lambda: p.simulate(per_plate="N")[1]), each, rtol=1e-5)
    total = run(lambda: p.log_density(vipp.Trace({})))
    np.testing.assert_allclose(total, 2 * each.sum(), rtol=1e-5)


# -- Trace ---------------------------------------------------------------------------------------


def test_trace_is_a_mapping_and_a_pytree():
    trace = vipp.Trace({"b": jnp.ones(3), "a": jnp.zeros(())}, {"N": jnp.arange(2)}, ("a",))
    assert "a" in trace and "N" not in trace
    assert sorted(trace) == ["a", "b"]
    assert trace["b"].shape == (3,)
    with pytest.raises(KeyError):
        trace["c"]
    doubled = jax.jit(lambda t: jax.tree.map(lambda x: 2 * x, t))(trace)
    assert isinstance(doubled, vipp.Trace) and doubled.auxiliary == ("a",)
    assert doubled["b"].sum() == 6 and doubled.subsamples["N"][1] == 2
    stacked = run(lambda: vipp.replicate(lambda: trace, 5))
    assert stacked["b"].shape == (5, 3)


def test_trace_carries_the_subsample():
    """The model sees the guide's indices, whichever plates it opens first."""

    def guide():
        with numpyro.plate("N", 20, subsample_size=3) as index:
            numpyro.sample("z", dist.Delta(index.astype(float)))

    def model():
        with numpyro.plate("other", 20, subsample_size=3):
            numpyro.factor("nothing", 0.0)
        with numpyro.plate("N", 20, subsample_size=3) as index:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.deterministic("same", index == z)
        return index == z

    def same():
        z, _ = vipp.Program(guide, {}).simulate()
        assert z.subsamples["N"].shape == (3,)
        p = vipp.Program(handlers.substitute(model, {**z.values, **z.subsamples}), {})
        p.log_density(z)
        return p()

    assert run(same).all()


# -- replicate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", [dist.Normal(0.0, 1.0), dist.Uniform(0.0, 1.0), dist.Poisson(50.0)])
def test_replicates_are_independent(fn):
    def nested():
        inner = lambda: vipp.replicate(lambda: numpyro.sample("z", fn.expand([2])), 3)
        return vipp.replicate(inner, 200)

    draws = np.asarray(run(nested), float)
    assert draws.shape == (200, 3, 2)
    columns = draws.reshape(200, 6)
    correlation = np.corrcoef(columns.T)[~np.eye(6, dtype=bool)]
    assert np.abs(correlation).max() < 4.5 / math.sqrt(200)
    neighbours = np.corrcoef(columns[:-1].ravel(), columns[1:].ravel())[0, 1]
    assert abs(neighbours) < 4.5 / math.sqrt(1200)


def test_replicating_once_is_a_leading_axis():
    draws = run(
        lambda: vipp.replicate(lambda: {"a": numpyro.sample("a", dist.Normal()), "b": 1.0}, 1)
    )
    assert draws["a"].shape == draws["b"].shape == (1,)


@pytest.mark.parametrize("n", [0, -1, 2.0, True, "2", None])
def test_counts_must_be_positive_ints(n):
    with pytest.raises(ValueError, match="must be a positive int"):
        run(lambda: vipp.replicate(lambda: 0.0, n))
    with pytest.raises(ValueError, match="num_particles must be a positive int"):
        vipp.ELBO(num_particles=n)


# -- expectation ---------------------------------------------------------------------------------


def squares(l, scale):
    """Squares the number of heads of three coins, times a normal of mean ``scale``."""
    with numpyro.plate("N", 3):
        z = vipp.sample("z", dist.Bernoulli(logits=l), vipp.Enumerate())
    return (z.sum() ** 2) * scale


def exact_squares(l, scale):
    p = jax.nn.sigmoid(l)
    return (3 * p * (1 - p) + 9 * p**2) * scale


@pytest.mark.thorough
def test_expectation_composes_with_jit_vmap_and_grad():
    estimate = vipp.expectation(squares)
    l = jnp.array([0.0, 0.7, -1.3])
    both = jax.jit(jax.vmap(jax.value_and_grad(estimate, argnums=(1, 2)), (0, 0, None)))
    got = both(jax.random.split(KEY, 3), l, 2.0)
    exact = jax.vmap(jax.value_and_grad(exact_squares, argnums=(0, 1)), (0, None))(l, 2.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, exact)
    np.testing.assert_allclose(
        jax.jit(jax.hessian(estimate, argnums=1))(KEY, 0.3, 2.0),
        jax.jit(jax.hessian(exact_squares))(0.3, 2.0),
        rtol=1e-4,
    )
    np.testing.assert_allclose(
        jax.jit(jax.jacfwd(estimate, argnums=1))(KEY, 0.3, 2.0),
        jax.jit(jax.grad(exact_squares))(0.3, 2.0),
        rtol=1e-4,
    )


def test_expectation_inside_scan_and_other_keyword_arguments():
    def step(l, key):
        value, slope = jax.value_and_grad(vipp.expectation(squares), argnums=1)(key, l, scale=1.0)
        return l - 0.1 * slope, value

    end, values = jax.lax.scan(step, 1.0, jax.random.split(KEY, 40))
    assert values[-1] < values[0] and end < 0


def test_vmap_inside_draws_per_lane():
    """Under ``vmap`` over the parameters every lane has noise of its own, pathwise or not."""

    def product(estimator, m):
        key = numpyro.prng_key()
        draw = lambda m: vipp.sample("z", dist.Normal(m, 1.0), estimator, rng_key=key)
        z = jax.vmap(draw)(m)
        return z[0] * z[1]

    m, keys = jnp.array([2.0, 3.0]), jax.random.split(KEY, 20_000)
    for estimator in (None, vipp.Pathwise(), vipp.ScoreFunction(2, "leave_one_out")):
        estimate = vipp.expectation(lambda m, e=estimator: product(e, m))
        value, slope = jax.jit(jax.vmap(jax.value_and_grad(estimate, argnums=1), (0, None)))(
            keys, m
        )
        np.testing.assert_allclose(value.mean(), 6.0, rtol=0.05)  # 7 if the noise were shared
        np.testing.assert_allclose(slope.mean(0), m[::-1], rtol=0.05)


@pytest.mark.parametrize(
    "fn, got",
    [
        (lambda: jnp.ones(2), r"float32\[2\]"),
        (lambda: jnp.array(1), "int32"),
        (lambda: (1.0, 2.0), "tuple"),
        (lambda: None, "nothing"),
        (lambda: 1j * jnp.ones(()), "complex"),
        (lambda: jnp.array(True), "bool"),
    ],
)
def test_value_must_be_a_real_scalar(fn, got):
    with pytest.raises(ValueError, match=f"must be a real scalar.*{got}"):
        vipp.expectation(fn)(KEY)
    objective = vipp.objective(lambda p, q: fn())()
    with pytest.raises(ValueError, match="must be a real scalar"):
        vipp.value_and_grad(objective, coin, coin)(KEY, {"l": 0.0})
