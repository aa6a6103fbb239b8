"""One step of a training run, and its state as a loop carries it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState

from vipp.training.roles import roles
from vipp_transforms import packing
from vipp_transforms.drawing_ahead import Ahead, ahead
from vipp_transforms.flattening import LARGEST, Flat, alive, flatten
from vipp_transforms.horizontal_fusion import Fused, fused
from vipp_transforms.layout import Layout, cut
from vipp_transforms.ravelled import Ravelled
from vipp_transforms.sites import lane_key_p

_MANY = 8  # arrays
_BLOCK = 64  # steps
_SPENT = frozenset({lane_key_p})  # what marks the keys of draws has been looked at by then


class Stepping(NamedTuple):
    """An update of a state as a loop carries it, how it gets there, and back.

    Attributes:
      update: ``(state, noise) -> (state, loss, ok)``.
      pack: of a state, ravelled or not, the loop's.
      unpack: of the loop's state, a state.
      leave: the same for :func:`state_of`, outside of the compiled program.
      draw: of the loop's state, the noise of a block along a first axis, if it is drawn at once.
      count: how many are taken in one block.
    """

    update: Callable[..., Any]
    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]
    leave: Callable[[Any], Any]
    draw: Callable[[Any], list[Any]]
    count: int


def state_of(left: SVIState | Ravelled) -> SVIState:
    """The state that a compiled program has come to, which it gives by :attr:`Stepping.leave`."""
    return left.tree() if isinstance(left, Ravelled) else left


def ravelled(state: SVIState) -> SVIState | Ravelled:
    """A state as it is given to a compiled program: many small arrays as one.

    XLA compiles something for every input of a program.
    """
    leaves = jax.tree.leaves(state)
    small = all(x.size <= LARGEST and len(x.sharding.device_set) == 1 for x in leaves)
    return Ravelled.outside(state) if small and len(leaves) > _MANY else state


def stepping(
    svi: SVI, args: Any, kwargs: Any, state: SVIState, *, at_once: bool = False
) -> Stepping:
    """A step of training for states like ``state``.

    It is packed where it has many small equations; where it has few, what the optimiser does alike
    to small arrays is done once to all of them.

    Args:
      svi: what is trained.
      args: of the programs.
      kwargs: of the programs.
      state: one, or its shapes and dtypes.
      at_once: whether to draw the noise of many steps at once, if it is little.
    """
    with packing.around():
        closed = jax.make_jaxpr(_update(svi, args, kwargs))(state)
    program = flatten(closed, final=True, identities=_SPENT)
    if packing.pays(program):
        return _packed(program, Layout(state), ahead(program) if at_once else None)
    program = flatten(closed, final=True, sums=False, identities=_SPENT)
    first = ahead(program) if at_once else None
    rest = program if first is None else first.rest
    alike = roles(svi, state)
    joint = fused(_unjudged(rest), len(jax.tree.leaves(state)), alike)
    if joint is not None:
        return _joint(joint, Layout(state), joint.holding(alike[0]), first)
    return _plain(closed, rest, state, first)


def _update(svi: SVI, args: Any, kwargs: Any) -> Callable[[SVIState], Any]:
    def update(state: SVIState) -> Any:
        new, loss = svi.update(state, *args, **kwargs)
        params = jax.tree.leaves(svi.optim.get_params(new.optim_state))
        return new, loss, jnp.isfinite(loss) & _finite(params)

    return update


def _finite(arrays: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in arrays]).all() if arrays else jnp.array(True)


def _unjudged(program: Flat) -> Flat:
    """An update without its last result, whether all is finite."""
    outs = program.outs[:-1]
    return dataclasses.replace(program, outs=outs, nodes=alive(program.nodes, outs))


def _plain(closed: Any, rest: Flat, state: Any, first: Ahead | None) -> Stepping:
    """As it stands, leaf by leaf."""

    def update(carried: Any, noise: Sequence[Any] = ()) -> Any:
        if first is None:
            *new, loss, ok = core.jaxpr_as_fun(closed)(*carried)
        else:
            *new, loss, ok = packing.one_by_one(rest, [*carried, *noise])
        return new, loss, ok

    pack = lambda given: jax.tree.leaves(_inside(given))
    unpack = partial(jax.tree.unflatten, jax.tree.structure(state))
    draw = _drawing(first, packing.one_by_one, lambda leaves, at: leaves[at])
    return Stepping(update, pack, unpack, unpack, draw, _count(first))


def _packed(program: Flat, layout: Layout, first: Ahead | None) -> Stepping:
    """Its equations packed, its state one vector for each dtype."""
    rest, segments = program if first is None else first.rest, layout.segments

    def update(carried: Any, noise: Sequence[Any] = ()) -> Any:
        new, (loss, ok) = packing.step(rest, layout, carried, noise)
        return new, loss, ok

    def pack(given: SVIState | Ravelled) -> Any:
        return given.all_vectors() if isinstance(given, Ravelled) else layout.ravel(given)

    key = lambda vectors, at: cut(vectors[segments[at].vector], segments[at])
    draw, leave = _drawing(first, packing.evaluated, key), partial(Ravelled.of, layout)
    return Stepping(update, pack, layout.unravel, leave, draw, _count(first))


def _joint(joint: Fused, layout: Layout, params: list[int], first: Ahead | None) -> Stepping:
    """What is done alike to small arrays done once, ``params`` the numbers of parameters."""

    def update(carried: Any, noise: Sequence[Any] = ()) -> Any:
        new, (loss,) = joint.step(carried, noise)
        return new, loss, jnp.isfinite(loss) & _finite([new[n] for n in params])

    pack = lambda given: joint.carried(jax.tree.leaves(_inside(given)))
    unpack = lambda carried: jax.tree.unflatten(layout.treedef, joint.leaves(carried))
    small = all(math.prod(s.shape) <= LARGEST for s in layout.segments)
    at_once = lambda carried: Ravelled.of(layout, layout.ravel(unpack(carried)))
    leave = at_once if small else unpack
    draw = _drawing(first, packing.one_by_one, lambda carried, at: carried[joint.holding([at])[0]])
    return Stepping(update, pack, unpack, leave, draw, _count(first))


def _inside(given: SVIState | Ravelled) -> SVIState:
    return given.inside() if isinstance(given, Ravelled) else given


def _count(first: Ahead | None) -> int:
    return _BLOCK if first is None else first.count


def _drawing(
    first: Ahead | None, evaluate: Callable[..., Any], key: Callable[[Any, int], Any]
) -> Callable[[Any], list[Any]]:
    """What draws the noise of a block, given what reads the key at a place of the loop's state."""
    if first is None:
        return lambda carried: []
    return lambda carried: first.draw(evaluate, [key(carried, at) for at in first.keys])
