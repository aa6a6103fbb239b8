"""What counts in a program's value and is not differentiated."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms import _jax


def constant(x: jax.Array) -> jax.Array:
    r""":math:`E[x]`, held constant: a term that counts in the value and has no gradient.

    Whatever the estimators of the choices that ``x`` depends on: none is credited with it. So
    ``x - constant(x)`` is nought and has the gradient of :math:`E[x]`.

    Args:
      x: floats; what is returned must be added to, or multiplied by what was not drawn into, the
        program's value, inside calls, branches and loops, too.

    Returns:
      ``x``.

    Example:
      >>> import jax, numpyro.distributions as dist
      >>> import vipp_transforms as vt
      >>> def f(p):
      ...     z = vt.sample(jax.random.key(0), dist.Bernoulli(p), vt.Enumerate(), name="z")
      ...     return vt.constant(3.0 * z), None
      >>> value, slope = jax.value_and_grad(lambda p: vt.surrogate(f)(p)[0])(jax.numpy.float32(0.5))
      >>> float(value), float(slope)
      (1.5, 0.0)
    """
    return jax.tree.map(lambda leaf: constant_p.bind(jnp.asarray(leaf)), detached(x))


def detached(x: Any) -> Any:
    """``x``, whose derivative the expectation's gradient does not need.

    That is the caller's word: because the result does not depend on ``x``, or because the
    derivative is taken another way. ``jax.lax.stop_gradient`` of what depends on a choice is
    refused in a program, as nobody has given it.
    """
    return jax.lax.stop_gradient(x)


def is_constant(eqn: Any) -> bool:
    """Whether an equation is that of :func:`constant`."""
    return eqn.primitive is constant_p


def _batch(operands: Any, dims: Any) -> tuple[Any, Any]:
    return constant_p.bind(operands[0]), dims[0]


def _derivative(primals: Any, tangents: Any) -> tuple[Any, Any]:
    return constant_p.bind(primals[0]), jnp.zeros_like(primals[0])


constant_p = _jax.define_primitive("vipp_constant", lambda x: x, lambda x: x, _batch, _derivative)
