"""The contract of an estimator: exact in expectation, in value and every derivative it claims.

A new estimator joins by one row of `ESTIMATORS`, a new distribution by one row of `FAMILIES`, a new
surrounding by one row of `CONTEXTS` (support/contexts.py); each inherits everything that the others
must satisfy. No sampling: the estimate is averaged over all of its draws (see conftest.py). What
can't be averaged so (what has continuous randomness besides a discrete draw) has its rows in
test_contract_sampled.py; the biased ones have theirs in test_biased.py.
"""

import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

import vipp_transforms as vt
from contexts import (
    CONTEXTS,
    FAMILIES,
    SITES,
    Family,
    after,
    before,
    grids,
    lanes,
    log_density_ratio,
    pair,
    plate,
    plate_in_lanes,
    program,
    quadratic,
    quadratic_after,
    scalar,
    self_normalised,
    upstream,
)


class Estimator(NamedTuple):
    make: Any
    draws: int  # per lane and per value of what is upstream
    admits: Callable[[str, Family], bool] = lambda name, family: True
    contexts: tuple[Any, ...] = (pair, *CONTEXTS)
    values: int | None = None  # of one draw, if not those of the family
    expands: int = 1  # values that what is downstream sees of two lanes

    @property
    def orders(self):
        return 2 if self.make.traits.orders is None else self.make.traits.orders


def finite(name, family):
    return family.finite


def binary(name, family):
    return name.startswith("bernoulli")


def pointwise(name, family):
    """By the class of the distribution."""
    return name.startswith(("bernoulli", "categorical")) and "zero" not in name


def simple(name, family):
    return name in ("bernoulli-logits-zero", "normal", "categorical-logits")


def moments(name, family):
    return name != "von-mises" and (not family.finite or name.startswith(("bernoulli", "one-hot")))


def both(name, family):
    return finite(name, family) and simple(name, family)


FEW = (scalar, pair, lanes, self_normalised, log_density_ratio)
LAST = (pair, plate_in_lanes, upstream)  # the last batch axis has two lanes
NESTED = vt.Mix(vt.Mix(vt.Enumerate(), vt.ScoreFunction(), 0.3), vt.LocalExpectation(), 0.6)
NUMBER, NUMBERS = jnp.float32(0.7), jnp.array([0.9, -0.4], jnp.float32)

ESTIMATORS = {
    "score": Estimator(vt.ScoreFunction(), 1),
    "score3": Estimator(vt.ScoreFunction(3), 3, expands=3),
    "score2-loo": Estimator(vt.ScoreFunction(2, "leave_one_out"), 2, expands=2),
    "score3-loo": Estimator(vt.ScoreFunction(3, "leave_one_out"), 3, expands=3),
    "score-number": Estimator(vt.ScoreFunction(baseline=NUMBER), 1, simple),
    "score2-numbers": Estimator(vt.ScoreFunction(2, NUMBERS), 2, simple, LAST, expands=2),
    "score-learned": Estimator(vt.ScoreFunction(baseline=vt.Learned(NUMBERS)), 1, simple, LAST),
    "score2-optimal": Estimator(
        vt.ScoreFunction(2, NUMBER, coefficient="optimal"), 2, simple, FEW, expands=2
    ),
    "score3-optimal": Estimator(
        vt.ScoreFunction(3, NUMBERS, coefficient="optimal"), 3, simple, LAST, expands=3
    ),
    "double2": Estimator(vt.DoubleControlVariates(2), 2, finite, expands=2),
    "double3": Estimator(vt.DoubleControlVariates(3), 3, finite, FEW, expands=3),
    "fitted3": Estimator(vt.FittedControlVariates(3), 3, finite, expands=3),
    "fitted3-first": Estimator(
        vt.FittedControlVariates(3, differentiate="first"), 3, finite, expands=3
    ),
    "score2-first": Estimator(
        vt.ScoreFunction(2, "leave_one_out", differentiate="first"), 2, expands=2
    ),
    "enumerate": Estimator(vt.Enumerate(), 0, finite, expands=4),
    "automatic": Estimator(vt.Automatic(max_samples=2), 2, expands=2),
    "local": Estimator(vt.LocalExpectation(), 1, finite, expands=4),
    "measure": Estimator(vt.MeasureValued(), 1, pointwise, expands=5),
    "arm": Estimator(vt.ARM(), 1, binary, FEW, values=6, expands=2),
    "disarm": Estimator(vt.DisARM(), 1, binary, values=6, expands=2),
    "analytic": Estimator(vt.Analytic(), 0, moments, (quadratic,)),
    "mix": Estimator(vt.Mix(vt.Enumerate(), vt.ScoreFunction(), NUMBER), 1, both, FEW, expands=5),
    "mix-nested": Estimator(NESTED, 1, both, FEW, expands=9),
}  # fmt: skip
PARTNERS = {  # and their draws, and the values that what is downstream sees
    "score": (vt.ScoreFunction(), 1, 1),
    "score2-loo": (vt.ScoreFunction(2, "leave_one_out"), 2, 2),
    "enumerate": (vt.Enumerate(), 0, 2),
}
IN_MIXTURES = ("score", "score3", "score2-loo", "score3-loo", "enumerate", "automatic", "analytic")
LIMIT = 40_000  # joint assignments of one case; at least one estimator of each kind stays below


