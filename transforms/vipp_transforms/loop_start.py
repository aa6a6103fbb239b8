"""What a loop of enumerated choices starts from: numbers, or a choice before it.

The first state of a hidden Markov chain is a choice before the loop. If the loop reads it as its
first state only, the loop may start from how probable its values are instead of from each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.control_flow import templates_inside
from vipp_transforms.loop_fusion import Steps
from vipp_transforms.sites import sample_p
from vipp_transforms.staging import Site, live, sites_of
from vipp_transforms.support_numbers import FUNCTIONS, Numbers, follow, numbers_in, numbers_of
from vipp_transforms.unrolling import reason_to_unroll

START = "start"  # the axis of the values of the choice that a loop starts from


class Start(NamedTuple):
    """What is carried into the first step of a loop.

    Attributes:
      firsts: what is known of each value, along ``START`` if it is that of a choice.
      site: the choice, or None.
      names: of it, and of the choices that depend on it.
    """

    firsts: tuple[Numbers | None, ...]
    site: Site | None = None
    names: tuple[str, ...] = ()

    @property
    def leaves(self) -> tuple[Any, ...]:
        """The atoms that the choice's distribution is made of."""
        return () if self.site is None else self.site.leaves

    @property
    def size(self) -> int:
        """The number of values of the choice; one without a choice."""
        return 1 if self.site is None else len(_support(self.site))

    def of_choice(self) -> list[int]:
        """The numbers of the carried values that are the choice's."""
        return [i for i, x in enumerate(self.firsts) if x is not None and x.axes]

    def probabilities(self, leaves: Sequence[Any]) -> Any:
        """How probable its values are: ``(values, *lanes)``; one without a choice."""
        if self.site is None:
            return jnp.ones(1)
        jaxpr, consts = _jax.open_jaxpr(self.site.log_prob)
        run = _jax.evaluator(jaxpr.eqns, [*jaxpr.constvars, *jaxpr.invars], jaxpr.outvars)
        shape, dtype = self.site.lane_shape, self.site.var.aval.dtype
        log_prob = lambda x: run(*consts, jnp.broadcast_to(x, shape), *leaves)[0]
        return jnp.exp(jax.vmap(log_prob)(jnp.asarray(_support(self.site)).astype(dtype)))


def starts(
    steps: Steps, before: list[Any], after: list[Any], env: Mapping[Any, Any]
) -> list[Start]:
    """From what a loop may start: at best from a choice, else from numbers.

    Args:
      steps: the loop.
      before: the equations before it.
      after: those after it.
      env: the values of constants.
    """
    firsts = [c.first for c in steps.carried]
    made = live(before, firsts, effects=False)
    read = {*_jax.variables(firsts), *_jax.variables(v for e in made for v in e.invars)}
    constant = {v: numbers_in(env[v]) for v in read if v in env}
    constants = {v: x for v, x in constant.items() if x is not None}
    known = dict(constants)
    follow(made, known, ())
    found = [Start(tuple(numbers_of(v, known) for v in firsts))]
    for eqn in made:
        start = _from_choice(eqn, steps, made, [*before, *after], constants)
        found = found if start is None else [start, *found]
    return found


def _from_choice(
    eqn: Any, steps: Steps, made: list[Any], eqns: list[Any], constants: Mapping[Any, Numbers]
) -> Start | None:
    """The start from a choice, if the loop reads it as its first state only."""
    template = eqn.params["template"] if eqn.primitive is sample_p else None
    if template is None or not template.estimator.traits.exhaustive or template.conditional:
        return None
    if template.support is None or template.event_shape or reason_to_unroll(template.name):
        return None
    (site,) = sites_of([eqn], []).values()
    reached, names = _reached(site, eqns)
    others = [*(outer for _, outer in steps.fixed), *(s.whole for s in steps.scanned)]
    if names is None or not reached.isdisjoint(_jax.variables(others)):
        return None
    known = {**constants, site.var: Numbers(_support(site).astype(site.var.aval.dtype), (START,))}
    follow(made, known, (START,))
    alike = _lane_by_lane(site, made)
    firsts = []
    for c in steps.carried:
        numbers = numbers_of(c.first, known)
        its = not isinstance(c.first, _jax.Literal) and c.first in reached
        if its and (numbers is None or c.first not in alike):
            return None
        firsts.append(numbers)
    return Start(tuple(firsts), site, names)


def _support(site: Site) -> Any:
    return site.template.support


def _reached(site: Site, eqns: Iterable[Any]) -> tuple[set[Any], tuple[str, ...] | None]:
    """What depends on a choice, and the names of the choices that do; None if some are in loops."""
    reached, names = {site.var}, [site.template.name]
    for eqn in eqns:
        if reached.isdisjoint(_jax.variables(eqn.invars)):
            continue
        reached.update(eqn.outvars)
        if eqn.primitive is sample_p:
            names.append(eqn.params["template"].name)
        elif templates_inside(eqn):
            return reached, None
    return reached, tuple(names)


def _lane_by_lane(site: Site, eqns: Iterable[Any]) -> set[Any]:
    """What is computed of a choice entry by entry."""
    alike = {site.var}
    for eqn in eqns:
        read = _jax.variables(eqn.invars)
        plain = eqn.primitive.name in FUNCTIONS or eqn.primitive.name == "copy"
        shapes = {v.aval.shape for v in (*read, *eqn.outvars)}
        if plain and not alike.isdisjoint(read) and shapes == {site.lane_shape}:
            alike.update(eqn.outvars)
    return alike
