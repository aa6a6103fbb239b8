"""The progress bar of a training run."""

from __future__ import annotations

from typing import Any

import tqdm


class Progress:
    """A bar that says "compiling" until the first step is done, and starts its clock then.

    Args:
      total: the number of steps.
      show: whether there is anything to see.
      done: the number of steps of an earlier run that this one goes on from.
    """

    def __init__(self, total: int, show: bool, done: int = 0):
        self.total, self.shown, self.done = total, show, done
        self._bar: Any = None

    def __enter__(self) -> Progress:
        self._bar = tqdm.tqdm(
            total=self.total, disable=not self.shown, bar_format="{desc}", desc="compiling",
            initial=self.done,
        )  # fmt: skip
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def advance(self, steps: int, loss: float) -> None:
        """``steps`` more are done, of mean ``loss``."""
        if self.shown and self._bar.n == self.done:
            # the steps so far took the time of compiling: they say nothing of the time to come
            self._bar.bar_format, self._bar.initial = None, self.done + steps
            self._bar.set_description_str("", refresh=False)
            self._bar.unpause()
            self._bar.start_t = self._bar.last_print_t
        self._bar.set_postfix_str(f"loss: {loss:.4f}", refresh=False)
        self._bar.update(steps)
