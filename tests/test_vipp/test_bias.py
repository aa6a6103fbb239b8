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
    vipp.MeasureValued(), vipp.REBAR(), vipp.RELAX(2), vipp.Mix(vipp.ARM(), vipp.DisARM()),
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


# -- objectives ------------------------------------------------------------------------------------

BIASED_OBJECTIVES = [
    (vipp.FilteringBound(num_particles=2), "choice of ancestors"),
    (vipp.FilteringBound(num_particles=2, resample="soft"), "choice of ancestors"),
    (vipp.ReweightedWakeSleep(num_particles=2), "normalised by their own sum"),
    (vipp.ReweightedWakeSleep(num_particles=2, wake=lambda step: 1.0 * step), "wake phase"),
    (vipp.ForwardKL(num_particles=2), "normalised by their own sum"),
    (vipp.CUBO(num_particles=2), "below the chi bound"),
    (vipp.Renyi(alpha=-1.0, num_particles=2), "below the upper bound"),
    (vipp.ELBO() + 0.1 * vipp.ForwardKL(num_particles=2), "ForwardKL, as the particles'"),
]
UNBIASED_OBJECTIVES = [
    vipp.ELBO(), vipp.ELBO(beta=0.5, kl="analytic"), vipp.ELBO(stick_the_landing=True),
    vipp.IWAE(num_particles=2), vipp.IWAE(num_particles=2, doubly_reparameterised=True),
    vipp.MIWAE(num_bounds=2, num_particles=2), vipp.PIWAE(num_bounds=2, num_particles=2),
    vipp.CIWAE(num_particles=2, beta=0.5), vipp.VIMCO(num_particles=2), vipp.TVO(num_particles=2),
    vipp.VarGrad(num_particles=2), vipp.Renyi(alpha=0.5, num_particles=2),
    vipp.AnnealedBound(num_steps=2), vipp.ForwardKL(samples={"z": jnp.zeros(1)}),
    vipp.ReweightedWakeSleep(num_particles=2, wake=0.0, sleep=1.0),
    vipp.FilteringBound(num_particles=2, resampling_gradient=True),
    vipp.FilteringBound(num_particles=2, resample="none"), vipp.FilteringBound(num_particles=1),
    vipp.ELBO() + vipp.IWAE(num_particles=2), vipp.objective(lambda p, q: 0.0)(),
]  # fmt: skip


@pytest.mark.parametrize("objective, why", BIASED_OBJECTIVES, ids=lambda o: repr(o)[:40])
def test_a_biased_objective_says_so(objective, why):
    assert why in objective.biased


@pytest.mark.parametrize("objective", UNBIASED_OBJECTIVES, ids=repr)
def test_an_unbiased_objective_says_nothing(objective):
    assert objective.biased is None


def test_of_ones_own():
    mine = vipp.objective(lambda p, q, *, k=1.0: k, biased=lambda c: "of k" if c["k"] else None)
    assert (mine(k=2.0).biased, mine(k=0.0).biased) == ("of k", None)
    assert vipp.objective(lambda p, q: 0.0, biased="always")().biased == "always"


def test_fit_and_explain_tell_of_a_biased_objective():
    objective = vipp.ForwardKL(num_particles=2)
    fitted = lambda: vipp.fit(
        KEY, objective, model, guided(None), optax.adam(0.1), 1, progress_bar=False
    )
    with pytest.warns(vipp.BiasedObjectiveWarning, match="ForwardKL.*biased: .*Fix: ") as caught:
        fitted()
    assert [w.filename for w in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", vipp.BiasedObjectiveWarning)
        fitted()
    table = vipp.explain(objective, model, guided(None))
    assert str(table).splitlines()[1] == f"biased: {objective.biased}"
    assert "biased: " in table._repr_html_()
    assert "biased" not in str(vipp.explain(vipp.ELBO(), model, guided(None)))


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
        (vipp.RELAX(3), "RELAX(hidden=3)"),
        (vipp.ReinMax(lambda t: 1.0 + t), "ReinMax(temperature=float32[])"),
        (vipp.GumbelSoftmax(0.5, hard=True), "GumbelSoftmax(temperature=0.5, hard=True)"),
        (vipp.ScoreFunction(baseline="leave_one_out", num_samples=2),
         "ScoreFunction(num_samples=2, baseline='leave_one_out')"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_rows_are_readable(estimator, row):
    assert vipp.explain(vipp.ELBO(), model, guided(estimator))["z"].estimator == row
