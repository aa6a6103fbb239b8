"""Whose law a distribution has: a subclass with its own density is not what its base is."""

from __future__ import annotations

from typing import Any

# what says how a distribution is drawn, and how it is drawn and scored
SAMPLERS = ("sample", "sample_with_intermediates", "rsample")
_LAW = ("log_prob", *SAMPLERS)
_TRUSTED = ("numpyro", "vipp")


def has_law_of(fn: Any, kind: type, law: tuple[str, ...] = _LAW) -> bool:
    """Whether ``fn`` is drawn and scored as a ``kind`` is, which it must be one of.

    A formula for ``kind`` holds of its subclasses as long as none of them has a sampler or a
    density of its own; those of NumPyro are known to keep what they inherit right.
    With :data:`SAMPLERS` for its ``law``, whether it is drawn so: what it draws are the same
    values, however it scores them.
    """
    order = type(fn).__mro__
    if kind not in order:
        return False
    below = [
        c for c in order[: order.index(kind)] if c.__module__.partition(".")[0] not in _TRUSTED
    ]
    return not any(name in vars(c) for c in below for name in law)


def has_law_of_any(fn: Any, kinds: tuple[type, ...], law: tuple[str, ...] = _LAW) -> bool:
    """Whether ``fn`` is drawn and scored as one of ``kinds`` is."""
    return any(has_law_of(fn, kind, law) for kind in kinds)


def answers(fn: Any, member: str, law: tuple[str, ...] = _LAW) -> bool:
    """Whether ``fn.member`` is about what ``fn`` draws and scores, and not inherited beside it."""
    owner = next((c for c in type(fn).__mro__ if member in vars(c)), None)
    return owner is None or has_law_of(fn, owner, law)
