"""The order and grouping of contractions, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vipp_transforms as vt
from vipp_transforms.lane import MIXED, Apart

KEY = jax.random.key(0)
SCORE = vt.ScoreFunction()


def bernoulli(name, logits, estimator=SCORE):
    return vt.sample(KEY, dist.Bernoulli(logits=logits), estimator, name=name) * 1.0


def planned(fn):
    return vt.plan(lambda: (fn(), None))


def credited(plan):
    """Per step, the site and the sites that its merged term depends on."""
    return [(s.site.name, sorted(s.form.depends)) for s in plan.elimination.steps]


def test_each_site_is_credited_with_what_depends_on_it():
    def program():
        a = bernoulli("a", jnp.zeros(()))
        b = bernoulli("b", a)
        c = bernoulli("c", jnp.ones(()))
        return jnp.sin(a) + jnp.cos(b) + jnp.exp(c)

    # "b" hands its term on to "a", whose own term it joins
    assert credited(planned(program)) == [("c", [2]), ("b", [1]), ("a", [0])]


def test_terms_with_equal_dependence_are_merged():
    def program():
        a = bernoulli("a", jnp.zeros(3))
        return jnp.sin(a).sum() + jnp.prod(a) + jnp.cos(a) @ jnp.arange(3.0)

    plan = planned(program)
    lanes = {s.lanes for s in plan.elimination.steps}
    assert lanes == {(Apart(0),), (MIXED,)}
    assert plan.elimination.mixed(plan.elimination.steps[0].site) == (True,)


def test_lanes_apart_are_not_mixed():
    plan = planned(lambda: jnp.sin(bernoulli("a", jnp.zeros((3, 1, 2))).sum(2)).sum())
    site = plan.elimination.steps[0].site
    assert plan.elimination.mixed(site) == (False, False, True)


def test_a_density_that_mixes_lanes_mixes_them():
    def program():
        a = bernoulli("a", jnp.zeros(3))
        b = bernoulli("b", jnp.full(2, 1.0) * a.sum())
        return a.sum() + b.sum()

    plan = planned(program)
    a = next(s.site for s in plan.elimination.steps if s.site.name == "a")
    assert plan.elimination.mixed(a) == (True,)


def test_a_plate_under_a_plate_stays_apart():
    def program():
        a = bernoulli("a", jnp.zeros(3))
        b = bernoulli("b", jnp.zeros((3, 2)) + a[:, None])
        return (a[:, None] * b).sum()

    forms = {s.site.name: s.form for s in planned(program).elimination.steps}
    assert (forms["b"].shape, forms["b"].depends) == (
        (3, 2), {0: (Apart(0),), 1: (Apart(0), Apart(1))}
    )  # fmt: skip
    assert (forms["a"].shape, forms["a"].depends) == ((3,), {0: (Apart(0),)})


def chain(length, estimator):
    """Three states, each given the one before; and an emission at each."""

    def program(logits):
        z, total = 0, 0.0
        for t in range(length):
            d = dist.Categorical(logits=logits[z])
            z = vt.sample(jax.random.fold_in(KEY, t), d, estimator, name=f"z{t}")
            total = total + jnp.sin(z * 0.7 + t)
        return total, None

    return program


LOGITS = jnp.array([[0.1, -0.4, 0.8], [1.0, 0.2, -0.3], [0.0, 0.6, -1.0]])


def forward(length):
    """The same by dynamic programming."""
    transition = jax.nn.softmax(LOGITS)
    p, total = transition[0], 0.0
    for t in range(length):
        total += p @ jnp.sin(jnp.arange(3) * 0.7 + t)
        p = p @ transition
    return total


def flops(length):
    estimate = lambda x: vt.surrogate(chain(length, vt.Enumerate()))(x)[0]
    compiled = jax.jit(jax.value_and_grad(estimate)).lower(LOGITS).compile()
    analysis = compiled.cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]


def test_an_enumerated_chain_is_dynamic_programming():
    estimate = lambda x: vt.surrogate(chain(9, vt.Enumerate()))(x)[0]
    np.testing.assert_allclose(jax.jit(estimate)(LOGITS), forward(9), rtol=1e-5)
    for length in (8, 32):
        steps = vt.plan(chain(length, vt.Enumerate()), LOGITS).elimination.steps
        assert len(steps) == length
        assert max(len(s.form.depends) for s in steps) == 1


@pytest.mark.thorough
def test_a_chain_costs_in_proportion_to_its_length():
    assert flops(32) <= 5 * flops(8)


@pytest.mark.parametrize("estimator", [vt.ScoreFunction(2, "leave_one_out"), vt.Automatic()])
def test_a_chain_of_others_takes_one_step_each(estimator):
    steps = vt.plan(chain(12, estimator), LOGITS).elimination.steps
    assert [s.site.name for s in steps] == [f"z{t}" for t in reversed(range(12))]
