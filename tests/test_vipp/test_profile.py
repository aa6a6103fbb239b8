"""Profiles of estimators: variances against enumeration, and what is found with them."""

import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import vipp
from vipp.diagnostics import measurements
from vipp.diagnostics.guide_choices import look
from vipp.diagnostics.measurements import Estimate
from vipp.diagnostics.predicted import Group, Option, ranked
from vipp.diagnostics.profile_result import ProfileRow
from vipp.diagnostics.redraw import under_numbers

SCORE, PAIR = vipp.ScoreFunction(), vipp.ScoreFunction(2, "leave_one_out")
SITES, SLOPES = "abc", np.array([0.5, 3.0, 1.5])
PARAMS = {"t": jnp.array([0.4, -0.7, 0.9])}


def separate():
    for i, name in enumerate(SITES):
        z = numpyro.sample(name, dist.Bernoulli(0.5))
        numpyro.factor("f" + name, SLOPES[i] * (z - 0.3) ** 2 + 2.0)


def joint():
    a, b, _ = (numpyro.sample(name, dist.Bernoulli(0.5)) for name in SITES)
    numpyro.factor("f", 3.0 * a * b)


def guide():
    t = numpyro.param("t", jnp.zeros(3))
    for i, name in enumerate(SITES):
        numpyro.sample(name, dist.Bernoulli(logits=t[i]))


def within(estimate, exact, errors=4.0):
    """Whether an estimate is what it should be, and precise enough to say so."""
    assert estimate.error < 0.35 * exact
    assert abs(estimate.value - exact) < errors * estimate.error, (estimate, exact)


class Site:
    """Value and score of each of the two outcomes of one site of ``separate``."""

    def __init__(self, i):
        self.p = 1 / (1 + np.exp(-float(PARAMS["t"][i])))
        self.probs = np.array([1 - self.p, self.p])
        z = np.arange(2)
        self.cost = SLOPES[i] * (z - 0.3) ** 2 + 2.0 + np.log(0.5) - np.log(self.probs)
        self.score = z - self.p

    def variance(self, gradient, count):
        """Of ``gradient(*outcomes)``, by enumeration."""
        outcomes = list(itertools.product(range(2), repeat=count))
        probs = np.array([np.prod(self.probs[list(o)]) for o in outcomes])
        values = np.array([gradient(*o) for o in outcomes])
        return probs @ values**2 - (probs @ values) ** 2

    @property
    def of_one(self):
        return self.variance(lambda z: (self.cost[z] - 1) * self.score[z], 1)

    @property
    def of_pair(self):
        def gradient(x, y):
            difference = self.cost[x] - self.cost[y]
            return 0.5 * (difference * (self.score[x] - self.score[y])) - 0.5 * (
                self.score[x] + self.score[y]
            )

        return self.variance(gradient, 2)


@pytest.fixture(scope="module")
def found():
    chosen = vipp.with_estimators(guide, dict.fromkeys("ab", SCORE))
    options = {"a": [PAIR], "b": [PAIR, vipp.Enumerate()], "c": [SCORE, vipp.StraightThrough()]}
    several = [vipp.ELBO(), vipp.ELBO(num_particles=2)]
    # that all are drawn equally often, whatever time they take
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(measurements, "FAR_WORSE", np.inf)
    monkeypatch.setattr(measurements, "FAR_SLOWER", np.inf)
    monkeypatch.setattr(measurements, "BEATEN_BY", np.inf)
    yield vipp.profile(several, separate, chosen, PARAMS, candidates=options, num_draws=1024)
    monkeypatch.undo()


def row_of(found, site, estimator):
    (row,) = [r for r in found.rows if r.site == site and r.estimators[site] == estimator]
    return row


