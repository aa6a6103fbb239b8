"""Divergences in closed form against integrals and sums that know only the two log densities."""

import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import transforms

import vipp
from jaxpr_in_numpy import Interpreter, to_numpy
from vipp.distributions.kl import closed_kl

T, FRONT = dist.TransformedDistribution, np.array([0.3, -0.2])
TRIL = np.array([[1.0, 0.0], [0.3, 0.8]])


def every_pair():
    """Of each group any of the first from any of the second, the others included."""
    line = [
        dist.Normal(0.3, 1.2), dist.Laplace(-0.2, 0.8), dist.Gumbel(0.4, 0.9),
        T(dist.Normal(0.2, 1.0), transforms.AffineTransform(1.0, -2.0)),
        dist.TruncatedNormal(0.5, 1.1, low=-0.7), dist.TruncatedNormal(0.5, 1.1, low=0.1, high=2.0),
        dist.TruncatedNormal(0.5, 1.1, high=2.0), dist.Uniform(0.2, 1.4),
    ]  # fmt: skip
    drawn = [dist.Logistic(0.1, 0.7), dist.StudentT(5.0, 0.3, 1.2)]
    positive = [
        dist.Gamma(2.5, 1.3), dist.Exponential(0.7), dist.Chi2(3.0), dist.InverseGamma(3.5, 1.2),
        dist.LogNormal(0.2, 0.6), dist.HalfNormal(1.4), dist.Weibull(1.2, 1.7),
        dist.Pareto(0.9, 4.5), T(dist.Normal(0.1, 0.5), transforms.ExpTransform()),
    ]  # fmt: skip
    unit = [dist.Beta(2.0, 3.0), dist.BetaProportion(0.4, 3.5), dist.Uniform(0.0, 1.0)]
    pairs = [
        (dist.Kumaraswamy(2.0, 3.0), dist.Beta(1.5, 2.5)),
        (dist.Kumaraswamy(2.0, 3.0), dist.LogNormal(0.3, 1.5)),
        (dist.Cauchy(0.2, 1.3), dist.Cauchy(-0.4, 0.6)),
        (dist.HalfCauchy(1.2), dist.HalfCauchy(0.5)),
        (dist.VonMises(0.2, 3.0), dist.VonMises(1.0, 0.7)),
        (dist.LogUniform(1.0, 2.0), dist.LogUniform(0.5, 3.0)),
        (dist.Poisson(2.0), dist.Poisson(3.0)),
        (dist.GeometricProbs(0.4), dist.GeometricLogits(-0.3)),
        (T(dist.Laplace(0.2, 1.0), transforms.SigmoidTransform()),
         T(dist.Normal(-0.3, 0.8), transforms.SigmoidTransform())),
        (dist.NegativeBinomial2(2.0, 3.0), dist.NegativeBinomial2(1.0, 3.0)),
    ]  # fmt: skip
    product = itertools.product
    return [*product(line + drawn, line), *product(positive[:4], line[:1]),
            *product(positive, positive), *product(unit, unit + positive), *pairs]  # fmt: skip


