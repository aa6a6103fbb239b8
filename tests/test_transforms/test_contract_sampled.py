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
    after,
    before,
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
SCORES = {
    "score": vt.ScoreFunction(),
    "score2-loo": vt.ScoreFunction(2, "leave_one_out"),
    "score2-antithetic": vt.ScoreFunction(2, antithetic=True),
    "enumerate": vt.Enumerate(),
}


def relax(size):
    """With a network that matters."""
    parameters = vt.Relax(hidden=3).init(jax.random.key(5), size)
    out = jnp.array([0.5, -0.8, 0.3])
    return vt.Relax(3, {**parameters, "out": out, "eta": jnp.float32(0.7)})


REBAR = vt.Rebar(temperature=jnp.float32(0.6), eta=jnp.float32(0.8))


class Row(NamedTuple):
    make: Any
    families: tuple[str, ...]  # the first in all contexts, the others in the first
    contexts: tuple[Any, ...]
    partners: tuple[str, ...] = ("score", "enumerate")


CONTINUOUS = ("normal", "multivariate-normal", "log-normal", "affine-normal", "normal-event")
PULLED = ("normal", "gamma", "multivariate-normal", "log-normal", "normal-event")
ROWS = {
    "pathwise4": Row(vt.Pathwise(4), (*CONTINUOUS, "gamma"), (pair, lanes, scaled), ()),
    "pathwise4-antithetic": Row(vt.Pathwise(4, antithetic=True), CONTINUOUS, REAL),
    "pathwise2-antithetic": Row(
        vt.Pathwise(2, antithetic=True), ("normal",), (), ("score2-loo", "score2-antithetic")
    ),
    "pathwise8-quasi": Row(
        vt.Pathwise(8, quasi=True), CONTINUOUS, (pair, lanes, particles)
    ),
    "taylor": Row(vt.Pathwise(control_variate="taylor"), PULLED, REAL),
    "taylor3": Row(vt.Pathwise(3, control_variate="taylor"), ("normal",), (pair, lanes), ()),
    "score2-antithetic": Row(
        vt.ScoreFunction(2, antithetic=True),
        ("bernoulli-logits", "normal", "categorical-logits", "normal-event"),
        WIDE, ("score", "enumerate", "score2-loo"),
    ),
    "score4-antithetic-loo": Row(
        vt.ScoreFunction(4, "leave_one_out", antithetic=True),
        ("normal", "bernoulli-logits", "categorical-logits"), (pair, particles), (),
    ),
    "score2-loo": Row(
        vt.ScoreFunction(2, "leave_one_out"), ("normal",), (), ("score2-antithetic",)
    ),
    "measure": Row(
        vt.MeasureValued(), ("normal", "poisson", "exponential", "gamma", "normal-event"), REAL
    ),
    "measure-shape": Row(vt.MeasureValued(), ("gamma-shape", "weibull"), (scaled,), ()),
    "rebar": Row(REBAR, ("bernoulli-relaxed", "bernoulli-probs", "one-hot"), (*WIDE, mixing)),
    "relax1": Row(relax(1), ("bernoulli-relaxed",), WIDE),
    "relax3": Row(relax(3), ("one-hot",), (lanes,), ()),
    "relax3-mixed": Row(relax(3), ("bernoulli-logits",), (mixing, plate), ()),
    "relax2-mixed": Row(relax(2), ("bernoulli-logits",), (mixing_in_lanes, before), ()),
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
        vt.Mix(REBAR, vt.ScoreFunction(), 0.6), ("bernoulli-logits",), (pair, lanes), ("score",)
    ),
    "mix-nested": Row(
        vt.Mix(vt.Mix(vt.DisARM(), REBAR, 0.5), vt.ScoreFunction(2, "leave_one_out"), 0.7),
        ("bernoulli-logits",), (pair,), ("enumerate",),
    ),
}  # fmt: skip


def cases():
    for name, row in ROWS.items():
        first, *others = row.families
        yield from ((context, first, name, None) for context in row.contexts)
        yield from ((row.contexts[0], family, name, None) for family in others)
        yield from ((c, first, name, p) for p in row.partners for c in (after, before))


def label(case):
    context, *names = case
    return "-".join([context.__name__, *(n for n in names if n)])


ALLOW = pytest.mark.rank_promotion("allow")  # what NumPyro does with events
CASES = [pytest.param(c, marks=[ALLOW] if c[1] in EVENTS else [], id=label(c)) for c in cases()]


@pytest.mark.parametrize("case", CASES)
def test_estimator_is_unbiased(exact, case):
    context, family, name, partner = case
    row = ROWS[name]
    estimators = {"a": SCORES[partner]} if partner else None
    exact.check_sampled(
        program(context, family),
        jnp.asarray(THETA),
        estimators,
        row.make,
        grids(exact, family),
    )


def test_every_row_is_used():
    used = {*cases()}
    assert len(used) == len(CASES) > 90
    assert {family for row in ROWS.values() for family in row.families} <= {*FAMILIES}
