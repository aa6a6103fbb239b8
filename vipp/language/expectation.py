"""The expected value of a function that draws, with unbiased derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

import vipp_transforms as vt
from vipp.language.handler import drawing


def expectation(fn: Callable[..., Any]) -> Callable[..., jax.Array]:
    r"""Turn a function that draws with ``sample`` into an unbiased estimate of its expectation.

    .. math:: \hat E(k, \theta) \text{ with } E_k[\hat E] = E[f(\theta)],\quad
        E_k[\nabla^n_\theta \hat E] = \nabla^n_\theta E[f(\theta)]

    Composes with ``jax.jit``, ``jax.vmap`` (over keys, say) and ``jax.grad``.

    Args:
      fn: returns a real scalar; may call ``vipp.sample``, ``numpyro.sample``, plates,
        ``vipp.replicate`` and :class:`vipp.Program` methods.

    Returns:
      A function ``(rng_key, *args, **kwargs) -> estimate``, a float of shape ``()``.

    Raises:
      vipp.SiteError: when traced, if a site has no sound estimator as asked.
      ValueError: when traced, if ``fn`` does not return a real scalar.

    Example:
      >>> import jax, numpyro.distributions as dist, vipp
      >>> def squared(p):
      ...     return (1.0 + vipp.sample("z", dist.Bernoulli(p), vipp.Enumerate())) ** 2
      >>> value, slope = jax.value_and_grad(vipp.expectation(squared), argnums=1)(
      ...     jax.random.key(0), 0.25)
      >>> round(float(value), 4), round(float(slope), 4)
      (1.75, 3.0)

    References:
      Lew et al., *ADEV: sound automatic differentiation of expected values of probabilistic
      programs*, POPL 2023.
    """

    def drawn(rng_key: Any, args: Any, kwargs: Any) -> tuple[Any, None]:
        with drawing(rng_key):
            return fn(*args, **kwargs), None

    def estimated(rng_key: Any, *args: Any, **kwargs: Any) -> jax.Array:
        return vt.surrogate(drawn)(rng_key, args, kwargs)[0]

    return estimated
