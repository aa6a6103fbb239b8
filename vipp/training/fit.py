"""Training a model and a guide by an objective."""

from __future__ import annotations

import contextlib
import inspect
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import jax
from numpyro.infer.svi import SVIState

from vipp.diagnostics.gradients import warn_without_gradient
from vipp.language.arrays import as_jax
from vipp.objectives.objective import Objective
from vipp.programs.calls import check_calls
from vipp.training.adam_state import searching
from vipp.training.arguments import check_arguments
from vipp.training.automatic_steps import AutomaticSteps
from vipp.training.averaged_adam import averaged_adam
from vipp.training.batches import first_of
from vipp.training.between import Between, FitProgress, train, train_on_batches
from vipp.training.checkpoint import Checkpoints, check_kind
from vipp.training.early_stopping import EarlyStopping, Patience
from vipp.training.identity import structure
from vipp.training.in_turn import InTurn
from vipp.training.mesh import here, placement
from vipp.training.restarts import Several, keys_of
from vipp.training.result import FitResult, NonFiniteError
from vipp.training.run import Run
from vipp.training.same_run import digest
from vipp.training.start import (
    Runs,
    check_held_out,
    continued,
    initialised,
    strongly_typed,
    unmoved,
)
from vipp.training.without_optimiser import check_goes_without_optimiser
from vipp_transforms.kept_trace import Kept, keeping_traces, traced_before
from vipp_transforms.uncompiled import uncompiled


