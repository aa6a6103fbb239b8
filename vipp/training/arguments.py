"""The arguments that training is called with, looked at before anything else."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.example_libraries.optimizers import Optimizer
from numpyro.optim import _NumPyroOptim

from vipp.language.keys import check_key
from vipp.objectives.objective import check_objective
from vipp.training.early_stopping import EarlyStopping
from vipp_transforms.checks import positive_int


def check_arguments(
    rng_key: Any, objective: Any, optim: Any, num_steps: Any, options: Mapping[str, Any]
) -> None:
    """Raise for what ``vipp.fit`` cannot take, naming it.

    Args:
      rng_key: the key.
      objective: what is maximised.
      optim: the optimiser, or None.
      num_steps: the number of steps.
      options: the other arguments of ``fit`` by name.

    Raises:
      TypeError: for one of another type.
      ValueError: for a number of steps that is none.
    """
    check_key("fit", rng_key)
    check_objective("fit", objective)
    check_optimiser("fit", optim)
    positive_int("fit: num_steps", num_steps)
    positive_int("fit: checkpoint_every", options["checkpoint_every"])
    if options["log_every"] is not None:
        positive_int("fit: log_every", options["log_every"])
    stop, validate, folder = options["stop"], options["validate"], options["checkpoint"]
    if stop is not None and not isinstance(stop, EarlyStopping):
        raise TypeError(
            f"fit: stop must be None or a vipp.EarlyStopping, got {stop!r}. Fix: "
            "stop=vipp.EarlyStopping(patience=5), or callback= for a rule of your own."
        )
    if validate is not None and not isinstance(validate, tuple):
        raise TypeError(
            "fit: validate must be a tuple of positional arguments, got "
            f"{type(validate).__name__}. Fix: validate=(x,)."
        )
    if folder is not None and not isinstance(folder, str | os.PathLike):
        raise TypeError(
            f"fit: checkpoint must be the name of a folder, got {folder!r}. Fix: "
            'checkpoint="runs/first".'
        )
    mesh = options["mesh"]
    if mesh is not None and not isinstance(mesh, jax.sharding.Mesh):
        raise TypeError(
            f"fit: mesh must be a jax.sharding.Mesh, got {mesh!r}. Fix: "
            'mesh=jax.make_mesh((jax.device_count(),), ("data",)).'
        )
    check_init_params("fit", options["init_params"])
    _check_callback(options["callback"])


def check_optimiser(what: str, optim: Any) -> None:
    """It is an optimiser, or None.

    Raises:
      TypeError: saying what it is.
    """
    kinds = (optax.GradientTransformation, _NumPyroOptim, Optimizer)
    if optim is None or isinstance(optim, kinds):
        return
    fix = "optax.adam(1e-3)"
    if isinstance(optim, int | float):
        fix = f"optax.adam(...) with a step size, before num_steps={optim!r}"
        fix = f"optax.adam({optim!r})" if isinstance(optim, float) else fix
    elif callable(optim):
        name = getattr(optim, "__name__", "schedule")
        fix = f"call it if it makes an optimiser, optax.{name}(1e-3); a schedule is the step size "
        fix += "of one, optax.adam(schedule)"
    raise TypeError(
        f"{what}: optim must be an optimiser of optax or numpyro.optim, or None, got {optim!r}. "
        f"Fix: {fix}."
    )


def check_init_params(what: str, init_params: Any) -> None:
    """They are by name.

    Raises:
      TypeError: saying what they are.
    """
    if init_params is not None and not isinstance(init_params, Mapping):
        raise TypeError(
            f"{what}: init_params must be a dict of values by the names of parameters, got "
            f'{type(init_params).__name__}. Fix: init_params={{"loc": 0.0}}.'
        )


def _check_callback(callback: Any) -> None:
    if callback is None:
        return
    try:
        takes_one = callable(callback) and inspect.signature(callback).bind(None) is not None
    except TypeError:
        takes_one = False
    except ValueError:  # not written in Python
        takes_one = True
    if not takes_one:
        raise TypeError(
            f"fit: callback must be a function of one argument, a vipp.FitProgress, got "
            f"{callback!r}. Fix: callback=lambda progress: print(progress.step)."
        )
