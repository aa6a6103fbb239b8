"""Transformations of JAX programs that draw random values into unbiased gradient estimators."""

from typing import Any

from vipp_transforms import estimators
from vipp_transforms.choices import Automatic
from vipp_transforms.constant import constant
from vipp_transforms.errors import RelaxedDecisionWarning, SiteError
from vipp_transforms.estimators import *  # noqa: F403 (they are listed there)
from vipp_transforms.estimators.base import (
    Axis,
    Estimator,
    Expansion,
    Learning,
    Local,
    Policy,
    Probe,
    Seen,
    SiteInfo,
    Source,
    Term,
    Traits,
    estimator,
)
from vipp_transforms.factor_graph import Density
from vipp_transforms.inference import infer
from vipp_transforms.names import renamed
from vipp_transforms.packing import pack
from vipp_transforms.plan import Plan, plan
from vipp_transforms.sites import lane_key, sample
from vipp_transforms.summation import LogSum, sum_out, summed
from vipp_transforms.surrogate import estimate, run, surrogate

__all__ = [
    "Automatic",
    "Axis",
    "Density",
    "Estimator",
    "Expansion",
    "Learning",
    "Local",
    "LogSum",
    "Plan",
    "Policy",
    "Probe",
    "RelaxedDecisionWarning",
    "Seen",
    "SiteError",
    "SiteInfo",
    "Source",
    "Term",
    "Traits",
    "constant",
    "estimate",
    "estimator",
    "infer",
    "lane_key",
    "pack",
    "plan",
    "run",
    "sample",
    "sum_out",
    "summed",
    "surrogate",
]
__all__ += estimators.__all__

_RENAMED = {"Here": "Local", "Lot": "SiteInfo", "Rebar": "REBAR", "Relax": "RELAX"}


def __getattr__(name: str) -> Any:
    """Names of the version before, for one version more."""
    return renamed(__name__, name, _RENAMED, globals())
