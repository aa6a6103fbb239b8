"""Variational objectives, one per file, each a short program in vipp's own language."""

from vipp.objectives.elbo import ELBO
from vipp.objectives.iwae import IWAE

__all__ = ["ELBO", "IWAE"]
