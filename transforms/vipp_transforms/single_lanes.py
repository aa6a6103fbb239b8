"""Terms of single lanes of a choice: all lanes take their values at once, beside other terms'.

The equations that lead from a choice to such a term are copied, with every value of a lane in place
of the draw: ``E[f(z) + g(z_1)] = E[f(z)] + sum_k q(z_1 = k) g(k)`` (docs/engine.md, single lanes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from vipp_transforms import _jax
from vipp_transforms.dependence import Dependences
from vipp_transforms.elimination import Elimination
from vipp_transforms.estimators.base import Axis, Estimator, SiteInfo
from vipp_transforms.staging import Program, Site, live
from vipp_transforms.terms import Split


@dataclass(frozen=True, eq=False)
class Summed:
    """Of one choice, what is evaluated at the values of a lane beside its own.

    Attributes:
      site: the choice.
      estimator: that says what these values are, and takes the expectation.
      info: what an estimator may know of it, no term mixing lanes.
      var: in place of the draw.
      copies: by new variable, the one that it stands for.
      eqns: by an equation's first result, its copy.
      leaves: by number of a term's leaf, its copy.
    """

    site: Site
    estimator: Estimator
    info: SiteInfo
    var: Any
    copies: Mapping[Any, Any]
    eqns: Mapping[Any, Any]
    leaves: Mapping[int, Any]

    @property
    def values(self) -> jax.Array:
        """Where they depend on no draw, the same in all lanes: ``(size, *lanes, *event)``."""
        value = self.estimator.expand(self.info, _NO_SOURCE).value
        return value.astype(self.var.aval.dtype)

    @property
    def axis(self) -> Axis:
        """Of the values of a lane."""
        axis = self.estimator.axis(self.info)
        assert axis is not None
        return axis._replace(name=f"lane:{self.site.name}")


def summed_lanes(
    program: Program,
    depends: Dependences,
    split: Split,
    elimination: Elimination,
    wanted: Callable[[Site], tuple[Estimator, SiteInfo] | None],
) -> tuple[Summed, ...]:
    """What is summed beside the values of some choices.

    That is each leaf of the split whose last choice it is, and that keeps all its lanes apart.

    Args:
      program: staged.
      depends: which sites each of its values depends on.
      split: its value as a sum of terms.
      elimination: the contractions.
      wanted: of a site whose terms of single lanes are to be summed, by which estimator, and what
        it is told of the site; None for others.
    """
    by_index = {s.index: s for s in program.sites.values()}
    leaves: dict[int, dict[int, Any]] = {}
    for number, (leaf, how) in enumerate(zip(split.leaves, elimination.leaves, strict=True)):
        found = how.form.depends
        if not found or split.constant[number]:
            continue
        last = by_index[max(found)]
        # later ones would have been drawn given this one
        if last.loop is None and not any(elimination.mixes(last, found) or ()):
            leaves.setdefault(last.index, {})[number] = leaf
    made = []
    for index, of_site in leaves.items():
        site = by_index[index]
        asked = wanted(site)
        if asked is not None:
            made.append(_copied(program, site, *asked, of_site))
    return tuple(m for m in made if m is not None)


def _copied(
    program: Program, site: Site, estimator: Estimator, info: SiteInfo, leaves: Mapping[int, Any]
) -> Summed | None:
    """Copies of the equations from a draw to some leaves; None if they have effects."""
    new: dict[Any, Any] = {site.var: _jax.fresh_like(site.var)}
    eqns: dict[Any, Any] = {}
    for eqn in live(list(program.eqns), list(leaves.values()), effects=False):
        if site.var in eqn.outvars:
            eqns[site.var] = eqn.replace(outvars=[new[site.var]])
        elif any(v in new for v in eqn.invars if not isinstance(v, _jax.Literal)):
            if eqn.effects:
                return None
            new.update((v, _jax.fresh_like(v)) for v in eqn.outvars)
            inside = [v if isinstance(v, _jax.Literal) else new.get(v, v) for v in eqn.invars]
            outside = [new[v] for v in eqn.outvars]
            eqns[eqn.outvars[0]] = eqn.replace(invars=inside, outvars=outside)
    copies = {to: v for v, to in new.items()}
    ends = {k: new[v] for k, v in leaves.items()}
    return Summed(site, estimator, info, new[site.var], copies, eqns, ends)


def with_copies(eqns: Iterable[Any], summed: Iterable[Summed]) -> list[Any]:
    """The equations, each followed by its copies."""
    every = []
    for eqn in eqns:
        every.append(eqn)
        first = eqn.outvars[0] if eqn.outvars else None
        every += [s.eqns[first] for s in summed if first in s.eqns]
    return every


_NO_SOURCE: Any = None  # these values are not drawn
