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

# Files, or functions in them, that stop derivatives of what their results do not depend on, such as
# the maximum in a logsumexp, or that say the derivative another way. None calls a function that it
# was handed: what is stopped under them, they stopped themselves.
_HARMLESS = (
    ("jax/_src/lax/control_flow/conditionals.py", "_cond_batching_rule"),
    ("jax/_src/lax/linalg.py", ""),
    ("jax/_src/nn/functions.py", "_softmax"),
    ("jax/_src/nn/functions.py", "log_softmax"),
    ("jax/_src/nn/functions.py", "softmax"),
    ("jax/_src/numpy/reductions.py", ""),
    ("jax/_src/numpy/ufuncs.py", ""),
    ("jax/_src/ops/special.py", ""),
    ("jax/_src/random.py", ""),
    ("jax/_src/random/core.py", ""),
    ("jax/_src/scipy/linalg.py", ""),
    ("jax/_src/scipy/special.py", ""),
    ("numpyro/contrib/module.py", "flax_module"),  # what the next call is given as it stands
    ("numpyro/contrib/module.py", "nnx_module"),
    ("numpyro/distributions/continuous.py", ""),
    ("numpyro/distributions/flows.py", "_clamp_preserve_gradients"),
    ("numpyro/distributions/truncated.py", ""),
    ("numpyro/distributions/util.py", "logmatmulexp"),
    ("equinox/internal/_loop/checkpointed.py", "_stop_gradient"),
    ("flowjax/bijections/block_autoregressive_network.py", "logmatmulexp"),
    ("funsor/jax/ops.py", ""),
    ("lineax/_solve.py", "linear_solve"),
)
_OWN = (
    ("constant.py", "detached"), ("contraction.py", ""), ("estimators/", ""), ("evaluation.py", ""),
    ("learning.py", ""), ("recursion.py", ""), ("sites.py", "lane_key"),
    ("staging.py", "Traced.evaluate"), ("surrogate.py", "_"),
)  # fmt: skip


def check_stopped(program: Program, noted: Iterable[tuple[Any, Dependence]]) -> None:
    """Raise where the program stops the derivative of what depends on a choice.

    Some functions of libraries stop the derivatives of what their results don't depend on (the
    maximum in a logsumexp, say): that is their word, and is taken for it. Others only call what
    they were handed, as in ``jax.vmap(jax.lax.stop_gradient)``: that is their caller's. What a
    distribution stops where it draws is no matter: a drawn value has no derivative but that of its
    estimator.

    Args:
      program: whose sites it is.
      noted: what its :class:`~vipp_transforms.dependence.Dependences` noted.
    """
    names = {site.index: site.name for site in program.sites.values()}
    for eqn, dependence in noted:
        if eqn.primitive.name != "stop_gradient":
            continue
        callers = _jax.callers(eqn)
        if not (_is_harmless(callers) or _draws(callers)):
            raise _refused(names[max(dependence)])


def _is_harmless(callers: list[tuple[str, str]]) -> bool:
    """Whether a function of a library that is known comes before any of the user's own."""
    for file, name in callers:
        known = _OWN if file.startswith(_OWN_FOLDER) else _HARMLESS
        if any(f"/{f}" in file and name.startswith(n) for f, n in known):
            return True
        if not file.startswith(_INSTALLED):
            return False
    return False


def _folder(path: pathlib.Path) -> str:
    return f"{path.as_posix()}/"


_OWN_FOLDER = _folder(pathlib.Path(__file__).parent)
_INSTALLED = (_OWN_FOLDER, _folder(pathlib.Path(jax.__file__).parents[1]))


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
