"""Divergences in closed form against integrals and sums that know only the two log densities."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import transforms

import vipp
from vipp.distributions.kl import closed_kl

T, FRONT = dist.TransformedDistribution, np.array([0.3, -0.2])
TRIL = np.array([[1.0, 0.0], [0.3, 0.8]])

# of each group the divergence of any of the first from any of the second, the others included
LINE = [
    dist.Normal(0.3, 1.2), dist.Laplace(-0.2, 0.8), dist.Gumbel(0.4, 0.9),
    T(dist.Normal(0.2, 1.0), transforms.AffineTransform(1.0, -2.0)),
    dist.TruncatedNormal(0.5, 1.1, low=-0.7), dist.TruncatedNormal(0.5, 1.1, low=0.1, high=2.0),
    dist.TruncatedNormal(0.5, 1.1, high=2.0), dist.Uniform(0.2, 1.4),
]  # fmt: skip
DRAWN = [dist.Logistic(0.1, 0.7), dist.StudentT(5.0, 0.3, 1.2)]
POSITIVE = [
    dist.Gamma(2.5, 1.3), dist.Exponential(0.7), dist.Chi2(3.0), dist.InverseGamma(3.5, 1.2),
    dist.LogNormal(0.2, 0.6), dist.HalfNormal(1.4), dist.Weibull(1.2, 1.7), dist.Pareto(0.9, 4.5),
    T(dist.Normal(0.1, 0.5), transforms.ExpTransform()),
]  # fmt: skip
UNIT = [dist.Beta(2.0, 3.0), dist.BetaProportion(0.4, 3.5), dist.Uniform(0.0, 1.0)]
PAIRS = [
    (dist.Kumaraswamy(2.0, 3.0), dist.Beta(1.5, 2.5)),
    (dist.Kumaraswamy(2.0, 3.0), dist.LogNormal(0.3, 1.5)),
    (dist.Cauchy(0.2, 1.3), dist.Cauchy(-0.4, 0.6)), (dist.HalfCauchy(1.2), dist.HalfCauchy(0.5)),
    (dist.VonMises(0.2, 3.0), dist.VonMises(1.0, 0.7)),
    (dist.LogUniform(1.0, 2.0), dist.LogUniform(0.5, 3.0)),
    (dist.Poisson(2.0), dist.Poisson(3.0)),
    (dist.GeometricProbs(0.4), dist.GeometricLogits(-0.3)),
    (T(dist.Laplace(0.2, 1.0), transforms.SigmoidTransform()),
     T(dist.Normal(-0.3, 0.8), transforms.SigmoidTransform())),
    (dist.NegativeBinomial2(2.0, 3.0), dist.NegativeBinomial2(1.0, 3.0)),
]  # fmt: skip
ON_THE_LINE = [*itertools.product(LINE + DRAWN, LINE), *itertools.product(POSITIVE[:4], LINE[:1])]
MORE_THAN_LINE = [*itertools.product(POSITIVE, POSITIVE), *itertools.product(UNIT, UNIT + POSITIVE)]


def points(q):
    """Points of the support and their weights: a double exponential rule."""
    t = np.linspace(-3.6, 3.6, 4001)
    s, low, high = np.pi / 2 * np.sinh(t), -np.inf, np.inf
    ds = (t[1] - t[0]) * np.pi / 2 * np.cosh(t)
    if q.support in (dist.constraints.positive, dist.constraints.nonnegative):
        low = 0.0
    elif q.support is dist.constraints.unit_interval:
        low, high = 0.0, 1.0
    elif q.support is dist.constraints.circular:
        low, high = -np.pi, np.pi
    elif q.support is not dist.constraints.real:
        low = float(getattr(q.support, "lower_bound", low))
        high = float(getattr(q.support, "upper_bound", high))
    if np.isinf(low) and np.isinf(high):
        x, w = np.sinh(s), np.cosh(s) * ds
    elif np.isinf(high) or np.isinf(low):
        x, w = (
            (low + np.exp(s), np.exp(s) * ds)
            if np.isinf(high)
            else (high - np.exp(s), np.exp(s) * ds)
        )
    else:
        x, w = low + (high - low) / (1 + np.exp(-2 * s)), (high - low) / 2 / np.cosh(s) ** 2 * ds
    inside = (x > low) & (x < high)
    return x[inside], w[inside]


def _name(fn):
    return f"{type(fn).__name__}({', '.join(map(str, jax.tree.leaves(fn)))})"


def by_hand(q, p):
    x, w = (np.arange(200), np.ones(200)) if q.is_discrete else points(q)
    log_q, log_p = (np.asarray(fn.log_prob(jnp.asarray(x)), float) for fn in (q, p))
    inside = np.asarray(p.support(jnp.asarray(x)))
    seen = np.exp(log_q) * w > 1e-30
    if not inside[seen].all():
        return np.inf
    return float((np.exp(log_q) * w * (log_q - log_p))[seen].sum())


@pytest.mark.thorough
def test_every_pair():
    """Values against quadrature; derivatives are those of the formula, if they are numbers."""
    missing, wrong = set(), {}
    with jax.enable_x64(True), np.errstate(all="ignore"):
        for q, p in [*ON_THE_LINE, *MORE_THAN_LINE, *PAIRS]:
            q, p = (jax.tree.map(lambda x: jnp.asarray(x, float), fn) for fn in (q, p))
            got, wanted = closed_kl(q, p), by_hand(q, p)
            if got is None:
                missing.add((type(q).__name__, type(p).__name__))
                continue
            infinite = np.isposinf(got) and wanted > 10
            if not infinite and not np.allclose(got, wanted, 1e-3, 1e-4):
                wrong[f"{_name(q)} from {_name(p)}"] = float(got), wanted
    assert not wrong, wrong
    unknown = ("Gumbel", "LeftTruncated", "RightTruncated", "TwoSidedTruncated", "StudentT")
    assert all(q.startswith(unknown) and p in ("Laplace", "Gumbel") for q, p in missing)


@pytest.mark.thorough
def test_every_derivative_is_a_number():
    """Of each distribution that is drawn from, and each that is scored, once."""
    rows: dict = {}
    for q, p in [*ON_THE_LINE, *MORE_THAN_LINE, *PAIRS[:-1]]:  # of the last, not of any two
        if (type(q) not in rows or (type(p), "scored") not in rows) and finite(q, p):
            rows[type(q)] = rows[type(p), "scored"] = q, p
    parameters = [jax.tree.map(lambda x: jnp.asarray(x, float), row) for row in rows.values()]

    def total(rows):
        return sum(closed_kl(*row) for row in rows)

    grads = jax.jit(jax.grad(total))(parameters)
    for row, grad in zip(parameters, grads, strict=True):
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(grad)), row


def finite(q, p):
    kl = closed_kl(q, p)
    return kl is not None and bool(jnp.isfinite(kl))


BATCHED = jnp.array([[0.5], [-0.3]])
DIAGONAL = dist.Normal(BATCHED + FRONT, 0.7).to_event(1)
FULL = dist.MultivariateNormal(BATCHED - FRONT, scale_tril=TRIL)
LOW_RANK = dist.LowRankMultivariateNormal(
    BATCHED - FRONT, jnp.array([[0.4], [-0.6]]), jnp.array([0.5, 0.9])
)


def test_gaussian_vectors():
    """Each kind of covariance from each, and what is transformed in the same way."""
    kinds = [DIAGONAL, FULL, LOW_RANK, dist.Normal(0.2, 1.1).expand([2, 2]).to_event(1)]
    stick = lambda fn: T(fn, transforms.StickBreakingTransform())
    for q, p in itertools.product(kinds, kinds):
        full = [dist.MultivariateNormal(fn.mean, jax.vmap(jnp.diag)(fn.variance))
                if fn.event_dim == 1 and isinstance(fn, dist.Independent)
                else dist.MultivariateNormal(fn.mean, fn.covariance_matrix)
                for fn in map(plain, (q, p))]  # fmt: skip
        wanted = dist.kl_divergence(*full)
        np.testing.assert_allclose(closed_kl(plain(q), plain(p)), wanted, rtol=2e-4, atol=1e-5)
    through = closed_kl(stick(LOW_RANK), stick(DIAGONAL))
    np.testing.assert_allclose(through, closed_kl(LOW_RANK, DIAGONAL))


def plain(fn):
    """Without expansion, which the factors of a covariance have no use for."""
    if isinstance(fn, dist.ExpandedDistribution):
        return dist.Normal(jnp.full((2, 2), 0.2), 1.1).to_event(1)
    return fn


def exact(q, p, kl="named"):
    """Minus the loss of a guide and a model of one site each, which is the divergence alone."""
    model, guide = (lambda: numpyro.sample("z", p)), (lambda: numpyro.sample("z", q))
    objective = vipp.ELBO(kl=["z"] if kl == "named" else kl)
    return float(objective.loss(jax.random.key(0), {}, model, guide))


COUNTS = np.array([2, 4])
TOLD = [
    # independent coordinates, of both, of one, transformed one by one
    (dist.Bernoulli(jnp.array([0.3, 0.6])).to_event(1),
     dist.Bernoulli(logits=jnp.zeros(2)).to_event(1), 0.10241838),
    (DIAGONAL, dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)), None),
    (T(dist.Normal(FRONT, 0.7).to_event(1), transforms.ExpTransform()),
     dist.LogNormal(np.zeros(2), 1.0).to_event(1), None),
    # a list of values for each lane; values that the model cannot have, and such of none
    (dist.Binomial(COUNTS, 0.3).to_event(1), dist.Poisson(2.0).expand([2]).to_event(1), None),
    (dist.DiscreteUniform(0, COUNTS).to_event(1),
     dist.DiscreteUniform(0, 5).expand([2]).to_event(1), float(np.log(2 * 6 / 5))),
    (dist.Multinomial(3, np.array([0.3, 0.3, 0.4])), dist.Multinomial(3, np.array([0.2, 0.2, 0.6])),
     3 * float(0.6 * np.log(1.5) + 0.4 * np.log(2 / 3))),
    (dist.Categorical(np.full(5, 0.2)), dist.Categorical(np.full(3, 1 / 3)), np.inf),
    (dist.Categorical(np.array([0.5, 0.5, 0.0, 0.0])), dist.Categorical(np.full(3, 1 / 3)),
     float(np.log(1.5))),
    (dist.Uniform(-1.0, 2.0), dist.Uniform(0.0, 2.0), np.inf),
]  # fmt: skip


@pytest.mark.few(3)
@pytest.mark.parametrize(("q", "p", "wanted"), TOLD, ids=range(len(TOLD)))
def test_exact_at_a_site(q, p, wanted):
    got = exact(q, p)
    assert got == pytest.approx(exact(q, p, "analytic"))
    if wanted is None:
        values = q.sample(jax.random.key(1), (20_000,))
        ratio = (q.log_prob(values) - p.log_prob(values)).sum(range(1, 1 + len(q.batch_shape)))
        assert abs(got - ratio.mean()) < 5 * ratio.std() / 141
    else:
        assert got == pytest.approx(wanted, rel=1e-4)


def test_infinite_for_certain():
    with pytest.raises(ValueError, match=r"site 'z' .Normal from Gamma. is infinite: the guide"):
        exact(dist.Normal(), dist.Gamma(2.0))


def test_an_exact_divergence_is_noisier_where_the_guide_is_exact(bound_and_grad):
    """Which is why it is not chosen by itself."""

    def model():
        z = numpyro.sample("z", dist.Normal())
        numpyro.sample("x", dist.Normal(z, 1.0), obs=1.2)

    def guide():
        m = numpyro.param("m", 0.6)
        vipp.sample("z", dist.Normal(m, np.sqrt(0.5)), vipp.ScoreFunction(2, "leave_one_out"))

    of = lambda objective: bound_and_grad(objective, model, guide, {"m": jnp.array(0.6)}, keys=20)
    _, sampled = of(vipp.ELBO(stick_the_landing=True))
    _, exact = of(vipp.ELBO(kl="analytic"))
    assert sampled["m"].std() < 1e-5
    assert exact["m"].std() > 0.1
