"""Transformations of JAX programs that draw random values into unbiased gradient estimators."""

from vipp_transforms.choices import Automatic
from vipp_transforms.constant import constant
from vipp_transforms.errors import SiteError
from vipp_transforms.estimators import (
    ARM,
    Baseline,
    DisARM,
    Enumerate,
    GumbelSoftmax,
    Learned,
    LocalExpectation,
    MeasureValued,
    Mix,
    MovingAverage,
    Pathwise,
    Rebar,
    ReinMax,
    Relax,
    ReSTE,
    ScoreFunction,
    SparseMixer,
    StraightThrough,
)
from vipp_transforms.estimators.base import (
    Axis,
    Estimator,
    Expansion,
    Here,
    Lot,
    Source,
    Term,
    estimator,
)
from vipp_transforms.plan import Plan, plan
from vipp_transforms.sites import lane_key, sample
from vipp_transforms.surrogate import estimate, run, surrogate

__all__ = [
    "ARM",
    "Automatic",
    "Axis",
    "Baseline",
    "DisARM",
    "Enumerate",
    "Estimator",
    "Expansion",
    "GumbelSoftmax",
    "Here",
    "Learned",
    "LocalExpectation",
    "Lot",
    "MeasureValued",
    "Mix",
    "MovingAverage",
    "Pathwise",
    "Plan",
    "ReSTE",
    "Rebar",
    "ReinMax",
    "Relax",
    "ScoreFunction",
    "SiteError",
    "Source",
    "SparseMixer",
    "StraightThrough",
    "Term",
    "constant",
    "estimate",
    "estimator",
    "lane_key",
    "plan",
    "run",
    "sample",
    "surrogate",
]
