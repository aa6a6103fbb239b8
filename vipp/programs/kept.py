"""What the marginals of a program share: the sites that are kept, and the mistakes about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from vipp.programs.trace import Trace


def only(trace: Trace, names: Iterable[str]) -> Trace:
    """The part of a trace with these sites."""
    values = {n: trace[n] for n in names}
    auxiliary = tuple(n for n in trace.auxiliary if n in values)
    random = tuple(a for a in trace.random_auxiliary if a.name in values)
    return replace(trace, values=values, auxiliary=auxiliary, random_auxiliary=random)


def check_exists(where: str, keep: Sequence[str], drawn: Trace) -> None:
    """Raise if a site that is to be kept is none of the program's."""
    for name in keep:
        if name not in drawn:
            raise ValueError(
                f"{where}: the program has no latent site '{name}', got {sorted(drawn)}. Fix: "
                "keep one of these."
            )


def check_given(where: str, keep: Sequence[str], given: Trace, what_happens: str) -> None:
    """Raise unless the sites that are kept, and no others, have values."""
    for name in keep:
        if name not in given:
            raise ValueError(
                f"{where}: site '{name}' is kept but was given no value, got values for "
                f"{sorted(given)}. Fix: draw '{name}' in the other program, or don't keep it."
            )
    extra = [n for n in given if n not in keep and n not in given.auxiliary]
    if extra:
        raise ValueError(
            f"{where}: site '{extra[0]}' has a value but is {what_happens}, expected values for "
            f"{list(keep)}. Fix: keep '{extra[0]}', or don't draw it."
        )
