"""The pathwise (reparameterisation) estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Pathwise:
    r"""Differentiate through the sampler :math:`x = g(\theta, \epsilon)`, the noise being fixed.

    .. math:: \nabla_\theta E[f(x)] = E_\epsilon[\nabla f(x)\, \partial_\theta g(\theta, \epsilon)]

    A pathwise choice is ordinary JAX: the engine never sees it and it costs nothing.

    Example:
      >>> import vipp_transforms as vt
      >>> vt.Pathwise()
      Pathwise()

    References:
      Kingma and Welling, *Auto-Encoding Variational Bayes*, 2014.
    """

    biased: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    relaxed: ClassVar[bool] = False
    orders: ClassVar[int | None] = None