def test_variances_are_those_of_enumeration(found):
    a, b, c = map(Site, range(3))
    present = a.of_one + b.of_one  # c is enumerated
    for site, estimator, exact, rest in (
        ("a", SCORE, a.of_one, b.of_one),
        ("a", PAIR, a.of_pair, b.of_one),
        ("b", SCORE, b.of_one, a.of_one),
        ("b", PAIR, b.of_pair, a.of_one),
        ("c", SCORE, c.of_one, present),
    ):
        row = row_of(found, site, estimator)
        within(row.own, exact)
        within(row.variance, exact + rest)
        assert row.bias is None and row.draws >= 1024 and row.seconds.value > 0
    assert row_of(found, "b", vipp.Enumerate()).own == Estimate(0.0, 0.0)
    assert row_of(found, "c", vipp.Enumerate()).own == Estimate(0.0, 0.0)


def test_combinations_are_predicted_and_measured(found):
    exact = {repr(SCORE): "of_one", repr(PAIR): "of_pair"}
    assert len(found.combinations) >= 3
    for row in found.combinations[1:]:
        known = [(Site(i), row.estimators[n]) for i, n in enumerate(SITES)]
        sure = [e for _, e in known if isinstance(e, vipp.Enumerate)]
        total = sum(getattr(s, exact[repr(e)]) for s, e in known if e not in sure)
        within(row.variance, total)
        np.testing.assert_allclose(row.predicted, total, rtol=0.2)
    best, row = found.best(), found.best_row()
    assert row.given == best and row.product.value < found.present.product.value
    vipp.explain(vipp.ELBO(), separate, vipp.with_estimators(guide, best), params=PARAMS)


def test_bias_is_measured(found):
    row = row_of(found, "c", vipp.StraightThrough())
    site, slope = Site(2), SLOPES[2]
    odds = float(PARAMS["t"][2])
    # the derivative of the site's terms in its value, taken at the draw, times that of the mean
    slopes = slope * 2 * (np.arange(2) - 0.3) - odds
    biased = site.p * (1 - site.p) * (site.probs @ slopes)
    exact = site.probs @ (site.cost * site.score)
    assert abs(row.bias.value - abs(biased - exact)) < 4 * row.bias.error + 0.02
    assert found.best() != row.given and found.best_row().bias is None


def test_other_objectives(found):
    (row,) = found.objectives
    assert row.objective == vipp.ELBO(num_particles=2)
    within(row.variance, found.best_row().variance.value / 2, errors=6.0)
    assert row.bias.value < 5 * row.bias.error


def test_best():
    """Of what was measured together, unless it is within the error; biased ones if asked for."""

    def row(estimator, variance, seconds=1.0, bias=None):
        given = {"z": estimator}
        bias = None if bias is None else Estimate(bias, 0.0)
        return ProfileRow(given, given, "z", vipp.ELBO(), Estimate(variance, 0.1 * variance), None,
                          bias, Estimate(seconds, 0.1 * seconds), 64)  # fmt: skip

    def best(*rows, biased=False):
        unbiased = tuple(r for r in rows if r.bias is None)
        found = vipp.Profile(vipp.ELBO(), rows, unbiased, (), {}, {}, (), 0.0, 0.0)
        return found.best(biased=biased)["z"]

    now, pair, relaxed = row(SCORE, 4.0), row(PAIR, 1.0, 2.0), row(vipp.ReinMax(), 0.1, bias=0.5)
    assert best(now, pair, relaxed) == PAIR
    assert best(now, row(PAIR, 1.9, 2.0), relaxed) == SCORE
    assert best(now, pair, relaxed, biased=True) == vipp.ReinMax()
    assert best(now, pair, row(vipp.ReinMax(), 0.1, bias=2.0), biased=True) == PAIR
    assert best(row(SCORE, 0.0), row(PAIR, 0.0, 0.5)) == PAIR
    assert best(row(SCORE, 0.0), row(PAIR, 0.0, 0.9)) == SCORE


def test_report(found):
    text = str(found)
    assert text == found.table() == repr(found)
    for word in ("ScoreFunction (now)", "b: Enumerate", "(measured)", "the best", "combinations:"):
        assert word in text, word
    assert "<table>" in found._repr_html_()
    ax = found.plot()
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert "a: ScoreFunction" in labels and any("(best)" in label for label in labels)
    assert found.plot(ax) is ax
    plt.close("all")


