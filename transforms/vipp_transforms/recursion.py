"""A chain's choices summed out from its last step to its first, in a loop."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
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
    LogSumExp,
    Reduction,
    align,
    contract,
    multiply,
)
from vipp_transforms.errors import SiteError
from vipp_transforms.factor_graph import Member
from vipp_transforms.factor_values import FactorValues, atoms_of
from vipp_transforms.lane_classes import Joined
from vipp_transforms.lifting import Env, Lifted, value_of
from vipp_transforms.scaled_sums import ScaledGraph, weights_of
from vipp_transforms.staging import live
from vipp_transforms.step_products import StepMatrix, product
from vipp_transforms.step_tables import fitting, tables


@partial(jax.tree_util.register_dataclass, data_fields=("array",), meta_fields=("dims",))
@dataclass(frozen=True)
class _Message:
    """What a step passes to the one before it: a factor whose names are no data."""

    array: Any
    dims: tuple[str, ...]


_Sums = tuple[list[Any], dict[tuple[str, ...], Any]]
_GraphOf = Callable[[Any], ScaledGraph]


class Recursion:
    r"""The sum over the choices of all of a chain's steps.

    .. math:: \beta_{t-1}(s_{t-1}) = \log \sum_{z_t} \exp(\ldots f_t(s_{t-1}, z_t) + \beta_t(s_t))

    Args:
      chain: the steps.
      group: the factors of the group that the sum is of.
      joined: its classes.
      values: of the factors that do not change from step to step.
      kept: plates that no product is taken over.
      parallel: whether steps are multiplied in a tree; None where it pays.
    """

    def __init__(
        self,
        chain: Chain,
        group: Sequence[Member],
        joined: Joined,
        values: FactorValues,
        kept: frozenset[str],
        parallel: bool | None = None,
    ):
        self.chain, self.joined, self.values, self.kept = chain, joined, values, kept
        self.parallel = parallel
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
        carry = self._carried(xs)
        probes = {n: self.values.probes[n] for n in self.sites if n in self.values.probes}
        ahead = fitting(self.changing, self.chain, self.values, self._entries())
        self.inside = [m for m in self.changing if not any(m is a for a in ahead)]
        arrays, self.ahead = tables(partial(self._factors, ahead), xs, carry) if ahead else ([], ())
        moving = (xs, carry) if self.inside else ([], {})
        inputs = (jnp.arange(self.chain.left), *moving, probes, arrays)
        result, order = self._sum(reduce, inputs)
        before = lambda dims: tuple(self.back[d] if d in self.back else d for d in dims)
        order = tuple(e._replace(steps=self.chain.left) for e in order)
        return [Factor(array, before(dims), self.origin) for dims, array in result], order

    def _entries(self) -> int:
        """How many entries what is passed from step to step has at least."""
        lanes = lambda m: zip(m.shape, self.joined.dims[m.name], strict=True)
        each = lambda m: math.prod(n for n, d in lanes(m) if d is not None)
        sizes = self.values.axes.sizes
        return sum(sizes[name] * each(member) for name, member in self.own.items())

    def _sum(
        self, reduce: Reduction, inputs: Any
    ) -> tuple[list[tuple[tuple[str, ...], Any]], tuple[Elimination, ...]]:
        """The sum over all steps, by products of probabilities if nothing of it is lost."""
        graph = lambda known, number: ScaledGraph(
            self.joined.plates_of, reduce.fork(number), known=known
        )
        messages, rest, order = self._messages(partial(graph, ()), inputs)
        named = lambda r: [*zip((m.dims for m in messages), r[0], strict=True), *r[1].items()]
        slow = lambda: self._loop(partial(graph, ()), messages, inputs, again=True)[0]
        layout = self._in_a_tree(messages) if reduce.plain else None
        known = weights_of(graph((), 0), self.fixed) if reduce.plain and layout is None else []
        if layout is not None:
            fast, failed = self._tree(layout, messages[0], inputs)
        elif known:
            self.fixed, again = [w.factor for w in known], bool(self.inside)
            fast, failed = self._loop(partial(graph, known), messages, inputs, again=again)
        else:
            return named(slow()), order
        if failed is None:
            return named(fast), order
        rest |= {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in fast[1].items()}

        def filled(result: _Sums) -> _Sums:
            return result[0], {
                k: result[1].get(k, jnp.zeros(x.shape, x.dtype)) for k, x in rest.items()
            }

        # of the slow one nothing is kept for derivatives where it is not taken
        taken = jax.checkpoint(lambda: filled(slow()))
        return named(jax.lax.cond(failed, taken, lambda: filled(fast))), order

    def _in_a_tree(self, messages: Sequence[_Message]) -> StepMatrix | None:
        """How a step's matrix lies, if steps are to be multiplied in a tree.

        Raises:
          SiteError: if they are to be, and cannot.
        """
        if not messages:  # no step sees what was chosen before
            return None
        dims = [d for m in messages for d in m.dims]
        own = [d for d in dims if d in self.back]
        around = [d for d in dims if d not in self.back]  # plates, and choices before the chain
        sizes = {d: n for m in messages for d, n in zip(m.dims, m.array.shape, strict=True)}
        before = [self.back[d] for d in own]
        sizes |= {b: sizes[d] for b, d in zip(before, own, strict=True)}
        layout = StepMatrix(tuple(around), tuple(before), tuple(own), sizes)
        plates = _plates(self.joined, dims)
        others = [self.joined.plates_of[s] for s in self.sites if s not in own]
        chained = len(messages) == 1 and {*own} <= {*self.sites}
        if not chained or not all(p >= plates - self.kept for p in others):
            refused = "a step is not one table of the choices of one step before it"
        else:
            refused = layout.refused(self.chain.left)
        if not self.parallel:
            pays = self.parallel is None and layout.pays(self.chain.left)
            return layout if pays and refused is None else None
        if refused is not None:
            raise _not_in_a_tree([m.density.name for m in self.own.values()], refused)
        return layout

    def _tree(self, layout: StepMatrix, message: _Message, inputs: Any) -> tuple[_Sums, jax.Array]:
        """The sum over all steps, by products of neighbours; and whether some of it may be lost."""

        def matrix(x: Any) -> tuple[Any, dict[tuple[str, ...], Any]]:
            graph = Graph(self.joined.plates_of, LogSumExp())
            inner = [s for s in self.sites if s not in layout.own]
            made = contract(graph, self._present(x), inner, self.kept)
            found: dict[bool, list[Factor]] = {True: [], False: []}
            for factor in made:
                found[any(d in self.joined.plates_of for d in factor.dims)].append(factor)
            rest = [_Message(f.array, f.dims) for f in found[False]]
            return layout.of(multiply(found[True])), _by_names(rest)

        matrices, rest = jax.vmap(matrix)(inputs)
        steps = matrices[::-1] if self.chain.loop.reverse else matrices
        vector, level, failed = product(steps)
        parts = [_Message(x.sum(0), dims) for dims, x in rest.items()]
        array = align(Factor(layout.vector(vector), layout.around + layout.own), message.dims)
        return ([array], _by_names([*parts, _Message(level, layout.around)])), failed

    def _messages(self, graph_of: _GraphOf, inputs: Any) -> tuple[list[_Message], Any, Any]:
        """The names and shapes of messages that a step turns into messages of the same names.

        Returns:
          These; by its names, what is about no choice; and the eliminations of a step.
        """
        example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), inputs)
        # which choices a message is about is found by steps on shapes alone, to a fixed point
        messages: list[_Message] = []
        order: list[Elimination] = []

        def step(messages: list[_Message], x: Any) -> Any:
            graph = graph_of(x[0])
            passed, rest = self._step(graph, messages, x)
            order[:] = graph.order
            return passed, _by_names([*rest, *(_top(self.joined, m) for m in passed)])

        names = lambda ms: {_plates(self.joined, m.dims): {*m.dims} for m in ms}
        while True:
            out, rest = jax.eval_shape(step, messages, example)
            if names(messages) == names(out):
                return out, rest, tuple(order)
            messages = out

    def _loop(
        self, graph_of: _GraphOf, messages: Sequence[_Message], inputs: Any, *, again: bool
    ) -> tuple[_Sums, Any]:
        """Pass messages from the last step to the first.

        Args:
          graph_of: given a step's number, how its sums are taken.
          messages: their names and shapes.
          inputs: of all steps.
          again: whether a step is computed once more for derivatives.

        Returns:
          The last messages and, by its names, what is about no choice; and whether some of it may
          be lost, None if that cannot be.
        """
        checked: list[Any] = []

        def back(carry: Any, x: Any) -> Any:
            graph = graph_of(x[0])
            passed, rest = self._step(graph, carry[0], x)
            made = {_plates(self.joined, m.dims): m for m in passed}
            passed = [_like(made[_plates(self.joined, m.dims)], m) for m in messages]
            checked[:] = graph.failed
            if len(checked) < len(graph.order):
                # logs shrink with every step; what is taken off them is added once, at the end
                tops = [_top(self.joined, m) for m in passed]
                passed, rest = list(map(_without, passed, tops)), [*rest, *tops]
            failed = functools.reduce(jnp.logical_or, checked, carry[1])
            return (passed, failed), _by_names(rest)

        step = jax.checkpoint(back, prevent_cse=False) if again else back
        # behind the last step there is nothing: the logarithm of one
        zeros = [replace(m, array=jnp.zeros(m.array.shape, m.array.dtype)) for m in messages]
        start, reverse = (zeros, jnp.bool_(False)), not self.chain.loop.reverse
        (final, failed), rest = jax.lax.scan(step, start, inputs, reverse=reverse)
        sums = [m.array for m in final], {k: x.sum(0) for k, x in rest.items()}
        return sums, failed if checked else None

    def _step(
        self, graph: Graph, messages: Sequence[_Message], inputs: Any
    ) -> tuple[list[_Message], list[_Message]]:
        """What a step passes to the one before it, given what the one after it passed.

        Returns:
          Messages, and what is about no choice.
        """
        factors = self._present(inputs)
        factors += [Factor(m.array, m.dims, self.origin) for m in messages]
        groups: dict[tuple[bool, frozenset[str]], list[Factor]] = {}
        for f in contract(graph, factors, self.sites, self.kept):
            factor = f._replace(dims=tuple(self.on.get(d, d) for d in f.dims))
            about = any(d in self.joined.plates_of for d in factor.dims)
            groups.setdefault((about, _plates(self.joined, factor.dims)), []).append(factor)
        found: dict[bool, list[_Message]] = {True: [], False: []}
        for about, plates in sorted(groups, key=lambda k: sorted(k[1])):
            joint = multiply(groups[about, plates])
            found[about].append(_Message(joint.array, joint.dims))
        return found[True], found[False]

    def _present(self, inputs: Any) -> list[Factor]:
        """The factors of a step."""
        _, xs, carry, probes, arrays = inputs
        factors = [n.factor(array) for n, array in zip(self.ahead, arrays, strict=True)]
        factors += self._factors(self.inside, xs, carry) if self.inside else []
        factors += [self.values.probe(n, self.own[n], self.joined, p) for n, p in probes.items()]
        return [*factors, *self.fixed]

    def _factors(
        self, members: Sequence[Member], xs: Sequence[Any], carry: Mapping[int, Any]
    ) -> list[Factor]:
        """Factors of a step, given what it reads."""
        env = self._env(xs, carry)
        self._compute(env, [a for m in members for a in atoms_of(m)])
        return [self.values.factor(m, self.joined, env) for m in members]

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


def _by_names(messages: Sequence[_Message]) -> dict[tuple[str, ...], Any]:
    """What is about no choice, by its names."""
    found: dict[tuple[str, ...], Any] = {}
    for message in messages:
        dims = tuple(sorted(message.dims))
        array = align(Factor(message.array, message.dims), dims)
        found[dims] = found[dims] + array if dims in found else array
    return found


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


def _not_in_a_tree(names: Sequence[str], reason: str) -> SiteError:
    sites = ", ".join(f"'{n}'" for n in names)
    return SiteError(
        f"marginal(parallel=True): the steps of {sites} cannot be multiplied two by two: {reason}. "
        "Fix: leave parallel out, which sums them one after the other."
    )
