"""A loop's finite choices, summed out step by step: how probable those of the last steps are.

The loop is run once, forward, for all values of the last choices at once, and carries how probable
each of them is. What its steps return is then computed of all steps side by side, each from a
choice of what came before it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms import _jax
from vipp_transforms.estimators.base import Estimator, Policy, SiteInfo, Traits, estimator
from vipp_transforms.estimators.enumerate import ALL_VALUES
from vipp_transforms.forward import Forward
from vipp_transforms.known_carry import choice_number
from vipp_transforms.lifting import Env, Lifted, value_of
from vipp_transforms.loop_parts import Parts
from vipp_transforms.loop_start import Start
from vipp_transforms.marginal_choice import Marginal, chosen
from vipp_transforms.sites import sample, sample_p
from vipp_transforms.unrolling import NotSummed
from vipp_transforms.windows import Windows

MAX_TABLE = 2**24  # entries for one step


@estimator
class SummedInLoop(Policy):
    """Sums over a choice of each step of a loop.

    Args:
      names: of all choices of the loop.
      loop: the number of the loop.
      start: the choices that no term may depend on with one of these, as the loop starts from
        how probable the values of one of them are.
      before: whether it is what the steps before a step chose.
      ended: whether it is what the last steps of all chose.
      estimator: with which.
    """

    traits: ClassVar[Traits] = Traits()
    names: tuple[str, ...] = ()
    loop: int = 0
    start: tuple[str, ...] = ()
    before: bool = False
    ended: bool = False
    estimator: Any = ALL_VALUES

    def choose(self, site: SiteInfo, looped: bool) -> tuple[Estimator, str]:
        """As asked."""
        return self.estimator, "summed out in its loop"


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
      start: what it starts from.

    Attributes:
      refusal: why it is none that can be run, or None.
    """

    def __init__(self, windows: Windows, number: int, start: Start):
        self.windows, self.steps, self.number = windows, windows.steps, number
        self.forward = Forward(windows, start)
        self.axes, self.known = self.forward.axes, self.forward.known
        self.past, self.lanes = self.forward.past, self.forward.lanes
        self.sizes, self.count = self.forward.sizes, len(windows.sites)
        self.groups = self._groups()
        self.refusal = self._refusal()

    @property
    def _policy(self) -> SummedInLoop:
        return SummedInLoop(self._names, self.number, self.forward.start.names)

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
            plates = self.windows.joined.plates_of[str(choice_number(name))]
            found.setdefault(tuple(c for c in self.lanes if c in plates), []).append(name)
        return [_Group(tuple(v), k) for k, v in sorted(found.items(), key=lambda kv: len(kv[0]))]

    def run(self, *operands: Any) -> list[Any]:
        """The results of the loop, given its operands, then those of what it starts from."""
        given = iter(operands)
        fixed = {v: Lifted(next(given)) for v, _ in self.steps.fixed}
        first = [next(given) for _ in self.steps.carried]
        totals = [next(given) for _ in self.steps.totals]
        scanned = [next(given) for _ in self.steps.scanned]
        fixed |= {v: Lifted(jnp.asarray(x)) for v, x in self.steps.env.items()}
        parts = Parts.of(self.windows)
        probs, carried, (before, tables, alike) = self.forward.run(
            parts, fixed, first, scanned, [*given]
        )
        pasts = self._draw(before, steps=True)
        inputs = {v: x.array for v, x in fixed.items() if v in parts.read}
        stacked = dict(zip(parts.alike, alike, strict=True))
        stacked |= {
            c.var: self._at(pasts, tables, i, steps=True)
            for i, c in enumerate(self.steps.carried)
            if self.windows.entering[i] and c.var in parts.read
        }
        stacked |= self._side_by_side(parts, inputs, stacked)
        read = lambda atom: self._stacked(atom, stacked, fixed)
        ends = self._draw(probs, steps=False)
        last = [self._at(ends, carried, i, steps=False) for i in range(len(first))]
        sums = [
            sum((sign * read(a).sum(0) for sign, a in t.parts), start=x)
            for t, x in zip(self.steps.totals, totals, strict=True)
        ]
        return [*last, *sums, *(read(s.result) for s in self.steps.stacked)]

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
            template = self.windows.sites[choice_number(name) % self.count].template
            lag = choice_number(name) // self.count - (0 if steps else 1)
            labels.append(f"{template.name}[{'t' if steps else 'end'}{-lag if lag else ''}]")
            kinds.append(template.kind)
        policy = replace(self._policy, before=steps, ended=not steps)
        marginal = Marginal(table, ", ".join(dict.fromkeys(kinds)))
        return sample(jax.random.key(0), marginal, policy, name=", ".join(labels))

    def _at(
        self, drawn: Sequence[jax.Array], tables: Mapping[int, Any], i: int, *, steps: bool
    ) -> Any:
        """A carried value given what was chosen before."""
        if i in self.known.carried:
            return self._known_at(drawn, i, steps=steps)
        table, names = tables[i], self.forward.entering(i)
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

    def _known_at(self, drawn: Sequence[jax.Array], i: int, *, steps: bool) -> jax.Array:
        """A carried value that is known, given what was chosen before."""
        (table, names), var = self.known.carried[i], self.steps.carried[i].var
        axis_of, shape = dict(self.windows.classes(f"carried {i}")), var.aval.shape
        lead = (self.steps.length,) if steps else ()
        places = []
        for name in names:
            at = next(k for k, g in enumerate(self.groups) if name in g.names)
            group, index = self.groups[at], drawn[at]
            # the last choice of a group counts fastest
            after = group.names[group.names.index(name) + 1 :]
            index = jax.lax.div(
                index, jnp.full_like(index, math.prod(self.sizes[n] for n in after))
            )
            if name != group.names[0]:
                index = jax.lax.rem(index, jnp.full_like(index, self.sizes[name]))
            order = sorted(range(len(group.classes)), key=lambda k: axis_of[group.classes[k]])
            index = jnp.transpose(index, (*range(len(lead)), *(len(lead) + k for k in order)))
            mapped = {axis_of[c] for c in group.classes}
            places.append(
                jnp.expand_dims(
                    index, [len(lead) + a for a in range(len(shape)) if a not in mapped]
                )
            )
        return jnp.broadcast_to(_looked_up(table, places), (*lead, *shape))

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
        template.estimator = replace(self._policy, estimator=template.estimator)
        return eqn.replace(invars=[var, *leaves], params={**eqn.params, "template": template})

    def _stacked(self, atom: Any, stacked: Mapping[Any, Any], fixed: Env) -> Any:
        if not isinstance(atom, _jax.Literal) and atom in stacked:
            return stacked[atom]
        one = value_of(fixed, atom).array
        return jnp.broadcast_to(one, (self.steps.length, *jnp.shape(one)))


def _looked_up(table: np.ndarray, places: Sequence[jax.Array]) -> jax.Array:
    """The entries of a table; where they grow evenly, sums, from which more is known."""
    flat = table.ravel()
    step = flat[1] - flat[0] if table.ndim == 1 and flat.dtype != bool and flat.size > 1 else 0
    if step and np.array_equal(flat, flat[0] + step * np.arange(flat.size)):
        return places[0].astype(flat.dtype) * step + flat[0]
    return jnp.asarray(table)[tuple(places)]
