"""What the engine raises when a program has no sound gradient estimator."""

from __future__ import annotations


class SiteError(ValueError):
    """A random choice cannot be given a correct gradient as asked; the message says the way out."""


class RelaxedDecisionWarning(UserWarning):
    """A relaxed value is compared, rounded or used as an index: no gradient comes from there."""
