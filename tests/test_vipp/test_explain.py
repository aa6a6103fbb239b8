"""The table of what was derived."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import vipp

X = jnp.array([0.3, -1.2, 2.0])


def model(x):
    m = numpyro.sample("m", dist.Normal(0.0, 2.0))
    with numpyro.plate("N", len(x)):
        k = numpyro.sample("k", dist.Categorical(jnp.ones(3) / 3))
        n = numpyro.sample("n", dist.Poisson(2.0))
        numpyro.sample("x", dist.Normal(m + k + n, 1.0), obs=x)
    numpyro.factor("f", jnp.sin(k.sum()))


def guide(x):
    numpyro.sample("m", dist.Normal(numpyro.param("m_loc", 0.0), 1.0))
    with numpyro.plate("N", len(x)):
        numpyro.sample("k", dist.Categorical(logits=jnp.zeros((len(x), 3))))
        numpyro.sample("n", dist.Poisson(numpyro.param("rate", 1.5)))


def explained(objective=None, **estimators):
    chosen = vipp.with_estimators(guide, estimators)
    return vipp.explain(objective or vipp.ELBO(), model, chosen, X)


def test_defaults_and_their_reasons():
    table = explained()
    assert [row.site for row in table.rows] == ["m", "k", "n"]
    assert (table["m"].estimator, table["m"].reason) == ("Pathwise", "reparameterisable")
    assert "no finite support" in table["n"].reason
    assert "leave_one_out" in table["n"].estimator
    # 27 joint values of the mixed lanes are more than the default enumerates
    assert "3^3" in table["k"].reason and "FittedControl" in table["k"].estimator


def test_what_was_asked_for():
    table = explained(k=vipp.Enumerate(), n=vipp.ScoreFunction())
    row = table["k"]
    assert (row.estimator, row.reason, row.evaluations) == ("Enumerate", "asked for", 27)
    assert row.lanes == "3*" and int(row.terms) >= 1
    assert table["n"].lanes == "3" and table["n"].evaluations == 1


def test_lanes_of_particles():
    table = explained(vipp.IWAE(num_particles=5, per_plate=None), k=vipp.ScoreFunction())
    assert table["k"].lanes == "5*x3*"


def test_prints_every_site_in_columns():
    lines = str(explained(k=vipp.LocalExpectation())).splitlines()
    assert lines[0] == "ELBO()"
    assert [line.split()[0] for line in lines[3:-1]] == ["m", "k", "n"]
    assert lines[-1].startswith("packed: nothing (")
    assert "LocalExpectation" in lines[4]


def test_shows_as_html():
    assert "<td>Pathwise</td>" in explained()._repr_html_()


def test_an_unknown_site():
    with pytest.raises(KeyError, match="no site 'q'"):
        explained()["q"]


def test_raises_what_would_be_raised_in_training():
    with pytest.raises(vipp.SiteError, match="'n'.*finite support.*Fix"):
        explained(n=vipp.Enumerate())


def coins():
    with numpyro.plate("N", 3):
        c = numpyro.sample("c", dist.Categorical(jnp.ones(2) / 2))
        d = numpyro.sample("d", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(c + d, 1.0), obs=X)


def test_what_is_summed_out_and_in_which_order():
    table = vipp.explain(vipp.ELBO(), vipp.marginal(coins, keep=[], exact=True), lambda: None)
    assert table.rows == ()
    assert [(s.site, s.entries) for s in table.sums] == [("c", 12), ("d", 6)]
    assert "c x N x d" in str(table) and "c x N x d" in table._repr_html_()


def test_sites_whose_gradient_is_the_objectives_own():
    row = vipp.explain(vipp.VIMCO(num_particles=2), coins, coins_guide)["c"]
    assert (row.estimator, row.reason) == ("VIMCO's own", "drawn as a constant")


def coins_guide():
    with numpyro.plate("N", 3):
        numpyro.sample("c", dist.Categorical(jnp.ones(2) / 2))
        numpyro.sample("d", dist.Bernoulli(0.5))


def test_steps_that_are_alike_are_one_row():
    def chain():
        step = lambda c, _: (numpyro.sample("z", dist.Bernoulli(0.3 + 0.4 * c)), None)
        scan(step, jnp.array(0), None, length=5)

    table = vipp.explain(
        vipp.ELBO(), chain, vipp.with_estimators(chain, {"z": vipp.MeasureValued()})
    )
    assert len(table.rows) == 5 and table["z[3]"].evaluations == 3
    assert sum(line.startswith("z[") for line in str(table).splitlines()) < 5


def test_loops_that_are_distributed():
    """Of a walk only what waits for the step before stays in the loop; of the likelihood nothing."""
    y = jnp.linspace(-1.0, 1.0, 20)

    def walk(y):
        def step(z, x):
            z = numpyro.sample("z", dist.Normal(0.9 * z, 1.0))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=x)
            return z, None

        scan(step, jnp.array(0.0), y)

    def guide(y):
        slope = numpyro.param("slope", 0.3)
        step = lambda z, x: (numpyro.sample("z", dist.Normal(slope * z + x, 1.0)), None)
        scan(step, jnp.array(0.0), y)

    table = vipp.explain(vipp.ELBO(), walk, guide, y)
    recurrence, likelihood = table.loops
    assert recurrence.steps == likelihood.steps == 20
    assert 0 < recurrence.inside < recurrence.before and likelihood.inside == 0
    assert f"loop of 20 steps: {recurrence.inside} operations step by step" in str(table)
    assert "loop of 20 steps: no loop is left" in str(table)
    assert vipp.explain(vipp.ELBO(), coins, coins_guide).loops == ()


def test_what_is_packed():
    """Sites of one family are one group: its size is their number."""

    def many():
        for i in range(15):
            numpyro.sample(f"z{i}", dist.Normal(0.1 * i, 1.0))

    def mean_field():
        for i in range(15):
            scale = numpyro.param(f"s{i}", 1.0, constraint=dist.constraints.positive)
            numpyro.sample(f"z{i}", dist.Normal(numpyro.param(f"m{i}", 0.0), scale))

    table = vipp.explain(vipp.ELBO(), many, mean_field)
    report = table.packed
    assert report.equations > 500 > report.after and ("erf_inv", 15) in report.groups
    assert f"as {report.after}" in str(table)
