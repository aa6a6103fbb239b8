"""Which random choices each value depends on, and along which axes their lanes stay apart.

A value's *dependence* maps a site to a tuple with one :data:`~vipp_transforms.lane.Lane` per lane
axis of the site. ``{z: (Apart(0), MIXED)}`` reads: entry ``i`` along axis 0 depends on lanes
``(i, anything)`` of ``z``. Mixed is always a correct answer; it costs variance, never bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vipp_transforms import _jax, indices, lane
from vipp_transforms.axis_rules import axis_maps
from vipp_transforms.indices import Known, Scope
from vipp_transforms.lane import MIXED, Apart, Digits, Lane, Place, Step
from vipp_transforms.reshaping import reshaped
from vipp_transforms.staging import Program, Site

Dependence = Mapping[int, tuple[Lane, ...]]


def join(parts: Iterable[Dependence]) -> Dependence:
    """The dependence of a value computed entry by entry from values with dependences ``parts``."""
    joined: dict[int, tuple[Lane, ...]] = {}
    for part in parts:
        for site, lanes in part.items():
            before = joined.get(site, lanes)
            joined[site] = tuple(map(lane.join, before, lanes))
    return joined


def relabel(
    dependence: Dependence, to: Callable[[Place], Place | None] | Sequence[Place | None]
) -> Dependence:
    """The dependence after what lay at a place came to lie at ``to`` it.

    A sequence says it for axes alone.
    """
    move = to if callable(to) else lambda p: p if isinstance(p, Step) else to[p]
    return {
        site: lane.distinct([lane.move(x, move) for x in lanes])
        for site, lanes in dependence.items()
    }


def mixed(dependence: Dependence) -> Dependence:
    """The same sites with every lane mixed."""
    return {site: (MIXED,) * len(lanes) for site, lanes in dependence.items()}


def within(dependence: Dependence, lanes: Sequence[Lane]) -> Dependence:
    """The dependence of what depends on the lanes ``lanes`` of a value that has ``dependence``."""
    return {
        site: lane.distinct([lane.within(x, lanes) for x in inner])
        for site, inner in dependence.items()
    }


def follow(jaxpr: Any, known: Mapping[Any, Dependence]) -> list[Dependence]:
    """The dependence of a jaxpr's results, given that of some of its variables.

    ``known`` holds of operands and constants, and of what an equation computes, whatever from.
    """
    given = [v for v in (*jaxpr.constvars, *jaxpr.invars) if v in known]
    env = {v: known[v] for v in given}
    _Analysis().run(jaxpr.eqns, env, {}, known, {})
    return [_read(env, v) for v in jaxpr.outvars]


def own(site: Site) -> Dependence:
    """The dependence of a drawn value on its own site; a lane of size one needs no axis."""
    return {site.index: tuple(Apart(j) if n > 1 else MIXED for j, n in enumerate(site.lane_shape))}


class Dependences:
    """The dependence of every value of a staged program.

    A drawn value depends on its own lanes alone; what its *distribution* depends on enters when
    the site is eliminated, through :meth:`log_prob` and :meth:`beside`.

    Args:
      program: staged.
      given: the dependence of some of its inputs; by default they depend on nothing.

    Attributes:
      noted: the equations of some primitives that are applied to what depends on sites, each with
        the sites: what means something else of a choice than of a parameter.
    """

    def __init__(self, program: Program, given: Mapping[Any, Dependence] | None = None):
        sites = program.sites
        self._env: Env = dict(given or {})
        known: Scope = {}
        known.update((v, k) for v, x in program.env.items() if (k := indices.of_array(x)))
        direct = {v: own(site) for v, site in sites.items() if site.loop is None}
        analysis = _Analysis()
        analysis.run(program.eqns, self._env, known, direct, sites)
        self.noted = tuple(analysis.noted.values())
        self._log_prob = {s.index: self._of_log_prob(s) for s in sites.values()}
        self._beside = {s.index: self._of_loop(s, sites.values()) for s in sites.values()}

    def __getitem__(self, atom: Any) -> Dependence:
        return _named(_read(self._env, atom))

    def log_prob(self, site: Site) -> Dependence:
        """What the log density of ``site`` depends on, with the site's lane axes for places."""
        return self._log_prob[site.index]

    def beside(self, index: int) -> Dependence:
        """That part of :meth:`log_prob` which is drawn in the same loop, step by step with it."""
        return self._beside[index]

    def _of_log_prob(self, site: Site) -> Dependence:
        # one entry per lane is what log_prob means, whatever its primitives do with the draw
        inputs = [{}, *(self[leaf] for leaf in site.leaves)]
        (out,) = _Analysis().of_jaxpr(site.log_prob, inputs, [None] * len(inputs))
        # which draw it was depends on the key, whose axes are the site's vmap lanes
        return join((_named(out), self[site.key], own(site)))

    def _of_loop(self, site: Site, sites: Iterable[Site]) -> Dependence:
        if site.loop is None:
            return {}
        together = {s.index for s in sites if s.loop and s.loop.eqn is site.loop.eqn}
        return {r: lanes for r, lanes in self._log_prob[site.index].items() if r in together}


