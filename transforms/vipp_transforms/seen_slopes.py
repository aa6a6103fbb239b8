"""Which of a program's values show their derivative in a draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.dependence import Dependences
from vipp_transforms.elimination import Elimination
from vipp_transforms.slopes import Slope
from vipp_transforms.staging import Program, Site
from vipp_transforms.terms import Split


def slopes_of(
    program: Program,
    depends: Dependences,
    split: Split,
    elimination: Elimination,
    wanted: Callable[[Site], bool],
) -> dict[Any, Slope]:
    """The slopes of some draws: those of the terms that are scored as the slopes are.

    Those are the terms that mix the site's ``grouped`` lanes, and the distributions of later sites.

    Args:
      program: staged.
      depends: which sites each of its values depends on.
      split: its value as a sum of terms.
      elimination: the contractions.
      wanted: whether a site's slope is.

    Returns:
      By the variable of the draw.
    """
    found = {}
    for var, site in program.sites.items():
        if not wanted(site):
            continue
        grouped = elimination.grouped(site)
        terms = zip(split.leaves, elimination.leaves, split.constant, strict=True)
        seen = {
            leaf
            for leaf, how, constant in terms
            if not constant and elimination.mixes(site, how.form.depends) == grouped
        }
        for other in program.sites.values():
            seen.update(v for v in other.parameters if site.index in depends[v])
        dtype = jnp.dtype(jnp.result_type(float))
        made = _jax.Var(_jax.shaped_array(var.aval.shape, dtype))
        found[var] = Slope(made, frozenset(v for v in seen if not isinstance(v, _jax.Literal)))
    return found
