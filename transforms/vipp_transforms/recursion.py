"""A chain's choices summed out from its last step to its first, in a loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.chains import Chain, earlier
from vipp_transforms.contraction import (
    Elimination,
    Factor,
    Graph,
    Reduction,
    align,
    contract,
    multiply,
)
from vipp_transforms.evaluation import value_of
from vipp_transforms.factor_graph import Member
from vipp_transforms.factor_values import FactorValues, atoms_of
from vipp_transforms.lane_classes import Joined
from vipp_transforms.lifting import Env, Lifted
from vipp_transforms.staging import live


@partial(jax.tree_util.register_dataclass, data_fields=("array",), meta_fields=("dims", "order"))
@dataclass(frozen=True)
class _Message:
    """What a step passes to the one before it: a factor whose names are no data."""

    array: Any
    dims: tuple[str, ...]
    order: tuple[Elimination, ...] = ()


class Recursion:
    r"""The sum over the choices of all of a chain's steps.

    .. math:: \beta_{t-1}(s_{t-1}) = \log \sum_{z_t} \exp(\ldots f_t(s_{t-1}, z_t) + \beta_t(s_t))

    Args:
      chain: the steps.
      group: the factors of the group that the sum is of.
      joined: its classes.
      values: of the factors that do not change from step to step.
      kept: plates that no product is taken over.
    """

    def __init__(
        self,
        chain: Chain,
        group: Sequence[Member],
        joined: Joined,
        values: FactorValues,
        kept: frozenset[str],
    ):
        self.chain, self.joined, self.values, self.kept = chain, joined, values, kept
        graph = values.graph
        number = next(n for n, c in graph.chains.items() if c is chain)
        loop = chain.loop
        here = [m for m in group if (m.loop, m.step) == (number, loop.first)]
        made = {v for e in chain.eqns for v in e.outvars} | {*chain.inputs()}
        varies = lambda m: any(a in made for a in atoms_of(m) if not isinstance(a, _jax.Literal))
        self.changing = [m for m in here if varies(m)]
        self.fixed = [values.factor(m, joined) for m in here if not varies(m)]
        own = {graph.lanes[m.site.index].name: m for m in here if m.site}
        self.sites = list(own)
        self.own = own
        self.origin = tuple(dict.fromkeys(m.density.name for m in here))
        index = {v: s.index for v, s in graph.program.sites.items()}
        name = lambda r: graph.lanes[r].name
        self.back: dict[str, str] = {name(r): name(q) for r, q in earlier(loop, index).items()}
        self.on = {q: r for r, q in self.back.items()}

    def run(self, reduce: Reduction) -> tuple[list[Factor], tuple[Elimination, ...]]:
        """The sum, as factors of the choices before the chain, and the eliminations of a step."""
        loop = self.chain.loop
        lifted = [value_of(self.values.env, x) for x in loop.xs]
        self.names = [x.axes for x in lifted]
        xs = [jnp.moveaxis(x.array, len(x.axes), 0)[loop.left()] for x in lifted]
        probes = {n: self.values.probes[n] for n in self.sites if n in self.values.probes}
        numbers = jnp.arange(self.chain.left)
        inputs = (numbers, xs, self._carried(xs), probes)
        step = partial(self._step, reduce)
        example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), inputs)
        messages, order = self._messages(step, example)

        @jax.checkpoint
        def back(ms: list[_Message], x: Any) -> tuple[list[_Message], list[_Message]]:
            made = {_plates(self.joined, m.dims): m for m in step(ms, x)}
            passed = [_like(made[_plates(self.joined, m.dims)], m) for m in ms]
            # log messages shrink with every step; what is taken off them is added once, at the
            # end
            tops = [_top(self.joined, m) for m in passed]
            return list(map(_without, passed, tops)), tops

        # behind the last step there is nothing: the logarithm of one
        zeros = [replace(m, array=jnp.zeros(m.array.shape, m.array.dtype)) for m in messages]
        final, tops = jax.lax.scan(back, zeros, inputs, reverse=not loop.reverse)
        final += [replace(m, array=m.array.sum(0)) for m in tops]
        before = [tuple(self.back[d] if d in self.back else d for d in m.dims) for m in final]
        return [Factor(m.array, d, self.origin) for m, d in zip(final, before, strict=True)], order

    def _messages(self, step: Any, example: Any) -> tuple[list[_Message], tuple[Elimination, ...]]:
        """The names and shapes of messages that a step turns into messages of the same names."""
        # which choices a message is about is found by steps on shapes alone, to a fixed point
        messages: list[_Message] = []
        while True:
            made = jax.eval_shape(step, messages, example)
            out = [replace(m, order=()) for m in made]
            names = {_plates(self.joined, m.dims): {*m.dims} for m in messages}
            if names == {_plates(self.joined, m.dims): {*m.dims} for m in out}:
                return out, made[0].order if made else ()
            messages = out

    def _step(self, reduce: Reduction, messages: list[_Message], inputs: Any) -> list[_Message]:
        """What a step passes to the one before it, given what the one after it passed."""
        number, xs, carry, probes = inputs
        env = self._env(xs, carry)
        self._compute(env, [a for m in self.changing for a in atoms_of(m)])
        factors = [self.values.factor(m, self.joined, env) for m in self.changing]
        factors += [self.values.probe(n, self.own[n], self.joined, p) for n, p in probes.items()]
        factors += [*self.fixed, *(Factor(m.array, m.dims, self.origin) for m in messages)]
        graph = Graph(self.joined.plates_of, reduce.fork(number))
        groups: dict[frozenset[str], list[Factor]] = {}
        for f in contract(graph, factors, self.sites, self.kept):
            factor = f._replace(dims=tuple(self.on.get(d, d) for d in f.dims))
            groups.setdefault(_plates(self.joined, factor.dims), []).append(factor)
        joint = [multiply(groups[k]) for k in sorted(groups, key=sorted)]
        return [_Message(f.array, f.dims, tuple(graph.order)) for f in joint]

    def _env(self, xs: Sequence[Any], carry: Mapping[int, Any]) -> Env:
        env = dict(self.values.env)
        sliced = [Lifted(x, names) for x, names in zip(xs, self.names, strict=True)]
        env |= zip(self.chain.step.slices, sliced, strict=True)
        env |= {self.chain.step.carry[i]: Lifted(x, self._carry_names(i)) for i, x in carry.items()}
        return env

    def _compute(self, env: Env, needed: Sequence[Any]) -> None:
        """Evaluate those of the step's changing equations that ``needed`` needs."""
        made = {v for e in self.chain.eqns for v in e.outvars}
        needed = [a for a in needed if not isinstance(a, _jax.Literal) and a in made]
        self.values.compute(live(list(self.chain.eqns), needed), env, {}, needed)

    def _carry_names(self, i: int) -> tuple[str, ...]:
        names = self.values.names(self.chain.step.carry[i])
        return tuple(n for n in self.values.axes.sizes if n in names)

    def _carried(self, xs: list[Any]) -> dict[int, Any]:
        """What is carried into each step, of what changes by more than the choices."""
        chain, step = self.chain, self.chain.step
        if not chain.varying:
            return {}

        def forward(carry: dict[int, Any], xs: list[Any]) -> tuple[dict[int, Any], Any]:
            env = self._env(xs, carry)
            self._compute(env, [step.results[i] for i in chain.varying])
            new = {}
            for i in chain.varying:
                names = [self.on.get(n, n) for n in self._carry_names(i)]
                new[i] = self.values.axes.spread(value_of(env, step.results[i]), names)
            return new, carry

        first = {
            i: self.values.axes.spread(self.values.env[step.carry[i]], self._carry_names(i))
            for i in chain.varying
        }
        return jax.lax.scan(forward, first, xs, reverse=chain.loop.reverse)[1]


def _plates(joined: Joined, dims: Sequence[str]) -> frozenset[str]:
    return frozenset(d for d in dims if d not in joined.plates_of)


def _like(message: _Message, other: _Message) -> _Message:
    """A message with the names in the order of another's."""
    array = align(Factor(message.array, message.dims), other.dims)
    return replace(other, array=jnp.broadcast_to(array, other.array.shape))


def _top(joined: Joined, message: _Message) -> _Message:
    """The largest entry over all choices: taken off a message, it leaves numbers of order one."""
    axes = tuple(i for i, d in enumerate(message.dims) if d in joined.plates_of)
    top = jnp.max(jax.lax.stop_gradient(message.array), axis=axes)
    dims = tuple(d for d in message.dims if d not in joined.plates_of)
    return _Message(jnp.where(jnp.isfinite(top), top, 0.0), dims)


def _without(message: _Message, top: _Message) -> _Message:
    return replace(message, array=message.array - align(Factor(top.array, top.dims), message.dims))