_NOTED = frozenset({"stop_gradient", "io_callback", "pure_callback"})
Env = dict[Any, Dependence]
Knowns = list[Known | None]


def _read(env: Mapping[Any, Dependence], atom: Any) -> Dependence:
    return {} if isinstance(atom, _jax.Literal) else env.get(atom, {})


class _Analysis:
    """One walk through the equations of a program, inside calls, branches and loops, too."""

    def __init__(self) -> None:
        self.noted: dict[int, tuple[Any, Dependence]] = {}

    def run(
        self,
        eqns: Sequence[Any],
        env: Env,
        known: Scope,
        drawn: Mapping[Any, Dependence],
        looped: Mapping[Any, Site],
    ) -> None:
        """Add the dependence of what ``eqns`` compute to ``env``.

        Args:
          eqns: equations in order.
          env: dependences by variable.
          known: integers by variable.
          drawn: variables that are drawn, with the dependence that they have by themselves.
          looped: variables that are drawn inside of loops, and the sites.
        """
        indices.follow(eqns, known)
        for eqn in eqns:
            inputs = [_read(env, v) for v in eqn.invars]
            inside = {i: looped[v] for i, v in enumerate(eqn.outvars) if v in looped}
            if any(inputs) or inside:
                numbers = [indices.of(v, known) for v in eqn.invars]
                outputs = self._through(eqn, inputs, numbers, inside)
                env.update(zip(eqn.outvars, outputs, strict=True))
            if eqn.primitive.name in _NOTED and any(inputs):
                self.noted[id(eqn)] = eqn, join(map(mixed, inputs))
            env.update((v, drawn[v]) for v in eqn.outvars if v in drawn)

    def of_jaxpr(self, jaxpr: Any, inputs: Sequence[Dependence], known: Knowns) -> list[Dependence]:
        """The dependence of a jaxpr's results, given that of its operands."""
        opened, _ = _jax.open_jaxpr(jaxpr)
        env = {var: dep for var, dep in zip(opened.invars, inputs, strict=True) if dep}
        self.run(opened.eqns, env, indices.inside(jaxpr, known), {}, {})
        return [_read(env, v) for v in opened.outvars]

    def _through(
        self, eqn: Any, inputs: list[Dependence], known: Knowns, inside: Mapping[int, Site]
    ) -> list[Dependence]:
        """What the results of one equation depend on; ``inside``: those that a loop draws."""
        name = eqn.primitive.name
        if name == "scan":
            return self._scan(eqn, inputs, known, inside)
        if name == "cond":
            return self._cond(eqn, inputs, known)
        if name == "while":
            return self._while(eqn, inputs, known)
        inner = _jax.called(eqn)
        if inner is not None:
            return self.of_jaxpr(inner, inputs, known)
        solved = _jax.linear_solve(eqn)
        if solved is not None:
            solve, places = solved
            return self.of_jaxpr(solve, [inputs[i] for i in places], [known[i] for i in places])
        return _at_once(eqn, inputs, known)

    def _cond(self, eqn: Any, inputs: list[Dependence], known: Knowns) -> list[Dependence]:
        index, *operands = inputs
        # which branch ran depends on the index as a whole, so its lanes are mixed in the results
        branches = [self.of_jaxpr(b, operands, known[1:]) for b in eqn.params["branches"]]
        return [join((*parts, mixed(index))) for parts in zip(*branches, strict=True)]

    def _while(self, eqn: Any, inputs: list[Dependence], known: Knowns) -> list[Dependence]:
        """Carry to a fixed point; every result depends on the number of steps as well.

        Under `vmap` there is one for each lane, its axes the first of every result's, and a lane
        that is done stays as it is.
        """
        cond, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
        first = eqn.params["cond_nconsts"]
        second = first + eqn.params["body_nconsts"]
        carry = inputs[second:]
        unknown: Knowns = [None] * len(carry)
        while True:
            values = [*inputs[first:second], *carry]
            outputs = self.of_jaxpr(body, values, [*known[first:second], *unknown])
            grown = [join(pair) for pair in zip(carry, outputs, strict=True)]
            (steps,) = self.of_jaxpr(cond, [*inputs[:first], *grown], [*known[:first], *unknown])
            grown = [join((dep, steps)) for dep in grown]
            if grown == carry:
                return grown
            carry = grown

    def _scan(
        self, eqn: Any, inputs: list[Dependence], known: Knowns, inside: Mapping[int, Site]
    ) -> list[Dependence]:
        """Carry to a fixed point.

        Inside the body what lay along the scanned axis lies at the step. Carried on, the lane of
        this step becomes one of those up to the next.
        """
        body, _ = _jax.open_jaxpr(eqn.params["jaxpr"])
        reverse, loop = eqn.params["reverse"], Step(object())
        consts, carried = _jax.scan_arity(eqn)
        # places outside the body, inside it, stacked behind it, and in the last carry
        into = lambda p: p if isinstance(p, Step) else p - 1 if p else loop
        stacked = lambda p: 0 if p == loop else p if isinstance(p, Step) else p + 1
        ended = lambda p: None if p == loop else p
        drawn = {body.outvars[i]: relabel(own(site), into) for i, site in inside.items()}
        numbers = indices.inside_loop(eqn, known, loop)
        sliced = [relabel(d, into) for d in inputs[consts + carried :]]
        carry = inputs[consts : consts + carried]
        while True:
            values = [*inputs[:consts], *carry, *sliced]
            env = {v: dep for v, dep in zip(body.invars, values, strict=True) if dep}
            self.run(body.eqns, env, numbers, drawn, {})
            outputs = [_read(env, v) for v in body.outvars]
            passed = [_carried(dep, loop, reverse) for dep in outputs[:carried]]
            grown = [join(pair) for pair in zip(carry, passed, strict=True)]
            if grown == carry:
                break
            carry = grown
        final = [relabel(dep, ended) for dep in carry]
        return [*final, *(relabel(dep, stacked) for dep in outputs[carried:])]


