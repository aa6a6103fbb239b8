"""Telling whoever asks the log densities that an objective takes of its programs' sites."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from numpyro.primitives import Messenger, apply_stack

from vipp.programs.densities import SiteDensity


def tell(program: Callable[..., Any], sites: Iterable[SiteDensity]) -> None:
    """Let handlers further out know the densities of a run of a NumPyro program."""
    apply_stack(
        {"type": "scored", "program": program, "sites": tuple(sites), "fn": lambda: True,
         "args": (), "kwargs": {}, "value": None, "stop": False}
    )  # fmt: skip


class NotFinite(NamedTuple):
    """A log density that is not finite.

    Attributes:
      program: the NumPyro program that it is taken under.
      site: its name.
      value: the number.
      index: which element of the site's batch has it.
    """

    program: Callable[..., Any]
    site: str
    value: float
    index: tuple[int, ...]


class noting_not_finite(Messenger):  # noqa: N801 (a NumPyro handler, named like NumPyro's)
    """Notes log densities that are not finite when the programs beneath it are evaluated.

    Attributes:
      found: one for each program and site, in the order in which they were evaluated.
    """

    def __init__(self) -> None:
        super().__init__()
        self._of: dict[tuple[int, str], NotFinite] = {}

    @property
    def found(self) -> list[NotFinite]:
        """Those that are no number; only if there are none, those that are infinite."""
        jax.effects_barrier()
        no_number = [x for x in self._of.values() if np.isnan(x.value)]
        return no_number or [*self._of.values()]

    def process_message(self, msg: Any) -> None:
        """Have each density looked at when it has a value."""
        if msg["type"] == "scored":
            for site in msg["sites"]:
                look = partial(self._look, msg["program"], site.name)
                jax.debug.callback(look, jax.lax.stop_gradient(site.log_prob))

    def _look(self, program: Callable[..., Any], site: str, log_prob: Any) -> None:
        log_prob = np.asarray(log_prob)
        bad = np.isnan(log_prob) if np.isnan(log_prob).any() else np.isinf(log_prob)
        if bad.any():
            index = tuple(int(i) for i in np.argwhere(bad)[0])
            new = NotFinite(program, site, float(log_prob[index]), index)
            known = self._of.get((id(program), site))
            if known is None or (np.isnan(new.value) and not np.isnan(known.value)):
                self._of[id(program), site] = new
