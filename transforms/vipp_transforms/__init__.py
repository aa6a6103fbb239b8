"""Transformations of JAX programs that draw random values into unbiased gradient estimators."""

from vipp_transforms.errors import SiteError
from vipp_transforms.estimators import Enumerate, Pathwise, ScoreFunction
from vipp_transforms.estimators.base import Axis, Estimator, Expansion, Lot, Source, Term
from vipp_transforms.policy import Automatic
from vipp_transforms.sites import lane_key, sample
from vipp_transforms.surrogate import Plan, plan, run, surrogate

__all__ = [
    "Automatic",
    "Axis",
    "Enumerate",
    "Estimator",
    "Expansion",
    "Lot",
    "Pathwise",
    "Plan",
    "SiteError",
    "ScoreFunction",
    "Source",
    "Term",
    "lane_key",
    "plan",
    "run",
    "sample",
    "surrogate",
]
