"""The compiled functions of a training run, kept for the next run of the same programs."""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState
from numpyro.infer.util import transform_fn

from vipp.training.identity import identity, structure
from vipp.training.stepping import stepping
from vipp_transforms.ravelled import Ravelled

MOST_STEPS_AT_ONCE = 4096
_MOST_KEPT = 32
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
        one = stepping(svi, args, kwargs, like, at_once=at_once)

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
        one = stepping(svi, args, kwargs, first)
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
    one = stepping(svi, args, kwargs, state)
    return _while_going(one.update), one.pack(state), one.unpack


def _while_going(one: Callable[[Any], Any]) -> Callable[[Any, jax.Array], Any]:
    """A step that changes nothing, and has no loss, after one that was not finite."""

    def each(state: Any, going: jax.Array) -> Any:
        new, loss, ok = one(state)
        return _chosen(going & ok, new, state), going & ok, jnp.where(going, loss, jnp.nan)

    return each


def _chosen(new_one: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(partial(jnp.where, new_one), new, old)
