"""Random discrete programs under random estimators agree with brute force."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vipp_transforms as vt

ESTIMATORS = {  # and how many draws each takes per lane
    vt.ScoreFunction(): 1,
    vt.ScoreFunction(2): 2,
    vt.ScoreFunction(2, "leave_one_out"): 2,
    vt.ScoreFunction(3, "leave_one_out"): 3,
    vt.Enumerate(): 0,
    vt.Automatic(): 0,
}
SHAPES = [(), (2,), (1,), (2, 1), (1, 2), (2, 2)]
# no sum of these and of multiples of 0.2 is a logit of 0, where NumPyro's log density is wrong
THETA = np.array([0.41, -0.3, 0.7])


class Site(NamedTuple):
    shape: tuple[int, ...]
    parents: tuple[int, ...]
    mixes: bool  # whether parents enter by their sum rather than lane by lane
    estimator: object


class Term(NamedTuple):
    kind: str
    sites: tuple[int, ...]
    weight: float


KINDS = ["lanes", "product", "logsumexp", "matrix", "ratio", "gather", "masked", "max"]


@st.composite
def programs(draw):
    """2 to 4 sites, at most 7 lanes, and estimators whose joint draws can be enumerated."""
    sites, bits = [], 0
    for i in range(draw(st.integers(2, 4))):
        lanes = sum(int(np.prod(s.shape)) for s in sites)
        fitting = [s for s in SHAPES if np.prod(s) <= 7 - lanes - (3 - i if i < 3 else 0)]
        shape = draw(st.sampled_from(fitting))
        parents = draw(st.lists(st.integers(0, i - 1), max_size=2, unique=True)) if i else []
        copies = np.prod([_copies(sites, p) for p in parents])
        allowed = [e for e, n in ESTIMATORS.items() if bits + n * np.prod(shape) * copies <= 11]
        estimator = draw(st.sampled_from(allowed))
        sites.append(Site(shape, tuple(parents), draw(st.booleans()), estimator))
        bits += ESTIMATORS[estimator] * np.prod(shape) * copies
    pick = st.lists(st.integers(0, len(sites) - 1), min_size=1, max_size=2, unique=True)
    term = st.builds(
        lambda kind, chosen, weight: Term(kind, tuple(chosen), weight),
        st.sampled_from(KINDS), pick, st.sampled_from([-1.0, 0.5, 2.0]),
    )  # fmt: skip
    return tuple(sites), tuple(draw(st.lists(term, min_size=1, max_size=4)))


def _copies(sites, i):
    """At most so many values does a site have per lane."""
    own = {vt.Enumerate(): 2 ** int(np.prod(sites[i].shape)), vt.Automatic(): 16}
    estimator = sites[i].estimator
    upstream = 1 if estimator in own else np.prod([_copies(sites, p) for p in sites[i].parents])
    return own.get(estimator, max(1, ESTIMATORS[estimator])) * upstream


def meet(theta, parts):
    """Values of any shapes in one array: lane by lane where shapes agree, else by their sums."""
    total = theta[0]
    for k, x in enumerate(parts):
        fits = jnp.ndim(total) == 0 or jnp.shape(total) == jnp.shape(x)
        total = total + theta[k + 1] * (x if fits else x.sum())
    return total


def evaluate(kind, theta, parts):
    x = meet(theta, parts)
    if kind == "lanes":
        return jnp.sin(x).sum()
    if kind == "product":
        return jnp.prod(1 + 0.3 * x)
    if kind == "logsumexp":
        return jnp.log(jnp.exp(x).sum())
    if kind == "matrix":
        y = jnp.atleast_1d(x).reshape(-1, jnp.shape(x)[-1] if jnp.ndim(x) else 1)
        return jnp.tanh(y @ y.T).sum() + (theta[2] * y @ jnp.ones(y.shape[1])).sum()
    if kind == "ratio":
        return (jnp.exp(x) / (1 + jnp.exp(x).sum())).max(initial=0.0)
    if kind == "gather":
        flat = jnp.ravel(x)
        return (flat[np.array([0, -1, 0])] * theta).sum() + jnp.cos(flat[::-1] * flat).sum()
    if kind == "masked":
        keep = np.arange(np.size(x)).reshape(np.shape(x)) % 2 == 0
        shown = jnp.where(keep, jnp.square(x), jnp.nan * x)
        return theta[1] * jnp.ravel(shown)[np.ravel(keep)].sum()
    assert kind == "max"
    return jnp.maximum(x, 0.1).sum() ** 2


def build(sites, terms):
    def program(theta, rv):
        values = []
        for i, site in enumerate(sites):
            logits = jnp.full(site.shape, 0.2 * i) + theta[0]
            for k, p in enumerate(site.parents):
                x = values[p]
                lanes = not site.mixes and x.shape == site.shape
                logits = logits + theta[k + 1] * (x if lanes else x.sum())
            values.append(1.0 * rv(f"z{i}", dist.Bernoulli(logits=logits)))
        parts = [t.weight * evaluate(t.kind, theta, [values[s] for s in t.sites]) for t in terms]
        return sum(parts)

    return program


@pytest.mark.thorough
@settings(max_examples=40)
@given(programs())
def test_random_program_equals_brute_force(exact, drawn):
    sites, terms = drawn
    estimators = {f"z{i}": site.estimator for i, site in enumerate(sites)}
    theta = jnp.asarray(THETA, jnp.float32)
    exact.check(build(sites, terms), theta, estimators, orders=1, rtol=2e-4)
