"""The forward recursion over a loop's choices: how probable those of the last steps are.

The loop is run once, for all values of the last choices at once, and carries how probable each of
them is. What is the same in every step, tables of transition above all, is computed before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms import _jax
from vipp_transforms.estimators.base import Axis
from vipp_transforms.estimators.enumerate import joint_size
from vipp_transforms.every_value import every_value
from vipp_transforms.known_carry import choice_name, choice_number, known_carry
from vipp_transforms.lifting import Axes, Env, Lifted, value_of
from vipp_transforms.loop_parts import Parts, made
from vipp_transforms.loop_start import Start
from vipp_transforms.sharing import call, evaluate
from vipp_transforms.sites import lifting
from vipp_transforms.staging import Site
from vipp_transforms.windows import Windows


class _Factor(NamedTuple):
    """An array with one name per axis: choices, and classes of lanes."""

    array: Any
    dims: tuple[str, ...]


class Forward:
    """A loop run forward for all values of the last choices.

    Args:
      windows: of the loop.
      start: what it starts from.

    Attributes:
      axes: of all choices that a step depends on.
      past: those before it.
      lanes: the classes of lanes of its choices.
      sizes: of axes and classes.
      known: what is known of carried values.
    """

    def __init__(self, windows: Windows, start: Start):
        self.windows, self.steps, self.count = windows, windows.steps, len(windows.sites)
        numbers = frozenset().union(*windows.entering) | {*range(self.count)}
        self.axes = Axes()
        for n in sorted(numbers, key=lambda n: (-(n // self.count), n)):
            self.axes.register(Axis(choice_name(n), joint_size(windows.infos[n % self.count])))
        self.past = tuple(n for n in self.axes.sizes if choice_number(n) >= self.count)
        lanes = {
            c: site.lane_shape[axis]
            for site in windows.sites
            for c, axis in windows.classes(f"log_prob {site.index}")
        }
        self.lanes = tuple(lanes)
        self.sizes = {**self.axes.sizes, **lanes}
        self.start, self.known = start, known_carry(windows, start, tuple(self.axes.sizes))
        known = {self.steps.carried[i].var: x for i, x in self.known.carried.items()}
        self.axes.facts.numbers.update(known)

    def entering(self, i: int) -> tuple[str, ...]:
        """The choices that a carried value depends on when a step begins."""
        numbers = self.windows.entering[i]
        return tuple(n for n in self.axes.sizes if choice_number(n) in numbers)

    @property
    def can_start(self) -> bool:
        """Whether all that is carried of the choice it starts from is known, lane by lane."""
        places = self.start.of_choice()
        dims = [self.windows.joined.dims[f"carried {i}"] for i in places]
        shape = self.start.site.lane_shape if self.start.site is not None else ()
        apart = all(c in self.lanes or n == 1 for d in dims for c, n in zip(d, shape, strict=True))
        return {*places} <= {*self.known.carried} and len({*dims}) < 2 and apart

    def run(
        self,
        parts: Parts,
        fixed: Env,
        first: Sequence[Any],
        scanned: Sequence[Any],
        leaves: Sequence[Any],
    ) -> Any:
        """Run the loop for all values of the last choices, and their probabilities.

        Args:
          parts: its equations.
          fixed: the values of what it reads from outside; more of the same kind are added.
          first: what is carried into its first step.
          scanned: what it goes through.
          leaves: of the choice that it starts from.

        Returns:
          The last probabilities, the last of those carried values that are not known, by number,
          and of each step: these two before it, and what does not depend on choices.
        """
        moving = {
            i: c for i, c in enumerate(self.steps.carried) if i not in self.known.carried
        }  # fmt: skip
        entering = {i: self.entering(i) for i in moving}
        sites = self.windows.sites if self.past else ()
        ahead = [c.result for c in moving.values()] + [v for s in sites for v in s.leaves]
        needed = [*ahead, *parts.alike, *(s.var for s in sites)]
        nodes = {
            s.var: every_value(self.windows.infos[s.index], choice_name(s.index), s.var.aval.dtype)
            for s in self.windows.sites
        }
        with lifting():
            evaluate(parts.fixed, fixed, self.axes, {}, made(parts.fixed), self._names_of)
        changing = {c.var for c in moving.values()} | {s.var for s in self.steps.scanned}
        still, each = _parted(parts.ahead(needed), changing)
        env = fixed | self._known_values()
        with lifting():
            evaluate(still, env, self.axes, nodes, _read(each, needed, still), self._names_of)
            same = [self._factor(s, env) for s in sites if changing.isdisjoint(_variables(s))]
        own = [s for s in sites if not changing.isdisjoint(_variables(s))]

        def step(carry: Any, xs: Any) -> Any:
            probs, values = carry
            here = dict(env)
            here |= {c.var: Lifted(values[i], entering[i]) for i, c in moving.items()}
            here |= {s.var: Lifted(x) for s, x in zip(self.steps.scanned, xs, strict=True)}
            with lifting():
                evaluate(each, here, self.axes, nodes, needed, self._names_of)
                factors = [*same, *(self._factor(s, here) for s in own)]
            factors.append(_Factor(probs, (*self.past, *self.lanes)))
            moved = {i: self._later(value_of(here, c.result)) for i, c in moving.items()}
            new = {i: self.axes.spread(x, entering[i]) for i, x in moved.items()}
            after = self._next(factors) if self.past else probs
            return (after, new), (probs, values, [here[v].array for v in parts.alike])

        values = {i: self.axes.spread(Lifted(first[i]), n) for i, n in entering.items()}
        (probs, values), every = jax.lax.scan(
            jax.checkpoint(step, prevent_cse=False), (self._before(leaves), values), list(scanned),
            length=self.steps.length, reverse=self.steps.reverse,
        )  # fmt: skip
        return probs, values, every

    def _names_of(self, atom: Any) -> frozenset[str]:
        """The axes that a value of a step may carry."""
        return frozenset(map(choice_name, self.windows.depends[atom]))

    def _before(self, leaves: Sequence[Any]) -> jax.Array:
        """How probable the choices before the first step are: made if some value says so.

        Nothing depends on the others, all values of which are as probable.
        """
        probs = self.start.probabilities(leaves)
        past = tuple(self.sizes[n] for n in self.past)
        made = np.zeros((self.start.size, *past), probs.dtype)
        for i, chosen in enumerate(self.known.start):
            at = (i, *(chosen.get(n, slice(None)) for n in self.past))
            made[at] = 1.0 / math.prod(self.sizes[n] for n in self.past if n not in chosen)
        start = jnp.tensordot(made, probs, (0, 0), precision=jax.lax.Precision.HIGHEST)
        places = self.start.of_choice()
        dims = self.windows.joined.dims[f"carried {places[0]}"] if places else ()
        single = tuple(len(past) + a for a, c in enumerate(dims) if c not in self.lanes)
        kept = [c for c in dims if c in self.lanes]
        order = [kept.index(c) for c in self.lanes if c in kept]
        start = jnp.squeeze(start, single)
        start = jnp.transpose(start, (*range(len(past)), *(len(past) + a for a in order)))
        # lanes that it does not know start alike
        others = [len(past) + k for k, c in enumerate(self.lanes) if c not in kept]
        dtypes = [s.log_prob.out_avals[0].dtype for s in self.windows.sites]
        dtype = jnp.result_type(*dtypes) if dtypes else jnp.result_type(float)
        shape = tuple(self.sizes[n] for n in (*self.past, *self.lanes))
        return jnp.broadcast_to(jnp.expand_dims(start, others), shape).astype(dtype)

    def _known_values(self) -> Env:
        """The carried values that are known at all choices before a step."""
        env: Env = {}
        for i, (table, axes) in self.known.carried.items():
            var = self.steps.carried[i].var
            table = table.reshape(*table.shape, *(1 for _ in var.aval.shape))
            shape = (*table.shape[: len(axes)], *var.aval.shape)
            env[var] = Lifted(jnp.asarray(np.broadcast_to(table, shape)), axes)
        return env

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
        return value._replace(
            axes=tuple(choice_name(choice_number(n) + self.count) for n in value.axes)
        )

    def _next(self, factors: Sequence[_Factor]) -> jax.Array:
        """How probable the values of the last choices are after a step."""
        now = tuple(choice_name(choice_number(n) - self.count) for n in self.past)
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


def _parted(eqns: Iterable[Any], changing: set[Any]) -> tuple[list[Any], list[Any]]:
    """The equations that are the same in every step, and others, with what changes by these."""
    still, each = [], []
    for eqn in eqns:
        if changing.isdisjoint(_jax.variables(eqn.invars)):
            still.append(eqn)
        else:
            changing.update(eqn.outvars)
            each.append(eqn)
    return still, each


def _read(each: Iterable[Any], needed: Iterable[Any], still: Iterable[Any]) -> list[Any]:
    """What is made once and read in every step, or needed."""
    read = {v for e in each for v in _jax.variables(e.invars)} | {*_jax.variables(needed)}
    return [v for v in made(still) if v in read]


def _variables(site: Site) -> list[Any]:
    return _jax.variables([site.var, *site.leaves])
