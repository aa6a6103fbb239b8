"""How a mistake in a model or a guide is told."""

from __future__ import annotations


class CheckError(ValueError):
    """A model and a guide do not fit each other, or the data; found before anything is compiled.

    Attributes:
      site: the name of the site, plate, parameter or argument at fault.
      got: what is there.
      expected: what should be.
      fix: the way out.
    """

    def __init__(self, site: str, got: str, expected: str, fix: str):
        super().__init__(f"'{site}': got {got}, expected {expected}. Fix: {fix}.")
        self.site, self.got, self.expected, self.fix = site, got, expected, fix