def test_sites_that_meet_are_told_apart():
    together = look(vipp.ELBO(), joint, guide, PARAMS, (), {})
    assert together.groups == (("a", "b"), ("c",)) and together.apart and not together.elsewhere
    apart = look(vipp.ELBO(), separate, guide, PARAMS, (), {})
    assert apart.groups == (("a",), ("b",), ("c",))


def test_elsewhere():
    def part(x):
        with numpyro.plate("rows", 3, subsample_size=2):
            numpyro.sample("z", dist.Bernoulli(numpyro.param("p", 0.5)))

    def noisy():
        numpyro.sample("z", dist.Normal(numpyro.param("p", 0.5), 1.0))
        jax.random.normal(numpyro.prng_key())

    params = {"p": 0.5}
    assert look(vipp.ELBO(), part, part, params, (None,), {}).elsewhere
    assert look(vipp.ELBO(), noisy, noisy, params, (), {}).elsewhere


def test_nothing_is_traced_while_gradients_are_drawn(monkeypatch):
    """Compiling how keys are made would take longer than a small program's gradients."""
    measure = measurements.Measurements.measure

    def watched(self, *args, **kwargs):
        jax.clear_caches()
        with jax.no_tracing():
            measure(self, *args, **kwargs)

    monkeypatch.setattr(measurements.Measurements, "measure", watched)
    found = vipp.profile(vipp.ELBO(), separate, guide, PARAMS, candidates={"a": [SCORE]})
    assert found.rows[1].draws >= 64


def test_without_time():
    found = vipp.profile(vipp.ELBO(), separate, guide, PARAMS, candidates={"a": [SCORE]},
                         seconds=1e-3, num_draws=32)  # fmt: skip
    assert found.not_measured["a"] == ((SCORE, "no time left"),)
    assert found.best() == dict.fromkeys("abc", vipp.Enumerate())
    assert "Not measured at 'a', as no time left: ScoreFunction." in str(found)
    assert "as the present one has no variance: LocalExpectation" in str(found)


def test_an_estimator_with_state_stays_as_it_is():
    program = vipp.with_estimators(guide, {"b": vipp.ScoreFunction(baseline=vipp.MovingAverage())})
    leave = {"a": [], "b": [SCORE], "c": []}
    found = vipp.profile(vipp.ELBO(), separate, program, PARAMS, candidates=leave, num_draws=32)
    now, alone = found.rows
    assert "b" not in now.given and alone.given["b"] == SCORE
    # the average is nought at its start
    np.testing.assert_allclose(now.variance.value, alone.variance.value, rtol=1e-3)
    assert found.best_row() in found.combinations


def test_a_biased_estimator_is_no_reference():
    program = vipp.with_estimators(guide, {"c": vipp.StraightThrough()})
    found = vipp.profile(vipp.ELBO(), separate, program, PARAMS,
                         candidates={"a": [], "b": [], "c": []}, num_draws=32)  # fmt: skip
    first, biased = found.rows
    assert first.bias is None and biased.bias.value > 0
    assert found.best()["c"] == vipp.Enumerate()
    assert "'c' has StraightThrough, which is biased: now stands for Enumerate(" in str(found)


def test_what_the_objective_draws_itself():
    found = vipp.profile(vipp.ForwardKL(num_particles=4), separate, guide, PARAMS, num_draws=32)
    assert found.rows == () and found.best() == {}
    assert "Drawn by the objective without a gradient: a, b, c." in str(found)


@pytest.mark.thorough
def test_loop():
    def chain(start):
        step = lambda c, _: (c, numpyro.sample("z", dist.Bernoulli(logits=c)))
        scan(step, start, None, 5)

    program = lambda: chain(numpyro.param("t", 0.3))
    found = vipp.profile(
        vipp.ELBO(), lambda: chain(1.0), program, {"t": 0.3}, candidates={"z": [SCORE]}
    )
    pair, alone = found.rows
    assert alone.own.value > pair.own.value > 0 and pair.given == {}


