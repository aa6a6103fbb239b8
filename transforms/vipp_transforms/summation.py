"""The log of a sum over finite choices of a product of densities: exact marginals.

The program returns its log densities, one array per factor, and draws what is to be summed out as
sites like any others. These are lifted over their supports; the dependence analysis says which of
their lanes each factor keeps apart, and what is left is a contraction with the lanes as plates.
Loops stay loops, as long as their steps look back a few steps alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipp_transforms.contraction import (
    Elimination,
    Graph,
    LogSumExp,
    Reduction,
    align,
    contract,
    multiply,
)
from vipp_transforms.estimators.enumerate import ALL_VALUES
from vipp_transforms.factor_graph import Density, Member, factor_graph
from vipp_transforms.factor_values import FactorValues
from vipp_transforms.lane_classes import Joined
from vipp_transforms.noting import SUMS
from vipp_transforms.recursion import Recursion
from vipp_transforms.sites import sample


class LogSum(NamedTuple):
    """A group of densities that the sites summed out connect.

    Attributes:
      summed: the sites summed out.
      members: the names of all densities in the group, those of the sites included.
      value: the log of the sum of their product, one axis per plate.
      plates: those that enclose the whole group, outermost first.
      scale: what it is to be multiplied by, broadcastable to ``value``, or None.
      order: the eliminations that it took, of a chain those of one step.
    """

    summed: tuple[str, ...]
    members: tuple[str, ...]
    value: jax.Array
    plates: tuple[str, ...]
    scale: Any
    order: tuple[Elimination, ...]


def summed(key: Any, distribution: Any, *, name: str) -> jax.Array:
    """Draw a choice that :func:`sum_out` sums out.

    Args:
      key: a PRNG key.
      distribution: of finite support; its batch axes are independent lanes.
      name: of the choice, that of its :class:`Density`.

    Returns:
      A draw, shape ``(*batch_shape, *event_shape)``.
    """
    return sample(key, distribution, ALL_VALUES, name=name)


def sum_out(fn: Callable[[], list[Density]], *, parallel: bool | None = None) -> list[LogSum]:
    r"""Sum the choices that a program draws out of the product of its densities.

    .. math:: \log \sum_z \prod_f \exp f(z)

    Args:
      fn: draws with :func:`summed` what is to be summed out, and returns the densities of all
        choices.
      parallel: whether the steps of a loop are multiplied in a tree of :math:`\log T` levels, and
        not one after the other; None where that pays: on accelerators, for few states.

    Returns:
      One sum per group of densities that the choices connect. What is in none of them depends on
      no choice, or is a choice that nothing depends on.

    Raises:
      SiteError: naming the site that has no finite support, or too many values together, or a part
        of whose group is scaled; or those whose steps are to be multiplied in a tree, and cannot.
    """
    graph = factor_graph(fn)
    values = FactorValues(graph)
    pairs = zip(graph.groups, graph.joined, strict=True)
    sums = [_log_sum(group, joined, values, parallel) for group, joined in pairs]
    SUMS.note(name for found in sums for name in found.summed)
    return sums


def _log_sum(
    group: list[Member], joined: Joined, values: FactorValues, parallel: bool | None
) -> LogSum:
    names, value, order = _sum(group, joined, values, LogSumExp(), parallel)
    unique = lambda xs: tuple(dict.fromkeys(xs))
    members = unique(m.density.name for m in group)
    drawn = unique(m.density.name for m in group if m.site)
    return LogSum(drawn, members, value, names, values.scale(group, names), order)


def total(values: FactorValues, reduce: Reduction) -> jax.Array:
    """The sum over all groups, their scales left out."""
    pairs = zip(values.graph.groups, values.graph.joined, strict=True)
    sums = [_sum(g, j, values, reduce.fork(i))[1] for i, (g, j) in enumerate(pairs)]
    return sum((x.sum() for x in sums), start=jnp.zeros(()))


def _sum(
    group: list[Member],
    joined: Joined,
    values: FactorValues,
    reduce: Reduction,
    parallel: bool | None = None,
) -> tuple[tuple[str, ...], jax.Array, tuple[Elimination, ...]]:
    """The log of the sum of one group's product, per element of the plates around all of it."""
    names, axes = _enclosing(group, joined)
    kept = frozenset(filter(None, axes))
    graph = Graph(joined.plates_of, reduce.fork(0))
    whole = values.graph
    alone = [m for m in group if not whole.stands_for_others(m)]
    drawn = {whole.lanes[m.site.index].name: m for m in alone if m.site}
    factors = [values.factor(m, joined) for m in alone]
    factors += [values.probe(n, m, joined) for n, m in drawn.items() if n in values.probes]
    order: tuple[Elimination, ...] = ()
    for n in sorted({m.loop for m in group if m.loop is not None and whole.stands_for_others(m)}):
        recursion = Recursion(whole.chains[n], group, joined, values, kept, parallel)
        made, steps = recursion.run(reduce.fork(1 + n))
        factors += made
        order += steps
    product = multiply(contract(graph, factors, drawn, kept))
    value = align(product, [k for k in axes if k is not None])
    value = jnp.expand_dims(value, [i for i, k in enumerate(axes) if k is None])
    return names, value, (*order, *graph.order)


def _enclosing(
    group: list[Member], joined: Joined
) -> tuple[tuple[str, ...], tuple[str | None, ...]]:
    """The plates that a group is one product per element of, and their classes.

    A plate of one element has no class.
    """
    first = group[0]
    around = {n: a for n, a in first.plates.items() if all(n in m.plates for m in group)}
    names = [n for n in sorted(around, key=around.__getitem__) if _encloses(n, group, joined)]
    return tuple(names), tuple(joined.dims[first.name][around[n]] for n in names)


def _encloses(plate: str, group: list[Member], joined: Joined) -> bool:
    if {m.shape[m.plates[plate]] for m in group} == {1}:
        return True
    first, *others = {joined.dims[m.name][m.plates[plate]] for m in group}
    return not others and first is not None and all(first in p for p in joined.plates_of.values())
