"""Programs that are traced once for two uses."""

import jax
import jax.numpy as jnp

from vipp_transforms.kept_trace import keeping_traces, traced_before
from vipp_transforms.surrogate import packed_estimate


class Counted:
    """A program that counts how often it is traced, and reads a number from outside."""

    def __init__(self):
        self.traces, self.outside = 0, 2.0

    def draw(self, x, power):
        self.traces += 1
        return self.outside * jnp.sum(x) ** power, {"x": x}

    def __call__(self, x, power=2):
        value, aux = packed_estimate(lambda aux, _: aux, self.draw, x, power)
        return value + 0.0 * aux["x"].sum()


def looked_at(program, x, *rest):
    with keeping_traces() as kept:
        jax.make_jaxpr(lambda x: program(x, *rest))(x)
    return kept


def test_a_program_is_traced_once_for_two_uses():
    program, x = Counted(), jnp.array([1.0, 2.0])
    with traced_before(looked_at(program, x)):
        value, slope = jax.jit(jax.value_and_grad(program))(x)
        assert (value, slope.tolist(), program.traces) == (18.0, [12.0, 12.0], 1)
        assert program(x + 1.0) == 50.0
        assert program.traces == 2, "kept for one use"
    program(x)
    assert program.traces == 3


def test_another_program_is_traced_anew():
    program, x = Counted(), jnp.array([1.0, 2.0])
    with traced_before(looked_at(program, x)):
        assert program(x, 3) == 54.0
        assert program(jnp.array([1.0, 2.0, 0.0])) == 18.0
        assert Counted()(x) == 18.0
        assert program.traces == 3


def test_values_of_the_trace_around_are_not_kept():
    program, x = Counted(), jnp.array([1.0, 2.0])

    def with_outside(outside):
        program.outside = outside
        return program(x)

    with keeping_traces() as kept:
        jax.make_jaxpr(with_outside)(2.0)
    assert not kept
    with traced_before(kept):
        assert with_outside(3.0) == 27.0
