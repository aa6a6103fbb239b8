"""Whose law a distribution has: a subclass with its own density is not what its base is."""

from __future__ import annotations

from typing import Any

# what says how a distribution is drawn, and how it is scored
_SAMPLERS = frozenset({"sample", "sample_with_intermediates", "rsample"})
_DENSITY = frozenset({"log_prob"})
_TRUSTED = ("numpyro", "vipp")


def has_law_of(fn: Any, kind: type) -> bool:
    """Whether ``fn`` is drawn and scored as a ``kind`` is, which it must be one of.

    A formula for ``kind`` holds of its subclasses as long as none of them has a sampler or a
    density of its own; those of NumPyro are known to keep what they inherit right.
    """
    own = _own(fn, kind)
    return own is not None and not own & (_SAMPLERS | _DENSITY)


def has_law_of_any(fn: Any, kinds: tuple[type, ...]) -> bool:
    """Whether ``fn`` is drawn and scored as one of ``kinds`` is."""
    return any(has_law_of(fn, kind) for kind in kinds)


def has_values_of(fn: Any, kind: type) -> bool:
    """Whether what ``fn`` draws are the values of a ``kind``, which it must be one of.

    They are, unless it has both a sampler and a density of its own: of one alone, the other is
    that of ``kind``, and the two are of one law.
    """
    own = _own(fn, kind)
    return own is not None and not (own & _SAMPLERS and own & _DENSITY)


def answers(fn: Any, member: str, same: Any = has_law_of) -> bool:
    """Whether ``fn.member`` is about what ``fn`` draws and scores, and not inherited beside it.

    Args:
      fn: a distribution.
      member: the name of a method or property.
      same: what must hold of ``fn`` and the class that has it: :func:`has_law_of`, or
        :func:`has_values_of` where the values say it all.
    """
    owner = next((c for c in type(fn).__mro__ if member in vars(c)), None)
    return owner is None or same(fn, owner)


def _own(fn: Any, kind: type) -> frozenset[str] | None:
    """What a user's classes below ``kind`` define; None if ``fn`` is none."""
    order = type(fn).__mro__
    if kind not in order:
        return None
    below = [
        c for c in order[: order.index(kind)] if c.__module__.partition(".")[0] not in _TRUSTED
    ]
    return frozenset(name for c in below for name in vars(c))
