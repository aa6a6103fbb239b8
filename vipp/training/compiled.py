"""The compiled functions of a training run, kept for the next run of the same programs."""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState
from numpyro.infer.util import transform_fn

from vipp.training.identity import identity, structure
from vipp_transforms import packing
from vipp_transforms.drawing_ahead import ahead
from vipp_transforms.flattening import LARGEST
from vipp_transforms.layout import Layout, cut
from vipp_transforms.ravelled import Ravelled
from vipp_transforms.sites import lane_key_p

MOST_STEPS_AT_ONCE = 4096
_MOST_KEPT = 32
_MANY = 64  # arrays
_BLOCK = 64  # steps
_SPENT = frozenset({lane_key_p})  # what marks the keys of draws has been looked at by then
_KEPT: collections.OrderedDict[Hashable, Callable[..., Any]] = collections.OrderedDict()
_FACTS: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()


class Compiled:
    """The compiled functions of a model and a guide, for arguments of any shapes.

    What was compiled for the same objective, model, guide and optimiser, and arguments of the same
    shapes, is used again, if it is one of the last 32.

    Args:
      svi: initialised, so that it has the transforms of its parameters.
      optim: its optimiser, as the user made it.
    """

    def __init__(self, svi: SVI, optim: Any):
        self._svi = svi
        self._programs = tuple(map(identity, (svi.loss, svi.model, svi.guide, optim)))
        # a constraint may depend on the data: its numbers are inputs, too
        given = (svi.constrain_fn.args[0],)  # pyright: ignore
        self._bounds, self._constraints, self._transforms = structure(given, {})

    def function(
        self, what: Callable[[SVI, Any, Any], Callable[..., Any]], args: Any, kwargs: Any
    ) -> Callable[..., Any]:
        """``what(svi, args, kwargs)``, a function, compiled for the programs' arguments."""
        arrays, shapes, build = structure(args, kwargs)
        run = self._kept(_KEPT, what, shapes, lambda: self._compile(what, build))
        return lambda *inputs: run(inputs, arrays, self._bounds)

    def fact(
        self, what: Callable[[SVI, Any, Any], Any], args: Any, kwargs: Any, *inputs: Any
    ) -> Any:
        """``what(svi, args, kwargs)(*inputs)``, which is the same whatever their arrays hold."""
        _, shapes, _ = structure(args, kwargs)
        return self._kept(_FACTS, what, shapes, lambda: what(self._svi, args, kwargs)(*inputs))

    def _kept(self, kept: Any, what: Any, shapes: Hashable, make: Callable[[], Any]) -> Any:
        x64 = jax.config.jax_enable_x64  # pyright: ignore
        key = (what, self._programs, shapes, self._constraints, x64)
        if key not in kept:
            kept[key] = make()
            if len(kept) > _MOST_KEPT:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return kept[key]

    def _compile(self, what: Any, build: Any) -> Callable[..., Any]:
        svi, transforms = self._svi, self._transforms

        @jax.jit
        def run(inputs: Any, arrays: Any, bounds: Any) -> Any:
            args, kwargs = build(arrays)
            ((constrain,), _) = transforms(bounds)
            own = copy.copy(svi)  # what is traced must not stay in the caller's
            own.constrain_fn = partial(transform_fn, constrain)
            return what(own, args, kwargs)(*inputs)

        return run


def advance(svi: SVI, args: Any, kwargs: Any) -> Callable[..., Any]:
    """A function ``(state, steps) -> (state, taken, ok, losses)`` that trains.

    It takes up to ``steps`` steps and stops before a bad one. A state of many small arrays is given
    :func:`ravelled`; what comes back is one by :func:`state_of`. The noise of many steps is drawn
    at once.
    """
    return _training(svi, args, kwargs, at_once=True)


def advance_singly(svi: SVI, args: Any, kwargs: Any) -> Callable[..., Any]:
    """:func:`advance` for one step after the other, each of which draws its noise."""
    return _training(svi, args, kwargs, at_once=False)


def _training(svi: SVI, args: Any, kwargs: Any, *, at_once: bool) -> Callable[..., Any]:
    """Blocks of steps; one in which a step is bad is taken again, up to the step before that.

    So what a step leaves as it was need not be chosen at every step.
    """

    def run(given: SVIState | Ravelled, steps: Any) -> tuple[Any, Any, Any, Any]:
        like = given.shapes() if isinstance(given, Ravelled) else given
        one = _stepping(_update(svi, args, kwargs), like, at_once=at_once)

        def block(carry: Any) -> Any:
            begin, state, limit, losses = carry
            noise, end = one.draw(state), jnp.minimum(begin + one.count, limit)

            def step(carry: Any) -> Any:
                i, state, _, losses = carry
                new, loss, ok = one.update(state, [x[i - begin] for x in noise])
                return i + 1, new, ok, losses.at[i].set(loss)

            i, new, ok, losses = jax.lax.while_loop(
                lambda carry: (carry[0] < end) & carry[2],
                step,
                (begin, state, jnp.array(True), losses),
            )
            state, begin = jax.lax.cond(
                ok, lambda new, old: new, lambda new, old: old, (new, i), (state, begin)
            )
            return begin, state, jnp.where(ok, limit, i - 1), losses

        taken, end, limit, losses = jax.lax.while_loop(
            lambda carry: carry[0] < carry[2],
            block,
            (
                jnp.zeros((), int),
                one.pack(given),
                jnp.asarray(steps),
                jnp.zeros(MOST_STEPS_AT_ONCE),
            ),
        )
        ok = limit == steps
        return one.leave(end), jnp.where(ok, taken, taken + 1), ok, losses

    return run


