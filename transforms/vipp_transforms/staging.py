"""A program that draws random values, as a flat list of equations and its sites."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.control_flow import (
    Loop,
    holds_constants,
    is_summed,
    opened,
    returning_draws,
    stays_loop,
    templates_in,
    templates_inside,
)
from vipp_transforms.estimate import is_estimate
from vipp_transforms.sites import (
    Lanes,
    Template,
    lane_key_p,
    lane_log_prob,
    sample_p,
)
from vipp_transforms.unrolling import NotSummed

Atom = Any  # a variable or a literal of a jaxpr
Rewrite = Callable[[list[Any], Atom, set[Any], dict[Any, Any]], list[Any] | NotSummed]


@dataclass(frozen=True, eq=False)
class Site:
    """One random choice of a staged program.

    Attributes:
      index: its place in program order; later sites may depend on earlier ones.
      name: unique among the program's sites.
      template: the distribution without its array leaves.
      lanes: the enclosing ``vmap`` axes.
      key, leaves: atoms of the program; leaves of the distribution, then of the estimator.
      var: the drawn value.
      lane_shape: sizes of all lane axes (``vmap`` lanes, then batch axes).
      log_prob: the staged log density of ``(value, *leaves)``, one entry per lane.
      loop: the loop that it is drawn in, each step a lane (the first axis), or None.
    """

    index: int
    name: str
    template: Template
    lanes: tuple[Lanes, ...]
    key: Atom
    leaves: tuple[Atom, ...]
    var: Any
    lane_shape: tuple[int, ...]
    log_prob: Any
    loop: Loop | None = None

    @property
    def parameters(self) -> tuple[Atom, ...]:
        """The leaves of the distribution."""
        return self.leaves[: self.template.num_parameters]

    @property
    def settings(self) -> tuple[Atom, ...]:
        """The leaves of the estimator."""
        return self.leaves[self.template.num_parameters :]


@dataclass(frozen=True, eq=False)
class Program:
    """A staged program: straight-line equations with jit calls inlined and dead code dropped.

    Attributes:
      env: the values of inputs and constants.
      eqns: equations in order, among them one per site; without those that only have an effect.
      plain: those of one plain run, with such effects as printing.
      sites: by the variable of the drawn value.
      out: the variable whose expectation is wanted.
      aux: atoms of the auxiliary outputs.
      aux_tree: their structure.
      inputs: the variables that are no constants.
    """

    env: dict[Any, Any]
    eqns: tuple[Any, ...]
    plain: tuple[Any, ...]
    sites: dict[Any, Site]
    out: Atom
    aux: tuple[Atom, ...]
    aux_tree: Any
    inputs: tuple[Any, ...]


class Traced(NamedTuple):
    """A program as JAX traced it.

    Attributes:
      closed: the jaxpr with its constants; its outputs are the value, then the auxiliary ones.
      arrays: its inputs.
      aux_tree: the structure of the auxiliary outputs.
    """

    closed: Any
    arrays: list[Any]
    aux_tree: Any

    def draws(self) -> bool:
        """Whether any choice in it is other than pathwise."""
        return bool(templates_in(self.closed))


def trace(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traced:
    """Trace ``fn(*args, **kwargs) -> (value, aux)``.

    Only JAX arrays become inputs; Python numbers and NumPy arrays stay what they are, so that
    shapes and branches may depend on them.
    """
    leaves, treedef = jax.tree_util.tree_flatten((args, kwargs))
    # what is no JAX array may decide shapes: it stays out of the jaxpr
    dynamic = [isinstance(leaf, jax.Array) for leaf in leaves]
    arrays = [leaf for leaf, d in zip(leaves, dynamic, strict=True) if d]

    def flat(*values: Any) -> Any:
        given = iter(values)
        merged = [next(given) if d else x for d, x in zip(dynamic, leaves, strict=True)]
        inner_args, inner_kwargs = jax.tree_util.tree_unflatten(treedef, merged)
        value, aux = fn(*inner_args, **inner_kwargs)
        check_scalar(value)
        return value, aux

    closed, shape = _jax.trace(flat, *arrays)
    return Traced(closed, arrays, jax.tree_util.tree_structure(shape[1]))


def stage(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
    """Trace ``fn(*args, **kwargs) -> (value, aux)`` into a :class:`Program`."""
    return inline(trace(fn, args, kwargs))


@overload
def inline(traced: Traced) -> Program: ...
@overload
def inline(traced: Traced, rewrite: Rewrite) -> Program | NotSummed: ...
def inline(traced: Traced, rewrite: Rewrite | None = None) -> Program | NotSummed:
    """Open the calls of a traced program, drop what nothing needs, and find its sites.

    Args:
      traced: the program.
      rewrite: is given all equations, among them loops whose choices may be summed out, the
        variable whose expectation is wanted, and whether a variable is a choice of a loop that
        stays one; returns others without such loops, and adds the values of constants to
        ``env``, or says which loop has to be taken apart: so does then this function.
    """
    jaxpr, consts = _jax.open_jaxpr(traced.closed)
    env = dict(zip(jaxpr.constvars, consts, strict=True))
    env |= dict(zip(jaxpr.invars, traced.arrays, strict=True))
    inliner = Inliner(env, loops=[], keeps=None if rewrite is None else is_summed)
    scope: dict[Any, Any] = {}
    inliner.run(jaxpr.eqns, scope)
    value, *aux = (lookup(v, scope) for v in jaxpr.outvars)
    out = _variable(value, env)
    # a plain run prints once; a lifted one would print for every value that is tried
    plain = live(inliner.eqns, [out, *aux])
    eqns = [_jax.silent(e) for e in live(plain, [out, *aux], effects=False)]
    if rewrite is not None and any(map(is_summed, eqns)):
        drawn = {d.var for d in inliner.loops or []}
        rewritten = rewrite(live(eqns, [out]), out, drawn, env)
        if isinstance(rewritten, NotSummed):
            return rewritten
        eqns = live(rewritten, [out])
    sites = sites_of(eqns, inliner.loops or [])
    inputs = tuple(jaxpr.invars)
    return Program(
        env, tuple(eqns), tuple(plain), sites, out, tuple(aux), traced.aux_tree, inputs
    )  # fmt: skip


def without_calls(eqns: Any, scope: dict[Any, Any]) -> list[Any]:
    """Equations with all calls opened, those with derivatives of their own, too.

    ``scope`` is given the new names of what they compute.
    """
    is_call = lambda eqn: _jax.called(eqn) is not None
    inliner = Inliner({}, loops=None, keeps=lambda eqn: True, opens=is_call)
    inliner.run(eqns, scope)
    return inliner.eqns


def check_scalar(value: Any) -> None:
    """Raise unless ``value`` is a real scalar."""
    leaves = [(jnp.result_type(x), jnp.shape(x)) for x in jax.tree.leaves(value)]
    single = len(leaves) == 1 and not isinstance(value, dict | list | tuple)
    if single and leaves[0][1] == () and jnp.issubdtype(leaves[0][0], jnp.floating):
        return
    got = ", ".join(f"{dtype}{list(shape)}" for dtype, shape in leaves) or "nothing"
    raise ValueError(
        "The value whose expectation is wanted must be a real scalar (a float of shape ()), "
        f"got {got} in a {type(value).__name__}. Fix: sum or average over the remaining axes."
    )


def _variable(atom: Atom, env: dict[Any, Any]) -> Any:
    """The atom, or if it is a number, a variable with that value."""
    if not isinstance(atom, _jax.Literal):
        return atom
    var: Any = _jax.fresh_like(atom)
    env[var] = jnp.asarray(atom.val, var.aval.dtype)
    return var


def lookup(atom: Any, scope: dict[Any, Any]) -> Any:
    """What an atom is called in a scope."""
    return atom if isinstance(atom, _jax.Literal) else scope.get(atom, atom)


class Inliner:
    """Copies equations with jit calls opened; inner variables are renamed at each call.

    Args:
      env: where the values of constants are put.
      loops: where sites of loops that stay loops are put; None inside a loop, where another one is
        unrolled.
      scan: what to do instead with a scan that has sites, given the inliner, the equation, its
        inputs and the scope to put its results into.
      keeps: which equations to leave as they are.
      opens: which calls to open.
    """

    def __init__(
        self,
        env: dict[Any, Any],
        loops: list[_Drawn] | None,
        scan: Callable[..., None] | None = None,
        keeps: Callable[[Any], bool] | None = None,
        opens: Callable[[Any], bool] = _jax.is_jit,
    ):
        self.env = env
        self.eqns: list[Any] = []
        self.loops, self.scan, self.keeps, self.opens = loops, scan, keeps, opens

    def run(self, eqns: Any, scope: dict[Any, Any]) -> None:
        """Copy equations, and put the new names of what they compute into the scope."""
        for eqn in eqns:
            inputs = [lookup(v, scope) for v in eqn.invars]
            keeps = self.keeps is not None and self.keeps(eqn)
            if eqn.primitive is lane_key_p or (is_estimate(eqn) and not keeps):
                scope[eqn.outvars[0]] = inputs[0]
            elif self.opens(eqn):
                self._open(eqn, inputs, scope)
            elif keeps or (not templates_inside(eqn) and not holds_constants(eqn)):
                outputs = [_jax.fresh_like(v) for v in eqn.outvars]
                self.eqns.append(eqn.replace(invars=inputs, outvars=outputs))
                scope.update(zip(eqn.outvars, outputs, strict=True))
            elif self.scan is not None and eqn.primitive.name == "scan" and templates_inside(eqn):
                self.scan(self, eqn, inputs, scope)
            elif self.loops is not None and stays_loop(eqn):
                self._keep_loop(eqn, inputs, scope)
            else:
                fn = opened(eqn)
                closed, _ = _jax.trace(fn, *(_jax.shaped(v.aval) for v in eqn.invars))
                self.splice(closed, inputs, eqn.outvars, scope)

    def _open(self, eqn: Any, inputs: list[Any], scope: dict[Any, Any]) -> None:
        self.splice(_jax.called(eqn), inputs, eqn.outvars, scope)

    def splice(self, closed: Any, inputs: list[Any], outvars: Any, scope: Any) -> list[Any]:
        """Copy a jaxpr's equations; what it returns beyond ``outvars`` comes back."""
        jaxpr, consts = _jax.open_jaxpr(closed)
        inner: dict[Any, Any] = {}
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            inner[var] = _jax.fresh_like(var)
            self.env[inner[var]] = const
        inner.update(zip(jaxpr.invars, inputs, strict=True))
        self.run(jaxpr.eqns, inner)
        results = [lookup(v, inner) for v in jaxpr.outvars]
        scope.update(zip(outvars, results, strict=False))
        return results[len(outvars) :]

    def _keep_loop(self, eqn: Any, inputs: list[Any], scope: dict[Any, Any]) -> None:
        """A scan that returns its draws as well, each of its sites one with a lane per step."""
        assert self.loops is not None
        jaxpr, consts = _jax.open_jaxpr(eqn.params["jaxpr"])
        body = Inliner(dict(zip(jaxpr.constvars, consts, strict=True)), loops=None)
        inner: dict[Any, Any] = {}
        body.run(jaxpr.eqns, inner)
        outs = [lookup(v, inner) for v in jaxpr.outvars]
        fn, sites = returning_draws(eqn, body.eqns, body.env, jaxpr.invars, outs)
        # the loop's sites are drawn inside, the lifted evaluation is outside: it passes the
        # number of the trajectory in, as an operand of its own
        trajectories = [_jax.Var(_jax.shaped_array((), jnp.dtype(jnp.int32))) for _ in sites]
        self.env.update((v, jnp.int32(0)) for v in trajectories)
        shaped = [jax.ShapeDtypeStruct((), jnp.int32)] * len(sites)
        closed, _ = _jax.trace(fn, *shaped, *(_jax.shaped(v.aval) for v in eqn.invars))
        extras = self.splice(closed, [*trajectories, *inputs], eqn.outvars, scope)
        scan = next(e for e in reversed(self.eqns) if e.primitive.name == "scan")
        for site, trajectory in zip(sites, trajectories, strict=True):
            template, lanes = site.params["template"], site.params["lanes"]
            count = len(site.invars) - 1
            value, key, *leaves = (extras.pop(0) for _ in range(count + 2))
            steps = Lanes(eqn.params["length"], (True,) * count)
            loop = Loop(scan, trajectory)
            self.loops.append(_Drawn(template, (steps, *lanes), value, key, leaves, loop))


