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
from vipp_transforms.sites import sample_p
from vipp_transforms.staging import Program, Site

MIXED = None
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
    return {
        site: tuple(MIXED if a is None else axis_map[a] for a in axes)
        for site, axes in dependence.items()
    }


def mixed(dependence: Dependence) -> Dependence:
    """The same sites with every lane mixed."""
    return {site: (MIXED,) * len(axes) for site, axes in dependence.items()}


def own(site: Site) -> Dependence:
    """The dependence of a drawn value on its own site; a lane of size one needs no axis."""
    return {site.index: tuple(j if n > 1 else MIXED for j, n in enumerate(site.lane_shape))}


class Dependences:
    """The dependence of every value of a staged program.

    A drawn value depends on its own lanes alone; what its *distribution* depends on enters when
    the site is eliminated, through :meth:`log_prob`.
    """

    def __init__(self, program: Program):
        self._env: dict[Any, Dependence] = {}
        _analyse(program.eqns, self._env, program.sites)
        self._log_prob = {s.index: self._of_log_prob(s) for s in program.sites.values()}

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


def _analyse(eqns: Iterable[Any], env: dict[Any, Dependence], sites: Mapping[Any, Site]) -> None:
    for eqn in eqns:
        if eqn.primitive is sample_p and eqn.outvars[0] in sites:
            env[eqn.outvars[0]] = own(sites[eqn.outvars[0]])
            continue
        inputs = [_read(env, v) for v in eqn.invars]
        if any(inputs):
            for var, dep in zip(eqn.outvars, _through(eqn, inputs), strict=True):
                env[var] = dep


def _through(eqn: Any, inputs: list[Dependence]) -> list[Dependence]:
    name = eqn.primitive.name
    if name == "scan":
        return _scan(eqn, inputs)
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


def _scan(eqn: Any, inputs: list[Dependence]) -> list[Dependence]:
    """Carry to a fixed point; lanes along the scanned axis are mixed, the others stay apart."""
    consts, carried = _jax.scan_arity(eqn)
    fixed, carry = inputs[:consts], inputs[consts : consts + carried]
    sliced = [relabel(d, _shifted(v, -1)) for d, v in _after(inputs, eqn.invars, consts + carried)]
    while True:
        outputs = _analyse_jaxpr(eqn.params["jaxpr"], [*fixed, *carry, *sliced])
        grown = [join((a, b)) for a, b in zip(carry, outputs[:carried], strict=True)]
        if grown == carry:
            break
        carry = grown
    stacked = [relabel(d, _shifted(v, 1)) for d, v in _after(outputs, eqn.outvars, carried)]
    return [*carry, *stacked]


def _after(dependences: list[Dependence], atoms: list[Any], start: int) -> list[Any]:
    return list(zip(dependences[start:], atoms[start:], strict=True))


def _shifted(atom: Any, by: int) -> list[int | None]:
    ndim = len(atom.aval.shape)
    return [a + by if a + by >= 0 else MIXED for a in range(ndim)]
