"""A choice's values under an estimator, and its potentials, along the axes they come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipp_transforms.entries import at_entries, at_units, counted
from vipp_transforms.estimators.base import Axis, Estimator, SiteInfo, Term
from vipp_transforms.lane import Lane
from vipp_transforms.lifting import Axes, Lifted, Node, Unit
from vipp_transforms.sites import split_keys
from vipp_transforms.source import LaneSource
from vipp_transforms.staging import Site


class Potentials(NamedTuple):
    """The leaves of a site's potentials, and how they make a pytree."""

    leaves: tuple[Lifted, ...]
    tree: Any


class Expanded(NamedTuple):
    """An estimator's expansion of a site, lifted.

    Attributes:
      value: at which the program is evaluated.
      potentials: with the log weight; None for the log density of the values.
      slope: None for an estimator that is not sloped.
    """

    value: Lifted
    potentials: Potentials | None
    slope: Lifted | None


def expanded(
    site: Site,
    estimator: Estimator,
    info: SiteInfo,
    axis: Axis | None,
    axes: Axes,
    keys: Sequence[Lifted],
    leaves: Sequence[Lifted],
    drawn: Lifted | None = None,
    step: Any = 0.0,
) -> Expanded:
    """Expand a site along the named axes of its operands.

    Args:
      site: the choice.
      estimator: its own, or that of its single lanes.
      info: what the estimator knows of the site.
      axis: the estimator's.
      axes: all named ones.
      keys: of the site; along a shared axis a sample's own, that of all, and its number.
      leaves: of its distribution and estimator.
      drawn: the draws, for a test that forces them.
      step: zero, along which estimates whose axis is a tangent are differentiated.

    Returns:
      The expansion.
    """
    together = axis.name if axis is not None and axis.shared else None
    operands = [*keys, *leaves, *([] if drawn is None else [drawn])]

    def one(*inputs: Any) -> list[Any]:
        given = list(inputs[len(keys) :])
        forced = None if drawn is None else given.pop()
        key, *shared = inputs[: len(keys)]
        common, index = shared or (None, 0)
        source = LaneSource(
            site.template, site.lanes, key, given, forced, common, index, step, together
        )
        value, *others = estimator.expand(info, source)
        return [value.astype(site.var.aval.dtype), *others]

    value, *rest = axes.apply(one, *operands, summed=together)
    slope = rest.pop()
    arrays, tree = jax.tree.flatten([x.array for x in rest])
    results = [value, *(Lifted(x, value.axes) for x in arrays)]
    if axis is not None and not axis.shared:
        own = results[:1] if axis.unit else results  # of unit vectors each lane has one potential
        results[: len(own)] = [axes.named(x, axis.name) for x in own]
    own = None if rest[0].array is None else Potentials(tuple(results[1:]), tree)
    return Expanded(results[0], own, None if slope.array is None else slope)


def numbers(axis: Axis | None) -> Lifted:
    """A number for each of the draws along an axis."""
    if axis is None:
        return Lifted(jnp.int32(0))
    return Lifted(jnp.arange(axis.size, dtype=jnp.int32), (axis.name,))


def sample_keys(axes: Axes, key: Lifted, axis: Axis | None) -> list[Lifted]:
    """A site's key; along a shared axis, a sample's own, that of all, and its number."""
    if axis is None or not axis.shared:
        return [key]
    (each,) = axes.apply(lambda k: [split_keys(k, axis.size)], key)
    number = numbers(axis)
    if axis.name not in key.axes:
        return [axes.named(each, axis.name), key, number]
    # in a branch, which an earlier choice along the axis took: sample i has key i of its own
    at = key.axes.index(axis.name)
    own = jax.vmap(lambda keys, i: jnp.take(keys, i, len(key.axes) - 1), (at, 0), at)
    rest = tuple(n for n in key.axes if n != axis.name)
    common = Lifted(jnp.take(key.array, 0, at), rest)
    return [Lifted(own(each.array, number.array), key.axes), common, number]


def of_units(info: SiteInfo, axis: Axis | None, node: Node) -> Node:
    """What makes a site's values; where they are unit vectors, it is said."""
    if axis is None or not axis.unit:
        return node
    lanes = [(j, m) for j, m in enumerate(info.mixed) if info.lane_shape[j] > 1]
    mixed = [j for j, m in lanes if m]
    unit = Unit(axis.name, *mixed) if len(mixed) == 1 else None
    return node._replace(same=tuple(j for j, m in lanes if not m), unit=unit)


def at_term(
    potentials: Potentials,
    info: SiteInfo,
    axis: Axis | None,
    axes: Axes,
    lanes: Sequence[Lane],
    ndim: int,
) -> Potentials:
    """The potentials at the entries of a term.

    Args:
      potentials: of each lane.
      info: what the estimator knows of the site.
      axis: the estimator's.
      axes: all named ones.
      lanes: of the site, at the axes of the term.
      ndim: how many axes the term has.

    Returns:
      Those of all that an entry sees.
    """
    given, tree = potentials
    if axis is not None and axis.unit:
        given = [axes.named(at_units(x, info.mixed, lanes), axis.name) for x in given]
    return Potentials(tuple(at_entries(x, lanes, ndim) for x in given), tree)


def term_of(value: Any, given: Any, axis: Axis | None, *of: Any) -> Term:
    """A term without what has probability 0 and is not finite."""
    own, log_weight = given
    if axis is not None and axis.drawless:
        (log_weight,) = own
    return Term(value if log_weight is None else counted(value, log_weight), own, *of)
