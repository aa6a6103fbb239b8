"""The compiled loop of a training run, kept for the next run of the same programs."""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState
from numpyro.infer.util import transform_fn

from vipp.training.identity import identity, structure
from vipp_transforms import packing

MOST_STEPS_AT_ONCE = 4096
_MOST_KEPT = 16
_KEPT: collections.OrderedDict[Hashable, Callable[..., Any]] = collections.OrderedDict()


def compiled_loop(svi: SVI, optim: Any, args: Any, kwargs: Any) -> Callable[..., Any]:
    """A function ``(state, steps) -> (state, taken, ok, losses)`` that trains, compiled once.

    It takes up to ``steps`` steps and stops before a bad one. What was compiled for the same
    objective, model, guide and optimiser, and arguments of the same shapes, is used again, if it is
    one of the last 16.

    Args:
      svi: initialised, so that it has the transforms of its parameters.
      optim: its optimiser, as the user made it.
      args: the programs' arguments.
      kwargs: their keyword arguments.
    """
    arrays, shapes, build = structure(args, kwargs)
    # a constraint may depend on the data: its numbers are inputs, too
    bounds, constraints, transforms = structure((svi.constrain_fn.args[0],), {})  # pyright: ignore
    programs = tuple(map(identity, (svi.loss, svi.model, svi.guide, optim)))
    key = (programs, shapes, constraints, jax.config.jax_enable_x64)  # pyright: ignore
    if key not in _KEPT:
        _KEPT[key] = _compile(svi, build, transforms)
        if len(_KEPT) > _MOST_KEPT:
            _KEPT.popitem(last=False)
    _KEPT.move_to_end(key)
    run = _KEPT[key]
    return lambda state, steps: run(state, steps, arrays, bounds)


def _compile(svi: SVI, build: Any, transforms: Any) -> Callable[..., Any]:
    @jax.jit
    def advance(state: SVIState, steps: Any, arrays: Any, bounds: Any) -> Any:
        args, kwargs = build(arrays)
        ((constrain,), _) = transforms(bounds)
        own = copy.copy(svi)  # what is traced must not stay in the caller's
        own.constrain_fn = partial(transform_fn, constrain)

        def update(state: SVIState) -> Any:
            new, loss = own.update(state, *args, **kwargs)
            ok = jnp.isfinite(loss) & _finite(own.optim.get_params(new.optim_state))
            return new, loss, ok

        return _loop(update, state, steps)

    return advance


def _loop(update: Callable[[Any], Any], state: Any, steps: Any) -> tuple[Any, Any, Any, Any]:
    """Up to ``steps`` updates of a state, packed where the programs have many small equations."""
    closed = jax.make_jaxpr(update)(state)
    program = packing.flatten(closed, final=True)
    treedef = jax.tree.structure(state)

    def whole(leaves: Any) -> Any:
        *new, loss, ok = core.jaxpr_as_fun(closed)(*leaves)
        return new, loss, ok

    def packed(vectors: Any) -> Any:
        new, (loss, ok) = packing.step(program, layout, vectors)
        return new, loss, ok

    layout = packing.Layout(state)
    pays = packing.pays(program)
    one = packed if pays else whole
    start = layout.ravel(state) if pays else jax.tree.leaves(state)

    def step(carry: Any) -> Any:
        i, state, _, losses = carry
        new, loss, ok = one(state)
        kept = jax.tree.map(partial(jnp.where, ok), new, state)
        return i + 1, kept, ok, losses.at[i].set(loss)

    begin = (0, start, jnp.array(True), jnp.zeros(MOST_STEPS_AT_ONCE))
    taken, end, ok, losses = jax.lax.while_loop(
        lambda carry: (carry[0] < steps) & carry[2], step, begin
    )
    state = layout.unravel(end) if pays else jax.tree.unflatten(treedef, end)
    return state, taken, ok, losses


def _finite(params: Any) -> jax.Array:
    leaves = [jnp.isfinite(x).all() for x in jax.tree.leaves(params)]
    return jnp.stack(leaves).all() if leaves else jnp.array(True)