def cases():
    for context, family in [
        *((pair, f) for f in FAMILIES),
        *((scalar, f) for f in FAMILIES if not FAMILIES[f].finite),  # with more samples than pairs
        *((c, "bernoulli-logits-zero") for c in CONTEXTS),
        *((c, "bernoulli-logits") for c in CONTEXTS),
        (plate, "categorical-logits"),
        (log_density_ratio, "binomial-probs"),
    ]:
        for estimator, row in ESTIMATORS.items():
            size = (row.values or FAMILIES[family].size) ** (row.draws * SITES.get(context, 3))
            fits = row.admits(family, FAMILIES[family]) and context in row.contexts
            if context is not pair and family == "bernoulli-logits":
                fits = row.admits is pointwise and context in row.contexts
            if fits and size <= LIMIT:
                yield context, family, estimator, None
    for family in filter(lambda f: moments(f, FAMILIES[f]), FAMILIES):
        yield quadratic, family, "analytic", None
    yield quadratic_after, "normal", "analytic", "score"
    for partner in PARTNERS:
        yield quadratic_after, "bernoulli-logits", "analytic", partner
    for estimator, row in ESTIMATORS.items():
        if estimator in IN_MIXTURES:
            continue
        for partner, (_, draws, values) in PARTNERS.items():
            if partner == "score2-loo" and row.draws < 2:
                continue  # no trajectories to share
            own = (row.values or 2) ** (2 * row.draws)
            if 2**draws * own**values <= LIMIT:
                yield after, "bernoulli-logits", estimator, partner
            if own * 2 ** (draws * row.expands) <= LIMIT:
                yield before, "bernoulli-logits", estimator, partner


def label(case):
    context, *names = case
    return "-".join([context.__name__, *(n for n in names if n)])


THETA = np.array([0.3, 0.4, 0.7])


ALLOW = pytest.mark.rank_promotion("allow")  # what NumPyro does with events
EVENTS = ("multivariate-normal", "normal-event")
CASES = [pytest.param(c, marks=[ALLOW] if c[1] in EVENTS else [], id=label(c)) for c in cases()]


@pytest.mark.parametrize("case", CASES)
def test_estimator_is_exact_in_expectation(exact, x64, case):
    context, family, estimator, partner = case
    row = ESTIMATORS[estimator]
    exact.check(
        program(context, family),
        jnp.asarray(THETA),
        {"a": PARTNERS[partner][0]} if partner else None,
        default=row.make,
        grids=grids(exact, family),
        orders=row.orders,
        rtol=1e-7 if FAMILIES[family].finite else 1e-5,
    )


def test_every_row_is_used():
    used = set(cases())
    assert {u[0] for u in used} == {pair, after, before, quadratic, quadratic_after, *CONTEXTS}
    assert {u[1] for u in used} == {*FAMILIES}
    assert {u[2] for u in used} == {*ESTIMATORS}
    assert len(used) > 350


def test_every_estimator_is_in_a_table():
    """Each is exact, sampled, or biased, and the file of its table names it."""
    every = {getattr(vt, name) for name in vt.__all__}
    every = {c for c in every if isinstance(c, type) and issubclass(c, vt.Estimator)}
    exact = {type(row.make) for row in ESTIMATORS.values()} - {vt.Automatic}  # a policy
    assert exact < every
    for made in every - exact - {vt.Estimator}:
        file = "test_biased.py" if made().traits.biased else "test_contract_sampled.py"
        text = (pathlib.Path(__file__).parent / file).read_text()
        assert re.search(rf"\bvt\.{made.__name__}\(", text), f"{made.__name__} is not in {file}"


@pytest.mark.few(6)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_single_precision(exact, estimator):
    row = ESTIMATORS[estimator]
    family = "bernoulli-logits" if row.admits is pointwise else "bernoulli-logits-zero"
    theta = jnp.asarray(THETA, jnp.float32)
    context = pair if pair in row.contexts else row.contexts[0]
    exact.check(program(context, family), theta, default=row.make, orders=row.orders, compiled=True)
