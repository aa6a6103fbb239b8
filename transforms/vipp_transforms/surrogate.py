"""Stage, credit, lift, eliminate: a program that draws values as an unbiased gradient estimator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.dependence import Dependences
from vipp_transforms.elimination import Elimination, Layout, Step, eliminate
from vipp_transforms.estimators.base import Axis, Term
from vipp_transforms.lifting import Axes, Env, Lifted, Node, evaluate
from vipp_transforms.policy import Choice, choose
from vipp_transforms.sites import LaneSource, lifting, split_keys
from vipp_transforms.staging import Program, Site, Traced, inline, trace
from vipp_transforms.terms import Split, split, weights


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that was derived for one program, before any of it is evaluated.

    Attributes:
      program: staged.
      depends: which sites each of its values depends on.
      split: its value as a sum of terms.
      elimination: the contractions, in order.
      choices: per site index, its estimator.
    """

    program: Program
    depends: Dependences
    split: Split
    elimination: Elimination
    choices: dict[int, Choice]


def plan(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Plan:
    """Derive the estimator of ``E[fn(*args, **kwargs)[0]]`` without evaluating it.

    Args:
      fn: returns ``(value, aux)``; draws with :func:`vipp_transforms.sample`.
      *args: its arguments.
      **kwargs: its keyword arguments.

    Returns:
      The plan.

    Raises:
      SiteError: where no sound estimator exists for a site as asked.
      ValueError: where the value is not a real scalar.
    """
    return _plan(trace(fn, args, kwargs))


def _plan(traced: Traced) -> Plan:
    program = inline(traced)
    depends = Dependences(program)
    parts = split(program, depends)
    elimination = eliminate(program, depends, parts)
    return Plan(program, depends, parts, elimination, choose(program, elimination))


def surrogate(fn: Callable[..., Any]) -> Callable[..., Any]:
    r"""A function whose value and derivatives estimate those of :math:`E[f(x)]` without bias.

    Args:
      fn: returns ``(value, aux)``, the value a real scalar; draws with
        :func:`vipp_transforms.sample`. Keys are its own business.

    Returns:
      A function of the same arguments returning ``(estimate, aux)``; ``jax.grad`` of it (with
      ``has_aux=True``) is unbiased. ``aux`` is that of one plain run, without gradient.

    Raises:
      SiteError: when called, where no sound estimator exists for a site as asked.
      ValueError: when called, where the value is not a real scalar.

    Example:
      >>> import jax, numpyro.distributions as dist
      >>> import vipp_transforms as vt
      >>> def f(p):
      ...     z = vt.sample(jax.random.key(0), dist.Bernoulli(p), vt.Enumerate(), name="z")
      ...     return 3.0 * z, None
      >>> value, slope = jax.value_and_grad(lambda p: vt.surrogate(f)(p)[0])(jax.numpy.float32(0.5))
      >>> float(value), float(slope)
      (1.5, 3.0)

    References:
      Lew et al., *ADEV: sound automatic differentiation of expected values*, POPL 2023.
      Becker, Lew et al., *Probabilistic programming with programmable variational inference*,
      PLDI 2024.
    """

    def estimate(*args: Any, **kwargs: Any) -> tuple[jax.Array, Any]:
        traced = trace(fn, args, kwargs)
        return run(_plan(traced)) if traced.draws() else traced.evaluate()

    return estimate


def run(planned: Plan) -> tuple[jax.Array, Any]:
    """Evaluate a plan: the estimate and the auxiliary outputs."""
    lifted = Evaluation(planned)
    return lifted.value(), _auxiliary(planned.program)


def _auxiliary(program: Program) -> Any:
    """The auxiliary outputs of one plain run; not differentiated."""
    values = []
    if program.aux:
        env = {v: Lifted(jax.lax.stop_gradient(x)) for v, x in program.env.items()}
        evaluate(program.eqns, env, Axes(), {}, program.aux, lambda _: frozenset())
        values = [_value(env, v).array for v in program.aux]
    return jax.tree_util.tree_unflatten(program.aux_tree, values)


def _value(env: Env, atom: Any) -> Lifted:
    return Lifted(jnp.asarray(atom.val)) if isinstance(atom, _jax.Literal) else env[atom]


class Evaluation:
    """The lifted evaluation of one plan and the contraction of its terms.

    Args:
      planned: what to evaluate.
      draws: given a site and the shape of all its draws (named axes first), their values; None to
        draw at random. Tests average over all values exactly this way.
    """

    def __init__(self, planned: Plan, draws: Callable[[Site, tuple[int, ...]], Any] | None = None):
        self.plan = planned
        self.draws = draws
        self.axes = Axes()
        self.axis_of: dict[int, Axis | None] = {}
        for site in planned.program.sites.values():
            choice = planned.choices[site.index]
            axis = self.axis_of[site.index] = choice.estimator.axis(choice.lot)
            if axis is not None:
                self.axes.register(axis)
        self._carried: dict[int, frozenset[str]] = {}
        for site in planned.program.sites.values():
            self._carried[site.index] = self._names_of_site(site)
        self.env: Env = {v: Lifted(x) for v, x in planned.program.env.items()}
        self.potentials: dict[int, tuple[Lifted, ...]] = {}

    def value(self) -> jax.Array:
        """The surrogate's value."""
        with lifting():
            return self._value()

    def _value(self) -> jax.Array:
        program, elimination = self.plan.program, self.plan.elimination
        nodes = {v: self._node(site) for v, site in program.sites.items()}
        evaluate(program.eqns, self.env, self.axes, nodes, self._needed(), self._names)
        terms = dict(enumerate(self._leaf_terms()))
        for step in elimination.steps:
            terms[step.result] = self._contract(step, [terms.pop(k) for k in step.members])
        total = jnp.zeros((), self.plan.program.out.aval.dtype)
        for k in elimination.final:
            total = total + terms[k].array
        return total

    def _needed(self) -> list[Any]:
        atoms = list(self.plan.split.leaves)
        for eqn, _ in self.plan.split.opened:
            atoms += eqn.invars
        for site in self.plan.program.sites.values():
            atoms += [site.key, *site.leaves, site.var]
        return atoms

    def _names_of_site(self, site: Site) -> frozenset[str]:
        """The axes a site's values carry: its own, and those of what its draw depends on."""
        axis = self.axis_of[site.index]
        own = frozenset({axis.name} if axis else ())
        if not self.plan.choices[site.index].estimator.draws:
            return own
        return own.union(*(self._names(v) for v in (site.key, *site.leaves)))

    def _names(self, atom: Any) -> frozenset[str]:
        """The axes that a value may carry: those of the sites that it depends on."""
        return self._names_of(self.plan.depends[atom])

    def _names_of(self, sites: Iterable[int]) -> frozenset[str]:
        return frozenset().union(*(self._carried[r] for r in sites))

    # -- expansion ---------------------------------------------------------------------------

    def _node(self, site: Site) -> Node:
        choice, axis = self.plan.choices[site.index], self.axis_of[site.index]
        names = self._carried[site.index]
        if not choice.estimator.draws:
            return Node(names, lambda env: self._expand_drawless(site))
        return Node(names, lambda env: self._expand(site, choice, axis))

    def _expand_drawless(self, site: Site) -> Lifted:
        choice, axis = self.plan.choices[site.index], self.axis_of[site.index]
        assert axis is not None
        value = choice.estimator.expand(choice.lot, _NO_SOURCE).value
        return self.axes.named(Lifted(value.astype(site.var.aval.dtype)), axis.name)

    def _expand(self, site: Site, choice: Choice, axis: Axis | None) -> Lifted:
        key = self.env[site.key]
        if axis is not None and axis.shared:
            (keys,) = self.axes.apply(lambda k: [split_keys(k, axis.size)], key)
            key = self.axes.named(keys, axis.name)

        operands = [key, *(_value(self.env, v) for v in site.leaves)]
        if self.draws is not None:
            names = self.axes.union(operands)
            shape = (*(self.axes.sizes[n] for n in names), *site.var.aval.shape)
            operands.insert(0, Lifted(self.draws(site, shape), names))

        def one(*inputs: Any) -> list[Any]:
            drawn, (k, *leaves) = (inputs[0], inputs[1:]) if self.draws else (None, inputs)
            source = LaneSource(site.template, site.lanes, k, leaves, drawn)
            value, potentials = choice.estimator.expand(choice.lot, source)
            return [value, *(potentials or ())]

        results = self.axes.apply(one, *operands)
        if axis is not None and not axis.shared:
            results = [self.axes.named(x, axis.name) for x in results]
        if len(results) > 1:
            self.potentials[site.index] = tuple(results[1:])
        return results[0]

    # -- terms and their contraction ---------------------------------------------------------

    def _leaf_terms(self) -> list[Lifted]:
        parts = self.plan.split
        scale = weights(parts, self.plan.program.out, lambda v: _value(self.env, v).array)
        return [
            self._arrange(_value(self.env, leaf), how, weight)
            for leaf, how, weight in zip(
                parts.leaves, self.plan.elimination.leaves, scale, strict=True
            )
        ]

    def _arrange(self, value: Lifted, how: Layout, weight: Any = 1.0) -> Lifted:
        """Weigh, sum over the axes that no site's lanes lie along, and order the others."""
        x, named = value.array, len(value.axes)
        if not (isinstance(weight, float) and weight == 1.0):
            full = jnp.expand_dims(weight, tuple(range(named))) if jnp.ndim(weight) else weight
            x = self.plan.split.weigh(full, x)
        unnamed = range(jnp.ndim(x) - named)
        dropped = tuple(named + a for a in unnamed if a not in how.axes)
        kept = [a for a in unnamed if a in how.axes]
        x = jnp.sum(x, axis=dropped) if dropped else x
        return value._replace(array=_permute(x, named, [kept.index(a) for a in how.axes]))

    def _contract(self, step: Step, members: list[Lifted]) -> Lifted:
        estimator, lot, _ = self.plan.choices[step.site.index]
        lanes = math.prod(
            n for n, a in zip(step.site.lane_shape, step.lanes, strict=True) if a is None
        )
        axis = self.axis_of[step.site.index]
        operands = [self.axes.add(members), *self._potentials_of(step)]
        if axis is not None:
            operands = [self.axes.first(x, axis.name) for x in operands]
        (value, *potentials), names = self._lined_up(operands, axis)
        result = estimator.contract(Term(value, tuple(potentials), lanes, lot))
        lifted = Lifted(result, names)
        if axis is not None and axis.shared:
            lifted = self.axes.named(lifted, axis.name, at=0)
        return self._arrange(self._settle(step, lifted), step.layout)

    def _lined_up(self, operands: list[Lifted], axis: Axis | None) -> tuple[list[Any], Any]:
        """Give all operands the same named axes, those behind the estimator's own if it has one."""
        if axis is None:
            return self.axes.aligned(*operands)
        names = self.axes.union(operands)
        absent = [tuple(1 + i for i, n in enumerate(names) if n not in x.axes) for x in operands]
        pairs = zip(operands, absent, strict=True)
        return [jnp.expand_dims(x.array, gaps) if gaps else x.array for x, gaps in pairs], names

    def _settle(self, step: Step, result: Lifted) -> Lifted:
        """Average over the axes that none of the sites that are left was drawn or expanded along.

        A shared axis goes here once the last of its sites is eliminated; so does the axis of an
        earlier site that decided which draw it was but not its distribution.
        """
        left = self._names_of(step.layout.form.depends)
        settled = tuple(i for i, name in enumerate(result.axes) if name not in left)
        if not settled:
            return result
        kept = tuple(name for name in result.axes if name in left)
        return Lifted(jnp.mean(result.array, axis=settled), kept)

    def _potentials_of(self, step: Step) -> list[Lifted]:
        """The site's potentials, summed over mixed lanes, their lanes at the term's axes."""
        lanes, ndim = step.lanes, len(step.form.shape)
        kept = [a for a in lanes if a is not None]
        order = sorted(range(len(kept)), key=kept.__getitem__)
        if step.site.index not in self.potentials:
            self.potentials[step.site.index] = (self.log_prob(step.site),)
        aligned = []
        for value in self.potentials[step.site.index]:
            x, named = value.array, len(value.axes)
            summed = tuple(named + j for j, a in enumerate(lanes) if a is None)
            x = _permute(jnp.sum(x, axis=summed) if summed else x, named, order)
            gaps = tuple(named + a for a in range(ndim) if a not in kept)
            aligned.append(value._replace(array=jnp.expand_dims(x, gaps) if gaps else x))
        return aligned

    def log_prob(self, site: Site, value: Lifted | None = None) -> Lifted:
        """The log density of a site at ``value`` (its own values), one entry per lane."""
        value = self.env[site.var] if value is None else value
        jaxpr, consts = _jax.open_jaxpr(site.log_prob)
        fn = _jax.evaluator(jaxpr.eqns, (*jaxpr.constvars, *jaxpr.invars), jaxpr.outvars)
        leaves = [_value(self.env, v) for v in site.leaves]
        return self.axes.apply(fn, *map(Lifted, consts), value, *leaves)[0]


def _permute(x: Any, named: int, order: list[int]) -> Any:
    """Order the axes behind the first ``named``."""
    if order == sorted(order):
        return x
    return jnp.transpose(x, (*range(named), *(named + a for a in order)))


_NO_SOURCE: Any = None  # for estimators that expand without drawing
