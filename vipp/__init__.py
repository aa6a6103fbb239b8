"""Programmable variational inference for NumPyro and JAX."""

from vipp.expectation import expectation
from vipp.explain import Explanation, explain
from vipp.fit import FitResult, NonFiniteError, fit
from vipp.objective import Objective, objective, value_and_grad
from vipp.objectives import ELBO, IWAE
from vipp.one_hot import OneHotCategorical
from vipp.program import Program
from vipp.replicate import replicate
from vipp.sample import sample, with_estimators
from vipp.trace import Trace
from vipp_transforms import (
    ARM,
    Automatic,
    DisARM,
    Enumerate,
    GumbelSoftmax,
    LocalExpectation,
    MeasureValued,
    Pathwise,
    Rebar,
    ReinMax,
    ScoreFunction,
    SiteError,
    StraightThrough,
)

__all__ = [
    "ARM",
    "ELBO",
    "IWAE",
    "Automatic",
    "DisARM",
    "Enumerate",
    "Explanation",
    "FitResult",
    "GumbelSoftmax",
    "LocalExpectation",
    "MeasureValued",
    "NonFiniteError",
    "Objective",
    "OneHotCategorical",
    "Pathwise",
    "Program",
    "Rebar",
    "ReinMax",
    "ScoreFunction",
    "SiteError",
    "StraightThrough",
    "Trace",
    "expectation",
    "explain",
    "fit",
    "objective",
    "replicate",
    "sample",
    "value_and_grad",
    "with_estimators",
]
