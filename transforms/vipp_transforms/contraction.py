"""The log of a sum of products of factors, by variable elimination with plates.

A factor is an array of logarithms with one name per axis. A name is a *site*, to be summed over, or
a *plate*: a product is taken over it, and the sites in it have one copy for each of its entries. A
factor that no site connects to another is a term of its own: the logarithm of a product is a sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import jax.numpy as jnp

from vipp_transforms.axis_sums import LARGE, max_over, sum_over
from vipp_transforms.errors import SiteError


class Factor(NamedTuple):
    """An array of logarithms.

    Attributes:
      array: one axis per name.
      dims: the names of its axes.
      origin: what it was computed from, for errors and tables.
    """

    array: Any
    dims: tuple[str, ...]
    origin: tuple[str, ...] = ()


class Elimination(NamedTuple):
    """One site summed out.

    Attributes:
      site: its name.
      dims: the names of the product that was summed.
      entries: the size of that product.
      steps: of a loop for which it is done, one after the other.
    """

    site: str
    dims: tuple[str, ...]
    entries: int
    steps: int = 1


class Reduction(Protocol):
    """How an array of logarithms is summed over one axis.

    Attributes:
      plain: whether it is the log of the sum of exponentials, and no more.
    """

    plain: ClassVar[bool]

    def fork(self, number: Any) -> Reduction:
        """The same with randomness of its own, if it has any, for the reduction of that number."""
        ...

    def __call__(self, x: Any, axis: int) -> Any:
        """Without the axis."""
        ...


@dataclass
class Graph:
    """What the factors' names are.

    Attributes:
      plates_of: by site, the plates that it is in.
      reduce: sums over one axis; the log of the sum of exponentials, or the maximum, or a draw.
      limit: the largest product that is made, in entries.
      order: the sites summed out so far.
    """

    plates_of: Mapping[str, frozenset[str]]
    reduce: Reduction
    limit: int = 2**28
    order: list[Elimination] = field(default_factory=list)

    def total(self, members: Sequence[Factor], site: str) -> list[Factor]:
        """The sum over a site of a product, in parts."""
        product = multiply(members)
        at = product.dims.index(site)
        array = self.reduce.fork(len(self.order))(product.array, at)
        return [Factor(array, product.dims[:at] + product.dims[at + 1 :], product.origin)]

    def joint(self, members: Sequence[Factor], sites: Sequence[str]) -> list[Factor]:
        """The sum over several sites of a product, as one sum."""
        product = multiply(members)
        rest = tuple(d for d in product.dims if d not in sites)
        array = align(product, (*rest, *sites))
        array = array.reshape(*array.shape[: len(rest)], -1)
        return [Factor(self.reduce(array, array.ndim - 1), rest, product.origin)]

    def sums_jointly(self, entries: int) -> bool:
        """Whether what a small table says of several sites is summed at once."""
        return self.reduce.plain and entries < LARGE


def contract(
    graph: Graph, factors: Iterable[Factor], sites: Iterable[str], kept: frozenset[str]
) -> list[Factor]:
    r"""Sum ``sites`` out of a product of factors.

    .. math:: \log \sum_{z} \prod_{p} \prod_{f} \exp f_p(z_p)

    Plates are entered from the outside and left from the inside: the sites of the most plates are
    summed out first, then the product is taken over the plates that no site is left in.

    Args:
      graph: what the names are.
      factors: to be multiplied.
      sites: to be summed out.
      kept: plates that no product is taken over.

    Returns:
      Factors of the sites that are left, over their plates and those kept.

    Raises:
      SiteError: naming two sites of crossed plates that a factor couples for each pair of entries.
    """
    summed, done = set(sites), []
    pending: dict[frozenset[str], list[Factor]] = {}

    def put(factor: Factor) -> None:
        factor = _leave_plates(graph, factor, kept)
        if any(d in summed for d in factor.dims):
            pending.setdefault(_plates(graph, factor), []).append(factor)
        else:
            done.append(factor)

    for factor in factors:
        put(factor)
    while pending:
        # the innermost plates first: their sites have more copies than those outside
        plates = max(pending, key=lambda p: (len(p), sorted(p)))
        members = pending.pop(plates)
        inside = {s for f in members for s in f.dims if s in summed}
        here = {s for s in inside if graph.plates_of[s] | kept >= plates}
        # a factor of two crossed plates couples every pair of their sites: no order is cheap
        stuck = [f for f in members if any(d in inside for d in f.dims) and not here & {*f.dims}]
        if stuck:
            raise _crossed(graph, stuck[0], summed)
        for factor in eliminate(graph, members, here):
            put(factor)
    return done


def _plates(graph: Graph, factor: Factor) -> frozenset[str]:
    return frozenset(d for d in factor.dims if d not in graph.plates_of)


def _leave_plates(graph: Graph, factor: Factor, kept: frozenset[str]) -> Factor:
    """Take the product over the plates that none of the factor's sites is in."""
    stay = kept.union(*(graph.plates_of[d] for d in factor.dims if d in graph.plates_of))
    left = tuple(i for i, d in enumerate(factor.dims) if d not in graph.plates_of and d not in stay)
    if not left:
        return factor
    dims = tuple(d for i, d in enumerate(factor.dims) if i not in left)
    return Factor(jnp.sum(factor.array, axis=left), dims, factor.origin)


