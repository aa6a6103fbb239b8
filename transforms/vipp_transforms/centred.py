"""A program whose value is quadratic in a choice, written in what the choice is off its mean.

With mean :math:`m`, a value that is a polynomial of degree two is

.. math:: f(z) = f(m) + l(z - m) + q(z - m),

of which the linear part has no expectation. The program is evaluated at the mean, equations for the
quadratic part alone are added, and the choice stands for :math:`z - m`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.equations import homogeneous
from vipp_transforms.errors import SiteError
from vipp_transforms.estimators.base import Degree, Local
from vipp_transforms.linearity import PRODUCTS, linear_operands
from vipp_transforms.polynomials import POWERS, constant_truths, of_equation
from vipp_transforms.source import LaneSource
from vipp_transforms.staging import Inliner, Program, Site, lookup, without_calls

_ZERO = Degree(0)


def centred(program: Program, sites: Iterable[Site]) -> Program:
    """The program with these of its choices, in all of which it is quadratic, off their means."""
    for site in sites:
        program = _Centred(program, site).program
    return program


class _Centred:
    """One choice, written as what it is off its mean."""

    def __init__(self, program: Program, site: Site):
        self._env = dict(program.env)
        self._eqns: list[Any] = []
        self._truths: set[Any] = set()
        self._known: dict[Any, Degree] = {site.var: Degree(1)}
        self._parts: dict[Any, Any] = {site.var: site.var}
        mean: dict[Any, Any] = {}
        for eqn in program.eqns:
            renamed = [lookup(v, mean) for v in eqn.invars]
            self._eqns.append(eqn.replace(invars=renamed))
            if site.var in eqn.outvars:
                mean[site.var] = self._mean(site)
            else:
                self._follow(eqn)
        out = lookup(program.out, mean)
        if self._known.get(program.out, _ZERO).number == 2:
            out = self._apply(lambda x, y: x + y, out, self._parts[program.out])
        self.program = replace(program, env=self._env, eqns=tuple(self._eqns), out=out)

    def _mean(self, site: Site) -> Any:
        def mean(here: Local) -> jax.Array:
            found = here.distribution.moments()
            if found is None:
                raise SiteError(
                    f"Site '{site.name}': {type(site.template.estimator).__name__} needs the mean "
                    f"and the covariance, which {site.template.kind} does not know. Fix: use "
                    "Pathwise(), or ScoreFunction(num_samples=2, baseline='leave_one_out')."
                )
            return found[0]

        def at_lanes(key: Any, *leaves: Any) -> jax.Array:
            value = LaneSource(site.template, site.lanes, key, leaves).map(mean)
            return value.astype(site.var.aval.dtype)

        return self._apply(at_lanes, site.key, *site.leaves)

    def _apply(self, fn: Callable[..., Any], *atoms: Any) -> Any:
        """Add the equations of a function of some atoms; what its result is called."""
        closed, shape = _jax.trace(fn, *(_jax.shaped(v.aval) for v in atoms))
        inliner, scope = Inliner(self._env, loops=None), {}
        out = _jax.Var(_jax.shaped_array(shape.shape, shape.dtype))
        inliner.splice(closed, list(atoms), [out], scope)
        self._eqns += inliner.eqns
        return scope[out]

    def _follow(self, eqn: Any) -> None:
        """Note the degree of an equation's results; add equations for their highest part."""
        operands = [self._degree(v) for v in eqn.invars]
        self._truths.update(constant_truths(eqn, self._truths))
        if all(d == _ZERO for d in operands):
            return
        if _jax.called(eqn) is not None:
            scope: dict[Any, Any] = {}
            for inner in without_calls([eqn], scope):
                if all(self._degree(v) == _ZERO for v in inner.invars):
                    self._eqns.append(inner)
                self._follow(inner)
            for v in eqn.outvars:
                inside = lookup(v, scope)
                self._known[v] = self._degree(inside)
                if self._degree(inside) != _ZERO:
                    self._parts[v] = self._parts[inside]
            return
        degree = of_equation(eqn, operands)
        self._known.update(dict.fromkeys(eqn.outvars, degree))
        if degree.number:
            self._parts.update(zip(eqn.outvars, self._highest(eqn, operands, degree), strict=True))

    def _degree(self, atom: Any) -> Degree:
        return _ZERO if isinstance(atom, _jax.Literal) else self._known.get(atom, _ZERO)

    def _highest(self, eqn: Any, operands: list[Degree], degree: Degree) -> list[Any]:
        """What an equation's results are without all that is of a lower degree than they are."""
        name, atoms = eqn.primitive.name, list(eqn.invars)
        if name in PRODUCTS or name in POWERS:
            given = [
                v if d == _ZERO else self._parts[v] for v, d in zip(atoms, operands, strict=True)
            ]
            return self._copied(eqn, given)
        linear = linear_operands(name, len(atoms))
        always = not isinstance(atoms[0], _jax.Literal) and atoms[0] in self._truths
        if name == "select_n" and always:
            return [self._part_or_nought(eqn, atoms[-1], degree)]
        whole = [i for i in linear if operands[i] == degree]
        if name in ("add", "add_any", "sub") and len(whole) == 1:
            part = self._parts[atoms[whole[0]]]
            if part.aval.shape == eqn.outvars[0].aval.shape:
                negative = name == "sub" and whole[0] == 1
                return [self._apply(jnp.negative, part) if negative else part]
        given = [
            self._part_or_nought(None, v, degree) if i in linear else v for i, v in enumerate(atoms)
        ]
        return self._copied(eqn, given)

    def _part_or_nought(self, eqn: Any, atom: Any, degree: Degree) -> Any:
        if self._degree(atom) == degree:
            return self._parts[atom]
        aval = atom.aval if eqn is None else eqn.outvars[0].aval
        return self._apply(lambda: jnp.zeros(aval.shape, aval.dtype))

    def _copied(self, eqn: Any, operands: list[Any]) -> list[Any]:
        outs = [_jax.fresh_like(v) for v in eqn.outvars]
        self._eqns.append(homogeneous(eqn).replace(invars=operands, outvars=outs))
        return outs
