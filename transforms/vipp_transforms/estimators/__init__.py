"""Gradient estimators, one family per file."""

from vipp_transforms.estimators.enumerate import Enumerate
from vipp_transforms.estimators.pathwise import Pathwise
from vipp_transforms.estimators.score_function import ScoreFunction

__all__ = ["Enumerate", "Pathwise", "ScoreFunction"]