def live(eqns: list[Any], outputs: list[Any], effects: bool = True) -> list[Any]:
    """The equations that some output needs; those with ``effects``, too."""
    needed = {v for v in outputs if not isinstance(v, _jax.Literal)}
    kept = []
    for eqn in reversed(eqns):
        if (effects and eqn.effects) or any(v in needed for v in eqn.outvars):
            needed.update(v for v in eqn.invars if not isinstance(v, _jax.Literal))
            kept.append(eqn)
    return kept[::-1]


class _Drawn(NamedTuple):
    template: Template
    lanes: tuple[Lanes, ...]
    var: Any
    key: Any
    leaves: list[Any]
    loop: Loop | None = None


def sites_of(eqns: list[Any], loops: list[_Drawn]) -> dict[Any, Site]:
    """The sites in program order."""
    drawn: list[_Drawn] = []
    for eqn in eqns:
        if eqn.primitive is sample_p:
            key, *leaves = eqn.invars
            template, lanes = eqn.params["template"], eqn.params["lanes"]
            drawn.append(_Drawn(template, lanes, eqn.outvars[0], key, leaves))
        drawn += [d for d in loops if any(d.var is v for v in eqn.outvars)]
    sites: dict[Any, Site] = {}
    for d, name in zip(drawn, _unique([d.template.name for d in drawn]), strict=True):
        lane_shape = (*(lane.size for lane in d.lanes), *d.template.batch_shape)
        log_prob = _stage_log_prob(d.template, d.lanes, d.var, d.leaves)
        sites[d.var] = Site(
            len(sites), name, d.template, d.lanes, d.key, tuple(d.leaves), d.var, lane_shape,
            log_prob, d.loop,
        )  # fmt: skip
    return sites


def _unique(names: list[str]) -> list[str]:
    """The names, numbered from the second of its kind on, past what a user already wrote so."""
    taken, unique = set(names), []
    for i, name in enumerate(names):
        number = names[:i].count(name) + 1
        label = name
        while number > 1 and (label == name or label in taken):
            label, number = f"{name}#{number}", number + 1
        taken.add(label)
        unique.append(label)
    return unique


def _stage_log_prob(template: Template, lanes: Any, var: Any, leaves: Any) -> Any:
    def log_prob(value: Any, *xs: Any) -> Any:
        return lane_log_prob(template, lanes, value, xs)

    shaped = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in (var, *leaves)]
    closed = _jax.trace(log_prob, *shaped)[0]
    jaxpr, consts = _jax.open_jaxpr(closed)
    env = dict(zip(jaxpr.constvars, consts, strict=True))
    inliner = Inliner(env, loops=None)
    scope: dict[Any, Any] = {}
    inliner.run(jaxpr.eqns, scope)
    outs = [lookup(v, scope) for v in jaxpr.outvars]
    return _jax.closed(live(inliner.eqns, outs), env, jaxpr.invars, outs)