def _at_once(eqn: Any, inputs: list[Dependence], known: Knowns) -> list[Dependence]:
    """Through an equation without a jaxpr inside, by its axis maps."""
    if eqn.primitive.name == "reshape" and eqn.params.get("dimensions") is None:
        return [_reshaped(eqn, inputs[0])]
    taken = indices.lanes_taken(eqn, known)
    results = []
    for maps in axis_maps(eqn):
        to: list[Sequence[Place | None]] = list(maps)
        to[:1] = [[taken.get(a, b) for a, b in enumerate(m)] for m in maps[:1]]
        pairs = zip(inputs, to, strict=True)
        results.append(join(relabel(dep, m) for dep, m in pairs if dep))
    return results


def _reshaped(eqn: Any, dependence: Dependence) -> Dependence:
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    kept = relabel(dependence, axis_maps(eqn)[0][0])
    return {
        site: lane.distinct(
            reshaped(x, before, after) if isinstance(x, Apart | Digits) else y
            for x, y in zip(lanes, kept[site], strict=True)
        )
        for site, lanes in dependence.items()
    }


def _named(dependence: Dependence) -> Dependence:
    """As far as lanes are named by one place."""
    return {site: tuple(map(lane.named, lanes)) for site, lanes in dependence.items()}


def _carried(dependence: Dependence, loop: Step, reverse: bool) -> Dependence:
    return {
        site: tuple(lane.carried(x, loop, reverse) for x in lanes)
        for site, lanes in dependence.items()
    }
