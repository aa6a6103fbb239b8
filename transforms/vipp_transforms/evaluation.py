"""The lifted evaluation of a plan: its sites expanded, its terms contracted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.choices import Choice
from vipp_transforms.elimination import Layout, Step
from vipp_transforms.estimators.base import Axis, Term
from vipp_transforms.lifting import Axes, Env, Lifted, Node, evaluate
from vipp_transforms.plan import Plan
from vipp_transforms.sites import LaneSource, coupled_noise, lifting, split_keys
from vipp_transforms.staging import Site, live
from vipp_transforms.terms import weights


class Evaluation:
    """The lifted evaluation of one plan and the contraction of its terms.

    Args:
      planned: what to evaluate.
      draws: given a site and the shape of all its draws (named axes first), their values; None to
        draw at random. Tests average over all values exactly this way.
      given: by site index, values for the array parameters of its estimator, which are otherwise
        those of the program, without gradient.
      probes: by site index, zeros to be added to the parameters of its distribution.
      step: zero, along which estimators with a tangent are differentiated.

    Attributes:
      drawn: by index of a site, the values that ``draws`` gave.
      costs: by index of a site that asks for it, what each of its lanes contributed to the value.
    """

    def __init__(
        self,
        planned: Plan,
        draws: Callable[[Site, tuple[int, ...]], Any] | None = None,
        given: Mapping[int, list[Lifted]] | None = None,
        probes: Mapping[int, list[jax.Array]] | None = None,
        step: Any = 0.0,
    ):
        self.plan = planned
        self.draws, self.given, self.probes = draws, given or {}, probes or {}
        self.step = step
        self.drawn: dict[int, Lifted] = {}
        self.costs: dict[int, jax.Array] = {}
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
        for site in planned.program.sites.values():
            if site.loop is not None:
                self.env[site.loop.trajectory] = self._trajectory(site)
        self.potentials: dict[int, tuple[Lifted, ...]] = {}

    def value(self) -> jax.Array:
        """The surrogate's value."""
        with lifting():
            return self._value()

    def _value(self) -> jax.Array:
        program, elimination = self.plan.program, self.plan.elimination
        nodes = {v: self._node(s) for v, s in program.sites.items() if s.loop is None}
        needed = self._needed()
        eqns = live(list(program.eqns), needed)  # a sum of many terms would have all their axes
        evaluate(eqns, self.env, self.axes, nodes, needed, self._names)
        terms = dict(enumerate(self._leaf_terms()))
        for step in elimination.steps:
            terms[step.result] = self._contract(step, [terms.pop(k) for k in step.members])
        total = jnp.zeros((), self.plan.program.out.aval.dtype)
        for k in elimination.final:
            total = total + terms[k].array
        return total

    def _needed(self) -> list[Any]:
        atoms = list(self.plan.split.leaves)
        for eqn, operands in self.plan.split.opened:  # what was walked through is not needed
            atoms += [v for i, v in enumerate(eqn.invars) if i not in operands]
        for site in self.plan.program.sites.values():
            atoms += [site.key, *site.leaves, site.var]
        return atoms

    def _parameters(self, site: Site) -> list[Lifted]:
        """The leaves of a site's distribution."""
        values = [value_of(self.env, v) for v in site.parameters]
        for i, probe in enumerate(self.probes.get(site.index, ())):
            x, named = values[i], tuple(range(len(values[i].axes)))
            if jnp.issubdtype(probe.dtype, jnp.floating):
                values[i] = x._replace(array=x.array + jnp.expand_dims(probe, named))
        return values

    def _settings(self, site: Site) -> list[Lifted]:
        """The array parameters of a site's estimator: not for the objective's gradient."""
        if site.index in self.given:
            return self.given[site.index]
        values = [value_of(self.env, v) for v in site.settings]
        return [x._replace(array=jax.lax.stop_gradient(x.array)) for x in values]

    def _names_of_site(self, site: Site) -> frozenset[str]:
        """The axes a site's values carry: its own, and those of what its draw depends on."""
        axis = self.axis_of[site.index]
        own = frozenset({axis.name} if axis else ())
        if not self.plan.choices[site.index].estimator.draws:
            return own
        if site.loop is not None:
            return self._names_of_loop(site.loop.eqn)
        return own.union(*(self._names(v) for v in (site.key, *site.leaves)))

    def _names_of_loop(self, eqn: Any) -> frozenset[str]:
        """All sites of a loop carry what any of them carries."""
        sites = [s for s in self.plan.program.sites.values() if s.loop and s.loop.eqn is eqn]
        own = frozenset(axis.name for s in sites if (axis := self.axis_of[s.index]))
        before = {r for s in sites for v in (s.key, *s.leaves) for r in self.plan.depends[v]}
        return own | self._names_of(before - {s.index for s in sites})

    def _trajectory(self, site: Site) -> Lifted:
        """A number for each of the draws along the site's axis."""
        axis = self.axis_of[site.index]
        if axis is None:
            return Lifted(jnp.int32(0))
        return Lifted(jnp.arange(axis.size, dtype=jnp.int32), (axis.name,))

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
        key, noise = self.env[site.key], None
        if axis is not None and axis.shared:
            coupled = choice.estimator.coupled
            split = self._coupled(site) if coupled else lambda k: [split_keys(k, axis.size)]
            (each,) = self.axes.apply(split, key)
            each = self.axes.named(each, axis.name)
            key, noise = (key, each) if coupled else (each, None)

        operands = [key, *self._parameters(site), *self._settings(site)]
        if self.draws is not None:
            names = self.axes.union(operands)
            shape = (*(self.axes.sizes[n] for n in names), *site.var.aval.shape)
            self.drawn[site.index] = Lifted(self.draws(site, shape), names)
            operands.insert(0, self.drawn[site.index])
        if noise is not None:
            operands.insert(0, noise)

        def one(*inputs: Any) -> list[Any]:
            rest = list(inputs)
            shared = rest.pop(0) if noise is not None else None
            drawn = rest.pop(0) if self.draws is not None else None
            k, *leaves = rest
            source = LaneSource(site.template, site.lanes, k, leaves, drawn, shared, self.step)
            value, potentials = choice.estimator.expand(choice.lot, source)
            return [value, *(potentials or ())]

        results = self.axes.apply(one, *operands)
        if axis is not None and not axis.shared:
            results = [self.axes.named(x, axis.name) for x in results]
        if len(results) > 1:
            self.potentials[site.index] = tuple(results[1:])
        return results[0]

    def _coupled(self, site: Site) -> Callable[[Any], list[Any]]:
        return lambda key: [coupled_noise(site.template, site.lanes, key)]

    # -- terms and their contraction ---------------------------------------------------------

    def _leaf_terms(self) -> list[Lifted]:
        parts = self.plan.split
        scale = weights(parts, self.plan.program.out, lambda v: value_of(self.env, v).array)
        return [
            self._arrange(value_of(self.env, leaf), how, weight)
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
        if step.constant:
            stopped = [jax.lax.stop_gradient(x.array) for x in operands[1:]]
            operands[1:] = [x._replace(array=a) for x, a in zip(operands[1:], stopped, strict=True)]
        elif estimator.baseline_of is not None:
            self._watch(step, operands[0])
        if axis is not None:
            operands = [self.axes.first(x, axis.name) for x in operands]
        (value, *potentials), names = self._lined_up(operands, axis)
        mixed = tuple(a is None for a in step.lanes)
        term = Term(value, tuple(potentials), lanes, lot, mixed, step.finest)
        result = estimator.contract(term)
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
            if step.site.index in self.plan.depends.causal and lanes[0] is not None:
                backwards = self.plan.depends.causal[step.site.index]
                x = jax.lax.cumsum(x, axis=named, reverse=backwards)
            summed = tuple(named + j for j, a in enumerate(lanes) if a is None)
            x = _permute(jnp.sum(x, axis=summed) if summed else x, named, order)
            gaps = tuple(named + a for a in range(ndim) if a not in kept)
            aligned.append(value._replace(array=jnp.expand_dims(x, gaps) if gaps else x))
        return aligned

    def _watch(self, step: Step, term: Lifted) -> None:
        """Add a term to what the lanes of its site contributed; the mean over named axes."""
        x = jax.lax.stop_gradient(term.array)
        x = jnp.mean(x, axis=tuple(range(len(term.axes)))) if term.axes else x
        kept = [a for a in step.lanes if a is not None]
        x = jnp.sum(x, axis=tuple(a for a in range(x.ndim) if a not in kept))
        x = _permute(x, 0, [sorted(kept).index(a) for a in kept])
        x = jnp.expand_dims(x, tuple(j for j, a in enumerate(step.lanes) if a is None))
        x = jnp.broadcast_to(x, step.site.lane_shape)
        before = self.costs.get(step.site.index)
        self.costs[step.site.index] = x if before is None else before + x

    def regression(self, site: Site) -> jax.Array:
        """Zero, with the gradient that fits the site's baseline to its costs."""
        leaves = [*self._parameters(site), *(value_of(self.env, v) for v in site.settings)]

        def baseline(key: Any, *leaves: Any) -> list[Any]:
            source = LaneSource(site.template, site.lanes, key, leaves)
            shape = site.template.batch_shape
            values = lambda here: jnp.broadcast_to(here.estimator.baseline_of, shape)
            return [source.map(values)]

        (b,) = self.axes.apply(baseline, self.env[site.key], *leaves)
        error = jnp.square(b.array - jnp.expand_dims(self.costs[site.index], range(len(b.axes))))
        loss = 0.5 * jnp.mean(error, axis=tuple(range(len(b.axes)))).sum()
        return jax.lax.stop_gradient(loss) - loss

    def log_prob(self, site: Site, value: Lifted | None = None) -> Lifted:
        """The log density of a site at ``value`` (its own values), one entry per lane."""
        value = self.env[site.var] if value is None else value
        jaxpr, consts = _jax.open_jaxpr(site.log_prob)
        fn = _jax.evaluator(jaxpr.eqns, (*jaxpr.constvars, *jaxpr.invars), jaxpr.outvars)
        leaves = [*self._parameters(site), *self._settings(site)]
        return self.axes.apply(fn, *map(Lifted, consts), value, *leaves)[0]


def value_of(env: Env, atom: Any) -> Lifted:
    """The value of a variable or a literal."""
    return Lifted(jnp.asarray(atom.val)) if isinstance(atom, _jax.Literal) else env[atom]


def _permute(x: Any, named: int, order: list[int]) -> Any:
    """Order the axes behind the first ``named``."""
    if order == sorted(order):
        return x
    return jnp.transpose(x, (*range(named), *(named + a for a in order)))


_NO_SOURCE: Any = None  # for estimators that expand without drawing
