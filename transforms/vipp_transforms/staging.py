"""A program that draws random values, as a flat list of equations and its sites."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.errors import SiteError
from vipp_transforms.sites import (
    Lanes,
    Template,
    lane_key_p,
    lane_log_prob,
    running_directly,
    sample_p,
)

Atom = Any  # a variable or a literal of a jaxpr


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
      eqns: equations in order, among them one per site.
      sites: by the variable of the drawn value.
      out: the atom whose expectation is wanted.
      aux: atoms of the auxiliary outputs.
      aux_tree: their structure.
    """

    env: dict[Any, Any]
    eqns: tuple[Any, ...]
    sites: dict[Any, Site]
    out: Atom
    aux: tuple[Atom, ...]
    aux_tree: Any


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
        return bool(_names_of_sites(self.closed))

    def evaluate(self) -> tuple[jax.Array, Any]:
        """Run it as it stands: the value, and the auxiliary outputs without gradient."""
        value, *aux = _jax.call(self.closed, self.arrays)
        return value, jax.tree_util.tree_unflatten(self.aux_tree, jax.lax.stop_gradient(aux))


def trace(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traced:
    """Trace ``fn(*args, **kwargs) -> (value, aux)``.

    Only JAX arrays become inputs; Python numbers and NumPy arrays stay what they are, so that
    shapes and branches may depend on them.
    """
    leaves, treedef = jax.tree_util.tree_flatten((args, kwargs))
    dynamic = [isinstance(leaf, jax.Array) for leaf in leaves]
    arrays = [leaf for leaf, d in zip(leaves, dynamic, strict=True) if d]

    def flat(*values: Any) -> Any:
        given = iter(values)
        merged = [next(given) if d else x for d, x in zip(dynamic, leaves, strict=True)]
        inner_args, inner_kwargs = jax.tree_util.tree_unflatten(treedef, merged)
        value, aux = fn(*inner_args, **inner_kwargs)
        check_scalar(value)
        return value, aux

    with running_directly(False):
        closed, shape = _jax.trace(flat, *arrays)
    return Traced(closed, arrays, jax.tree_util.tree_structure(shape[1]))


def stage(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
    """Trace ``fn(*args, **kwargs) -> (value, aux)`` into a :class:`Program`."""
    return inline(trace(fn, args, kwargs))


def inline(traced: Traced) -> Program:
    """Open the calls of a traced program, drop what nothing needs, and find its sites."""
    jaxpr, consts = _jax.open_jaxpr(traced.closed)
    env = dict(zip(jaxpr.constvars, consts, strict=True))
    env |= dict(zip(jaxpr.invars, traced.arrays, strict=True))
    inliner = _Inliner(env)
    scope: dict[Any, Any] = {}
    inliner.run(jaxpr.eqns, scope)
    out, *aux = (_lookup(v, scope) for v in jaxpr.outvars)
    eqns = live(inliner.eqns, [out, *aux])
    return Program(env, tuple(eqns), _sites(eqns), out, tuple(aux), traced.aux_tree)


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


def _lookup(atom: Any, scope: dict[Any, Any]) -> Any:
    return atom if isinstance(atom, _jax.Literal) else scope.get(atom, atom)


class _Inliner:
    """Copies equations with jit calls opened; inner variables are renamed at each call."""

    def __init__(self, env: dict[Any, Any]):
        self.env = env
        self.eqns: list[Any] = []

    def run(self, eqns: Any, scope: dict[Any, Any]) -> None:
        for eqn in eqns:
            inputs = [_lookup(v, scope) for v in eqn.invars]
            if eqn.primitive is lane_key_p:
                scope[eqn.outvars[0]] = inputs[0]
            elif _jax.is_jit(eqn):
                self._open(eqn, inputs, scope)
            else:
                _refuse_nested_sites(eqn)
                outputs = [_jax.fresh_like(v) for v in eqn.outvars]
                self.eqns.append(eqn.replace(invars=inputs, outvars=outputs))
                scope.update(zip(eqn.outvars, outputs, strict=True))

    def _open(self, eqn: Any, inputs: list[Any], scope: dict[Any, Any]) -> None:
        jaxpr, consts = _jax.open_jaxpr(_jax.call_jaxpr(eqn))
        inner: dict[Any, Any] = {}
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            inner[var] = _jax.fresh_like(var)
            self.env[inner[var]] = const
        inner.update(zip(jaxpr.invars, inputs, strict=True))
        self.run(jaxpr.eqns, inner)
        for var, result in zip(eqn.outvars, jaxpr.outvars, strict=True):
            scope[var] = _lookup(result, inner)


def _refuse_nested_sites(eqn: Any) -> None:
    for sub in _jax.sub_jaxprs(eqn):
        for name in _names_of_sites(sub):
            raise SiteError(
                f"Site '{name}' is drawn inside '{eqn.primitive.name}' with an estimator other "
                "than Pathwise; only pathwise choices may be drawn there. Fix: give it "
                "estimator=vipp.Pathwise() with a reparameterisable distribution, or draw it "
                "outside (under a plate, or with vipp.replicate)."
            )


def _names_of_sites(jaxpr: Any) -> list[str]:
    """The names of all sites of a jaxpr, those of the jaxprs inside it included."""
    names = []
    for eqn in _jax.open_jaxpr(jaxpr)[0].eqns:
        if eqn.primitive is sample_p:
            names.append(eqn.params["template"].name)
        for sub in _jax.sub_jaxprs(eqn):
            names += _names_of_sites(sub)
    return names


def live(eqns: list[Any], outputs: list[Any]) -> list[Any]:
    """The equations that some output needs."""
    needed = {v for v in outputs if not isinstance(v, _jax.Literal)}
    kept = []
    for eqn in reversed(eqns):
        if eqn.effects or any(v in needed for v in eqn.outvars):
            needed.update(v for v in eqn.invars if not isinstance(v, _jax.Literal))
            kept.append(eqn)
    return kept[::-1]


def _sites(eqns: list[Any]) -> dict[Any, Site]:
    sites: dict[Any, Site] = {}
    drawn = [eqn for eqn in eqns if eqn.primitive is sample_p]
    names = _unique([eqn.params["template"].name for eqn in drawn])
    for eqn, name in zip(drawn, names, strict=True):
        template, lanes = eqn.params["template"], eqn.params["lanes"]
        var, (key, *leaves) = eqn.outvars[0], eqn.invars
        lane_shape = (*(lane.size for lane in lanes), *template.batch_shape)
        sites[var] = Site(
            len(sites),
            name,
            template,
            lanes,
            key,
            tuple(leaves),
            var,
            lane_shape,
            _stage_log_prob(template, lanes, var, leaves),
        )
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
    return _jax.trace(log_prob, *shaped)[0]
