"""A site has one support in all programs."""

from __future__ import annotations

from vipp.distributions.support import same_support
from vipp.programs.densities import SiteDensity


def check_same_support(where: str, of_p: list[SiteDensity], of_q: list[SiteDensity]) -> None:
    """Raise if a site has another support in one program than in the other."""
    expected = {s.name: s.fn for s in of_p if s.fn is not None and not s.observed}
    for site in of_q:
        fn = expected.get(site.name)
        if fn is None or site.fn is None or same_support(site.fn, fn):
            continue
        raise ValueError(
            f"{where}: site '{site.name}' has the support of {type(site.fn).__name__} "
            f"({site.fn.support}), expected that of {type(fn).__name__} ({fn.support}). Fix: draw "
            "it from a distribution with that support."
        )
