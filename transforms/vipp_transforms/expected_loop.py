"""A loop's finite choices, summed out step by step: how probable those of the last steps are.

The loop is run once, forward, for all values of the last choices at once, and carries how probable
each of them is. What its steps return is then computed of all steps side by side, each from a
choice of what came before it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.estimators.base import Axis, Estimator, Policy, SiteInfo, Traits, estimator
from vipp_transforms.estimators.enumerate import ALL_VALUES, joint_size, joint_support, lane_numbers
from vipp_transforms.lifting import Axes, Env, Lifted, Node, value_of
from vipp_transforms.loop_parts import Parts, made
from vipp_transforms.marginal_choice import Marginal, chosen
from vipp_transforms.sharing import call, evaluate
from vipp_transforms.sites import lifting, sample, sample_p
from vipp_transforms.staging import Site
from vipp_transforms.support_numbers import Numbers
from vipp_transforms.unrolling import NotSummed
from vipp_transforms.windows import Windows

MAX_TABLE = 2**24  # entries for one step


@estimator
class SummedInLoop(Policy):
    """Sums over a choice of each step of a loop.

    Args:
      names: of all choices of the loop.
      loop: the number of the loop.
      before: whether it is what the steps before a step chose.
      ended: whether it is what the last steps of all chose.
      estimator: with which.
    """

    traits: ClassVar[Traits] = Traits()
    names: tuple[str, ...] = ()
    loop: int = 0
    before: bool = False
    ended: bool = False
    estimator: Any = ALL_VALUES

    def choose(self, site: SiteInfo, looped: bool) -> tuple[Estimator, str]:
        """As asked."""
        return self.estimator, "summed out in its loop"


class _Factor(NamedTuple):
    """An array with one name per axis: choices, and classes of lanes."""

    array: Any
    dims: tuple[str, ...]


class _Group(NamedTuple):
    """Choices before a step that have the same lanes.

    Attributes:
      names: the choices.
      classes: their lanes.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]


