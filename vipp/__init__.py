"""Programmable variational inference for NumPyro and JAX."""

from typing import Any

from vipp.diagnostics.accuracy import PSIS, BoundGap, bound_gap, psis
from vipp.diagnostics.check import check
from vipp.diagnostics.explain import Explanation, explain
from vipp.diagnostics.gradients import NoGradientWarning
from vipp.diagnostics.plots import (
    plot_calibration,
    plot_losses,
    plot_pairs,
    plot_signal_to_noise,
)
from vipp.diagnostics.profile import profile
from vipp.diagnostics.profile_result import Profile, ProfileRow
from vipp.distributions.one_hot import OneHotCategorical
from vipp.language.bias import BiasedEstimatorWarning, BiasedObjectiveWarning
from vipp.language.expectation import expectation
from vipp.language.mistake import CheckError
from vipp.language.replicate import replicate
from vipp.language.sample import sample, with_estimators
from vipp.objectives import (
    CIWAE,
    CUBO,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    TVO,
    VIMCO,
    AnnealedBound,
    FilteringBound,
    ForwardKL,
    Renyi,
    ReweightedWakeSleep,
    VarGrad,
)
from vipp.objectives.objective import Objective, objective, value_and_grad
from vipp.programs.infer_discrete import infer_discrete
from vipp.programs.marginal import marginal
from vipp.programs.normalize import normalize
from vipp.programs.program import Program
from vipp.programs.trace import Trace
from vipp.training.automatic_steps import AveragedRound, StepSizes
from vipp.training.between import FitProgress
from vipp.training.calibration import Calibration, calibration
from vipp.training.checkpoint import CheckpointError
from vipp.training.early_stopping import EarlyStopping
from vipp.training.fit import fit
from vipp.training.result import FitResult, NonFiniteError, Restarts
from vipp.training.trainer import trainer
from vipp_transforms import (
    ARM,
    ARMS,
    REBAR,
    RELAX,
    Analytic,
    Automatic,
    DisARM,
    DoubleControlVariates,
    Enumerate,
    FittedControlVariates,
    GumbelSoftmax,
    Learned,
    LocalExpectation,
    MeasureValued,
    Mix,
    MovingAverage,
    Pathwise,
    ReinMax,
    RelaxedDecisionWarning,
    ReSTE,
    ScoreFunction,
    SiteError,
    SparseMixer,
    StraightThrough,
    constant,
)
from vipp_transforms.names import renamed

__all__ = [
    "Analytic",
    "AnnealedBound",
    "ARM",
    "ARMS",
    "Automatic",
    "AveragedRound",
    "BiasedEstimatorWarning",
    "BiasedObjectiveWarning",
    "bound_gap",
    "BoundGap",
    "calibration",
    "Calibration",
    "check",
    "CheckError",
    "CheckpointError",
    "CIWAE",
    "constant",
    "CUBO",
    "DisARM",
    "DoubleControlVariates",
    "EarlyStopping",
    "ELBO",
    "Enumerate",
    "expectation",
    "explain",
    "Explanation",
    "FilteringBound",
    "fit",
    "FitProgress",
    "FittedControlVariates",
    "FitResult",
    "ForwardKL",
    "GumbelSoftmax",
    "IWAE",
    "Learned",
    "LocalExpectation",
    "infer_discrete",
    "marginal",
    "MeasureValued",
    "MIWAE",
    "Mix",
    "MovingAverage",
    "NoGradientWarning",
    "NonFiniteError",
    "normalize",
    "Objective",
    "objective",
    "OneHotCategorical",
    "Pathwise",
    "PIWAE",
    "plot_calibration",
    "plot_losses",
    "plot_pairs",
    "plot_signal_to_noise",
    "profile",
    "Profile",
    "ProfileRow",
    "Program",
    "psis",
    "PSIS",
    "REBAR",
    "ReinMax",
    "RELAX",
    "Renyi",
    "replicate",
    "Restarts",
    "ReSTE",
    "ReweightedWakeSleep",
    "sample",
    "ScoreFunction",
    "RelaxedDecisionWarning",
    "SiteError",
    "SparseMixer",
    "StepSizes",
    "StraightThrough",
    "Trace",
    "trainer",
    "TVO",
    "value_and_grad",
    "VarGrad",
    "VIMCO",
    "with_estimators",
]

_RENAMED = {"Rebar": "REBAR", "Relax": "RELAX"}


def __getattr__(name: str) -> Any:
    """Names of the version before, for one version more."""
    return renamed(__name__, name, _RENAMED, globals())
