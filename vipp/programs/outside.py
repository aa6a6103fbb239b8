"""Which sites the handlers around a program give values to, without being asked for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from numpyro.handlers import block, condition, do, replay, scope, substitute
from numpyro.primitives import _PYRO_STACK


def given_outside(sites: Mapping[str, Any]) -> frozenset[str]:
    """The names of ``sites`` that handlers around here have values for.

    What a ``substitute_fn`` says is not counted: it has a value for whatever there is.

    Args:
      sites: messages by name, as the innermost handler around here would get them.

    Raises:
      ValueError: naming a site that one intervenes on.
    """
    return frozenset(name for name, site in sites.items() if _is_given(site, reversed(_PYRO_STACK)))


def _is_given(site: Any, handlers: Iterable[Any]) -> bool:
    msg = dict(site)
    for handler in handlers:
        name = msg["name"]
        if isinstance(handler, block) and handler.hide_fn(msg):
            return False
        if isinstance(handler, scope):
            handler.process_message(msg)
        elif isinstance(handler, do) and name in (handler.data or ()):
            raise ValueError(
                f"Site '{name}' is summed out (marginal with exact=True), and numpyro.handlers.do "
                "intervenes on it. Expected a site that the program shows. Fix: intervene inside, "
                "marginal(do(program, ...), ...)."
            )
        elif isinstance(handler, condition | substitute) and name in (handler.data or ()):
            return True
        elif isinstance(handler, condition) and handler.condition_fn is not None:
            if handler.condition_fn(msg) is not None:
                return True
        elif isinstance(handler, replay) and _is_latent(handler.trace.get(name)):
            return not msg["is_observed"]
    return False


def _is_latent(site: Any) -> bool:
    return site is not None and site["type"] == "sample" and not site["is_observed"]