class ExpectedLoop:
    """A loop as a function of its operands without choices but those of single steps.

    Args:
      windows: of the loop.
      number: of the loop.

    Attributes:
      refusal: why it is none that can be run, or None.
    """

    def __init__(self, windows: Windows, number: int):
        self.windows, self.steps, self.number = windows, windows.steps, number
        self.count = len(windows.sites)
        entering = frozenset().union(*windows.entering)
        self.axes = Axes()
        for n in sorted(entering | {*range(self.count)}, key=lambda n: (-(n // self.count), n)):
            self.axes.register(Axis(_name(n), joint_size(windows.infos[n % self.count])))
        self.past = tuple(n for n in self.axes.sizes if _number(n) >= self.count)
        lanes = {
            c: site.lane_shape[axis]
            for site in windows.sites
            for c, axis in windows.classes(f"log_prob {site.index}")
        }
        self.lanes = tuple(lanes)
        self.sizes = {**self.axes.sizes, **lanes}
        self.groups = self._groups()
        self.refusal = self._refusal()

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s.template.name for s in self.windows.sites))

    def _refusal(self) -> NotSummed | None:
        if math.prod(self.sizes.values()) > MAX_TABLE:
            why = "a table of all choices that a step depends on would be too large"
            return NotSummed(self._names, why)
        nested = all(
            {*one.classes} <= {*other.classes}
            for one, other in zip(self.groups, self.groups[1:], strict=False)
        )
        return None if nested else NotSummed(self._names, "its choices have lanes that cross")

    def _groups(self) -> list[_Group]:
        found: dict[tuple[str, ...], list[str]] = {}
        for name in self.past:
            plates = self.windows.joined.plates_of[str(_number(name))]
            found.setdefault(tuple(c for c in self.lanes if c in plates), []).append(name)
        return [_Group(tuple(v), k) for k, v in sorted(found.items(), key=lambda kv: len(kv[0]))]

    # -- forward -----------------------------------------------------------------------------------

    def run(self, *operands: Any) -> list[Any]:
        """The results of the loop, given its operands."""
        given = iter(operands)
        fixed = {v: Lifted(next(given)) for v, _ in self.steps.fixed}
        first = [next(given) for _ in self.steps.carried]
        totals = [next(given) for _ in self.steps.totals]
        scanned = [next(given) for _ in self.steps.scanned]
        fixed |= {v: Lifted(jnp.asarray(x)) for v, x in self.steps.env.items()}
        parts = Parts.of(self.windows)
        with lifting():
            evaluate(parts.fixed, fixed, self.axes, {}, made(parts.fixed), self._names_of)
        (probs, carried), (before, tables, alike) = self._forward(parts, fixed, first, scanned)
        pasts = self._draw(before, steps=True)
        inputs = {v: x.array for v, x in fixed.items() if v in parts.read}
        stacked = dict(zip(parts.alike, alike, strict=True))
        stacked |= {
            c.var: self._at(pasts, table, i, steps=True)
            for i, (c, table) in enumerate(zip(self.steps.carried, tables, strict=True))
            if self.windows.entering[i] and c.var in parts.read
        }
        stacked |= self._side_by_side(parts, inputs, stacked)
        read = lambda atom: self._stacked(atom, stacked, fixed)
        ends = self._draw(probs, steps=False)
        last = [self._at(ends, x, i, steps=False) for i, x in enumerate(carried)]
        sums = [
            sum((sign * read(a).sum(0) for sign, a in t.parts), start=x)
            for t, x in zip(self.steps.totals, totals, strict=True)
        ]
        return [*last, *sums, *(read(s.result) for s in self.steps.stacked)]

    def _forward(
        self, parts: Parts, fixed: Env, first: Sequence[Any], scanned: Sequence[Any]
    ) -> Any:
        """Run the loop for all values of the last choices, and their probabilities.

        Returns:
          The last probabilities and carried values; of each step these before it, and what does
          not depend on choices.
        """
        entering = [self._ordered(numbers) for numbers in self.windows.entering]
        sites = self.windows.sites if self.past else ()
        ahead = [c.result for c in self.steps.carried] + [v for s in sites for v in s.leaves]
        needed = [*ahead, *parts.alike, *(s.var for s in sites)]

        def step(carry: Any, xs: Any) -> Any:
            probs, values = carry
            env = dict(fixed)
            lifted = [Lifted(x, n) for x, n in zip(values, entering, strict=True)]
            env |= zip((c.var for c in self.steps.carried), lifted, strict=True)
            env |= {s.var: Lifted(x) for s, x in zip(self.steps.scanned, xs, strict=True)}
            nodes = {s.var: self._node(s) for s in self.windows.sites}
            with lifting():
                evaluate(parts.ahead(needed), env, self.axes, nodes, needed, self._names_of)
                factors = [self._factor(s, env) for s in sites]
            factors.append(_Factor(probs, (*self.past, *self.lanes)))
            moved = [self._later(value_of(env, c.result)) for c in self.steps.carried]
            new = [self.axes.spread(x, n) for x, n in zip(moved, entering, strict=True)]
            after = self._next(factors) if self.past else probs
            return (after, new), (probs, values, [env[v].array for v in parts.alike])

        values = [self.axes.spread(Lifted(x), n) for x, n in zip(first, entering, strict=True)]
        return jax.lax.scan(
            jax.checkpoint(step, prevent_cse=False), (self._uniform(), values), list(scanned),
            length=self.steps.length, reverse=self.steps.reverse,
        )  # fmt: skip

    def _names_of(self, atom: Any) -> frozenset[str]:
        """The axes that a value of a step may carry."""
        return frozenset(map(_name, self.windows.depends[atom]))

    def _ordered(self, numbers: Iterable[int]) -> tuple[str, ...]:
        return tuple(n for n in self.axes.sizes if _number(n) in {*numbers})

    def _uniform(self) -> jax.Array:
        """Before the first step there is no choice: nothing depends on which one it was."""
        shape = tuple(self.sizes[n] for n in (*self.past, *self.lanes))
        values = math.prod(self.sizes[n] for n in self.past)
        dtypes = [s.log_prob.out_avals[0].dtype for s in self.windows.sites]
        dtype = jnp.result_type(*dtypes) if dtypes else jnp.result_type(float)
        return jnp.full(shape, 1.0 / values, dtype)

    def _node(self, site: Site) -> Node:
        info, name = self.windows.infos[site.index], _name(site.index)

        def make(env: Env) -> Lifted:
            joint = jnp.asarray(joint_support(info)).astype(site.var.aval.dtype)
            full = (joint.shape[0], *info.lane_shape, *info.event_shape)
            return Lifted(jnp.broadcast_to(joint, full), (name,))

        table = lane_numbers(info, site.var.aval.dtype)
        numbers = None if table is None else Numbers(table, (name,))
        return Node(frozenset({name}), make, numbers)

    def _factor(self, site: Site, env: Env) -> _Factor:
        """The probability of a choice given those before, in each lane that stays apart."""
        atoms = (site.var, *site.leaves)
        (log_prob,) = call(site.log_prob, [value_of(env, v) for v in atoms], self.axes, env, atoms)
        apart = self.windows.classes(f"log_prob {site.index}")
        named = len(log_prob.axes)
        kept = {named + a for _, a in apart}
        others = tuple(a for a in range(named, jnp.ndim(log_prob.array)) if a not in kept)
        array = jnp.exp(jnp.sum(log_prob.array, axis=others))
        return _Factor(array, (*log_prob.axes, *(c for c, _ in apart)))

    def _later(self, value: Lifted) -> Lifted:
        """A value one step later."""
        return value._replace(axes=tuple(_name(_number(n) + self.count) for n in value.axes))

    def _next(self, factors: Sequence[_Factor]) -> jax.Array:
        """How probable the values of the last choices are after a step."""
        now = tuple(_name(_number(n) - self.count) for n in self.past)
        table = self._sum(factors, (*now, *self.lanes))
        # their sum is one; divided by it, they keep their distance from what comes after: the
        # derivative is that of all later terms, less its mean
        total = table.sum(tuple(range(len(now))), keepdims=True)
        return table / jnp.where(total > 0, total, 1.0)

    def _sum(self, factors: Sequence[_Factor], dims: Sequence[str]) -> jax.Array:
        """The sum of a product of factors over all but ``dims``."""
        code = {n: i for i, n in enumerate(self.sizes)}
        args: list[Any] = []
        for f in factors:
            args += [f.array, [code[d] for d in f.dims]]
        out = [code[d] for d in dims]
        return jnp.einsum(*args, out, precision=jax.lax.Precision.HIGHEST, optimize=True)

    # -- each step by itself -----------------------------------------------------------------------

    def _draw(self, probs: jax.Array, *, steps: bool) -> list[jax.Array]:
        """For each group the number of its value; with ``steps``, before each step."""
        drawn: list[jax.Array] = []
        kept: list[str] = []
        for group in self.groups:
            before, here = tuple(kept), (*kept, *group.names)
            table = self._marginal(probs, here, group.classes, steps=steps)
            table = table.reshape(*table.shape[: table.ndim - len(here)], *self._flat(before), -1)
            if kept:
                given = table.sum(-1, keepdims=True)
                table = jnp.where(given > 0, table / jnp.where(given > 0, given, 1.0), 0.0)
            lead = int(steps)
            for done, other in zip(drawn, self.groups, strict=False):
                at = {group.classes.index(c): other.classes.index(c) for c in other.classes}
                axis = lead + len(group.classes)
                table = chosen(jnp.moveaxis(table, axis, lead), done, at, lead)
            drawn.append(self._sample(table, group, steps=steps))
            kept += group.names
        return drawn

    def _flat(self, names: Sequence[str]) -> list[int]:
        """The sizes of the groups that have these names."""
        groups = [g for g in self.groups if {*g.names} <= {*names}]
        return [math.prod(self.sizes[n] for n in g.names) for g in groups]

    def _marginal(
        self, probs: jax.Array, names: Sequence[str], classes: Sequence[str], *, steps: bool
    ) -> jax.Array:
        """How probable the values of ``names`` are: first the lanes, then these."""
        array = probs if steps else probs[None]
        # a lane that is not asked for has probabilities of its own, the same in all: one will do
        drop = tuple(slice(None) if c in classes else 0 for c in self.lanes)
        array = array[(slice(None), *(slice(None) for _ in self.past), *drop)]
        code = {n: 1 + i for i, n in enumerate(self.sizes)}
        dims = [code[n] for n in (*self.past, *(c for c in self.lanes if c in classes))]
        out = [code[n] for n in (*classes, *names)]
        table = jnp.einsum(array, [0, *dims], [0, *out])
        return table if steps else table[0]

    def _sample(self, table: jax.Array, group: _Group, *, steps: bool) -> jax.Array:
        labels, kinds = [], []
        for name in group.names:
            template = self.windows.sites[_number(name) % self.count].template
            lag = _number(name) // self.count - (0 if steps else 1)
            labels.append(f"{template.name}[{'t' if steps else 'end'}{-lag if lag else ''}]")
            kinds.append(template.kind)
        policy = SummedInLoop(self._names, self.number, before=steps, ended=not steps)
        marginal = Marginal(table, ", ".join(dict.fromkeys(kinds)))
        return sample(jax.random.key(0), marginal, policy, name=", ".join(labels))

    def _at(self, drawn: Sequence[jax.Array], table: Any, i: int, *, steps: bool) -> Any:
        """A carried value given what was chosen before."""
        names = self._ordered(self.windows.entering[i])
        if not names:
            return table
        lead, touched = int(steps), [g for g in self.groups if {*g.names} & {*names}]
        spread = tuple(n for g in touched for n in g.names)
        if steps:
            fn = jax.vmap(lambda x: self.axes.spread(Lifted(x, names), spread))
            array = fn(table)
        else:
            array = self.axes.spread(Lifted(table, names), spread)
        array = array.reshape(
            *array.shape[:lead], *self._flat(spread), *array.shape[lead + len(spread) :]
        )
        axis_of = dict(self.windows.classes(f"carried {i}"))
        for number, group in enumerate(touched):
            index = drawn[self.groups.index(group)]
            left = len(touched) - number - 1
            at = {left + axis_of[c]: group.classes.index(c) for c in group.classes}
            array = chosen(array, index, at, lead)
        return array

    def _side_by_side(
        self, parts: Parts, fixed: Mapping[Any, Any], stacked: Mapping[Any, Any]
    ) -> dict[Any, Any]:
        """What depends on choices, of all steps at once."""
        keys: dict[Any, Any] = {}
        eqns = [self._tagged(e, keys) for e in parts.chosen]
        made = {v for e in eqns for v in e.outvars}
        outs = [v for v in parts.results if v in made]
        inputs = {**keys, **stacked}
        fn = _jax.evaluator(eqns, [*fixed, *inputs], outs)
        axes = (*(None for _ in fixed), *(0 for _ in inputs))
        run = jax.vmap(fn, in_axes=axes, axis_size=self.steps.length)
        return dict(zip(outs, run(*fixed.values(), *inputs.values()), strict=True))

    def _tagged(self, eqn: Any, keys: dict[Any, Any]) -> Any:
        """A choice with a key of its own in each step, though no value is drawn with it."""
        if eqn.primitive is not sample_p:
            return eqn
        key, *leaves = eqn.invars
        var = _jax.fresh_like(key)
        keys[var] = jax.random.split(jax.random.key(0), (self.steps.length, *key.aval.shape))
        template = copy.copy(eqn.params["template"])
        template.estimator = SummedInLoop(self._names, self.number, estimator=template.estimator)
        return eqn.replace(invars=[var, *leaves], params={**eqn.params, "template": template})

    def _stacked(self, atom: Any, stacked: Mapping[Any, Any], fixed: Env) -> Any:
        if not isinstance(atom, _jax.Literal) and atom in stacked:
            return stacked[atom]
        one = value_of(fixed, atom).array
        return jnp.broadcast_to(one, (self.steps.length, *jnp.shape(one)))


def _name(number: int) -> str:
    return f"choice:{number}"


def _number(name: str) -> int:
    return int(name.removeprefix("choice:"))
