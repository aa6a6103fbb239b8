"""When to stop: after so many looks without a better bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vipp_transforms.checks import positive_int


@dataclass(frozen=True)
class EarlyStopping:
    """Stop training when the bound has not improved for a number of looks.

    The bound is that of the ``validate`` data, or, without any, minus the mean loss since the last
    look. Looks are ``log_every`` steps apart. The result then has the parameters of the best look.

    Args:
      patience: how many looks without an improvement, at least 1.
      min_delta: by how much a bound must be better than the best so far to count, in nats.

    Raises:
      ValueError: if ``patience`` is not a positive int, or ``min_delta`` is negative.

    Example:
      >>> import vipp
      >>> vipp.EarlyStopping(patience=3)
      EarlyStopping(patience=3, min_delta=0.0)

    References:
      Prechelt, *Early stopping, but when?*, 1998.
    """

    patience: int = 5
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        positive_int("EarlyStopping: patience", self.patience)
        if not self.min_delta >= 0:
            raise ValueError(
                f"EarlyStopping: min_delta must not be negative, got {self.min_delta!r}."
            )


_REASON = "the bound had not improved"


def ended_by_patience(stopped: str | None) -> bool:
    """Whether a run ended as :class:`Patience` says."""
    return stopped is not None and stopped.startswith(_REASON)


class Patience:
    """The best look so far, and how many have passed since.

    Args:
      rule: when to stop.
    """

    def __init__(self, rule: EarlyStopping):
        self.rule = rule
        self.best, self.waited = -math.inf, 0
        self.state: Any = None

    def spent(self, bound: float, state: Any) -> bool:
        """Take note of a look; whether it was one too many."""
        if bound > self.best + self.rule.min_delta or self.state is None:
            self.best, self.state, self.waited = bound, state, 0
        else:
            self.waited += 1
        return self.is_spent()

    def is_spent(self) -> bool:
        """Whether so many looks have passed without a better bound."""
        return self.waited >= self.rule.patience

    def reason(self) -> str:
        """Why training ended."""
        return f"{_REASON} for {self.rule.patience} looks"

    def saved(self) -> list[float]:
        """The numbers of a checkpoint."""
        return [self.best, self.waited]

    def restore(self, saved: Sequence[Any], state: Any) -> None:
        """Be where a checkpoint was made; before the first look there is no best state."""
        self.best, self.waited = saved
        self.state = None if self.best == -math.inf else state