def advance_each(svi: SVI, args: Any, kwargs: Any) -> Callable[..., Any]:
    """A function ``(states, going, steps) -> (states, going, taken, losses)`` that trains several.

    All take up to ``steps`` steps together, each as long as it has met no bad one; the states, and
    ``going``, have an axis in front, the losses one behind.
    """

    def run(states: SVIState, going: jax.Array, steps: Any) -> tuple[Any, Any, Any, Any]:
        first = jax.tree.map(lambda x: x[0], states)
        one = _stepping(_update(svi, args, kwargs), first)
        each = _while_going(one.update)

        def step(carry: Any) -> Any:
            i, states, going, losses = carry
            states, going, loss = jax.vmap(each)(states, going)
            return i + 1, states, going, losses.at[i].set(loss)

        losses = jnp.zeros((MOST_STEPS_AT_ONCE, len(going)))
        taken, end, going, losses = jax.lax.while_loop(
            lambda carry: (carry[0] < steps) & carry[2].any(),
            step,
            (0, jax.vmap(one.pack)(states), going, losses),
        )
        return jax.vmap(one.unpack)(end), going, taken, losses

    return run


def steps_of(svi: SVI, args: Any, kwargs: Any, state: SVIState) -> tuple[Any, Any, Any]:
    """One step of training as ``(state, going) -> (state, going, loss)``, from a state to its end.

    Returns:
      The step; the state that it begins with; and a function of its state to an ``SVIState``.
    """
    one = _stepping(_update(svi, args, kwargs), state)
    return _while_going(one.update), one.pack(state), one.unpack


def _while_going(one: Callable[[Any], Any]) -> Callable[[Any, jax.Array], Any]:
    """A step that changes nothing, and has no loss, after one that was not finite."""

    def each(state: Any, going: jax.Array) -> Any:
        new, loss, ok = one(state)
        return _chosen(going & ok, new, state), going & ok, jnp.where(going, loss, jnp.nan)

    return each


def _update(svi: SVI, args: Any, kwargs: Any) -> Callable[[SVIState], Any]:
    def update(state: SVIState) -> Any:
        new, loss = svi.update(state, *args, **kwargs)
        ok = jnp.isfinite(loss) & _finite(svi.optim.get_params(new.optim_state))
        return new, loss, ok

    return update


def _chosen(new_one: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(partial(jnp.where, new_one), new, old)


class _Stepping(NamedTuple):
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
    """The state that :func:`advance` has come to."""
    return left.tree() if isinstance(left, Ravelled) else left


def ravelled(state: SVIState) -> SVIState | Ravelled:
    """A state as it is given to a compiled program: many small arrays as one.

    XLA compiles something for every input of a program.
    """
    leaves = jax.tree.leaves(state)
    small = all(x.size <= LARGEST and len(x.sharding.device_set) == 1 for x in leaves)
    return Ravelled.outside(state) if small and len(leaves) > _MANY else state


def _stepping(update: Callable[[Any], Any], state: Any, *, at_once: bool = False) -> _Stepping:
    """An update for states like ``state``, packed where it has many small equations.

    Args:
      update: of a state.
      state: one, or its shapes and dtypes.
      at_once: whether to draw the noise of many steps at once, if it is little.
    """
    with packing.around():
        closed = jax.make_jaxpr(update)(state)
    program = packing.flatten(closed, final=True, identities=_SPENT)
    packed = packing.pays(program)
    if not packed:
        program = packing.flatten(closed, final=True, sums=False, identities=_SPENT)
    first = ahead(program) if at_once else None
    rest = program if first is None else first.rest
    layout = Layout(state)
    if packed:
        evaluate = packing.evaluated
        unpack, leave = layout.unravel, partial(Ravelled.of, layout)
        keys_of = lambda vectors, at: cut(vectors[layout.segments[at].vector], layout.segments[at])
    else:
        evaluate = packing.one_by_one
        unpack = leave = partial(jax.tree.unflatten, jax.tree.structure(state))
        keys_of = lambda leaves, at: leaves[at]

    def step(carried: Any, noise: Sequence[Any] = ()) -> Any:
        if packed:
            new, (loss, ok) = packing.step(rest, layout, carried, noise)
        elif first is None:
            *new, loss, ok = core.jaxpr_as_fun(closed)(*carried)
        else:
            *new, loss, ok = evaluate(rest, [*carried, *noise])
        return new, loss, ok

    def draw(carried: Any) -> list[Any]:
        return first.draw(evaluate, [keys_of(carried, at) for at in first.keys]) if first else []

    def pack(given: SVIState | Ravelled) -> Any:
        if packed:
            return given.all_vectors() if isinstance(given, Ravelled) else layout.ravel(given)
        return jax.tree.leaves(given.inside() if isinstance(given, Ravelled) else given)

    return _Stepping(step, pack, unpack, leave, draw, first.count if first else _BLOCK)


def _finite(params: Any) -> jax.Array:
    leaves = [jnp.isfinite(x).all() for x in jax.tree.leaves(params)]
    return jnp.stack(leaves).all() if leaves else jnp.array(True)
