"""Programmable variational inference for NumPyro and JAX."""

from vipp.bias import BiasedEstimatorWarning
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
    SiteError,
    SparseMixer,
    StraightThrough,
)

__all__ = [
    "ARM",
    "Automatic",
    "BiasedEstimatorWarning",
    "DisARM",
    "ELBO",
    "Enumerate",
    "Explanation",
    "FitResult",
    "GumbelSoftmax",
    "IWAE",
    "Learned",
    "LocalExpectation",
    "MeasureValued",
    "Mix",
    "MovingAverage",
    "NonFiniteError",
    "Objective",
    "OneHotCategorical",
    "Pathwise",
    "Program",
    "ReSTE",
    "Rebar",
    "ReinMax",
    "Relax",
    "ScoreFunction",
    "SiteError",
    "SparseMixer",
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
