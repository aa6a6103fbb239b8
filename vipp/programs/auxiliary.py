"""Sites of a guide that the model does not have: which of them leave the others a density."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpyro.distributions import Delta

from vipp.distributions.masks import lane_mask
from vipp.distributions.wrappers import factor
from vipp.programs.trace import Trace


def loose(latent: Mapping[str, Any], auxiliary: Iterable[str]) -> tuple[str, ...]:
    r"""The auxiliary sites that are random, scored, and not passed on by deterministic sites.

    :math:`q(u, z)` may be scored in the place of :math:`q(z)` where ``z`` is a one-to-one function
    of ``u``, a ``Delta`` that accounts for the volume: so do NumPyro's autoguides, which draw all
    latent values as one vector. It has as many coordinates as ``u`` then. Where what is drawn has
    more, or ``z`` is random itself, :math:`q(u, z)` is no density of ``z``.

    Args:
      latent: the messages of a run's latent sites, by name.
      auxiliary: the names of those marked ``is_auxiliary``.
    """
    auxiliary = set(auxiliary)
    fixed = {n for n, site in latent.items() if isinstance(factor(site["fn"]), Delta)}
    random = [n for n in auxiliary - fixed if lane_mask(latent[n]["fn"]) is not False]
    size = lambda names: sum(np.size(latent[n]["value"]) for n in names)
    return tuple(sorted(random)) if size(random) > size(fixed - auxiliary) else ()


def check_known(given: Trace, names: Collection[str]) -> None:
    """Raise if a value was given for a site not in ``names``, unless it may be left out."""
    for name in given.values:
        if name in names or (name in given.auxiliary and name not in given.loose):
            continue
        if name in given.loose:
            others = [n for n in given if n in names]
            raise ValueError(
                f"Site '{name}' is auxiliary and random, and the program has no such site: scored "
                f"with it, the others {others} would have no density of their own, and a bound "
                f"would exceed the evidence. Fix: integrate it out, vipp.marginal(guide, "
                f"keep={others})."
            )
        raise ValueError(
            f"Site '{name}' has a value but the program has no such site, got sites "
            f"{sorted(names)}. Fix: rename it, add it to the program, or integrate it out where it "
            "is drawn (vipp.marginal)."
        )
