"""Programs made of other programs, and the binding of either to parameters and arguments."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from numpyro.primitives import apply_stack

from vipp.programs.program import AbstractProgram, Program


@dataclass(frozen=True)
class Binding:
    """What an objective runs its programs with; see :class:`vipp.Program`."""

    params: Mapping[str, Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    mutable: dict[str, Any] = field(default_factory=dict)

    def program(self, fn: Callable[..., Any]) -> AbstractProgram:
        """A NumPyro program, or one composed of others, ready to be drawn from and scored."""
        if isinstance(fn, Composed):
            return fn.bind(self)
        return Program(fn, self.params, self.args, self.kwargs, self.mutable)

    def after(self, *first: Any) -> Binding:
        """The same with more arguments in front."""
        return replace(self, args=(*first, *self.args))


class Composed(abc.ABC):
    """A NumPyro program whose density vipp estimates: to be given to an objective as it is."""

    @abc.abstractmethod
    def bind(self, binding: Binding) -> AbstractProgram:
        """The program as an objective sees it."""

    @abc.abstractmethod
    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run it as a NumPyro program."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it as a NumPyro program: it draws its sites, and hides what it does to draw them."""
        # NumPyro's handlers cannot see the density of what is hidden: a program that is scored by
        # its trace must not have it inside
        apply_stack(
            {"type": "composed", "composed": self, "fn": lambda: True, "args": (), "kwargs": {},
             "value": None, "stop": False}
        )  # fmt: skip
        return self._run(args, kwargs)
