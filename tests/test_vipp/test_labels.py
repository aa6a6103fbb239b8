"""The density of a label is one of two numbers; its derivatives are those of a linear function."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from vipp.distributions.densities import guarded

LABELS = jnp.array([0.0, 1.0, 1.0, 0.0, 1.0])
VALUES = {"logits": jnp.array([-3.0, -0.5, 0.0, 0.0, 12.0]),
          "probs": jnp.array([0.05, 0.3, 0.5, 0.9, 0.999])}  # fmt: skip
LINEAR = {
    "logits": lambda x, l: x * l - jnp.logaddexp(l, 0),
    "probs": lambda x, p: x * jnp.log(p) + (1 - x) * jnp.log1p(-p),
}


def log_prob(kind):
    return lambda x, y: guarded(
        dist.Bernoulli(**{kind: y}, validate_args=False), observed=True
    ).log_prob(x)


def derivatives(fn):
    """All of first, second and third order, of a sum of sines."""
    total = lambda x, y: jnp.sum(jnp.sin(fn(x, y)))
    found, order = [], [total]
    for _ in range(3):
        order = [jax.grad(lambda *xs, f=f: jnp.sum(f(*xs)), i) for f in order for i in (0, 1)]
        found += order
    return jax.jit(lambda *xs: [f(*xs) for f in found])


@pytest.mark.parametrize("kind", VALUES)
def test_all_derivatives_are_those_of_the_linear_function(kind):
    with jax.enable_x64(True):
        given = (LABELS.astype(float), VALUES[kind].astype(float))
        np.testing.assert_allclose(log_prob(kind)(*given), LINEAR[kind](*given), rtol=1e-6)
        found, expected = (derivatives(f[kind])(*given) for f in ({kind: log_prob(kind)}, LINEAR))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9)


def test_of_particles_and_plates():
    labels = jnp.array([[0.0], [1.0]])
    logits = jnp.arange(12.0).reshape(2, 2, 3) - 6
    expected = LINEAR["logits"](labels, logits)
    np.testing.assert_allclose(log_prob("logits")(labels, logits), expected, rtol=1e-5, atol=1e-7)
    mapped = jax.vmap(log_prob("logits"), (None, 0))(labels, logits)
    np.testing.assert_allclose(mapped, expected, rtol=1e-5, atol=1e-7)


INF = jnp.inf
# kind, label, parameter, log probability, slope in the parameter
EXTREMES = [
    ("logits", 1.0, INF, 0.0, 0.0), ("logits", 0.0, -INF, 0.0, 0.0),
    ("logits", 0.0, INF, -INF, -1.0), ("logits", 1.0, -INF, -INF, 1.0),
    ("logits", 1.0, -1e4, -1e4, 1.0), ("logits", 0, 0.0, -np.log(2), -0.5),
    ("logits", True, 0.0, -np.log(2), 0.5),
    ("logits", 0.5, 1.0, -INF, 0.0), ("logits", 2, 1.0, -INF, 0.0),
    ("logits", jnp.nan, 1.0, -INF, 0.0), ("logits", 1.0, jnp.nan, jnp.nan, jnp.nan),
    ("probs", 0.5, 0.5, -INF, 0.0), ("probs", 2, 0.5, -INF, 0.0), ("probs", 1, 0.25, np.log(0.25), 4.0),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "label", "parameter", "expected", "slope"), EXTREMES)
def test_at_extremes(kind, label, parameter, expected, slope):
    found = jax.value_and_grad(lambda y: log_prob(kind)(label, y))(jnp.float32(parameter))
    np.testing.assert_allclose(found, (expected, slope), rtol=1e-6)
    forwards = jax.jvp(lambda y: log_prob(kind)(label, y), (jnp.float32(parameter),), (1.0,))
    np.testing.assert_allclose(forwards[1], slope, rtol=1e-6)


def test_certain_probabilities_have_finite_slopes():
    slopes = jax.vmap(jax.grad(lambda p, x: log_prob("probs")(x, p)))
    found = slopes(jnp.array([0.0, 0.0, 1.0, 1.0]), jnp.array([0.0, 1.0, 0.0, 1.0]))
    assert np.isfinite(found).all()
