"""Programmable variational inference for NumPyro and JAX."""

from vipp.expectation import expectation
from vipp.explain import Explanation, explain
from vipp.fit import FitResult, NonFiniteError, fit
from vipp.objective import Objective, objective, value_and_grad
from vipp.objectives import ELBO, IWAE
from vipp.program import Program
from vipp.replicate import replicate
from vipp.sample import sample, with_estimators
from vipp.trace import Trace
from vipp_transforms import Automatic, Enumerate, Pathwise, ScoreFunction, SiteError

__all__ = [
    "ELBO",
    "IWAE",
    "Automatic",
    "Enumerate",
    "Explanation",
    "FitResult",
    "NonFiniteError",
    "Objective",
    "Pathwise",
    "Program",
    "ScoreFunction",
    "SiteError",
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
