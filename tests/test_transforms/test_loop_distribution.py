"""Loops whose steps are parted compute what the loops as they stand do, with their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax, random

from vipp_transforms import _jax
from vipp_transforms.loop_distribution import evaluator

KEY = random.key(3)
XS = jnp.array([0.3, -0.7, 1.1, 0.4, -0.2])
TABLE = jnp.array([[0.2, -0.3], [0.9, 0.5]])


class Row(NamedTuple):
    """A function with a loop.

    Attributes:
      fn: of parameters, a vector of two, and an offset, a number.
      left: the number of equations that stay in the loop; None if there is none left.
      loops: the number of loops that value and gradient in the parameters take.
    """

    fn: Callable[[Any, Any], Any]
    left: int | None
    loops: int = 2


def _noise(a: Any, b: Any) -> Any:
    def step(z: Any, t: Any) -> Any:
        x, i = t
        z = a[0] * z + a[1] * x + random.normal(random.fold_in(KEY, i))
        return z, jnp.sin(z) * a[1]

    return lax.scan(step, b, (XS, jnp.arange(5)))


def _counted(a: Any, b: Any) -> Any:
    def step(carry: Any, x: Any) -> Any:
        i, z = carry
        z = a[0] * z + random.normal(random.fold_in(KEY, i))
        return (i + 2, z), z * x

    return lax.scan(step, (jnp.int32(1), b), XS)


def _wraps(a: Any, b: Any) -> Any:
    """A small integer that is counted beyond its bounds, and the last of them."""

    def step(carry: Any, x: Any) -> Any:
        i, z = carry
        return (i - jnp.int8(100), jnp.tanh(a[0] * z + i * x)), i * a[1]

    return lax.scan(step, (jnp.int8(7), b), XS, reverse=True)


def _drawn(a: Any, b: Any) -> Any:
    """Choices, whose odds depend on the last one."""

    def step(z: Any, t: Any) -> Any:
        x, i = t
        logits = a[0] * z + a[1] * x
        z = random.bernoulli(random.fold_in(KEY, i), jax.nn.sigmoid(logits)).astype(jnp.float32)
        return z, (logits, z * logits - jax.nn.softplus(logits))

    return lax.scan(step, b, (XS, jnp.arange(5)))


def _drawn_back(a: Any, b: Any) -> Any:
    """The same of second order, from the last step to the first."""

    def step(carry: Any, t: Any) -> Any:
        z, before = carry
        x, i = t
        logits = jnp.exp(a[0]) * z + a[1] * x * before
        new = random.bernoulli(random.fold_in(KEY, i), jax.nn.sigmoid(logits)).astype(jnp.int32)
        return (new.astype(jnp.float32), z), TABLE[new] * logits * a

    return lax.scan(step, (b, 2 * b), (XS, jnp.arange(5)), reverse=True)


def _swapped(a: Any, b: Any) -> Any:
    def step(carry: Any, x: Any) -> Any:
        return (carry[1], carry[0]), carry[0] * x * a[0] + a[1]

    return lax.scan(step, (b, 3 * b), XS)


def _delayed(a: Any, b: Any) -> Any:
    step = lambda before, x: (a[1] * x, a[0] * before * x)
    return lax.scan(step, b, XS)


def _delayed_back(a: Any, b: Any) -> Any:
    step = lambda before, x: (a[1] * x, a[0] * before * x)
    return lax.scan(step, b, XS, reverse=True)


def _totals(a: Any, b: Any) -> Any:
    def step(carry: Any, x: Any) -> Any:
        i, total = carry
        return (i + 1, total - x**2 * a + a[0]), None

    return lax.scan(step, (0, jnp.stack([b, b])), XS)


def _kept(a: Any, b: Any) -> Any:
    step = lambda carry, x: ((carry[0], jnp.tanh(carry[1] * carry[0] + x)), carry[1] * carry[0])
    return lax.scan(step, (a, jnp.stack([b, 2 * b])), XS)


def _branches(a: Any, b: Any) -> Any:
    def step(z: Any, x: Any) -> Any:
        y = lax.cond(x > 0, lambda: a[0] * x, lambda: jnp.sqrt(-x) * a[1])
        return 0.5 * z + y, z * y

    return lax.scan(step, b, XS)


def _repeats(a: Any, b: Any) -> Any:
    def step(z: Any, x: Any) -> Any:
        n = lax.while_loop(lambda n: n < 10 * x, lambda n: 2 * n, 1.0)
        return a[0] * z + n, z * x * a[1]

    return lax.scan(step, b, XS)


def _nested(a: Any, b: Any) -> Any:
    def step(z: Any, x: Any) -> Any:
        y = lax.scan(lambda c, u: (c * a[0] + u, c), x, XS)[0]
        z = lax.scan(lambda c, u: (jnp.tanh(c + u * a[1]), u**2), z, XS)[0]
        return z + y, z

    return lax.scan(step, b, XS)


def _large(a: Any, b: Any) -> Any:
    """Arrays too large to have them for all steps at once."""

    def step(z: Any, x: Any) -> Any:
        y = jnp.sin(x * a[0] * jnp.arange(5_000.0) / 5_000)
        return z * a[1] + y.mean(), z

    return lax.scan(step, b, XS)


def _large_inside(a: Any, b: Any) -> Any:
    """Large arrays that small results are made of, in a choice's loop."""

    def step(carry: Any, t: Any) -> Any:
        z, (x, i) = carry, t
        y = jnp.sin((x + z) * a[0] * jnp.arange(5_000.0) / 5_000)
        z = random.bernoulli(random.fold_in(KEY, i), jax.nn.sigmoid(y.mean())).astype(jnp.float32)
        return z, (jnp.cos(y).sum() / 5_000 * a[1], y.max())

    return lax.scan(step, b, (XS, jnp.arange(5)))


