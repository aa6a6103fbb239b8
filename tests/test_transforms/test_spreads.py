"""What is done to an array that was spread is done before, with the same results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vipp_transforms.flattening import flatten
from vipp_transforms.packing import one_by_one
from vipp_transforms.uncompiled import uncompiled
from vipp_transforms.undifferentiated import undifferentiated

X, Y = np.linspace(-1.0, 1.0, 6).reshape(2, 3), np.arange(3.0)
spread = lax.broadcast_in_dim

# by name: the program, and the largest size of what is not merely spread
SUNK = {
    "entry by entry": (lambda x, y: jnp.exp(spread(x, (2, 5, 3), (0, 2))), 6),
    "of a number too": (lambda x, y: 2.0 * spread(x, (2, 5, 3), (0, 2)), 6),
    "of two": (lambda x, y: spread(x, (2, 4, 3), (0, 2)) - spread(y, (2, 4, 3), (2,)), 6),
    "of two, one wider": (lambda x, y: spread(x, (2, 1, 3), (0, 2)) + spread(y, (1, 1, 3), (2,)), 6),
    "axes of size one": (lambda x, y: jnp.sin(x.reshape(2, 1, 3, 1)), 6),
    "a choice": (lambda x, y: jnp.where(spread(y, (4, 3), (1,)) > 1, spread(y, (4, 3), (1,)), 0), 3),
    "a reduction": (lambda x, y: spread(x, (2, 5, 3), (0, 2)).sum(2), 6),
    "a reduction over an axis of size one": (lambda x, y: x[:, None].max((1, 2)), 6),
    "a transposition": (lambda x, y: spread(x, (2, 3, 5), (0, 1)).transpose(1, 2, 0), 6),
    "one after the other": (
        lambda x, y: jax.nn.log_softmax(spread(x, (4, 2, 3), (1, 2))).transpose(2, 0, 1), 6,
    ),
    "whole numbers": (lambda x, y: lax.rem(spread(y.astype(int), (2, 3), (1,)), 2), 3),
}  # fmt: skip
KEPT = {
    "the sum of copies": (lambda x, y: spread(x, (2, 5, 3), (0, 2)).sum(1), 30),
    "with an array that is not spread": (lambda x, y: spread(y, (2, 3), (1,)) * x, 6),
    "copies of one entry": (lambda x, y: jnp.exp(spread(x[:, :1], (2, 4), (0, 1))).sum(1), 8),
    "a matrix product": (lambda x, y: spread(y, (2, 3), (1,)) @ x.T, 6),
}


@pytest.mark.parametrize(("fn", "most"), [*SUNK.values(), *KEPT.values()], ids=[*SUNK, *KEPT])
def test_same_results_of_less(fn, most):
    closed = jax.make_jaxpr(fn)(X, Y)
    program = flatten(closed, sums=False)
    doing = [n for n in program.nodes if n.eqn.primitive.name != "broadcast_in_dim"]
    sizes = [np.prod(v.aval.shape) for n in doing for v in (*n.operands, *n.outs)]
    assert max(sizes, default=0) == most
    with uncompiled():
        (found,) = one_by_one(program, (X, Y))
        np.testing.assert_allclose(found, fn(X, Y), rtol=1e-6)
        assert found.dtype == closed.out_avals[0].dtype


def test_what_has_no_derivative_is_not_differentiated():
    """The largest entry, whose gradient is stopped; its equations stay linear in nothing."""

    def fn(x):
        top = lax.stop_gradient(jnp.max(x * 2.0, axis=1))
        return (jnp.exp(x - top[:, None]) * top[:, None]).sum()

    program = undifferentiated(flatten(jax.make_jaxpr(fn)(X), sums=False))
    run = lambda x: one_by_one(program, (x,))[0]
    with uncompiled():
        np.testing.assert_allclose(jax.grad(run)(X), jax.grad(fn)(X), rtol=1e-6)
    linear = jax.make_jaxpr(lambda x: jax.linearize(run, x)[0])(X)
    assert not {"eq", "div"} & {e.primitive.name for e in linear.jaxpr.eqns}  # of a maximum's slope
    assert {"eq", "div"} & {
        e.primitive.name for e in jax.make_jaxpr(lambda x: jax.linearize(fn, x)[0])(X).jaxpr.eqns
    }
