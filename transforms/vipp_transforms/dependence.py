"""Which random choices each value depends on, and along which axes their lanes stay apart.

A value's *dependence* maps a site to a tuple with one entry per lane axis of the site: the axis of
the value along which those lanes stay apart, or ``MIXED``. ``{z: (0, MIXED)}`` reads: entry ``i``
along axis 0 depends on lanes ``(i, anything)`` of ``z``. Mixed is always a correct answer; it costs
variance, never bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vipp_transforms import _jax
from vipp_transforms.axis_rules import axis_maps
from vipp_transforms.counters import step_numbers
from vipp_transforms.sites import sample_p
from vipp_transforms.staging import Program, Site

MIXED = None
STEP: Any = type("Step", (), {"__repr__": lambda self: "STEP"})()  # this step of a loop's body
Dependence = Mapping[int, tuple[int | None, ...]]

_CALLS = frozenset(
    {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call",
     "custom_vjp_call_jaxpr", "checkpoint", "remat", "remat2", "custom_lin"}
)  # fmt: skip


def join(parts: Iterable[Dependence]) -> Dependence:
    """The dependence of a value computed entry by entry from values with dependences ``parts``."""
    joined: dict[int, tuple[int | None, ...]] = {}
    for part in parts:
        for site, axes in part.items():
            if site not in joined:
                joined[site] = axes
            elif joined[site] != axes:
                pairs = zip(joined[site], axes, strict=True)
                joined[site] = tuple(a if a == b else MIXED for a, b in pairs)
    return joined


def relabel(dependence: Dependence, axis_map: Sequence[int | None]) -> Dependence:
    """The dependence after axis ``a`` of the value became axis ``axis_map[a]``."""
    to = lambda a: a if a is None or a is STEP else axis_map[a]
    return {site: tuple(map(to, axes)) for site, axes in dependence.items()}


def mixed(dependence: Dependence) -> Dependence:
    """The same sites with every lane mixed."""
    return {site: (MIXED,) * len(axes) for site, axes in dependence.items()}


def own(site: Site) -> Dependence:
    """The dependence of a drawn value on its own site; a lane of size one needs no axis."""
    return {site.index: tuple(j if n > 1 else MIXED for j, n in enumerate(site.lane_shape))}


class Dependences:
    """The dependence of every value of a staged program.

    Attributes:
      causal: the sites of loops that carry them on, with whether the loop is reversed. Apart along
        the first lane axis, the steps, means for them: entry ``t`` depends on the lanes up to
        ``t``, in the order of the loop.

    A drawn value depends on its own lanes alone; what its *distribution* depends on enters when
    the site is eliminated, through :meth:`log_prob`.
    """

    def __init__(self, program: Program):
        self._env: dict[Any, Dependence] = {}
        self.causal: dict[int, bool] = {}
        sites = program.sites.values()
        self._loops = {s.index: s.loop.eqn if s.loop else None for s in sites}
        _analyse(program.eqns, self._env, program.sites, self.causal)
        self._log_prob = {s.index: self._of_log_prob(s) for s in program.sites.values()}

    def same_loop(self, one: int, other: int) -> bool:
        """Whether two sites are drawn in one loop."""
        loops = self._loops
        return loops[one] is not None and loops[one] is loops[other]

    def __getitem__(self, atom: Any) -> Dependence:
        return _read(self._env, atom)

    def log_prob(self, site: Site) -> Dependence:
        """What the log density of ``site`` depends on, relative to the site's lane axes."""
        return self._log_prob[site.index]

    def _of_log_prob(self, site: Site) -> Dependence:
        jaxpr, _ = _jax.open_jaxpr(site.log_prob)
        inputs = [own(site), *(self[leaf] for leaf in site.leaves)]
        (out,) = _analyse_jaxpr(jaxpr, inputs)
        # which draw it was depends on the key, whose axes are the site's vmap lanes
        out = join((out, self[site.key]))
        # one entry per lane is what log_prob means, whatever its primitives
        return {**out, **own(site)}


def _read(env: Mapping[Any, Dependence], atom: Any) -> Dependence:
    return {} if isinstance(atom, _jax.Literal) else env.get(atom, {})


def _analyse_jaxpr(jaxpr: Any, inputs: Sequence[Dependence]) -> list[Dependence]:
    opened, _ = _jax.open_jaxpr(jaxpr)
    env = {var: dep for var, dep in zip(opened.invars, inputs, strict=True) if dep}
    _analyse(opened.eqns, env, {})
    return [_read(env, v) for v in opened.outvars]


def _analyse(
    eqns: Iterable[Any],
    env: dict[Any, Dependence],
    sites: Mapping[Any, Site],
    causal: dict[int, bool] | None = None,
) -> None:
    causal = {} if causal is None else causal
    for eqn in eqns:
        if eqn.primitive is sample_p and eqn.outvars[0] in sites:
            env[eqn.outvars[0]] = own(sites[eqn.outvars[0]])
            continue
        inputs = [_read(env, v) for v in eqn.invars]
        looped = {i: sites[v] for i, v in enumerate(eqn.outvars) if v in sites}
        if eqn.primitive.name == "scan" and (looped or any(inputs)):
            outputs = _scan(eqn, inputs, looped, causal)
        elif any(inputs):
            outputs = _through(eqn, inputs)
        else:
            continue
        env.update(zip(eqn.outvars, outputs, strict=True))


