r"""Choices whose values are changed one at a time, along one axis for all of them.

An estimator that is *linear at its draw* estimates a first derivative: its value is the program's
at its draw, and each other value of its axis counts through a coefficient that is zero and has a
derivative. Of two such choices a pair of changed values would have the product of two such
coefficients, of which value and first derivative are zero,

.. math::
    f(0, 0) + \sum_i \alpha_i f(i, 0) + \sum_j \beta_j f(0, j) + \sum_{ij} \alpha_i \beta_j f(i, j).

So along one axis of :math:`1 + n_1 + n_2 + \dots` entries no two are changed at once, where axes of
their own would have :math:`(1 + n_1)(1 + n_2) \cdots`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vipp_transforms.estimators.base import Axis, Term
from vipp_transforms.expansion import Expanded
from vipp_transforms.lifting import Axes, Lifted
from vipp_transforms.plan import Plan


class Block(NamedTuple):
    """A choice's part of an axis along which several are changed one at a time.

    Attributes:
      own: the axis that it would have alone.
      joint: the axis of all; its first entry is their draws.
      start: where in ``joint`` the values behind the first of ``own`` begin.
    """

    own: Axis
    joint: Axis
    start: int

    @property
    def entries(self) -> np.ndarray:
        """For each entry of the joint axis, that of its own: 0 where others are changed."""
        at = np.zeros(self.joint.size, int)
        at[self.start : self.start + self.own.size - 1] = np.arange(1, self.own.size)
        return at

    def values(self, axes: Axes, value: Lifted) -> Lifted:
        """What an expansion gives, laid along the joint axis."""
        array = axes.first(value, self.own.name)
        if self.joint.name not in array.axes:
            return axes.named(array._replace(array=array.array[self.entries]), self.joint.name, 0)
        at = 1 + array.axes.index(self.joint.name)
        whole = jnp.moveaxis(array.array, at, 1)
        chosen = whole[self.entries, np.arange(self.joint.size)]
        rest = tuple(n for n in array.axes if n != self.joint.name)
        return axes.named(Lifted(chosen, rest), self.joint.name, 0)

    def coefficients(self, axes: Axes, value: Lifted) -> Lifted:
        """The same of potentials: none where another choice is changed."""
        laid = self.values(axes, value)
        at = laid.axes.index(self.joint.name)
        return laid._replace(array=jnp.where(self.mine(jnp.ndim(laid.array), at), laid.array, 0))

    def mine(self, ndim: int, at: int = 0) -> np.ndarray:
        """The entries where no other choice is changed, of an array with the joint axis ``at``."""
        kept = (self.entries > 0) | (np.arange(self.joint.size) == 0)
        return kept.reshape([-1 if axis == at else 1 for axis in range(ndim)])


def blocks(axes: Mapping[int, Axis], terms: Sequence[frozenset[int]]) -> dict[int, Block]:
    """The choices that are changed one at a time, where that takes fewer evaluations.

    Args:
      axes: by number of a choice that is linear at its draw, its axis.
      terms: of each term, the choices that it depends on, also through others' draws.
    """
    found: dict[int, Block] = {}
    for group in _connected(axes, terms):
        sizes = [axes[i].size - 1 for i in group]
        total = 1 + sum(sizes)
        seen = [together for term in terms if (together := term & set(group))]
        apart = sum(math.prod(axes[i].size for i in together) for together in seen)
        if total * len(seen) >= apart:
            continue
        joint = Axis("one at a time:" + ",".join(map(str, group)), total)
        starts = np.cumsum([1, *sizes])
        found |= {i: Block(axes[i], joint, int(at)) for i, at in zip(group, starts, strict=False)}
    return found


def _connected(axes: Iterable[int], terms: Sequence[frozenset[int]]) -> list[list[int]]:
    """The choices that some term has together, or that are so with a third."""
    groups = [{i} for i in axes]
    for term in terms:
        met = [g for g in groups if g & term]
        groups = [g for g in groups if not g & term] + ([set().union(*met)] if met else [])
    return [sorted(group) for group in groups]


def one_at_a_time(planned: Plan) -> dict[int, Block]:
    """The choices of a plan that are changed one at a time, by index."""
    axes: dict[int, Axis] = {}
    seen: dict[int, frozenset[int]] = {}

    def through(atoms: Iterable[Any]) -> frozenset[int]:
        # in a loop a choice depends on those of the step before, which may come after it
        before = (seen.get(r, frozenset()) for v in atoms for r in planned.depends[v])
        return frozenset().union(*before)

    for site in planned.program.sites.values():
        estimator, info, _ = planned.choices[site.index]
        axis = estimator.axis(info)
        if estimator.traits.linear and axis is not None:
            axes[site.index] = axis
        seen[site.index] = through((site.key, *site.leaves)) | ({site.index} & axes.keys())
    return blocks(axes, [through([leaf]) for leaf in planned.split.leaves]) if axes else {}


def laid(block: Block, axes: Axes, found: Expanded) -> Expanded:
    """An expansion along the joint axis: no coefficients where another choice is changed."""
    assert found.potentials is not None
    leaves = tuple(block.coefficients(axes, x) for x in found.potentials.leaves)
    value = block.values(axes, found.value)
    return found._replace(value=value, potentials=found.potentials._replace(leaves=leaves))


def averaged(result: Lifted, left: frozenset[str], joint: set[str]) -> Lifted:
    """The mean over the axes that are not ``left``; along a joint one what is at the draws."""
    done = joint - left
    index = tuple(0 if name in done else slice(None) for name in result.axes)
    others = [name for name in result.axes if name not in done]
    gone = tuple(i for i, name in enumerate(others) if name not in left)
    kept = tuple(name for name in others if name in left)
    array = result.array[index] if done.intersection(result.axes) else result.array
    return Lifted(jnp.mean(array, axis=gone) if gone else array, kept)


def combined(block: Block, term: Term) -> jax.Array:
    """At the draws what all entries come to; at the others what they were, for other choices."""
    (coefficients,) = term.potentials
    value = term.value
    # a value of another choice may have probability 0, and the term there be anything
    seen = jnp.where(block.mine(value.ndim), jax.lax.stop_gradient(value), 0)
    return value.at[0].add((seen * coefficients).sum(0))