def points(q):
    """Points of the support and their weights, as many of each: a double exponential rule."""
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
    return np.where(inside, x, x[len(x) // 2]), np.where(inside, w, 0.0)


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
    """Values against quadrature; derivatives are those of the formula, if they are numbers.

    The derivatives of each distribution that is drawn from, and of each that is scored, once.
    """
    missing, wrong, once = set(), {}, {}
    with jax.enable_x64(True), np.errstate(all="ignore"):
        for q, p in every_pair():
            q, p = (jax.tree.map(lambda x: jnp.asarray(x, float), fn) for fn in (q, p))
            got, wanted = closed_kl(q, p), by_hand(q, p)
            if got is None:
                missing.add((type(q).__name__, type(p).__name__))
                continue
            infinite = np.isposinf(got) and wanted > 10
            if not infinite and not np.allclose(got, wanted, 1e-3, 1e-4):
                wrong[f"{_name(q)} from {_name(p)}"] = float(got), wanted
            of_any_two = not isinstance(q, dist.NegativeBinomial2)
            if np.isfinite(got) and of_any_two and not {type(q), (type(p), "scored")} <= {*once}:
                once[type(q)] = once[type(p), "scored"] = q, p
        rows = list(once.values())
        traced, shape = jax.make_jaxpr(
            jax.grad(lambda rows: sum(closed_kl(*row) for row in rows)), return_shape=True
        )(rows)
        numbers = [to_numpy(x) for x in jax.tree.leaves(rows)]
        grads = jax.tree.unflatten(jax.tree.structure(shape), Interpreter({}).run(traced, numbers))
    assert not wrong, wrong
    unknown = ("Gumbel", "LeftTruncated", "RightTruncated", "TwoSidedTruncated", "StudentT")
    assert all(q.startswith(unknown) and p in ("Laplace", "Gumbel") for q, p in missing)
    for row, grad in zip(rows, grads, strict=True):
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(grad)), row


BATCHED = np.array([[0.5], [-0.3]], np.float32)


def diagonal():
    return dist.Normal(BATCHED + FRONT, 0.7).to_event(1)


def low_rank():
    factor, diag = jnp.array([[0.4], [-0.6]]), jnp.array([0.5, 0.9])
    return dist.LowRankMultivariateNormal(BATCHED - FRONT, factor, diag)


def test_gaussian_vectors():
    """Each kind of covariance from each, and what is transformed in the same way."""
    stick = lambda fn: T(fn, transforms.StickBreakingTransform())

    def full(fn):
        if isinstance(fn, dist.Independent):
            return dist.MultivariateNormal(fn.mean, jax.vmap(jnp.diag)(fn.variance))
        return dist.MultivariateNormal(fn.mean, fn.covariance_matrix)

    @jax.jit
    def rows():
        """Of each pair, what is got and what is wanted."""
        kinds = [
            diagonal(), dist.MultivariateNormal(BATCHED - FRONT, scale_tril=TRIL), low_rank(),
            plain(dist.Normal(0.2, 1.1).expand([2, 2]).to_event(1)),
        ]  # fmt: skip
        through = closed_kl(stick(low_rank()), stick(diagonal()))
        return [
            (closed_kl(q, p), dist.kl_divergence(full(q), full(p)))
            for q, p in itertools.product(kinds, kinds)
        ], (through, closed_kl(low_rank(), diagonal()))

    pairs, transformed = rows()
    for got, wanted in pairs:
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(*transformed, rtol=1e-6)


def plain(fn):
    """Without expansion, which the factors of a covariance have no use for."""
    if isinstance(fn, dist.ExpandedDistribution):
        return dist.Normal(jnp.full((2, 2), 0.2), 1.1).to_event(1)
    return fn


def exact(q, p, kl="named"):
    """Minus the loss of a guide and a model of one site each, which is the divergence alone."""
    model, guide = (lambda: numpyro.sample("z", p)), (lambda: numpyro.sample("z", q))
    objective = vipp.ELBO(kl=["z"] if kl == "named" else kl)
    return objective.loss(jax.random.key(0), {}, model, guide)


COUNTS = np.array([2, 4])
TOLD = [
    # independent coordinates, of both, of one, transformed one by one
    lambda: (dist.Bernoulli(np.array([0.3, 0.6])).to_event(1),
             dist.Bernoulli(logits=np.zeros(2)).to_event(1), 0.10241838),
    lambda: (diagonal(), dist.MultivariateNormal(np.zeros(2), np.eye(2)), None),
    lambda: (T(dist.Normal(FRONT, 0.7).to_event(1), transforms.ExpTransform()),
             dist.LogNormal(np.zeros(2), 1.0).to_event(1), None),
    # a list of values for each lane; values that the model cannot have, and such of none
    lambda: (dist.Binomial(COUNTS, 0.3).to_event(1), dist.Poisson(2.0).expand([2]).to_event(1),
             None),
    lambda: (dist.DiscreteUniform(0, COUNTS).to_event(1),
             dist.DiscreteUniform(0, 5).expand([2]).to_event(1), float(np.log(2 * 6 / 5))),
    lambda: (dist.Multinomial(3, np.array([0.3, 0.3, 0.4])),
             dist.Multinomial(3, np.array([0.2, 0.2, 0.6])),
             3 * float(0.6 * np.log(1.5) + 0.4 * np.log(2 / 3))),
    lambda: (dist.Categorical(np.full(5, 0.2)), dist.Categorical(np.full(3, 1 / 3)), np.inf),
    lambda: (dist.Categorical(np.array([0.5, 0.5, 0.0, 0.0])), dist.Categorical(np.full(3, 1 / 3)),
             float(np.log(1.5))),
    lambda: (dist.Uniform(-1.0, 2.0), dist.Uniform(0.0, 2.0), np.inf),
]  # fmt: skip


@pytest.mark.few(3)
@pytest.mark.parametrize("row", range(len(TOLD)))
def test_exact_at_a_site(row):
    q, p, wanted = TOLD[row]()

    @jax.jit
    def run():
        values = q.sample(jax.random.key(1), (20_000,))
        ratio = q.log_prob(values) - p.log_prob(values)
        return exact(q, p), exact(q, p, "analytic"), ratio

    got, same, ratio = run()
    assert got == pytest.approx(same)
    if wanted is None:
        ratio = np.asarray(ratio, float).reshape(len(ratio), -1).sum(1)
        assert abs(got - ratio.mean()) < 5 * ratio.std() / 141
    else:
        assert got == pytest.approx(wanted, rel=1e-4)


ABS = transforms.AbsTransform()
FOLDED = {
    "a folded distribution": dist.FoldedDistribution,
    "an absolute value": lambda fn: T(fn, ABS),
    "and what follows": lambda fn: T(fn, [ABS, transforms.AffineTransform(0.0, 2.0)]),
    "composed": lambda fn: T(fn, transforms.ComposeTransform([ABS, transforms.ExpTransform()])),
    "of each": lambda fn: T(fn.expand([2]).to_event(1), transforms.IndependentTransform(ABS, 1)),
    "composed of each": lambda fn: T(
        fn.expand([2]).to_event(1),
        transforms.ComposeTransform([transforms.IndependentTransform(ABS, 1)])),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDED)
def test_what_is_folded_is_nearer_than_what_is_under_it(case):
    q, p = (FOLDED[case](fn) for fn in (dist.Normal(0.4, 0.7), dist.Normal(0.1, 1.3)))
    assert closed_kl(q, p) is None


@pytest.mark.parametrize("events", [0, 1])
def test_a_folded_site_is_scored_as_it_is_drawn(events, bound_and_grad):
    """NumPyro's own bound gives it what it was drawn through, which it does not take."""
    q, p = (dist.FoldedDistribution(fn) for fn in (dist.Normal(0.4, 0.7), dist.Normal(0.1, 1.3)))
    x = np.linspace(1e-6, 8.0, 20_001)
    log_q, log_p = q.log_prob(x), p.log_prob(x)
    wanted = -2 * np.trapezoid(np.exp(log_q) * (log_q - log_p), x)

    def guide():
        m = numpyro.param("m", 0.4)
        fn = dist.FoldedDistribution(dist.Normal(jnp.full(2, m), 0.7))
        with numpyro.plate("rows", 2) if not events else contextlib.nullcontext():
            numpyro.sample("z", fn.to_event(events))

    def model():
        with numpyro.plate("rows", 2) if not events else contextlib.nullcontext():
            numpyro.sample("z", p.expand([2]).to_event(events))

    values, _ = bound_and_grad(vipp.ELBO(), model, guide, {"m": jnp.array(0.4)}, keys=20_000)
    assert abs(values.mean() - wanted) < 5 * values.std() / np.sqrt(len(values)) < 0.05


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
