"""Whoever trains along a biased gradient is told so, once; nobody else is."""

import warnings

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import vipp

KEY = jax.random.key(0)
BIASED = [
    vipp.GumbelSoftmax(),
    vipp.GumbelSoftmax(lambda t: 1.0 / (1 + t), hard=True),
    vipp.StraightThrough(),
    vipp.ReinMax(),
    vipp.ReSTE(),
    vipp.SparseMixer(),
    vipp.Mix(vipp.ReinMax(), vipp.DisARM(), weight=0.5),
]
UNBIASED = [
    None, vipp.Enumerate(), vipp.ScoreFunction(), vipp.ARM(), vipp.DisARM(), vipp.LocalExpectation(),
    vipp.MeasureValued(), vipp.Rebar(), vipp.Relax(2), vipp.Mix(vipp.ARM(), vipp.DisARM()),
    vipp.ScoreFunction(baseline=vipp.MovingAverage()),
]  # fmt: skip
named = lambda e: type(e).__name__


def model():
    z = numpyro.sample("z", dist.Bernoulli(0.3))
    y = numpyro.sample("y", dist.Bernoulli(0.6))
    numpyro.sample("x", dist.Normal(z + y, 1.0), obs=1.0)


def guided(z, y=None):
    def guide():
        vipp.sample("z", dist.Bernoulli(logits=numpyro.param("z_logits", 0.0)), z)
        vipp.sample("y", dist.Bernoulli(logits=numpyro.param("y_logits", 0.0)), y)

    return guide


def fit(guide, p=model):
    """Without training: what is warned of is known before."""

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    optim = optax.GradientTransformation(lambda params: (), stop)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(Stop):
            vipp.fit(KEY, vipp.ELBO(), p, guide, optim, 1, progress_bar=False)
    return [w for w in caught if issubclass(w.category, vipp.BiasedEstimatorWarning)]


@pytest.mark.parametrize("estimator", BIASED, ids=named)
def test_fit_warns_of_a_biased_estimator(estimator):
    (warning,) = fit(guided(estimator))
    name = type(estimator).__name__
    assert f"biased through 'z' ({name})." in str(warning.message)
    assert "Fix: " in str(warning.message)
    assert warning.filename == __file__


@pytest.mark.parametrize("estimator", UNBIASED, ids=named)
def test_fit_does_not_warn_of_an_unbiased_one(estimator):
    assert fit(guided(estimator)) == []


def test_one_warning_for_all_sites():
    """Set inside or from outside; what the model would draw with, a bound does not draw."""
    chosen = vipp.with_estimators(guided(vipp.ReinMax()), {"y": vipp.ReSTE()})
    (warning,) = fit(chosen)
    assert "'z' (ReinMax), 'y' (ReSTE)." in str(warning.message)
    in_model = vipp.with_estimators(model, {"z": vipp.ReinMax(), "x": vipp.ReinMax()})
    assert fit(guided(None), in_model) == []


def test_the_warning_can_be_an_error_or_ignored():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(vipp.BiasedEstimatorWarning):
            vipp.fit(KEY, vipp.ELBO(), model, guided(vipp.ReSTE()), optax.adam(0.1), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", vipp.BiasedEstimatorWarning)
        result = vipp.fit(
            KEY, vipp.ELBO(), model, guided(vipp.ReSTE()), optax.adam(0.1), 1, progress_bar=False
        )
    assert jnp.isfinite(result.losses).all()


@pytest.mark.parametrize("estimator", [*BIASED, *UNBIASED], ids=named)
def test_explain_marks_a_biased_estimator(estimator):
    """And prints estimators as they are written, their arrays by shape."""
    table = vipp.explain(vipp.ELBO(), model, guided(estimator))
    assert ("biased" in table["z"].reason) == any(estimator is e for e in BIASED)
    assert "biased" not in table["y"].reason
    assert "Struct" not in str(table)


@pytest.mark.parametrize(
    ("estimator", "row"),
    [
        (vipp.ScoreFunction(2, baseline=vipp.MovingAverage()),
         "ScoreFunction(num_samples=2, baseline=MovingAverage)"),
        (vipp.ScoreFunction(baseline=vipp.Learned(jnp.zeros(()))),
         "ScoreFunction(baseline=Learned(network=float32[]))"),
        (vipp.Mix(vipp.ARM(), vipp.ScoreFunction(2)),
         "Mix(first=ARM, second=ScoreFunction(num_samples=2))"),
        (vipp.Relax(3), "Relax(hidden=3)"),
        (vipp.ReinMax(lambda t: 1.0 + t), "ReinMax(temperature=float32[])"),
        (vipp.GumbelSoftmax(0.5, hard=True), "GumbelSoftmax(temperature=0.5, hard=True)"),
        (vipp.ScoreFunction(baseline="leave_one_out", num_samples=2),
         "ScoreFunction(num_samples=2, baseline='leave_one_out')"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_rows_are_readable(estimator, row):
    assert vipp.explain(vipp.ELBO(), model, guided(estimator))["z"].estimator == row
