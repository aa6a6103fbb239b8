"""The initial state of a training run, its programs looked at on the way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoGuide, AutoGuideList
from numpyro.infer.svi import SVIState

from vipp.diagnostics.check import Checked
from vipp.diagnostics.free_parameters import check_made_of_free
from vipp.diagnostics.gradients import without_gradient
from vipp.diagnostics.records import Site
from vipp.language.bias import noting_biased, warn_of_biased_objective
from vipp.language.mistake import CheckError
from vipp.language.names import close
from vipp.objectives.objective import Objective
from vipp.training.mesh import here
from vipp.training.metrics import loss_at
from vipp_transforms.uncompiled import uncompiled


class Runs(NamedTuple):
    """The sites of a run of each program, the model's on what the guide drew."""

    drawn: Mapping[str, Site]
    scored: Mapping[str, Site]


def initialised(
    rng_key: jax.Array,
    objective: Objective,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    optim: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    init_params: dict[str, Any] | None,
    *,
    in_batches: bool,
) -> tuple[SVI, SVIState, Runs]:
    """The programs as NumPyro's SVI trains them, its state before the first step, and their runs.

    Args:
      rng_key: a PRNG key.
      objective: what is maximised.
      model: a NumPyro program.
      guide: a NumPyro program.
      optim: an optimiser.
      args: arguments of both.
      kwargs: keyword arguments of both.
      init_params: initial constrained values by name.
      in_batches: whether the arguments are one batch of many.
    """
    checked, biased = (
        Checked(model, guide, in_batches=in_batches, init_params=init_params),
        noting_biased(),
    )
    first = SVI(checked.model, checked.guide, optim, loss=objective)
    with biased, checked.running(args, kwargs):
        state = first.init(rng_key, *args, init_params=init_params, **kwargs)
    svi = SVI(model, guide, first.optim, loss=objective)
    svi.constrain_fn = first.constrain_fn
    _check_params(svi.get_params(state))
    _check_init_params(init_params, svi.get_params(state))
    biased.warn("fit", stacklevel=3)
    if objective.biased:
        warn_of_biased_objective("fit", repr(objective), objective.biased, stacklevel=3)
    mutable = {**(state.mutable_state or {}), **objective.init_state()}
    runs = Runs(checked.guide.sites, checked.model.sites)
    return svi, state._replace(mutable_state=mutable or None), runs


def _check_params(params: Any) -> None:
    if not jax.tree.leaves(params):
        raise ValueError(
            "fit: neither the model nor the guide has a parameter: nothing can be trained. Fix: "
            "declare what is to be trained with numpyro.param, or use an autoguide."
        )


def _check_init_params(init_params: Any, known: Any) -> None:
    for name in init_params or ():
        if name not in known:
            raise ValueError(
                f"fit: init_params has a value for '{name}', which is no parameter of the model or "
                f"the guide, got {sorted(known)}{close(name, known)}. Fix: use one of these names."
            )


def check_held_out(
    svi: SVI, state: SVIState, args: tuple[Any, ...] | None, kwargs: dict[str, Any]
) -> None:
    """Look at both programs with the data that the bound is to be evaluated at, if there are any.

    Raises:
      CheckError: naming what is wrong there.
    """
    if args is None:
        return
    checked = Checked(svi.model, svi.guide)
    own = SVI(checked.model, checked.guide, svi.optim, loss=svi.loss)
    params, key = svi.get_params(state), jax.random.key(0)
    try:
        with checked.running(args, kwargs):
            own.init(key, *args, init_params=params, **kwargs)
    except CheckError as error:
        got = f"{error.got}, at the arguments in validate="
        raise CheckError(error.site, got, error.expected, error.fix) from error


def unmoved(svi: SVI, args: Any, kwargs: Any) -> Callable[[SVIState, Runs], list[str]]:
    """A function of a state: the parameters that training does not move, by name.

    It raises ``CheckError`` if training may move one to where it makes a distribution impossible.
    """

    @uncompiled()
    def names(state: SVIState, runs: Runs) -> list[str]:
        check_made_of_free(
            svi.model, svi.guide, svi.get_params(state), here(args), kwargs, **runs._asdict()
        )
        loss = loss_at(svi, args, kwargs, state)
        raw = svi.optim.get_params(state.optim_state)
        return without_gradient(lambda raw: loss(raw, state.rng_key), raw)

    return names


def continued(state: SVIState, fresh: SVIState) -> SVIState:
    """An earlier state, with the start of the mutable state that it doesn't have yet.

    SVI passes on what a state has: what it lacks would stay at its start, silently.

    Raises:
      TypeError: if it is no state.
      ValueError: if it is of another optimiser or other parameters than the fresh one.
    """
    if not isinstance(state, SVIState):
        raise TypeError(
            f"fit: init_state must be an SVIState, got {type(state).__name__}. Fix: "
            "init_state=result.state."
        )
    _check_made_alike(state.optim_state, fresh.optim_state)
    mutable = {**(fresh.mutable_state or {}), **(state.mutable_state or {})}
    return state._replace(mutable_state=mutable or None)


def _check_made_alike(given: Any, fresh: Any) -> None:
    described = lambda tree: {
        jax.tree_util.keystr(path): f"{jnp.result_type(x)}{list(jnp.shape(x))}"
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    got, wanted = described(given), described(fresh)
    if got == wanted and jax.tree.structure(given) == jax.tree.structure(fresh):
        return
    pairs = [(got.get(n, "nothing"), x) for n, x in wanted.items() if got.get(n) != x]
    more = [(x, "nothing") for n, x in got.items() if n not in wanted]
    one, other = next(iter(pairs + more), (jax.tree.structure(given), jax.tree.structure(fresh)))
    raise ValueError(
        "fit: init_state is the state of a run with another optimiser or other parameters than "
        f"this one: got {one}, expected {other}. Fix: go on with the optimiser and programs of "
        "that run, or give init_params=result.params, with which the optimiser starts anew."
    )


@uncompiled()
def restarted(
    svi: SVI,
    rng_key: jax.Array,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    init_params: dict[str, Any] | None,
    like: SVIState,
) -> SVIState:
    """The state before the first step of the same programs with another key.

    An autoguide starts where a new one would: the same one keeps its first start.

    Args:
      svi: initialised.
      rng_key: a PRNG key.
      args: arguments of both programs.
      kwargs: keyword arguments of both.
      init_params: initial constrained values by name.
      like: the first state of the earlier start.
    """
    own = SVI(svi.model, renewed(svi.guide), svi.optim, loss=svi.loss)
    state = own.init(rng_key, *args, init_params=init_params, **kwargs)
    return strongly_typed(continued(state, like))


def renewed(guide: Any) -> Any:
    """A guide without an earlier start, which an autoguide keeps."""
    if not isinstance(guide, AutoGuide):
        return guide
    guide = copy.copy(guide)
    guide.prototype_trace = None
    if isinstance(guide, AutoGuideList):
        guide._guides = [renewed(part) for part in guide._guides]
    return guide


def strongly_typed(state: SVIState) -> SVIState:
    """The state as a step returns it: a number of weak type would be compiled for apart."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), state)
