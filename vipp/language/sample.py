"""Choosing how the gradient of a random choice is estimated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpyro

from vipp.language.control_flow import sites
from vipp.language.names import close
from vipp.language.state import SUFFIX, with_state


def sample(name: str, fn: Any, estimator: Any = None, obs: Any = None, **kwargs: Any) -> Any:
    """``numpyro.sample`` with a gradient estimator.

    Equal to ``numpyro.sample(name, fn, obs=obs, infer={"estimator": estimator})``; outside vipp the
    estimator is ignored.

    Args:
      name: of the site.
      fn: a NumPyro distribution.
      estimator: how the gradient is estimated; None for vipp's default.
      obs: an observed value, or None.
      **kwargs: passed to ``numpyro.sample``.

    Returns:
      The drawn or observed value.

    Example:
      >>> import jax, numpyro, numpyro.distributions as dist, vipp
      >>> with numpyro.handlers.seed(rng_seed=0):
      ...     z = vipp.sample("z", dist.Bernoulli(0.5), estimator=vipp.Enumerate())
      >>> z.shape
      ()
    """
    infer = dict(kwargs.pop("infer", None) or {})
    if estimator is not None:
        infer["estimator"] = with_state(name, fn, estimator)
    return numpyro.sample(name, fn, obs=obs, infer=infer, **kwargs)


def with_estimators(program: Callable[..., Any], estimators: Mapping[str, Any]) -> Any:
    """The same program with the estimators of some sites set from outside.

    Args:
      program: a model or guide.
      estimators: by site name.

    Returns:
      A program of the same arguments and distribution.

    Raises:
      ValueError: when it runs, if a name is not one of its sites.

    Example:
      >>> import numpyro, numpyro.distributions as dist, vipp
      >>> guide = lambda: numpyro.sample("z", dist.Bernoulli(0.5))
      >>> enumerated = vipp.with_estimators(guide, {"z": vipp.Enumerate()})
      >>> trace = numpyro.handlers.trace(numpyro.handlers.seed(enumerated, 0)).get_trace()
      >>> trace["z"]["infer"]["estimator"]
      Enumerate(max_evaluations=65536)
    """

    def configured(*args: Any, **kwargs: Any) -> Any:
        handler = _Configure(estimators, lambda fn: fn(*args, **kwargs))
        with handler:
            result = program(*args, **kwargs)
        handler.check()
        return result

    return configured


class _Configure(sites):
    def __init__(self, estimators: Mapping[str, Any], call: Callable[..., Any]):
        super().__init__()
        self.call = call
        self.estimators = dict(estimators)
        self.seen: set[str] = set()
        self.filling: str | None = None

    def process_message(self, msg: Any) -> None:
        if self.filling is not None and msg["type"] in ("param", "mutable"):
            if msg["name"].endswith(self.filling + SUFFIX):
                # a numpyro.handlers.scope further in has named the site already
                msg["name"] = self.filling + SUFFIX
            return
        super().process_message(msg)

    def visit(self, msg: Any) -> None:
        name = msg["name"]
        self.seen.add(name)
        if name in self.estimators:
            self.filling = name
            estimator = with_state(name, msg["fn"], self.estimators[name], self.call)
            self.filling = None
            msg["infer"] = {**msg["infer"], "estimator": estimator}

    def check(self) -> None:
        for name in self.estimators:
            if name not in self.seen:
                raise ValueError(
                    f"with_estimators: no site named '{name}', the program has "
                    f"{sorted(self.seen)}{close(name, self.seen)}. Fix: use one of these names."
                )