def _through(eqn: Any, inputs: list[Dependence]) -> list[Dependence]:
    name = eqn.primitive.name
    if name == "cond":
        return _cond(eqn, inputs)
    inner = _jax.call_jaxpr(eqn) if name in _CALLS else None
    if inner is not None:
        return _analyse_jaxpr(inner, inputs)
    return [
        join(relabel(dep, m) for dep, m in zip(inputs, maps, strict=True) if dep)
        for maps in axis_maps(eqn)
    ]


def _cond(eqn: Any, inputs: list[Dependence]) -> list[Dependence]:
    index, *operands = inputs
    branches = [_analyse_jaxpr(b, operands) for b in eqn.params["branches"]]
    return [join((*parts, mixed(index))) for parts in zip(*branches, strict=True)]


def _scan(
    eqn: Any, inputs: list[Dependence], looped: Mapping[int, Site], causal: dict[int, bool]
) -> list[Dependence]:
    """Carry to a fixed point.

    Inside the body the lanes along the scanned axis lie along no axis: a value depends on that of
    this step, ``STEP``, or it is mixed. Carried on, ``STEP`` becomes mixed, but for causal sites of
    a loop of the same direction: what depended on the lanes up to this step still does.

    Args:
      looped: the sites that the scan itself draws, by the position of its results.
      causal: by causal site, whether its loop is reversed; those of this loop are added.
    """
    body, _ = _jax.open_jaxpr(eqn.params["jaxpr"])
    inside = {body.outvars[i]: site for i, site in looped.items()}
    group = {site.index for site in looped.values()}
    reverse = eqn.params["reverse"]
    consts, carried = _jax.scan_arity(eqn)
    counting = step_numbers(eqn) if any(inputs[:consts]) else set()
    fixed, carry = inputs[:consts], inputs[consts : consts + carried]
    sliced = [relabel(d, _into_step(v)) for d, v in _after(inputs, eqn.invars, consts + carried)]
    kept = group | {r for r, backwards in causal.items() if backwards == reverse}
    while True:
        values = [*fixed, *carry, *sliced]
        outputs = _body(body, values, inside, group, counting, eqn.params["length"])
        passed = [_carried_on(dep, kept) for dep in outputs[:carried]]
        grown = [join((a, b)) for a, b in zip(carry, passed, strict=True)]
        if grown == carry:
            break
        carry = grown
    if any(r in dep for dep in carry for r in group):
        causal.update({r: reverse for r in group})
    final = [_carried_on(dep, set()) for dep in carry]
    return [*final, *map(_out_of_step, outputs[carried:])]


def _body(
    body: Any,
    inputs: list[Dependence],
    inside: Mapping[Any, Site],
    group: set[int],
    counting: set[Any],
    length: int,
) -> list[Dependence]:
    """One step. What is drawn depends on its own site, and on those of its loop before it."""
    env = {var: dep for var, dep in zip(body.invars, inputs, strict=True) if dep}
    for eqn in body.eqns:
        if _takes_this_step(eqn, counting, length):
            _slice_of_this_step(eqn, env)
            continue
        _analyse([eqn], env, {})
        for var in eqn.outvars:
            if var in inside:
                site = inside[var]
                lanes = (MIXED if a is None else a - 1 for a in own(site)[site.index][1:])
                before = {r: axes for r, axes in env.get(var, {}).items() if r in group}
                env[var] = join((before, {site.index: (STEP, *lanes)}))
    return [_read(env, v) for v in body.outvars]


def _takes_this_step(eqn: Any, counting: set[Any], length: int) -> bool:
    """Whether an equation is ``x[t]`` at step ``t``, of an ``x`` with as many entries as steps."""
    if eqn.primitive.name != "dynamic_slice":
        return False
    at, size = eqn.invars[1], eqn.invars[0].aval.shape[0]
    return not isinstance(at, _jax.Literal) and at in counting and size == length


def _slice_of_this_step(eqn: Any, env: dict[Any, Dependence]) -> None:
    """``x[t]`` at step ``t``: lanes along the first axis are now those of the step."""
    operand, out = eqn.invars[0], eqn.outvars[0]
    full = [n == m for n, m in zip(operand.aval.shape, out.aval.shape, strict=True)]
    axis_map = [a if same else MIXED for a, same in enumerate(full)]
    axis_map[0] = STEP if out.aval.shape[0] == 1 else MIXED
    dep = _read(env, operand)
    if dep:
        env[out] = relabel(dep, axis_map)


def _carried_on(dependence: Dependence, kept: set[int]) -> Dependence:
    return {
        r: axes if r in kept else tuple(MIXED if a is STEP else a for a in axes)
        for r, axes in dependence.items()
    }


def _into_step(atom: Any) -> list[Any]:
    return [STEP, *range(len(atom.aval.shape) - 1)]


def _out_of_step(dependence: Dependence) -> Dependence:
    outer = lambda a: MIXED if a is None else 0 if a is STEP else a + 1
    return {site: tuple(map(outer, axes)) for site, axes in dependence.items()}


def _after(dependences: list[Dependence], atoms: list[Any], start: int) -> list[Any]:
    return list(zip(dependences[start:], atoms[start:], strict=True))
