"""Variational objectives, one per file, each a short program in vipp's own language."""

from vipp.objectives.annealed import AnnealedBound
from vipp.objectives.ciwae import CIWAE
from vipp.objectives.cubo import CUBO
from vipp.objectives.elbo import ELBO
from vipp.objectives.filtering import FilteringBound
from vipp.objectives.forward_kl import ForwardKL
from vipp.objectives.iwae import IWAE
from vipp.objectives.miwae import MIWAE
from vipp.objectives.piwae import PIWAE
from vipp.objectives.renyi import Renyi
from vipp.objectives.reweighted_wake_sleep import ReweightedWakeSleep
from vipp.objectives.tvo import TVO
from vipp.objectives.vargrad import VarGrad
from vipp.objectives.vimco import VIMCO

__all__ = [
    "CIWAE",
    "CUBO",
    "ELBO",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "TVO",
    "VIMCO",
    "AnnealedBound",
    "FilteringBound",
    "ForwardKL",
    "Renyi",
    "ReweightedWakeSleep",
    "VarGrad",
]
