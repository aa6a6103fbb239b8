"""Terms of a program's value that count and are not differentiated."""

from __future__ import annotations

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

_NAME = "vipp_transforms.constant"


def constant(x: jax.Array) -> jax.Array:
    r""":math:`E[x]`, held constant: a term that counts in the value and has no gradient.

    ``jax.lax.stop_gradient`` stops the derivative of ``x`` alone: a choice that ``x`` depends on,
    drawn with a score function, is still credited with it. With ``constant`` it is not, whatever
    its estimator. So ``x - constant(x)`` is nought and has the gradient of :math:`E[x]`.

    Args:
      x: floats; what is returned must be added to, or multiplied by what was not drawn into, the
        program's value.

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
    return checkpoint_name(jax.lax.stop_gradient(x), _NAME)


def is_constant(eqn: Any) -> bool:
    """Whether an equation is that of :func:`constant`."""
    return eqn.primitive.name == "name" and eqn.params.get("name") == _NAME
