"""The arguments that an objective is made with: names, defaults, schedules, and their mistakes."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.util import not_jax_tracer

from vipp.language.names import close, nearest

# a function of the step, such as optax has
Schedule = Callable[[Any], Any]

# where a schedule is looked at before it is used
_STEPS = (0, 1, 100, 10_000)


def arguments(fn: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What ``fn(p, q, ...)`` takes besides the two programs, each to be given by name.

    Raises:
      TypeError: if it takes no two programs first, or arguments without names.
    """
    first, second, *rest = _parameters(fn) or (None, None)
    kinds = inspect.Parameter
    by_position = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    if first is None or second is None or {first.kind, second.kind} - {*by_position}:
        raise TypeError(
            f"objective: {_name(fn)}{inspect.signature(fn)} does not take two programs. Fix: write "
            f"def {_name(fn)}(p, q, *, ...), p the model and q the guide."
        )
    for parameter in rest:
        if parameter.kind not in (kinds.KEYWORD_ONLY, kinds.POSITIONAL_OR_KEYWORD):
            raise TypeError(
                f"objective: {_name(fn)} takes '{parameter}', expected arguments with names of "
                "their own. Fix: name each argument, after a *."
            )
    return {p.name: _shown(p).replace(kind=kinds.KEYWORD_ONLY) for p in rest}


def _shown(parameter: inspect.Parameter) -> inspect.Parameter:
    """The function gets a number; who calls may give a schedule instead."""
    takes = parameter.annotation is float and _is_number(parameter)
    return parameter.replace(annotation=float | Schedule) if takes else parameter


def _parameters(fn: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """All parameters, annotations evaluated where that is possible; None if fewer than two."""
    try:
        signature = inspect.signature(fn, eval_str=True)
    except (NameError, AttributeError, SyntaxError, TypeError):  # an annotation of a local name
        signature = inspect.signature(fn)
    found = list(signature.parameters.values())
    return found if len(found) >= 2 else None


def _name(fn: Any) -> str:
    return getattr(fn, "__name__", repr(fn))


def bound(
    name: str, known: Mapping[str, inspect.Parameter], given: tuple[Any, ...], named: dict[str, Any]
) -> dict[str, Any]:
    """All arguments of the objective ``name`` by name, defaults filled in.

    Raises:
      TypeError: if one is given by position, is unknown, or is missing; says how to write it.
    """
    if given:
        free = [n for n in known if n not in named]
        meant = {**dict(zip(free, given, strict=False)), **named}
        fix = written(name, meant) if len(given) <= len(free) else f"use {list(known)}"
        raise TypeError(
            f"{name}: arguments are given by name, got {_listed(map(repr, given))}. Fix: {fix}."
        )
    for key in named:
        if key not in known:
            raise TypeError(_unknown(name, known, key, named))
    config = {n: named.get(n, p.default) for n, p in known.items()}
    missing = [n for n, value in config.items() if value is inspect.Parameter.empty]
    if missing:
        shown = {n: x for n, x in config.items() if n in missing or n in named}
        are = "argument {} is" if len(missing) == 1 else "arguments {} are"
        raise TypeError(
            f"{name}: {are.format(_listed(map(repr, missing)))} required. Fix: "
            f"{written(name, shown)}."
        )
    return config


def _unknown(name: str, known: Mapping[str, Any], key: str, named: Mapping[str, Any]) -> str:
    hint, found = close(key, known), nearest(key, known)
    wrong = f"{name}: unknown argument {key!r}, expected one of {list(known)}{hint}."
    if found is None:
        return f"{wrong} Fix: use one of these."
    meant = {(found if n == key else n): x for n, x in named.items()}
    return f"{wrong} Fix: {written(name, meant)}."


def _listed(items: Any) -> str:
    return ", ".join(items)


def written(name: str, config: Mapping[str, Any]) -> str:
    """The call that makes an objective with these arguments; one to be filled in is ``...``."""
    show = lambda x: "..." if x is inspect.Parameter.empty else repr(x)
    return f"{name}({_listed(f'{n}={show(x)}' for n, x in config.items())})"


def schedules(
    known: Mapping[str, inspect.Parameter], config: Mapping[str, Any]
) -> dict[str, Schedule]:
    """The arguments that are numbers and were given as functions of the step."""
    return {n: x for n, x in config.items() if callable(x) and _is_number(known[n])}


def _is_number(parameter: inspect.Parameter) -> bool:
    """Whether an argument's default is a number, or ``float`` is what it is annotated with.

    How many there are of something (``num_...``) is no such number: shapes depend on it.
    """
    if parameter.name.startswith("num_"):
        return False
    default, kind = parameter.default, parameter.annotation
    if isinstance(default, int | float) and not isinstance(default, bool):
        return True
    if isinstance(kind, str):
        return "float" in [part.strip() for part in kind.split("|")]
    return kind is float or float in typing.get_args(kind)


def apply_check(
    name: str,
    test: Callable[[dict[str, Any]], None],
    config: Mapping[str, Any],
    scheduled: Mapping[str, Schedule],
) -> None:
    """Apply a test of all arguments, with schedules' values at a few steps in their place.

    Numbers that are not known yet, in a program that JAX traces, are not tested.
    """
    if not all(map(not_jax_tracer, jax.tree.leaves(list(config.values())))):
        return
    if not scheduled:
        return test(dict(config))
    for step in _STEPS:
        now = {n: _at(name, n, schedule, step) for n, schedule in scheduled.items()}
        try:
            test({**config, **now})
        except ValueError as error:
            raise ValueError(f"{error} That is at step {step} of its schedule.") from None


def _at(name: str, argument: str, schedule: Schedule, step: int) -> float:
    try:
        inspect.signature(schedule).bind(step)
    except TypeError as error:
        raise TypeError(
            f"{name}: the schedule of {argument} cannot be called with the step ({error}). Fix: "
            f"{argument}=lambda step: ..."
        ) from None
    except ValueError:  # not written in Python
        pass
    with jax.ensure_compile_time_eval():
        value = schedule(jnp.asarray(step))
    if not isinstance(value, int | float | jax.Array | np.ndarray | np.generic):
        raise TypeError(
            f"{name}: the schedule of {argument} gives {value!r}, expected a number. Fix: return "
            "a scalar for each step."
        )
    if jnp.ndim(value):
        raise ValueError(
            f"{name}: the schedule of {argument} gives an array of shape {jnp.shape(value)}, "
            "expected a number. Fix: return a scalar for each step."
        )
    return float(value)


def frozen(value: Any) -> Any:
    """``value`` as something to compare and hash by: what has no hash, by being the same object."""
    if isinstance(value, list | tuple):
        return tuple(map(frozen, value))
    if isinstance(value, Mapping):
        return frozenset((k, frozen(x)) for k, x in value.items())
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return value


class _Same:
    """Equal to another of the same object alone."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)
