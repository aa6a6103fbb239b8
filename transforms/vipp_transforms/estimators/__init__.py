"""Gradient estimators, one family per file."""

from vipp_transforms.estimators._baseline import Baseline, Learned, MovingAverage
from vipp_transforms.estimators.analytic import Analytic
from vipp_transforms.estimators.arms import ARMS
from vipp_transforms.estimators.disarm import ARM, DisARM
from vipp_transforms.estimators.double_control_variates import DoubleControlVariates
from vipp_transforms.estimators.enumerate import Enumerate
from vipp_transforms.estimators.fitted_control_variates import FittedControlVariates
from vipp_transforms.estimators.gumbel_softmax import GumbelSoftmax
from vipp_transforms.estimators.local_expectation import LocalExpectation
from vipp_transforms.estimators.measure_valued import MeasureValued
from vipp_transforms.estimators.mix import Mix
from vipp_transforms.estimators.pathwise import Pathwise
from vipp_transforms.estimators.rebar import REBAR, RELAX
from vipp_transforms.estimators.reste import ReSTE
from vipp_transforms.estimators.score_function import ScoreFunction
from vipp_transforms.estimators.sparse_mixer import SparseMixer
from vipp_transforms.estimators.straight_through import ReinMax, StraightThrough

__all__ = [
    "ARM",
    "ARMS",
    "Analytic",
    "Baseline",
    "DisARM",
    "DoubleControlVariates",
    "Enumerate",
    "FittedControlVariates",
    "GumbelSoftmax",
    "Learned",
    "LocalExpectation",
    "MeasureValued",
    "Mix",
    "MovingAverage",
    "Pathwise",
    "ReSTE",
    "REBAR",
    "ReinMax",
    "RELAX",
    "ScoreFunction",
    "SparseMixer",
    "StraightThrough",
]
