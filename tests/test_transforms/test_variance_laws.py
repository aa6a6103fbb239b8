"""Which estimator varies less than which, and where one does not vary at all. Fixed keys."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipp
import vipp_transforms as vt

LOGIT = 0.3
P = 1 / (1 + np.exp(-LOGIT))
LOO = vt.ScoreFunction(2, "leave_one_out")
DRAWS = 40_000


def coin(theta, rv):
    """Worth 1 or 2."""
    return 1.0 + rv("z", dist.Bernoulli(logits=theta[0]))


def coins(theta, rv):
    """A term that mixes all lanes."""
    return jnp.exp(0.5 * rv("z", dist.Bernoulli(logits=theta)).sum())


def variance(exact, program, estimator, theta, batch=DRAWS):
    _, grad = exact.estimates(program, jnp.asarray(theta, jnp.float32), None, estimator, batch)(0)
    return grad.var(0)


def analytic():
    """The variances for `coin`, of the gradient in the logit (which is ``P (1 - P)``)."""
    variance = P * (1 - P)
    plain = variance * (4 * (1 - P) + P) - variance**2
    return {
        "plain": plain / 2,  # of two samples
        "loo": variance / 2 - variance**2,
        "disarm": variance * max(P, 1 - P) / 2 - variance**2,
    }


def test_binary_variances_are_the_analytic_ones(exact):
    got = {
        name: variance(exact, coin, estimator, [LOGIT])[0]
        for name, estimator in [
            ("plain", vt.ScoreFunction(2)),
            ("loo", LOO),
            ("disarm", vt.DisARM()),
        ]
    }
    want = analytic()
    assert want["disarm"] < want["loo"] / 2 < want["plain"] / 4
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=0.05)


def test_binary_variances_where_lanes_are_mixed(exact):
    estimators = (vt.DisARM(), vt.ARM(), LOO, vt.ScoreFunction(2))
    of = lambda e: variance(exact, coins, e, [0.3, -0.2, 0.1]).sum()
    disarm, arm, loo, plain = map(of, estimators)
    assert disarm < 0.8 * loo < 0.5 * plain
    assert disarm < 0.8 * arm


RELAXED = vt.RELAX(2).init(jax.random.key(0), 1)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "estimator",
    [vt.REBAR(), vt.RELAX(2, {**RELAXED, "out": jnp.full(2, 0.05)})],
    ids=["rebar", "relax"],
)
def test_a_relaxed_control_variate_lowers_the_variance(exact, estimator):
    for program, theta in [(coin, [LOGIT]), (coins, [0.3, -0.2, 0.1])]:
        plain = variance(exact, program, vt.ScoreFunction(), theta).sum()
        assert variance(exact, program, estimator, theta).sum() < 0.5 * plain


def bowl(theta, rv):
    """Quadratic, all lanes mixed; in the locations and the scales."""
    x = rv("x", dist.Normal(theta[:2], jnp.exp(theta[2:])))
    return 0.5 * jnp.square(x.sum() - 1.0) + x[0]


def slope(theta, rv):
    return 2.0 * rv("x", dist.Normal(theta[:2], jnp.exp(theta[2:]))).sum()


DOUBLE = vt.DoubleControlVariates(4)


def hands(theta, rv):
    """Linear in integers that are added, selected and put together; all lanes mixed."""
    z = rv("z", dist.Bernoulli(logits=theta))
    y = rv("y", vipp.OneHotCategorical(logits=theta))
    signs = jnp.concatenate([2 * z - 1, jnp.where(theta > 0, z, 0)[::-1]])
    return signs @ jnp.arange(1.0, 7.0) - 0.5 * z[:2].sum() + y @ jnp.array([1.0, -2.0, 3.0])


def test_slopes_leave_no_variance_where_a_program_is_linear(exact):
    theta = jnp.array([0.3, -0.2, 0.1])
    grad = exact.estimates(hands, theta, None, DOUBLE, 1_000)(0)[1]
    assert grad.var(0).max() < 1e-9
    assert variance(exact, coins, DOUBLE, theta).sum() < 0.25 * variance(
        exact, coins, vt.ScoreFunction(4, "leave_one_out"), theta
    ).sum()  # fmt: skip


def lanes_and_hands(theta, rv):
    """Linear in all lanes together, anything in each alone."""
    z = rv("z", dist.Binomial(3, logits=theta))
    return z @ jnp.arange(1.0, 4.0) + jnp.sin(theta * z**2).sum()


def test_terms_of_single_lanes_leave_no_variance(exact):
    theta = jnp.array([0.3, -0.2, 0.1])
    value, grad = exact.estimates(lanes_and_hands, theta, None, DOUBLE, 1_000)(0)
    assert grad.var(0).max() < 1e-9 < 1e-3 < value.var()

    def expected(theta):
        k = jnp.broadcast_to(jnp.arange(4.0)[:, None], (4, 3))
        p = jnp.exp(jax.vmap(dist.Binomial(3, logits=theta).log_prob)(k))
        each = lambda k: k * jnp.arange(1.0, 4.0) + jnp.sin(theta * k**2)
        return (p * jax.vmap(each)(k)).sum()

    np.testing.assert_allclose(grad.mean(0), jax.grad(expected)(theta), rtol=1e-5)


def test_what_is_no_float_of_the_draw_has_no_slope(exact):
    """Compared or read from a table, a choice has the variance of leave-one-out."""

    def steps(theta, rv):
        z = rv("z", dist.Bernoulli(logits=theta))
        return jnp.array([1.0, 5.0, 2.0, 0.0])[z.sum()] + jnp.where(z[0] == 1, 3.0, -1.0)

    theta = [0.3, -0.2, 0.1]
    double, loo = (
        variance(exact, steps, e, theta) for e in (DOUBLE, vt.ScoreFunction(4, "leave_one_out"))
    )
    np.testing.assert_allclose(double, loo, rtol=0.1)


def learned(theta, rv):
    """A divergence, and what it offsets once the guide has learned it: all lanes, by a table."""
    table = jax.nn.log_softmax(jnp.stack([theta, -theta, 0.5 * theta], -1))
    fixed = jax.lax.stop_gradient(table)
    here = jnp.arange(3), rv("z", dist.Categorical(logits=table))
    return jnp.log(jnp.prod(jnp.exp(fixed[here]))) - table[here].sum()


@pytest.mark.parametrize("program", [hands, learned])
def test_fitted_coefficients_leave_no_variance(exact, program):
    """What is linear in a choice, or offsets its divergence, has none; coefficients are exact."""
    theta = [0.3, -0.2, 0.1]
    of = lambda e: variance(exact, program, e, theta, 1_000).max()
    fitted, loo = map(of, (vt.FittedControlVariates(8), vt.ScoreFunction(8, "leave_one_out")))
    assert fitted < 1e-5 * loo


def rows(theta, rv):
    """Two rows of one bit, which is not summed as a later choice was drawn beside it."""
    z = rv("z", dist.Bernoulli(logits=theta))
    y = rv("y", dist.Bernoulli(logits=0.5 * theta))
    return (jnp.exp(z * (1.0 + y)) * jnp.array([1.0, 30.0]) + 100.0).sum() - (theta * z).sum()


def test_fitted_coefficients_are_unbiased_in_single_precision(exact):
    """Where all other draws are equal, rounding may not tell which draw was left out."""
    estimators = {"z": vt.FittedControlVariates(3), "y": vt.Enumerate()}
    theta = jnp.array([0.3, -0.4], jnp.float32)
    exact.check(rows, theta, estimators, orders=1, rtol=1e-5, compiled=True)


TAYLOR, PAIR = vt.Pathwise(control_variate="taylor"), vt.Pathwise(2, antithetic=True)
REAL = np.array([0.3, -0.4, 0.1, 0.2])


@pytest.mark.parametrize("estimator", [TAYLOR, PAIR], ids=["taylor", "antithetic"])
def test_quadratic_terms_leave_no_variance_in_the_location(exact, estimator):
    got, plain = (variance(exact, bowl, e, REAL, 2_000) for e in (estimator, vt.Pathwise(2)))
    assert got[:2].max() < 1e-9 < 0.1 < plain[:2].min()
    assert got[2:].min() > 1e-3


@pytest.mark.parametrize("estimator", [TAYLOR, PAIR], ids=["taylor", "antithetic"])
def test_linear_terms_leave_none_at_all(exact, estimator):
    value, grad = exact.estimates(slope, jnp.asarray(REAL, jnp.float32), None, estimator, 2_000)(0)
    assert value.var() < 1e-9
    assert grad.var(0).max() < 1e-9


@pytest.mark.thorough
def test_quasi_random_numbers_lower_the_variance(exact):
    smooth = lambda theta, rv: jnp.exp(0.3 * slope(theta, rv))
    quasi, plain = (
        variance(exact, smooth, vt.Pathwise(8, quasi=q), REAL, 100_000) for q in (True, False)
    )
    assert (quasi < 0.8 * plain).all()


def test_the_best_weight_of_a_mixture(exact):
    """Of independent estimators: in inverse proportion to their variances."""
    of = analytic()
    best = of["loo"] / (of["disarm"] + of["loo"])
    learning = vt.Mix(vt.DisARM(), LOO, decay=0.0).learning
    start = learning.init(None, None)

    def program(theta, key):
        z = vt.sample(key, dist.Bernoulli(logits=theta), learning.fill(start), name="z")
        return 1.0 + z, None

    def moments(key):
        return vt.estimate(program, jnp.float32(LOGIT), key)[2]["z"](start)["sum"]

    moments = jax.vmap(moments)
    inner, square = jax.jit(moments)(jax.random.split(jax.random.key(0), DRAWS)).mean(0)
    np.testing.assert_allclose(inner / square, best, rtol=0.02)
    np.testing.assert_allclose(square, of["disarm"] + of["loo"], rtol=0.03)
    mixed = variance(exact, coin, vt.Mix(vt.DisARM(), LOO, best), [LOGIT])[0]
    np.testing.assert_allclose(mixed, 1 / (1 / of["disarm"] + 1 / of["loo"]), rtol=0.05)