def eliminate(graph: Graph, factors: Sequence[Factor], summed: Iterable[str]) -> list[Factor]:
    """Sum out sites of the same plates, each time the one whose factors' product is smallest."""
    live, waiting = list(factors), sorted(summed)
    while waiting:
        sizes = {d: n for f in live for d, n in zip(f.dims, jnp.shape(f.array), strict=True)}
        # greedy, smallest product first: optimal on chains and trees
        site = min(waiting, key=lambda s: _entries(_together(live, s), sizes))
        dims = _together(live, site)
        entries = _entries(dims, sizes)
        if entries > graph.limit:
            raise _too_large(site, dims, entries, graph.limit)
        # what the table says of others as well is summed with it, as if one after the other
        also = [s for s in waiting if s != site and {*_together(live, s)} <= {*dims}]
        sites = [site, *(also if graph.sums_jointly(entries) else ())]
        waiting = [s for s in waiting if s not in sites]
        members = [f for f in live if not {*f.dims}.isdisjoint(sites)]
        for i, s in enumerate(sites):
            left = tuple(d for d in dims if d not in sites[:i])
            graph.order.append(Elimination(s, left, _entries(left, sizes)))
        made = graph.total(members, site) if len(sites) == 1 else graph.joint(members, sites)
        live = [f for f in live if {*f.dims}.isdisjoint(sites)] + made
    return live


def _together(factors: Iterable[Factor], site: str) -> tuple[str, ...]:
    dims = dict.fromkeys(d for f in factors if site in f.dims for d in f.dims)
    return tuple(dims)


def _entries(dims: Iterable[str], sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[d] for d in dims)


def multiply(factors: Sequence[Factor]) -> Factor:
    """The product: the sum of the arrays, over the union of their names."""
    dims = tuple(dict.fromkeys(d for f in sorted(factors, key=_rank) for d in f.dims))
    origin = tuple(dict.fromkeys(name for f in factors for name in f.origin))
    small_first = sorted(factors, key=lambda f: jnp.size(f.array))
    array = align(small_first[0], dims)
    for factor in small_first[1:]:
        array = array + align(factor, dims)
    return Factor(array, dims, origin)


def _rank(factor: Factor) -> int:
    return -len(factor.dims)


def align(factor: Factor, dims: Sequence[str]) -> Any:
    """The factor's array with the axes ``dims``, of size one where it has them not."""
    present = [d for d in dims if d in factor.dims]
    order = [factor.dims.index(d) for d in present]
    array = factor.array
    if order != sorted(order):
        array = jnp.transpose(array, order)
    absent = tuple(i for i, d in enumerate(dims) if d not in factor.dims)
    return jnp.expand_dims(array, absent) if absent else array


class LogSumExp:
    """The log of the sum of exponentials; where all are zero, with gradient zero."""

    plain: ClassVar[bool] = True

    def fork(self, number: Any) -> LogSumExp:
        """Itself."""
        return self

    def __call__(self, x: Any, axis: int) -> Any:
        """Without the axis."""
        return _log_sum_exp(x, axis)


def _log_sum_exp(x: Any, axis: int) -> Any:
    top = max_over(x, axis)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    total = sum_over(jnp.exp(x - jnp.expand_dims(top, axis)), axis)
    possible = total > 0
    log = jnp.log(jnp.where(possible, total, 1.0)) + top
    return jnp.where(possible, log, -jnp.inf)


def _crossed(graph: Graph, factor: Factor, summed: set[str]) -> SiteError:
    sites = [d for d in factor.dims if d in summed]
    where = "; ".join(f"'{s}' in {_names(graph.plates_of[s])}" for s in sites)
    who = " and ".join(f"'{s}'" for s in sites)
    via = ", ".join(f"'{n}'" for n in factor.origin) or "a factor"
    return SiteError(
        f"marginal(exact=True): sites {who} are in different plates ({where}) and are coupled for "
        f"every pair of their elements by {via}: the sum would take time exponential in the size "
        "of a plate. Expected sites in plates inside one another. Fix: keep one of them "
        "(keep=[...]), integrate them out by importance weights (num_particles= instead of "
        f"exact=True), or, if one plate is small, make it an event of {via} (to_event), so that "
        "its elements are summed over together."
    )


def _names(plates: Iterable[str]) -> str:
    return ", ".join(sorted(plates)) or "no plate"


def _too_large(site: str, dims: Sequence[str], entries: int, limit: int) -> SiteError:
    others = ", ".join(f"'{d}'" for d in dims if d != site)
    return SiteError(
        f"marginal(exact=True): summing out site '{site}' takes a table of {entries} entries, over "
        f"it and {others}; expected at most {limit}. Fix: keep one of these sites (keep=[...]), or "
        "integrate them out by importance weights (num_particles= instead of exact=True)."
    )
