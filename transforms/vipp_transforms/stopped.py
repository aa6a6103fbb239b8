"""Derivatives that a program stops: of what was drawn, that is refused.

``jax.lax.stop_gradient`` is JAX's word about JAX's derivatives. Of a value that was drawn pathwise
it stops them; any other estimator takes no derivative through the value that it could stop, and
would credit the choice all the same. So the gradient would depend on the estimator.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any

import jax

from vipp_transforms import _jax, sites
from vipp_transforms.dependence import Dependence
from vipp_transforms.errors import SiteError
from vipp_transforms.staging import Program


def check_stopped(program: Program, noted: Iterable[tuple[Any, Dependence]]) -> None:
    """Raise where the program stops the derivative of what depends on a choice.

    Functions of JAX, and of what is installed beside it, stop the derivatives of what their results
    don't depend on (the maximum in a logsumexp, say): that is their word, and is taken for it. So
    do distributions where they draw: a drawn value has no derivative but its estimator's.

    Args:
      program: whose sites it is.
      noted: what its :class:`~vipp_transforms.dependence.Dependences` noted.
    """
    names = {site.index: site.name for site in program.sites.values()}
    for eqn, dependence in noted:
        if eqn.primitive.name != "stop_gradient":
            continue
        caller, callers = _jax.stopped_by(eqn)
        if caller is None or not (_is_library(caller) or _draws(callers)):
            raise _refused(names[max(dependence)])


def _is_library(file: str) -> bool:
    installed = pathlib.Path(jax.__file__).parents[1]
    own = pathlib.Path(__file__).parent
    return any(pathlib.Path(file).is_relative_to(folder) for folder in (installed, own))


def _draws(callers: list[tuple[str, str]]) -> bool:
    drawing = pathlib.PurePath(sites.__file__).as_posix(), sites.draw.__name__
    return drawing in callers


def _refused(name: str) -> SiteError:
    return SiteError(
        f"Site '{name}': jax.lax.stop_gradient is applied to a value that depends on it, which has "
        "a meaning for Pathwise() alone: other estimators take no derivative through the value. "
        "Fix: use vipp.constant(x) for a term x that counts and is not optimised; or stop the "
        "gradient of parameters before anything is drawn."
    )
