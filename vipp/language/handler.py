"""The handler under which random choices are drawn with their gradient estimators."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import vipp_transforms as vt
from vipp.distributions.answers import Answering, kind
from vipp.distributions.implicit import circular, differentiable_sampler, implicit
from vipp.distributions.lanes import lane_distribution
from vipp.distributions.reparameterisation import drawn_with, reparameterised
from vipp.language.control_flow import control_flow, looped, sites
from vipp.language.keys import seeded
from vipp.language.state import per_lane
from vipp_transforms.choices import default
from vipp_transforms.unrolling import reason_to_unroll


@contextmanager
def drawing(rng_key: Any) -> Iterator[None]:
    """In here, sites are drawn with their estimators, each with a key of its own."""
    with estimated(), seeded(rng_seed=rng_key), control_flow():
        yield


class estimated(sites):  # noqa: N801 (a NumPyro handler, named like NumPyro's)
    """Draws each latent site of the program beneath it with the estimator in its ``infer``."""

    def process_message(self, msg: Any) -> None:
        """Draw the site, and have a scan unrolled of which a site asks for it."""
        latent = msg["inside"].latent if "inside" in msg else {}
        summed = _summed(latent)
        for name, estimator in latent.items():
            if _needs_own_steps(estimator) and name not in summed:
                msg["unrolled_for"] = name
                break
        super().process_message(msg)

    def visit(self, msg: Any) -> None:
        """Draw the site, unless a handler further in gave it a value."""
        check_infer(msg)
        if msg["is_observed"] or msg["value"] is not None:
            return
        if msg["kwargs"]["rng_key"] is None:
            raise ValueError(
                f"Site '{msg['name']}' has no random key. Fix: draw inside vipp.expectation(fn), "
                "an objective, or numpyro.handlers.seed."
            )
        estimator = estimator_of(msg)
        fn, kwargs = msg["fn"], msg["kwargs"]
        if estimator.traits.direct:
            drawn = drawn_with(fn, kwargs["rng_key"])
            kwargs["rng_key"] = vt.lane_key(kwargs["rng_key"], drawn, msg["name"])
            _move_implicitly(msg)
            return
        _check_stateless(msg, estimator)
        msg["value"] = _drawn(msg, estimator)


def _drawn(msg: Any, estimator: Any) -> Any:
    """A draw of the site that the engine sees."""
    fn, kwargs = msg["fn"], msg["kwargs"]
    fn = fn.expand_by(kwargs["sample_shape"]) if kwargs["sample_shape"] else fn
    estimator, drawn = per_lane(msg["name"], fn, estimator), lane_distribution(fn)
    if estimator.traits.pathwise:
        drawn = differentiable_sampler(drawn)
    return vt.sample(kwargs["rng_key"], Answering(drawn, msg["name"]), estimator, name=msg["name"])


def estimator_of(msg: Any) -> Any:
    """The estimator of a latent site: the one asked for, checked, or the default."""
    name, fn, asked = msg["name"], msg["fn"], msg["infer"].get("estimator")
    if asked is None:
        # of an angle the gradient is right for functions continuous on the circle alone: ask for it
        return default(reparameterised(fn) and not circular(fn))
    if isinstance(asked, type) or not isinstance(asked, vt.Estimator | vt.Policy):
        raise TypeError(
            f"Site '{name}': infer['estimator'] must be an estimator such as vipp.Enumerate(), "
            f"got {asked!r}. Fix: pass an instance."
        )
    if asked.traits.pathwise and not reparameterised(fn):
        raise vt.SiteError(
            f"Site '{name}': {type(asked).__name__} needs a distribution with a differentiable "
            f"sampler, got {kind(fn)}. Fix: use Enumerate() for a small finite support, or "
            "ScoreFunction(num_samples=2, baseline='leave_one_out')."
        )
    return asked


def _move_implicitly(msg: Any) -> None:
    """Draw the site here if its own sampler does not carry the gradient; else leave it alone."""
    fn = msg["fn"]
    if implicit(fn):
        sampler, kwargs = differentiable_sampler(fn), msg["kwargs"]
        msg["drawn_implicitly"] = True  # a value, but not one that was given
        msg["value"], msg["intermediates"] = sampler(
            rng_key=kwargs["rng_key"],
            sample_shape=kwargs["sample_shape"],
            sample_intermediates=True,
        )


def check_infer(msg: Any) -> None:
    """Refuse a misspelt ``estimator`` key, which would silently do nothing."""
    for key in msg["infer"]:
        if key == "estimator" or not isinstance(key, str):
            continue
        if difflib.get_close_matches(key.lower(), ["estimator", "estimators"], cutoff=0.75):
            raise ValueError(
                f"Site '{msg['name']}': unknown key {key!r} in infer, expected 'estimator'. "
                "Fix: spell it infer={'estimator': ...}, or use vipp.sample(..., estimator=...)."
            )


def _needs_own_steps(estimator: Any) -> bool:
    """Whether an estimator can't be applied to all steps of a loop as lanes of one site."""
    if not _given(estimator) or _has_state(estimator):
        return False
    return not estimator.traits.direct and not estimator.traits.causal


def _summed(latent: Mapping[str, Any]) -> list[str]:
    """The sites of a loop that the engine may sum out in it."""
    drawn = {n: e for n, e in latent.items() if not _direct(e)}
    names = [n for n, e in drawn.items() if _given(e) and e.traits.exhaustive]
    if len(names) < len(drawn) or any(reason_to_unroll(n) for n in names):
        return []
    return names


def _given(estimator: Any) -> bool:
    return isinstance(estimator, vt.Estimator | vt.Policy)


def _direct(estimator: Any) -> bool:
    return _given(estimator) and estimator.traits.direct


def _has_state(estimator: Any) -> bool:
    learning = None if isinstance(estimator, vt.Policy) else estimator.learning
    return learning is not None and learning.update is not None


def _check_stateless(msg: Any, estimator: Any) -> None:
    if looped(msg) and _has_state(estimator):
        raise vt.SiteError(
            f"Site '{msg['name']}' is drawn in a scan with {type(estimator).__name__}, whose state "
            "would have to be one for each step. Fix: use ScoreFunction(num_samples=2, "
            "baseline='leave_one_out'), or Mix with a fixed weight."
        )
