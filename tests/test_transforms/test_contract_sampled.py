"""The contract, sampled: for estimators with continuous randomness of their own.

Each row compares the mean over independent draws (fixed key) with the exact expectation, a sum over
a support or a grid, and fails when there are too few draws to see a bias of 5% (conftest.py).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vipp_transforms as vt
from contexts import (
    FAMILIES,
    between,
    downstream,
    grids,
    lanes,
    log_density_ratio,
    mixing,
    mixing_in_lanes,
    pair,
    particles,
    plate,
    plate_in_lanes,
    program,
    scaled,
    upstream,
)

THETA = np.array([0.3, 0.4, 0.7], np.float32)
EVENTS = ("multivariate-normal", "normal-event")
WIDE = (pair, lanes, plate_in_lanes, scaled, downstream, log_density_ratio)
REAL = (pair, lanes, particles, scaled, upstream)  # on grids: fewer lanes, clearer gradients
OTHERS = {
    "score": vt.ScoreFunction(),
    "score2-loo": vt.ScoreFunction(2, "leave_one_out"),
    "score2-antithetic": vt.ScoreFunction(2, antithetic=True),
    "enumerate": vt.Enumerate(),
}


def relax(size):
    """With a network that matters."""
    parameters = vt.RELAX(hidden=3).init(jax.random.key(5), size)
    out = jnp.array([0.5, -0.8, 0.3])
    return vt.RELAX(3, {**parameters, "out": out, "eta": jnp.float32(0.7)})


REBAR = vt.REBAR(temperature=jnp.float32(0.6), eta=jnp.float32(0.8))


SHARED = (("score2-loo", "score2-antithetic"), ("score2-antithetic", "score2-loo"))
BOTH = (("score", "enumerate"), ("enumerate", "score"))


class Row(NamedTuple):
    make: Any
    families: tuple[str, ...]  # the first in all contexts, the others in the first
    contexts: tuple[Any, ...]
    around: tuple[tuple[str, str], ...] = BOTH  # estimators upstream and downstream


CONTINUOUS = ("normal", "multivariate-normal", "affine-normal", "normal-event")
PULLED = ("normal", "gamma", "multivariate-normal", "log-normal", "normal-event")
ROWS = {
    "pathwise4": Row(vt.Pathwise(4), ("normal", "gamma"), (pair, lanes), ()),
    "pathwise4-antithetic": Row(vt.Pathwise(4, antithetic=True), CONTINUOUS, REAL),
    "pathwise2-antithetic": Row(vt.Pathwise(2, antithetic=True), ("normal",), (), SHARED),
    "pathwise8-quasi": Row(
        vt.Pathwise(8, quasi=True), ("normal", "multivariate-normal", "log-normal"),
        (pair, lanes, particles),
    ),
    "taylor": Row(vt.Pathwise(control_variate="taylor"), PULLED, REAL),
    "taylor3": Row(vt.Pathwise(3, control_variate="taylor"), ("normal",), (pair, lanes), ()),
    "score2-antithetic": Row(
        vt.ScoreFunction(2, antithetic=True),
        ("bernoulli-logits", "normal", "categorical-logits", "normal-event"),
        (pair, lanes, plate_in_lanes, downstream),
        (*BOTH, ("score2-loo", "score2-loo")),
    ),
    "score4-antithetic-loo": Row(
        vt.ScoreFunction(4, "leave_one_out", antithetic=True),
        ("normal", "bernoulli-logits", "categorical-logits"), (pair, particles), (),
    ),
    "score2-loo": Row(
        vt.ScoreFunction(2, "leave_one_out"), ("normal",), (),
        (("score2-antithetic", "score2-antithetic"),),
    ),
    "measure": Row(
        vt.MeasureValued(), ("normal", "poisson", "exponential", "gamma", "normal-event"), REAL
    ),
    "measure-shape": Row(vt.MeasureValued(), ("gamma-shape", "weibull"), (scaled,), ()),
    "arms": Row(vt.ARMS(3), ("bernoulli-logits", "bernoulli-probs"), (*WIDE, mixing)),
    "rebar": Row(REBAR, ("bernoulli-relaxed", "bernoulli-probs", "one-hot"), (*WIDE, mixing)),
    "relax1": Row(relax(1), ("bernoulli-relaxed",), (pair, lanes, log_density_ratio)),
    "relax3": Row(relax(3), ("one-hot",), (lanes,), ()),
    "relax3-mixed": Row(relax(3), ("bernoulli-logits",), (mixing, plate), ()),
    "relax2-mixed": Row(relax(2), ("bernoulli-logits",), (mixing_in_lanes,), ()),
    "mix-score-disarm": Row(
        vt.Mix(vt.ScoreFunction(), vt.DisARM(), 0.4), ("bernoulli-logits",), (pair, lanes)
    ),
    "mix-disarm-score": Row(
        vt.Mix(vt.DisARM(), vt.ScoreFunction(), jnp.float32(0.4)), ("bernoulli-logits",), (pair,)
    ),
    "mix-enumerate-score3": Row(
        vt.Mix(vt.Enumerate(), vt.ScoreFunction(3), 0.4), ("bernoulli-logits",), (pair,)
    ),
    "mix-rebar-score": Row(
        vt.Mix(REBAR, vt.ScoreFunction(), 0.6), ("bernoulli-logits",), (pair, lanes),
        (("score", "score"),),
    ),
    "mix-antithetic-taylor": Row(
        vt.Mix(vt.Pathwise(2, antithetic=True), vt.Pathwise(control_variate="taylor"), 0.4),
        ("normal",), (pair,), (),
    ),
    "mix-nested": Row(
        vt.Mix(vt.Mix(vt.DisARM(), REBAR, 0.5), vt.ScoreFunction(2, "leave_one_out"), 0.7),
        ("bernoulli-logits",), (pair,), (("enumerate", "enumerate"),),
    ),
}  # fmt: skip


def cases():
    for name, row in ROWS.items():
        first, *others = row.families
        yield from ((context, first, name, None) for context in row.contexts)
        yield from ((row.contexts[0], family, name, None) for family in others)
        yield from ((between, first, name, around) for around in row.around)


def label(case):
    context, family, name, around = case
    return "-".join([context.__name__, family, name, *(around or ())])


ALLOW = pytest.mark.rank_promotion("allow")  # what NumPyro does with events
CASES = [pytest.param(c, marks=[ALLOW] if c[1] in EVENTS else [], id=label(c)) for c in cases()]


@pytest.mark.few(6)
@pytest.mark.parametrize("case", CASES)
def test_estimator_is_unbiased(exact, case):
    context, family, name, around = case
    estimators = {site: OTHERS[other] for site, other in zip("ab", around or ())}
    exact.check_sampled(
        program(context, family),
        jnp.asarray(THETA),
        estimators,
        ROWS[name].make,
        grids(exact, family),
    )


BINARY = [
    name for name, row in ROWS.items()
    if row.families[0].startswith("bernoulli") and not name.startswith("relax")  # of one size
]  # fmt: skip


@pytest.mark.parametrize("family", ["bernoulli-floats", "bernoulli-bytes"])
@pytest.mark.parametrize("name", BINARY)
def test_values_have_the_dtype_of_the_draws(exact, name, family):
    fn = exact.staged(program(pair, family), default=ROWS[name].make)
    value, _ = jax.eval_shape(vt.surrogate(fn), jnp.asarray(THETA))
    assert value.dtype == jnp.float32


def test_the_check_sees_a_bias_of_five_percent(exact):
    def draws(factor):
        fn = program(pair, "bernoulli-logits")
        want = exact.expectation(fn, jnp.asarray(THETA))
        value, grad = exact.estimates(fn, jnp.asarray(THETA), {}, vt.DisARM())(0)
        exact.check_mean(factor * value, want.value)
        exact.check_mean(factor * grad, want.grad)

    draws(1.0)
    with pytest.raises(AssertionError):
        draws(1.05)


def test_every_row_is_used():
    used = {*cases()}
    assert len(used) == len(CASES) > 75
    assert {family for row in ROWS.values() for family in row.families} <= {*FAMILIES}