def test_a_site_alone_is_drawn_anew():
    def program():
        numpyro.sample("x", dist.Normal())
        scan(lambda c, _: (c, numpyro.sample("y", dist.Normal())), 0.0, None, 4)
        numpyro.sample("z", dist.Normal().expand([3]))

    def draw(**numbers):
        under = under_numbers(program, {"x": 0, "y": 0, "z": 0, **numbers})
        seeded = numpyro.handlers.seed(under, 0)
        met = numpyro.handlers.trace(seeded).get_trace()
        return {n: np.asarray(met[n]["value"]) for n in "xyz"}

    first = draw()
    for name in "xyz":
        again = draw(**{name: 1})
        assert {n for n in "xyz" if not (again[n] == first[n]).any()} == {name}


def test_prediction():
    """Groups add up, and of sites that meet the variance stays within Efron and Stein's bounds."""
    apart = Group({"a": [Option(0, 5.0, 0.0), Option(1, 1.0, 1.0)]}, 5.0)
    options = {n: [Option(0, 4.0, 0.0), Option(1, 0.0, x)] for n, x in [("b", 0.5), ("c", 0.75)]}
    first, *rest = ranked([apart, Group(options, 6.0)], elsewhere=0.5, seconds=2.0)
    assert first.numbers == {"a": 1, "b": 1, "c": 1}
    assert first.variance == 1.0 + 0.0 + 0.5 and first.seconds == 4.25
    by = {tuple(p.numbers.values()): p.variance for p in [first, *rest]}
    assert by[0, 0, 0] == 5.0 + 6.0 + 0.5  # the present one as it was measured
    assert by[0, 1, 0] == 5.0 + 4.0 + 0.5  # not 2: what c contributes stays


ERRORS = {
    "site": (
        {"candidates": {"aa": [SCORE]}},
        ValueError,
        r"'aa', which is no latent site .*\['a', 'b', 'c'\].*did you mean 'a'.*Fix",
    ),
    "no list": ({"candidates": {"a": SCORE}}, TypeError, r"candidates\['a'\] must be a list.*Fix"),
    "class": ({"candidates": {"a": [vipp.DisARM]}}, TypeError, r"candidates\['a'\] has.*Fix"),
    "not admissible": (
        {"candidates": {"n": [vipp.Enumerate()]}},
        vipp.SiteError,
        r"Site 'n': Enumerate needs a finite support.*Fix",
    ),
    "misspelt": ({"params": {**PARAMS, "tt": 2.0}}, ValueError, r"'tt'.*\['t'\].*mean 't'.*Fix"),
    "missing": ({"params": {}}, ValueError, r"no value for 't', expected.*\['t'\], got \[\].*Fix"),
    "not finite": ({"params": {"t": jnp.full(3, jnp.nan)}}, ValueError, "'t' is not finite.*Fix"),
    "whole numbers": ({"params": {"t": jnp.zeros(3, int)}}, ValueError, "real numbers.*Fix"),
    "objective": ({"objective": vipp.ELBO}, TypeError, "expected an objective.*Fix"),
    "no objective": ({"objective": []}, ValueError, "got no objective.*Fix"),
    "draws": ({"num_draws": 8}, ValueError, "num_draws must be at least 32, got 8"),
    "seconds": ({"seconds": 0}, ValueError, "seconds must be positive or None, got 0"),
    "composed": ({"guide": vipp.marginal(guide, ["a"])}, TypeError, r"marginal\(...\).*Fix"),
    "own": (
        {"objective": vipp.ForwardKL(), "candidates": {"a": [SCORE]}},
        ValueError,
        "'a', which the objective draws without a gradient.*Fix",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    given, error, match = ERRORS[case]

    def counted():
        guide()
        if case == "not admissible":
            numpyro.sample("n", dist.Poisson(jnp.exp(numpyro.param("t", 0.0)[0])))

    given = {"objective": vipp.ELBO(), "params": PARAMS, "guide": counted, **given}
    model = counted if case in ("not admissible", "own") else separate
    with pytest.raises(error, match=match):
        vipp.profile(
            given.pop("objective"), model, given.pop("guide"), given.pop("params"), **given
        )
