"""Transformations of JAX programs that draw random values into unbiased gradient estimators."""

from vipp_transforms.errors import SiteError
from vipp_transforms.estimators import (
    ARM,
    DisARM,
    Enumerate,
    GumbelSoftmax,
    LocalExpectation,
    MeasureValued,
    Pathwise,
    Rebar,
    ReinMax,
    ScoreFunction,
    StraightThrough,
)
from vipp_transforms.estimators.base import Axis, Estimator, Expansion, Lot, Source, Term
from vipp_transforms.policy import Automatic
from vipp_transforms.sites import lane_key, sample
from vipp_transforms.surrogate import Plan, plan, run, surrogate

__all__ = [
    "ARM",
    "Automatic",
    "Axis",
    "DisARM",
    "Enumerate",
    "Estimator",
    "Expansion",
    "GumbelSoftmax",
    "LocalExpectation",
    "Lot",
    "MeasureValued",
    "Pathwise",
    "Plan",
    "Rebar",
    "ReinMax",
    "ScoreFunction",
    "SiteError",
    "Source",
    "StraightThrough",
    "Term",
    "lane_key",
    "plan",
    "run",
    "sample",
    "surrogate",
]