def _large_carry(a: Any, b: Any) -> Any:
    """A large array is carried, of which a step returns little."""
    step = lambda z, x: (jnp.sin(z * x * a[0]), (z.sum() * a[1] / 5_000, x**2))
    last, out = lax.scan(step, b * jnp.ones(5_000), XS)
    return last.mean(), out


def _same(a: Any, b: Any) -> Any:
    """Nothing differs from step to step but what is carried."""
    return lax.scan(lambda z, _: (jnp.tanh(a[0] * z + a[1]), z), b, None, length=5)


def _two(a: Any, b: Any) -> Any:
    """One loop after another, of which the second has no recurrence."""
    z, zs = lax.scan(lambda z, x: (jnp.tanh(a[0] * z + x), z), b, XS)
    return lax.scan(lambda before, z: (z, a[1] * before - z), z, zs)


def _rounded(a: Any, b: Any) -> Any:
    """A carried number whose derivative ends in each step, and goes on to the first."""
    step = lambda z, x: (jnp.floor(3 * (a[0] * z + x)), a[1] * z**2)
    return lax.scan(step, b, XS)


ROWS = {
    "noise": Row(_noise, 3),
    "counted": Row(_counted, 2),
    "wraps": Row(_wraps, 3),
    "drawn": Row(_drawn, 5, 1),
    "drawn, reverse, second order": Row(_drawn_back, 7, 1),
    "swapped": Row(_swapped, 0, 1),
    "delayed": Row(_delayed, None, 0),
    "delayed, reverse": Row(_delayed_back, None, 0),
    "totals": Row(_totals, None, 0),
    "kept": Row(_kept, 3),
    "branches": Row(_branches, 3),
    "repeats": Row(_repeats, 4),
    "nested": Row(_nested, 3, 3),
    "large": Row(_large, 7),
    "large inside": Row(_large_inside, 13),
    "large carry": Row(_large_carry, 4),
    "same": Row(_same, 7),
    "two": Row(_two, 5),
    "rounded": Row(_rounded, 4, 1),
}


def _apart(fn: Any) -> Callable[..., Any]:
    """A function with its loops distributed."""

    def run(*args: Any) -> Any:
        closed, shape = _jax.trace(fn, *args)
        jaxpr, consts = _jax.open_jaxpr(closed)
        out = evaluator(jaxpr.eqns, [*jaxpr.constvars, *jaxpr.invars], jaxpr.outvars)
        return jax.tree.unflatten(jax.tree.structure(shape), out(*consts, *args))

    return run


def _loops(fn: Any, *args: Any) -> list[Any]:
    eqns = _jax.open_jaxpr(_jax.trace(fn, *args)[0])[0].eqns
    return [e for e in eqns if e.primitive.name == "scan"]


A, B = jnp.array([0.6, 0.8]), jnp.float32(0.5)


@pytest.mark.parametrize("name", ROWS)
def test_the_same_results_and_derivatives(name: str) -> None:
    fn = ROWS[name].fn
    weights = [jnp.cos(jnp.arange(x.size) + i) for i, x in enumerate(jax.tree.leaves(fn(A, B)))]

    def scalar(run: Any) -> Any:
        dot = lambda xs: sum(w @ x.ravel() for w, x in zip(weights, jax.tree.leaves(xs)))
        return lambda a, b: dot(run(a, b))

    def looks(run: Any) -> Any:
        f = scalar(run)
        forwards = lambda a, b: jax.jvp(jax.grad(f), (a, b), (jnp.cos(a), jnp.ones_like(b)))[1]
        slopes = jax.jacfwd(f, (0, 1)) if name == "repeats" else jax.grad(f, (0, 1))
        twice = jax.jacfwd(jax.jacfwd(f)) if name == "repeats" else forwards
        many = jax.vmap(run, (None, 0))
        return jax.jit(
            lambda a, b: (run(a, b), slopes(a, b), twice(a, b), many(a, jnp.stack([b, -b])))
        )

    for x, right in zip(
        jax.tree.leaves(looks(_apart(fn))(A, B)), jax.tree.leaves(looks(fn)(A, B)), strict=True
    ):  # fmt: skip
        assert (x.shape, x.dtype) == (right.shape, right.dtype)
        np.testing.assert_allclose(x, right, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ROWS)
def test_what_stays_in_the_loop(name: str) -> None:
    row = ROWS[name]
    loops = _loops(_apart(row.fn), A, B)
    bodies = [len(_jax.open_jaxpr(e.params["jaxpr"])[0].eqns) for e in loops]
    assert bodies == ([] if row.left is None else [row.left])
    assert all(v.aval.size < 5_000 * 5 for e in loops for v in e.outvars)
    if name != "repeats":
        scalar = lambda a, b: sum(x.sum() for x in jax.tree.leaves(_apart(row.fn)(a, b)))
        assert len(_loops(jax.value_and_grad(scalar), A, B)) == row.loops