def fit(
    rng_key: jax.Array,
    objective: Objective,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    optim: Any,
    num_steps: int,
    *args: Any,
    batches: Iterable[Any] | None = None,
    validate: tuple[Any, ...] | None = None,
    log_every: int | None = None,
    metrics: bool = False,
    callback: Callable[[FitProgress], Any] | None = None,
    stop: EarlyStopping | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1_000,
    num_restarts: int = 1,
    progress_bar: bool = True,
    init_params: dict[str, Any] | None = None,
    init_state: SVIState | None = None,
    mesh: jax.sharding.Mesh | None = None,
    **kwargs: Any,
) -> FitResult:
    r"""Maximise an objective over the parameters of model and guide.

    Steps ``num_steps`` times along an estimate of :math:`\nabla_\theta E[\mathrm{objective}]`,
    unbiased unless a warning says otherwise, compiled as one loop that returns to Python only to
    move the progress bar, and where something is asked for between steps. Ctrl-C ends it, and what
    there is so far is returned.

    Args:
      rng_key: a PRNG key.
      objective: what is maximised, such as ``vipp.ELBO()``.
      model: a NumPyro program.
      guide: a NumPyro program; NumPyro's autoguides too.
      optim: an optax ``GradientTransformation`` or a ``numpyro.optim`` optimiser. None finds the
        step sizes, averages the parameters and stops by itself: where a further round of steps is
        not worth what it costs. ``stopped`` of the result says why, ``automatic`` how.
      num_steps: at least 1; without an optimiser the most, those that only measure included.
      *args: arguments of model and guide. Arrays are inputs of the compiled loop, anything else is
        fixed when it is compiled. The loop is kept: training the same programs with the same
        optimiser again, or one made again of equal numbers, on arrays of the same shapes,
        compiles nothing.
      batches: an iterable of tuples of positional arguments, one tuple a step, taken in turn; they
        come before ``args``. A list or loader is gone through again and again, an iterator once.
        Two batches are fetched ahead. The model's plates say how many data there are in all:
        ``numpyro.plate("data", 60_000, subsample_size=len(x))``.
      validate: positional arguments, such as held-out data, to evaluate the bound at.
      log_every: the number of steps between looks; of ``num_steps`` the 100th part if None and
        something is to be looked at.
      metrics: whether to measure the bound with its standard error, and the gradient's norm and
        signal-to-noise ratios, at each look, by 16 estimates.
      callback: is given a :class:`FitProgress` at each look; a true value of it ends training.
      stop: when to end by itself; the result has the parameters of the best look then.
      checkpoint: a folder to save the run in, and to go on from where it was when it was killed:
        to the same parameters and losses, bit by bit. Needs ``vipp[checkpoint]``.
      checkpoint_every: the number of steps between checkpoints.
      num_restarts: how many times to start, each with the initial parameters and the draws that
        its own key gives, one of ``jax.random.split(rng_key, num_restarts)``. All are trained in
        one loop, vectorised, each as if it were alone; without an optimiser one after another, and
        saved in folders of their own. The result is that of the largest bound, at
        ``validate`` or over the last tenth of the steps, with ``stop`` at its best look; its
        ``restarts`` has the losses of all.
      progress_bar: whether to show one.
      init_params: initial constrained values by name, instead of those of ``numpyro.param``.
      init_state: the state of an earlier result, to go on from it; without an optimiser to search
        on with its step sizes.
      mesh: devices to share the data out over, along its first axis: the arrays among the arguments
        with an axis as long as a plate; parameters are on all devices, and the losses those of one
        device but for rounding. In a run of several processes each gives the same arguments.
      **kwargs: keyword arguments of model and guide.

    Returns:
      A :class:`FitResult`.

    Warns:
      BiasedEstimatorWarning: once, naming the sites whose estimators are biased, if there are any.
      UserWarning: if training ended early by Ctrl-C, or as an iterator of batches had no more.
      NoGradientWarning: once, naming the parameters that the objective has no derivative in.
      BiasedObjectiveWarning: once, if ``objective.biased`` says that its gradient is.

    Raises:
      CheckError: naming what is wrong with the model, the guide or the data; see
        :func:`vipp.check`.
      TypeError: if ``objective`` is not an :class:`vipp.Objective`, ``validate`` no tuple,
        ``batches`` no iterable or ``checkpoint`` no folder's name.
      ValueError: if ``num_steps`` is not a positive int, ``init_params`` has a name that is no
        parameter's, for a plate that the devices cannot share evenly, or as the objective raises;
        for ``init_state`` with ``num_restarts`` or of another optimiser, and, by name, for what
        does not go without an optimiser.
      CheckpointError: if a checkpoint can't be written, is damaged, or is of another run.
      NonFiniteError: at the first step whose loss or parameters are not finite, naming the sites
        and parameters at fault.

    Example:
      >>> import jax, numpyro, numpyro.distributions as dist, optax, vipp
      >>> model = lambda: numpyro.sample("z", dist.Normal(3.0, 1.0))
      >>> guide = lambda: numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))
      >>> result = vipp.fit(
      ...     jax.random.key(0), vipp.ELBO(), model, guide, optax.adam(0.03), 500,
      ...     progress_bar=False)
      >>> abs(float(result.params["m"]) - 3.0) < 0.3
      True
      >>> vipp.fit(
      ...     jax.random.key(0), vipp.ELBO(), model, guide, None, 5_000, progress_bar=False
      ... ).stopped
      'the estimated divergence ... nats, is not worth another round'

    References:
      Welandawe, Andersen, Vehtari and Huggins, *A framework for improving the reliability of
      black-box variational inference*, 2024.
    """
    check_arguments(rng_key, objective, optim, num_steps, locals())
    automatic = None if optim is not None else AutomaticSteps(num_steps)
    if automatic is not None:
        check_goes_without_optimiser(objective, num_restarts, batches)
    keys = keys_of(rng_key, num_restarts, init_state)
    args, kwargs, validate = as_jax((args, kwargs, validate))
    rest, (batch, batches) = args, ((), None) if batches is None else first_of(batches)
    args = (*as_jax(batch), *rest)
    check_calls(model, guide, args, kwargs, inspect.signature(fit).parameters)
    with uncompiled():
        svi, state, runs = initialised(
            keys[0], objective, model, guide, optim or averaged_adam, here(args), kwargs,
            init_params, in_batches=batches is not None,
        )  # fmt: skip
        check_held_out(svi, state, validate, kwargs)
        state = strongly_typed(state if init_state is None else continued(init_state, state))
        state = state if automatic is None else searching(state)
        key = jax.random.fold_in(rng_key, 1)
    bound = jax.tree_util.Partial(guide, *here(args), **kwargs)
    patience = stop and Patience(stop)
    run = Run(svi, optim, bound, state, rest, kwargs, key, patience, automatic, num_steps)
    traced = _looked_at(run, args, kwargs, runs)
    del runs  # as large as the data
    if log_every is None and (metrics or any(x is not None for x in (validate, callback, stop))):
        log_every = max(1, num_steps // 100)
    between = Between(log_every, validate, metrics, callback, None, checkpoint_every, first=batch)
    where = None if mesh is None else placement(mesh, model, svi.get_params(state), args, kwargs)
    named = {} if checkpoint is None else _identity(objective, rng_key, keys, optim, rest, kwargs)

    def one(run: Run | Several, folder: str | os.PathLike[str] | None) -> None:
        if where is not None:
            run.share_out(where, args)
        saved = contextlib.nullcontext() if folder is None else Checkpoints(folder, named)
        with traced_before(traced), saved as saving:
            _train(run, replace(between, checkpoints=saving), num_steps, progress_bar, batches)

    return _outcome(run, keys, one, checkpoint, init_params, args, validate)


def _looked_at(run: Run, args: tuple[Any, ...], kwargs: dict[str, Any], runs: Runs) -> Kept:
    """Look for parameters that nothing moves: the program that was traced for that, to be used."""
    with keeping_traces() as traced:
        still = run.compiled.fact(unmoved, args, kwargs, run.state, runs)
    warn_without_gradient("fit", still, stacklevel=3)
    return traced


def _outcome(
    run: Run,
    keys: jax.Array,
    one: Callable[[Run | Several, Any], None],
    folder: str | os.PathLike[str] | None,
    init_params: dict[str, Any] | None,
    args: tuple[Any, ...],
    validate: tuple[Any, ...] | None,
) -> FitResult:
    """Train a run, or one from each key, by ``one``, which is given the folder of its checkpoints.

    Returns:
      The result, of several that of the best.
    """
    if folder is not None:
        check_kind(folder, in_turn=len(keys) > 1 and run.automatic is not None)
    if len(keys) == 1:
        one(run, folder)
        return run.outcome()
    if run.automatic is None:
        starts = Several(run, keys[1:], init_params, args, validate)
        one(starts, folder)
    else:
        starts = InTurn(run, keys, init_params, args, validate)
        starts.train(lambda run, n: one(run, folder and f"{os.fspath(folder)}/start-{n}"))
    starts.warn(stacklevel=3)
    return starts.outcome()


def _identity(
    objective: Objective, rng_key: jax.Array, keys: jax.Array, optim: Any, args: Any, kwargs: Any
) -> dict[str, str]:
    """What a run must have in common with a checkpoint to go on from it, beside its programs."""
    return {
        "objective": repr(objective),
        "rng_key": str(jax.random.key_data(rng_key).tolist()),
        "num_restarts": str(len(keys)),
        "optimiser": "None" if optim is None else "one that was given",
        "jax_enable_x64": str(jax.config.jax_enable_x64),  # pyright: ignore
        "digest of the data": digest(structure(args, kwargs)[0]),
    }


def _train(
    run: Any,
    between: Between,
    num_steps: int,
    progress_bar: bool,
    batches: Iterable[Any] | None,
) -> None:
    """Train to the end, or to where it is interrupted, from the last checkpoint if there is one."""
    passed = between.resume(run, num_steps)
    try:
        if batches is None:
            train(run, between, num_steps, progress_bar)
        else:
            train_on_batches(run, between, num_steps, progress_bar, batches, passed)
    except KeyboardInterrupt:
        run.stopped = f"interrupted at step {run.done}"
    except NonFiniteError:
        raise
    except Exception as error:  # of a callback, or of what the batches come from: nothing is lost
        error.add_note(f"vipp.fit: after {run.done} steps; what they gave is in .result of this.")
        error.result = run.result()  # pyright: ignore[reportAttributeAccessIssue]
        raise
    if run.stopped is not None and run.stopped.startswith(("interrupted", "batches ended")):
        warnings.warn(f"fit: {run.stopped}: the result is of these steps.", stacklevel=5)
