"""What was summed out, drawn given all else, or at its most probable.

The derivatives of a sum's logarithm by its terms' logarithms are the terms' probabilities. Where
each sum hands back one of its terms instead, drawn by these probabilities (or the largest), what
comes back to a site's density is the value that was chosen: from the first choice to the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vipp_transforms.contraction import LogSumExp
from vipp_transforms.estimators.base import SiteInfo
from vipp_transforms.estimators.enumerate import joint_size, joint_support
from vipp_transforms.factor_graph import Density, Drawn, FactorGraph, factor_graph
from vipp_transforms.factor_values import FactorValues
from vipp_transforms.summation import total


def infer(fn: Callable[[], list[Density]], key: Any, *, most_probable: bool) -> dict[str, Any]:
    """Draw the choices that a program's densities are to be summed over.

    Args:
      fn: as for :func:`vipp_transforms.sum_out`.
      key: a PRNG key.
      most_probable: whether to return the joint value of the highest probability instead.

    Returns:
      By name of the choice, a value; of one in a loop, stacked.

    References:
      Rush, *Torch-Struct: deep structured prediction library*, 2020, section 4 (sampling by
      differentiation).
    """
    graph = factor_graph(fn, barren=True)
    values = FactorValues(graph)
    zeros = _zeros(graph, values)
    reduce = _Choose(key, most_probable)
    chosen = jax.grad(lambda probes: total(values.probed(probes), reduce))(zeros)
    parts: dict[str, list[Any]] = {}
    backwards: set[str] = set()
    for drawn in graph.drawn():
        name, loop = drawn.member.density.name, drawn.member.loop
        value = _value(values.sites[drawn.site.index], drawn, chosen[drawn.name])
        alone = loop is not None and drawn.chain is None
        parts.setdefault(name, []).append(value[None] if alone else value)
        if loop is not None and graph.loops[loop].reverse:
            backwards.add(name)
    return {
        n: xs[0] if len(xs) == 1 else jnp.concatenate(xs[::-1] if n in backwards else xs)
        for n, xs in parts.items()
    }


def _zeros(graph: FactorGraph, values: FactorValues) -> dict[str, Any]:
    """One for each value of each site, in each of its lanes that stay apart."""
    zeros = {}
    for drawn in graph.drawn():
        dims = drawn.joined.dims[drawn.member.name]
        lanes = [n for n, d in zip(drawn.member.shape, dims, strict=True) if d is not None]
        steps = [] if drawn.chain is None else [drawn.chain.left]
        shape = (*steps, joint_size(values.sites[drawn.site.index]), *lanes)
        zeros[drawn.name] = jnp.zeros(shape)
    return zeros


def _value(info: SiteInfo, drawn: Drawn, chosen: Any) -> Any:
    """The site's value, given which of its joint values was chosen in each lane."""
    dims, steps = drawn.joined.dims[drawn.member.name], drawn.chain is not None
    index = jnp.argmax(chosen, axis=1 if steps else 0)
    apart = [j for j, d in enumerate(dims) if d is not None]
    first = int(steps)
    value = jnp.asarray(joint_support(info))[index]
    value = jnp.squeeze(value, tuple(first + len(apart) + j for j in apart))
    others = [j for j in range(len(dims)) if j not in apart]
    lane = [
        apart.index(j) if j in apart else len(apart) + others.index(j) for j in range(len(dims))
    ]
    events = range(first + len(dims), jnp.ndim(value))
    return jnp.transpose(value, (*range(first), *(first + a for a in lane), *events))


@dataclass(frozen=True)
class _Choose:
    """The log of a sum, or its largest term, that hands back one of its terms."""

    key: Any
    most_probable: bool
    plain: ClassVar[bool] = False

    def fork(self, number: Any) -> _Choose:
        """With a key of its own."""
        return _Choose(jax.random.fold_in(self.key, number), self.most_probable)

    def __call__(self, x: Any, axis: int) -> Any:
        """Without the axis."""
        moved = jnp.moveaxis(x, axis, -1)
        return (_largest if self.most_probable else _drawn)(moved, self.key)


@jax.custom_vjp
def _largest(x: Any, key: Any) -> Any:
    return jnp.max(x, axis=-1)


@jax.custom_vjp
def _drawn(x: Any, key: Any) -> Any:
    return LogSumExp()(x, x.ndim - 1)


def _back(chosen: Any, x: Any, g: Any) -> tuple[Any, None]:
    return g[..., None] * jax.nn.one_hot(chosen, x.shape[-1], dtype=x.dtype), None


_largest.defvjp(
    lambda x, key: (_largest(x, key), x), lambda x, g: _back(jnp.argmax(x, axis=-1), x, g)
)
_drawn.defvjp(
    lambda x, key: (_drawn(x, key), (x, key)),
    lambda kept, g: _back(jax.random.categorical(kept[1], kept[0]), kept[0], g),
)
