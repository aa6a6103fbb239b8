"""The lifted evaluation of a plan: its sites expanded, its terms contracted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.elimination import Form, Layout, Step
from vipp_transforms.entries import permute, possible
from vipp_transforms.estimators.base import Axis
from vipp_transforms.estimators.enumerate import lane_numbers
from vipp_transforms.expansion import (
    Potentials,
    at_term,
    expanded,
    numbers,
    of_units,
    sample_keys,
    term_of,
)
from vipp_transforms.first_draw import First, first_of, forced_draws, scored_sites, unknown
from vipp_transforms.fitted import drawn_leaves, with_functions
from vipp_transforms.lane import MIXED
from vipp_transforms.lifting import Axes, Env, Lifted, Node, value_of
from vipp_transforms.one_at_a_time import averaged, combined, laid, one_at_a_time
from vipp_transforms.orders import held, limited
from vipp_transforms.plan import Plan
from vipp_transforms.sharing import call, evaluate
from vipp_transforms.single_lanes import Summed, with_copies
from vipp_transforms.sites import lifting
from vipp_transforms.slopes import Sloped, usable
from vipp_transforms.staging import Site, live
from vipp_transforms.support_numbers import Numbers
from vipp_transforms.terms import weights

Leaves = Callable[[Site, list[Lifted]], list[Lifted]]


class Evaluation:
    """The lifted evaluation of one plan and the contraction of its terms.

    Args:
      planned: what to evaluate.
      draws: given a site and the shape of all its draws (named axes first), their values; None to
        draw at random. Tests average over all values exactly this way.
      leaves: given a site and the values of its leaves, those to take for them; None for these.
      step: zero, along which estimates whose axis is a tangent are differentiated.
      given: the draws that stand for the whole expansion of their sites, and what is known.

    Attributes:
      scored: the sites by whose potentials alone it is differentiated; all others if there are any
        are so at the first of their draws (``first_draw.py``).
      drawn: by index of a site, the values that ``draws`` gave.
      credited: by index of a site, what was contracted over it.
    """

    def __init__(
        self,
        planned: Plan,
        draws: Callable[[Site, tuple[int, ...]], Any] | None = None,
        leaves: Leaves | None = None,
        step: Any = 0.0,
        given: First | None = None,
    ):
        self.plan, self.draws, self.leaves, self.step = planned, draws, leaves, step
        self.given = given.draws if given else {}
        self.scored = frozenset() if given else scored_sites(planned)
        # a side computation may differentiate once more: the value that is returned is limited
        self.limited = leaves is None and isinstance(step, float)
        self.drawn: dict[int, Lifted] = {}
        self.credited: dict[int, list[tuple[Step, Lifted]]] = {}
        self.axes = Axes()
        self.axis_of: dict[int, Axis | None] = {}
        for site in planned.program.sites.values():
            choice = planned.choices[site.index]
            axis = None if site.index in self.given else choice.estimator.axis(choice.site)
            self.axis_of[site.index] = axis
            if axis is not None:
                self.axes.register(axis)
        self.blocks = one_at_a_time(planned)
        for index, block in self.blocks.items():
            self.axis_of[index] = block.joint
            self.axes.register(block.joint)
        self.summed = planned.summed
        for each in self.summed:
            self.axes.register(each.axis)
        self._copy_of = {copy: (v, each) for each in self.summed for copy, v in each.copies.items()}
        # the axes are known before anything is evaluated, so that equations with equal axes can
        # be traced together, once for all
        self._carried: dict[int, frozenset[str]] = {}
        for site in planned.program.sites.values():
            self._carried[site.index] = self._names_of_site(site)
        self.env: Env = {v: Lifted(x) for v, x in planned.program.env.items()}
        self.env.update(given.known if given else {})
        for site in planned.program.sites.values():
            # a loop runs once for every trajectory: which one it is comes in as a number
            if site.loop is not None:
                self.env[site.loop.trajectory] = numbers(self.axis_of[site.index])
        self.potentials: dict[int, Potentials] = {}
        self._lane_potentials: dict[int, Potentials] = {}  # where single lanes are summed
        self._slopes: dict[int, Lifted] = {}

    def value(self) -> jax.Array:
        """The surrogate's value."""
        with lifting():
            value = self._value()
            if not self.scored:
                return value
            given, draws = first_of(self), forced_draws(self)
            at_first = Evaluation(self.plan, draws, self.leaves, self.step, given)._value()
            return value + (at_first - jax.lax.stop_gradient(at_first))

    def _value(self) -> jax.Array:
        program, elimination = self.plan.program, self.plan.elimination
        nodes = {v: self._node(s) for v, s in program.sites.items() if s.loop is None}
        needed = self._needed()  # not the sum: it has all axes
        eqns = live(unknown(with_copies(program.eqns, self.summed), self.env), needed)
        nodes.update((s.var, self._lane_node(s)) for s in self.summed)
        slopes, names_of = self.plan.slopes(), self._names
        if slopes:
            sloped = Sloped(eqns, slopes)
            eqns, of = live(sloped.eqns, needed), sloped.stands_for
            names_of = lambda v: self._names(of.get(v, v))
            for var, slope in slopes.items():
                site = program.sites[var]
                nodes[slope.var] = Node(self._carried[site.index], partial(self._slope, site))
        evaluate(eqns, self.env, self.axes, nodes, needed, names_of)
        terms = dict(enumerate(self._leaf_terms()))
        if self.scored:
            terms = {k: x._replace(array=held(x.array)) for k, x in terms.items()}
        self.potentials.update(with_functions(self))
        done = {k for s in self.summed for k in s.leaves}
        for first, *more in self._together(elimination.steps):
            numbers = [k for s in (first, *more) for k in s.members if k in terms]
            before = [terms.pop(k) for k in numbers if k in done]
            members = [terms.pop(k) for k in numbers if k not in done]
            parts = [self.arranged(self._averaged(first, x), first.layout) for x in before]
            parts += [self._contract(first, members)] if members else []
            terms[first.result] = self.axes.add(parts)
        total = jnp.zeros((), self.plan.program.out.aval.dtype)
        for k in elimination.final:
            if k in terms:
                total = total + terms[k].array
        return total

    def _together(self, steps: Sequence[Step]) -> list[list[Step]]:
        """Sums over one site that leave alike terms are taken together."""
        found: dict[Any, list[Step]] = {}
        for step in steps:
            axis = self.axis_of[step.site.index]
            alone = None if axis is not None and axis.drawless else step.result
            depends = tuple(sorted(step.layout.form.depends.items()))
            after = (step.layout.axes, step.layout.form.shape, depends)
            key = (step.site.index, step.form.shape, step.lanes, after, step.constant, alone)
            found.setdefault(key, []).append(step)
        return list(found.values())

    @property
    def _leaf_atoms(self) -> list[Any]:
        """Of each leaf; of one that is summed over a lane's values, the copy at these."""
        copies = {k: v for s in self.summed for k, v in s.leaves.items()}
        return [copies.get(k, v) for k, v in enumerate(self.plan.split.leaves)]

    def _needed(self) -> list[Any]:
        atoms = self._leaf_atoms
        for eqn, operands in self.plan.split.opened:  # what was walked through is not needed
            atoms += [v for i, v in enumerate(eqn.invars) if i not in operands]
        for site in self.plan.program.sites.values():
            atoms += [site.key, *site.leaves, site.var]
        return [*atoms, *drawn_leaves(self.plan)]

    def leaves_of(self, site: Site) -> list[Lifted]:
        """The leaves of a site's distribution, then those of its estimator."""
        values = [value_of(self.env, v) for v in site.leaves]
        for i in range(len(site.parameters), len(values)):  # not for the objective's gradient
            # an estimator's own state (a baseline's weights) is no parameter of the objective
            values[i] = values[i]._replace(array=jax.lax.stop_gradient(values[i].array))
        return values if self.leaves is None else self.leaves(site, values)

    def _names_of_site(self, site: Site) -> frozenset[str]:
        """The axes a site's values carry: its own, and those of what its draw depends on."""
        axis = self.axis_of[site.index]
        if site.index in self.given:
            return frozenset(self.given[site.index].axes)
        own = frozenset({axis.name} if axis else ())
        if axis is not None and axis.drawless:
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

    def _names(self, atom: Any) -> frozenset[str]:
        """The axes that a value may carry: those of the sites that it depends on."""
        copied = None if isinstance(atom, _jax.Literal) else self._copy_of.get(atom)
        if copied is not None:
            original, each = copied
            others = [r for r in self.plan.depends[original] if r != each.site.index]
            return self._names_of(others) | {each.axis.name}
        return self._names_of(self.plan.depends[atom])

    def _names_of(self, sites: Iterable[int]) -> frozenset[str]:
        return frozenset().union(*(self._carried[r] for r in sites))

    # -- expansion ---------------------------------------------------------------------------

    def _node(self, site: Site) -> Node:
        axis, names = self.axis_of[site.index], self._carried[site.index]
        if site.index in self.given:
            return Node(names, lambda env: self.given[site.index])
        if axis is not None and axis.drawless:
            table = lane_numbers(self.plan.choices[site.index].site, site.var.aval.dtype)
            numbers = None if table is None else Numbers(table, (axis.name,))
            return Node(names, lambda env: self._expand_drawless(site, axis), numbers)
        make = lambda env: self._expand(site, axis)
        return of_units(self.plan.choices[site.index].site, axis, Node(names, make))

    def _lane_node(self, each: Summed) -> Node:
        """The values of a lane; in place of an impossible one, whose term may be anything, one."""
        site, axis = each.site, each.axis
        if axis.drawless:
            names = frozenset({axis.name}).union(*(self._names(v) for v in site.leaves))
            return Node(names, lambda env: self._every_value(each))

        def make(env: Env) -> Lifted:
            leaves = self.leaves_of(site)
            found = expanded(
                site, each.estimator, each.info, axis, self.axes, [env[site.key]], leaves
            )
            assert found.potentials is not None
            self._lane_potentials[site.index] = found.potentials
            return found.value

        names = frozenset({axis.name}).union(*(self._names(v) for v in (site.key, *site.leaves)))
        return of_units(each.info, axis, Node(names, make))

    def _every_value(self, each: Summed) -> Lifted:
        name = each.axis.name
        every = self.axes.named(Lifted(each.values), name)
        log_prob = self.log_prob(each.site, every)
        self._lane_potentials[each.site.index] = Potentials((log_prob,), _ONE)
        operands = [self.axes.first(x, name) for x in (every, log_prob)]
        (value, weight), others = self._lined_up(operands, each.axis)
        return self.axes.named(Lifted(possible(value, weight), others), name, at=0)

    def _expand_drawless(self, site: Site, axis: Axis) -> Lifted:
        choice = self.plan.choices[site.index]
        value = choice.estimator.expand(choice.site, _NO_SOURCE).value
        return self.axes.named(Lifted(value.astype(site.var.aval.dtype)), axis.name)

    def _slope(self, site: Site, env: Env) -> Lifted:
        return self._slopes[site.index]

    def _expand(self, site: Site, axis: Axis | None) -> Lifted:
        choice, keys, leaves = (
            self.plan.choices[site.index],
            sample_keys(self.axes, self.env[site.key], axis),
            self.leaves_of(site),
        )
        if self.draws is not None:
            names = self.axes.union([*keys, *leaves])
            shape = (*(self.axes.sizes[n] for n in names), *site.var.aval.shape)
            self.drawn[site.index] = Lifted(self.draws(site, shape), names)
        block = self.blocks.get(site.index)
        found = expanded(
            site, choice.estimator, choice.site, block.own if block else axis, self.axes, keys,
            leaves, self.drawn.get(site.index), self.step,
        )  # fmt: skip
        found = found if block is None else laid(block, self.axes, found)
        if found.slope is not None:
            self._slopes[site.index] = found.slope._replace(array=usable(found.slope.array))
        if found.potentials is not None:
            self.potentials[site.index] = found.potentials
        return found.value

    # -- terms and their contraction ---------------------------------------------------------

    def _leaf_terms(self) -> list[Lifted]:
        parts = self.plan.split
        scale = weights(parts, self.plan.program.out, lambda v: value_of(self.env, v).array)
        terms = [
            self.arranged(value_of(self.env, leaf), how, weight)
            for leaf, how, weight in zip(
                self._leaf_atoms, self.plan.elimination.leaves, scale, strict=True
            )
        ]
        self.at_values, self.scale = list(terms), scale
        for each in self.summed:
            for k in each.leaves:
                terms[k] = self.sum_over_lane(each, terms[k], self.plan.elimination.leaves[k].form)
        return terms

    def sum_over_lane(self, each: Summed, term: Lifted, form: Form) -> Lifted:
        """A term of single lanes at all values of them, weighed by their probabilities."""
        lanes, ndim = form.depends[each.site.index], len(form.shape)
        given = self._lane_potentials[each.site.index]
        own, tree = at_term(given, each.info, each.axis, self.axes, lanes, ndim)
        operands = [self.axes.first(x, each.axis.name) for x in (term, *own)]
        (value, *given), names = self._lined_up(operands, each.axis)
        made = term_of(value, tree.unflatten(given), each.axis, 1, each.info)
        return Lifted(each.estimator.contract(made), names)

    def arranged(self, value: Lifted, how: Layout, weight: Any = 1.0) -> Lifted:
        """Weigh, sum over the axes that no site's lanes lie along, and order the others."""
        x, named = value.array, len(value.axes)
        if not (isinstance(weight, float) and weight == 1.0):
            full = jnp.expand_dims(weight, tuple(range(named))) if jnp.ndim(weight) else weight
            x = self.plan.split.weigh(full, x)
        unnamed = range(jnp.ndim(x) - named)
        dropped = tuple(named + a for a in unnamed if a not in how.axes)
        kept = [a for a in unnamed if a in how.axes]
        x = jnp.sum(x, axis=dropped) if dropped else x
        return value._replace(array=permute(x, named, [kept.index(a) for a in how.axes]))

    def _contract(self, step: Step, members: list[Lifted]) -> Lifted:
        if step.site.index in self.given:
            return self.arranged(self._averaged(step, self.axes.add(members)), step.layout)
        estimator, site, _ = self.plan.choices[step.site.index]
        lanes = math.prod(
            n for n, a in zip(step.site.lane_shape, step.lanes, strict=True) if a == MIXED
        )
        axis = self.axis_of[step.site.index]
        potentials, tree = self._potentials_of(step)
        operands = [self.axes.add(members), *potentials]
        if step.constant or (self.scored and step.site.index not in self.scored):
            stopped = [jax.lax.stop_gradient(x.array) for x in operands[1:]]
            operands[1:] = [x._replace(array=a) for x, a in zip(operands[1:], stopped, strict=True)]
        if not step.constant:
            self.credited.setdefault(step.site.index, []).append((step, operands[0]))
        if axis is not None:
            operands = [self.axes.first(x, axis.name) for x in operands]
        # the estimator's own axis first, then named axes, then the term's: contract sees no names
        (value, *given), names = self._lined_up(operands, axis)
        mixed = tuple(a == MIXED for a in step.lanes)
        term = term_of(value, tree.unflatten(given), axis, lanes, site, mixed, step.finest)
        block = self.blocks.get(step.site.index)
        result = estimator.contract(term) if block is None else combined(block, term)
        if self.limited and estimator.traits.orders is not None:
            what = f"Site '{site.name}': {type(estimator).__name__}"
            result = limited(result, given, estimator.traits.orders, what)
        lifted = Lifted(result, names)
        if axis is not None and (axis.shared or block is not None):
            lifted = self.axes.named(lifted, axis.name, at=0)
        return self.arranged(self._averaged(step, lifted), step.layout)

    def _lined_up(self, operands: list[Lifted], axis: Axis | None) -> tuple[list[Any], Any]:
        """Give all operands the same named axes, those behind the estimator's own if it has one."""
        if axis is None:
            return self.axes.aligned(*operands)
        names = self.axes.union(operands)
        absent = [tuple(1 + i for i, n in enumerate(names) if n not in x.axes) for x in operands]
        pairs = zip(operands, absent, strict=True)
        return [jnp.expand_dims(x.array, gaps) if gaps else x.array for x, gaps in pairs], names

    def _averaged(self, step: Step, result: Lifted) -> Lifted:
        """Average over the axes that none of the sites that are left was drawn or expanded along.

        A shared axis goes here once the last of its sites is eliminated; so does the axis of an
        earlier site that decided which draw it was but not its distribution.
        """
        left = self._names_of(step.layout.form.depends)
        return averaged(result, left, {block.joint.name for block in self.blocks.values()})

    def _potentials_of(self, step: Step) -> Potentials:
        """For each entry of the term, the potentials of the lanes that it depends on.

        Summed over mixed lanes, and over those up to the entry's own (reward-to-go: a choice is
        credited with the terms from its step on); their lanes at the term's axes.
        """
        if step.site.index not in self.potentials:
            own = (self.log_prob(step.site),)
            self.potentials[step.site.index] = Potentials(own, _ONE)
        potentials, tree = self.potentials[step.site.index]
        axis, info = self.axis_of[step.site.index], self.plan.choices[step.site.index].site
        ndim = len(step.form.shape)
        return at_term(Potentials(potentials, tree), info, axis, self.axes, step.lanes, ndim)

    def log_prob(self, site: Site, value: Lifted | None = None) -> Lifted:
        """The log density of a site at ``value`` (its own values), one entry per lane."""
        values = [self.env[site.var] if value is None else value, *self.leaves_of(site)]
        # a setting has no gradient here, and a parameter may be replaced
        parameters = site.parameters if self.leaves is None else [None for _ in site.parameters]
        atoms = [site.var if value is None else None, *parameters, *(None for _ in site.settings)]
        return call(site.log_prob, values, self.axes, self.env, atoms)[0]


_ONE = jax.tree.structure([(0,), None])  # a log density alone
_NO_SOURCE: Any = None  # for estimators that expand without drawing
