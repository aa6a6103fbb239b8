"""Which estimators of a site are worth a look: a list, of which those that fit the site."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import vipp_transforms as vt
from vipp.diagnostics.guide_choices import GuideChoice
from vipp.language.names import close
from vipp_transforms.choices import single_draw

_MOST_EVALUATIONS = 256

# the most promising first, in case that time runs out
_SUMS = (vt.Enumerate(), vt.LocalExpectation())
_SCORES = tuple(vt.ScoreFunction(n, "leave_one_out") for n in (2, 8, 4))
_SLOPES = (vt.FittedControlVariates(8), vt.DoubleControlVariates(8))
_PAIRS = (vt.DisARM(), vt.ARMS(num_samples=8))
_WEAK = (vt.MeasureValued(),)
_BIASED = (vt.ReinMax(), vt.GumbelSoftmax())
_PATHS = (vt.Pathwise(), vt.Pathwise(2, antithetic=True), vt.Pathwise(4, antithetic=True))
_FORMULAS = (vt.Analytic(),)  # left out of most programs


def candidates_of(choice: GuideChoice) -> list[Any]:
    """The estimators of a site to be measured: see :func:`_in_order`.

    Of those in the list, the ones that fit its support and distribution, and that evaluate the
    program at no more than 256 values.
    """
    return _in_order(choice, _listed(choice))


def _in_order(choice: GuideChoice, others: Sequence[Any]) -> list[Any]:
    """The present estimator, with which all is compared, and the others, each once.

    A biased one is no reference: then an unbiased one comes first.
    """
    present = choice.estimator
    if present.traits.biased and not choice.own:
        usual = [*others, *_listed(choice), single_draw()]
        first = next(e for e in usual if not e.traits.biased)
        others, present = [present, *others], first
    found: dict[Any, Any] = {}
    for each in [present, *others]:
        found.setdefault(_written(each), each)
    return list(found.values())


def _written(estimator: Any) -> Any:
    """Equal for estimators that are equal; those with arrays are themselves."""
    arrays = any(isinstance(x, jax.Array | np.ndarray) for x in jax.tree.leaves(estimator))
    return id(estimator) if arrays else repr(estimator)


def _listed(choice: GuideChoice) -> list[Any]:
    present = choice.estimator
    if choice.own or choice.site is None:
        return []
    if present.traits.pathwise:
        listed: Sequence[Any] = _PATHS + _FORMULAS
    elif choice.site.support is None:
        listed = _SCORES + _WEAK
    else:
        listed = _SUMS + _SLOPES + _SCORES[:2] + _PAIRS + _SCORES[2:] + _BIASED
    return [e for e in listed if _fits(e, choice)]


def _fits(estimator: Any, choice: GuideChoice) -> bool:
    traits, site = estimator.traits, choice.site
    assert site is not None
    if choice.looped and not (traits.direct or traits.causal):
        return False  # another kind of loop, or none
    if traits.direct:
        return True
    try:
        estimator.validate(site)
    except vt.SiteError:
        return False
    axis = estimator.axis(site)
    return axis is None or axis.size <= _MOST_EVALUATIONS


def check_candidates(
    given: Mapping[str, Sequence[Any]], choices: Mapping[str, GuideChoice]
) -> dict[str, list[Any]]:
    """The estimators that were asked for, in order.

    Raises:
      ValueError: naming a site that the guide doesn't have, or that has no estimator of its own.
      TypeError: naming a site with what is no list of estimators.
      vipp.SiteError: naming a site that a candidate does not fit.
    """
    found: dict[str, list[Any]] = {}
    for name, options in given.items():
        if name not in choices:
            raise ValueError(
                f"profile: candidates has estimators for '{name}', which is no latent site of the "
                f"guide, got {list(choices)}{close(name, choices)}. Fix: use one of these names."
            )
        choice = choices[name]
        if choice.own:
            raise ValueError(
                f"profile: candidates has estimators for '{name}', which the objective draws "
                "without a gradient, whatever its estimator. Fix: leave it out."
            )
        if isinstance(options, vt.Estimator) or not isinstance(options, Sequence):
            raise TypeError(
                f"profile: candidates['{name}'] must be a list of estimators, got {options!r}. "
                f"Fix: candidates={{'{name}': [vipp.DisARM(), ...]}}."
            )
        for option in options:
            _check(option, choice)
        found[name] = _in_order(choice, options)
    return found


def _check(option: Any, choice: GuideChoice) -> None:
    if isinstance(option, type) or not isinstance(option, vt.Estimator):
        raise TypeError(
            f"profile: candidates['{choice.name}'] has {option!r}, expected estimators such as "
            "vipp.DisARM(). Fix: pass instances."
        )
    # one that learns fits once its start has been filled in: compiling it says so
    if choice.site is not None and not option.traits.direct and option.learning is None:
        option.validate(choice.site)


def combinations(candidates: Mapping[str, Sequence[Any]]) -> int:
    """How many choices of one candidate each there are."""
    return math.prod(map(len, candidates.values()))
