r"""The product of a chain's steps in :math:`\log T` rounds, where there are many processors.

A step is a matrix from the choices before it to its own. Products of matrices are associative: in
each round the product from every step on takes in twice as many steps as before, all at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vipp_transforms.contraction import Factor, align

MOST_STATES = 64  # by itself: a product of matrices takes so many times what a vector takes
FEWEST_STEPS = 16
LARGEST = 2**28  # entries of all steps' matrices together
_EXACT = jax.lax.Precision.HIGHEST


class StepMatrix(NamedTuple):
    """How the matrix of one step lies.

    Attributes:
      around: the names of which each entry has a matrix of its own.
      before: the names of the choices before the step.
      own: those of its own choices, in the same order.
      sizes: by name.
    """

    around: tuple[str, ...]
    before: tuple[str, ...]
    own: tuple[str, ...]
    sizes: Mapping[str, int]

    @property
    def states(self) -> int:
        """The number of joint values of a step's choices."""
        return math.prod(self.sizes[d] for d in self.own)

    def entries(self, steps: int) -> int:
        """Of the matrices of all steps."""
        return steps * math.prod(self._around()) * self.states**2

    def refused(self, steps: int) -> str | None:
        """Why so many steps cannot be multiplied, if they cannot."""
        if {*self.own} & {*self.before}:
            return "it looks back more than one step"
        if (entries := self.entries(steps)) > LARGEST:
            return f"their tables have {entries} entries, expected at most {LARGEST}"
        return None

    def pays(self, steps: int) -> bool:
        """Whether there are many steps and few states, and processors to multiply them."""
        many = steps >= FEWEST_STEPS and self.states <= MOST_STATES
        return many and jax.default_backend() != "cpu"

    def of(self, factor: Factor) -> jax.Array:
        """A step's factor as its matrix."""
        names = (*self.around, *self.before, *self.own)
        array = jnp.broadcast_to(align(factor, names), [self.sizes[d] for d in names])
        return array.reshape([*self._around(), self.states, self.states])

    def vector(self, array: jax.Array) -> jax.Array:
        """What is passed to the step before, one axis for each name around and each choice."""
        return array.reshape([*self._around(), *(self.sizes[d] for d in self.own)])

    def _around(self) -> Sequence[int]:
        return [self.sizes[d] for d in self.around]


class _Products(NamedTuple):
    r"""Products of steps: matrices :math:`\exp(l + r_i)\, P_{ij} \exp(c_j)`.

    Attributes:
      level: ``l``, not differentiated.
      rows: ``r``, not differentiated.
      values: ``P``, whose largest entries in rows and columns are of order one.
      columns: ``c``, not differentiated.
      possible: one where an entry is not zero, however small.
      lost: whether some of it may be.
    """

    level: jax.Array
    rows: jax.Array
    values: jax.Array
    columns: jax.Array
    possible: jax.Array
    lost: jax.Array

    def times(self, other: _Products) -> _Products:
        """The products of matrices, one by one."""
        between = self.columns + other.rows
        top = between.max(-1)
        weights = jnp.exp(between - top[..., None])
        values = jnp.matmul(self.values * weights[..., None, :], other.values, precision=_EXACT)
        possible = jnp.minimum(self.possible @ other.possible, 1.0)
        lost = self.lost | other.lost | _any_lost(values, possible, 2)
        rows, columns = _scales(_log(jax.lax.stop_gradient(values)))
        values = values * jnp.exp(-rows)[..., :, None]
        values = values * jnp.exp(-columns)[..., None, :]  # both together may be too large
        rows, columns = self.rows + rows, other.columns + columns
        return _Products(self.level + other.level + top, rows, values, columns, possible, lost)


def product(matrices: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""The product of all steps, and what is behind them.

    .. math:: \log \sum_{s_1, \ldots, s_T} \prod_t \exp A_t(s_{t-1}, s_t)

    Args:
      matrices: logarithms, shape ``(T, *around, K, K)``, steps from first to last.

    Returns:
      As a function of the choice before the first step, less a number, shape ``(*around, K)``;
      that number, shape ``around``; and whether some of it may be lost.
    """
    count = len(matrices)
    rows, columns = _scales(jax.lax.stop_gradient(matrices))
    values = jnp.exp(matrices - rows[..., :, None] - columns[..., None, :])
    none = jnp.zeros(matrices.shape[:-2], matrices.dtype)
    possible = (matrices > -jnp.inf).astype(matrices.dtype)
    steps = _Products(none, rows, values, columns, possible, none > 0)

    def doubled(steps: _Products, shift: jax.Array) -> tuple[_Products, None]:
        # of the steps from each one on, twice as many as before
        after = jnp.arange(count) + shift
        new = steps.times(jax.tree.map(lambda x: x[jnp.minimum(after, count - 1)], steps))
        there = lambda x: (after < count).reshape([count] + [1] * (x.ndim - 1))
        return jax.tree.map(lambda x, y: jnp.where(there(x), x, y), new, steps), None

    shifts = 2 ** jnp.arange((count - 1).bit_length())
    all_, _ = jax.lax.scan(doubled, steps, shifts)
    level, rows, values, columns, possible, lost = (x[0] for x in all_)
    top = columns.max(-1, keepdims=True)
    sums = jnp.einsum("...ij,...j->...i", values, jnp.exp(columns - top), precision=_EXACT)
    lost |= _any_lost(sums, possible.max(-1), 1)
    return _log(sums) + rows + top, level, lost.any()


def _scales(logs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What brings the largest entries of a matrix to order one: of its rows, and its columns."""
    rows = _finite(logs.max(-1))
    return rows, _finite((logs - rows[..., None]).max(-2))


def _finite(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(x), x, 0.0)


def _log(x: jax.Array) -> jax.Array:
    normal = x >= jnp.finfo(x.dtype).tiny
    return jnp.where(normal, jnp.log(jnp.where(normal, x, 1.0)), -jnp.inf)


def _any_lost(sums: jax.Array, possible: jax.Array, axes: int) -> jax.Array:
    """Whether a sum is so small that a part of it may be below the smallest number."""
    floor = jnp.finfo(sums.dtype).tiny ** (2 / 3)
    over = tuple(range(sums.ndim - axes, sums.ndim))
    return jnp.any((sums < floor) & (possible > 0), axis=over)
