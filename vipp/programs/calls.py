"""Whether a model and a guide are programs, and take the arguments that they are given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from numpyro.infer.autoguide import AutoGuide

from vipp.language.mistake import CheckError
from vipp.language.names import close
from vipp.programs.marginal import Marginal
from vipp.programs.normalize import Normalized


def check_calls(
    model: Any,
    guide: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Iterable[str] = (),
) -> None:
    """Both are programs that can be called with these arguments.

    Args:
      model: a NumPyro program.
      guide: a NumPyro program.
      args: arguments of both.
      kwargs: keyword arguments of both.
      options: names that the caller takes for itself: a keyword may be meant as one of them.

    Raises:
      CheckError: naming the program, its signature and what was given, or what is no program.
    """
    check_programs(model, guide)
    for what, program in (("model", model), ("guide", guide)):
        for each in _called(program):
            check_call(what, each, args, kwargs, options)


def check_programs(model: Any, guide: Any) -> None:
    """Both can be called.

    Raises:
      CheckError: saying which cannot.
    """
    _check_program("model", model)
    _check_program("guide", guide)


def _check_program(what: str, program: Any) -> None:
    if isinstance(program, type) or not callable(program):
        autoguide = isinstance(program, type) and issubclass(program, AutoGuide)
        shown = program.__name__ if isinstance(program, type) else repr(program)
        raise CheckError(
            what,
            f"the class {shown}" if isinstance(program, type) else shown,
            "a NumPyro program: a function, or an autoguide",
            f"make one of it, {what}={shown}(model)" if autoguide else "give the function itself",
        )


def _called(program: Any) -> list[Callable[..., Any]]:
    """The functions that are called with a program's own arguments."""
    if isinstance(program, AutoGuide):
        return _called(program.model)
    if isinstance(program, Marginal):
        return _called(program.program)
    if isinstance(program, Normalized):
        return _called(program.proposal) + _called(program.program)
    return [program]


def check_call(
    what: str,
    program: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Iterable[str] = (),
) -> None:
    """One function can be called so; see :func:`check_calls`."""
    try:
        signature = inspect.signature(program)
    except (TypeError, ValueError):  # not written in Python: it says so itself
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        known = [*signature.parameters]
        wrong = [n for n in kwargs if n not in known]
        name = getattr(program, "__name__", what)
        raise CheckError(
            name,
            f"a {what} called with {_count(len(args), 'positional argument')}"
            + (f" and {', '.join(f'{n}=' for n in kwargs)}" if kwargs else "")
            + f" ({error}{''.join(close(n, [*known, *options]) for n in wrong)})",
            f"those of {name}{signature}",
            "model and guide are both called with the arguments given for them: give all that are "
            "needed, and let both take the same ones, whether they use them or not",
        ) from None


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'s' * (number != 1)}"
