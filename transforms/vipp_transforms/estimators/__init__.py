"""Gradient estimators, one family per file."""

from vipp_transforms.estimators.disarm import ARM, DisARM
from vipp_transforms.estimators.enumerate import Enumerate
from vipp_transforms.estimators.gumbel_softmax import GumbelSoftmax
from vipp_transforms.estimators.local_expectation import LocalExpectation
from vipp_transforms.estimators.measure_valued import MeasureValued
from vipp_transforms.estimators.pathwise import Pathwise
from vipp_transforms.estimators.rebar import Rebar
from vipp_transforms.estimators.score_function import ScoreFunction
from vipp_transforms.estimators.straight_through import ReinMax, StraightThrough

__all__ = [
    "ARM",
    "DisARM",
    "Enumerate",
    "GumbelSoftmax",
    "LocalExpectation",
    "MeasureValued",
    "Pathwise",
    "Rebar",
    "ReinMax",
    "ScoreFunction",
    "StraightThrough",
]
