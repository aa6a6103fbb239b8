"""The only place that touches JAX's jaxpr data structures, so that a new JAX is met here.

Everything is taken from the public ``jax.extend.core``; what differs between releases (the
constructor of a jaxpr, the name of the jit primitive) is hidden behind the functions below.
"""

from __future__ import annotations

import functools
import inspect
import pathlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import core as jax_core
from jax.extend import core
from jax.interpreters import ad, batching, mlir
from jax.interpreters import partial_eval as pe

Literal = core.Literal
Var = core.Var
Primitive = core.Primitive

# Equations that evaluate one jaxpr on all their operands, in order: the parameter that holds it.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "core_closed_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "custom_vmap_call": "call",
    "composite": "jaxpr",
    "vipp_elementwise": "call_jaxpr",
}
# Those that mean nothing beyond it.
_INLINED = frozenset({"jit", "pjit", "closed_call", "core_call", "core_closed_call"})


def trace(fn: Callable[..., Any], *avals: Any) -> tuple[Any, Any]:
    """Stage ``fn`` at ``avals``: the jaxpr (with its constants) and the output's shapes."""
    return jax.make_jaxpr(fn, return_shape=True)(*avals)


def is_key(x: Any) -> bool:
    """Whether an array, or what stands for one, is of random keys."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def is_jit(eqn: Any) -> bool:
    """Whether an equation is a call that can be inlined without changing its meaning."""
    return eqn.primitive.name in _INLINED and called(eqn) is not None


def open_jaxpr(jaxpr: Any) -> tuple[Any, tuple[Any, ...]]:
    """A jaxpr, closed or not, as (jaxpr, constants)."""
    if hasattr(jaxpr, "jaxpr"):
        return jaxpr.jaxpr, tuple(jaxpr.consts)
    return jaxpr, ()


def called(eqn: Any) -> Any | None:
    """The jaxpr that a call evaluates on its operands, or None for any other equation."""
    param = _CALLS.get(eqn.primitive.name)
    return None if param is None else eqn.params.get(param)


def called_by(primitive: Any, params: Mapping[str, Any]) -> Any | None:
    """The same of a call that is about to be evaluated."""
    param = _CALLS.get(primitive.name)
    return None if param is None else params.get(param)


def linear_solve(eqn: Any) -> tuple[Any, list[int]] | None:
    """Of ``custom_linear_solve``: the jaxpr that solves, and which operands it is applied to."""
    if eqn.primitive.name != "custom_linear_solve":
        return None
    counts = eqn.params["const_lengths"]
    first = counts.matvec + counts.vecmat
    last = first + counts.solve + counts.transpose_solve
    sides = range(last, len(eqn.invars))
    return eqn.params["jaxprs"].solve, [*range(first, first + counts.solve), *sides]


def sub_jaxprs(eqn: Any) -> list[Any]:
    """Every jaxpr among an equation's parameters."""
    found = []
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns") or hasattr(item, "jaxpr"):
                found.append(item)
    return found


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, and of those inside its equations."""
    for eqn in open_jaxpr(jaxpr)[0].eqns:
        yield eqn
        yield from equations_inside(eqn)


def equations_inside(eqn: Any) -> Iterator[Any]:
    """Every equation of the jaxprs among an equation's parameters."""
    for sub in sub_jaxprs(eqn):
        yield from equations(sub)


def silent(eqn: Any) -> Any:
    """An equation without those inside it that only have an effect, such as printing."""
    if not eqn.effects or not sub_jaxprs(eqn):
        return eqn
    params = {key: _silent_param(value) for key, value in eqn.params.items()}
    silenced = eqn.replace(params=params)
    effects = frozenset().union(*(open_jaxpr(j)[0].effects for j in sub_jaxprs(silenced)))
    return silenced.replace(effects=effects)


def _silent_param(value: Any) -> Any:
    if isinstance(value, tuple):
        branches = any(hasattr(item, "jaxpr") for item in value)
        return tuple(map(_silent_param, value)) if branches else value
    inner = getattr(value, "jaxpr", value)
    if inner is not value:  # since JAX 0.12 a jaxpr has its constants itself
        return value.replace(jaxpr=_silent_param(inner))
    if not hasattr(value, "eqns"):
        return value
    eqns = [silent(e) for e in value.eqns if e.outvars]
    return value.replace(eqns=eqns, effects=frozenset().union(*(e.effects for e in eqns)))


def callers(eqn: Any) -> list[tuple[str, str]]:
    """The functions that an equation was made under, innermost first: file and qualified name."""
    traceback = eqn.source_info.traceback
    frames = [] if traceback is None else traceback.frames
    return [(pathlib.PurePath(f.file_name).as_posix(), f.function_name) for f in frames]


def user_line(eqn: Any) -> str | None:
    """Where the user's own code made an equation, ``file:line``."""
    traceback = eqn.source_info.traceback
    for frame in [] if traceback is None else traceback.frames:
        file = pathlib.PurePath(frame.file_name)
        if not file.as_posix().startswith(_INSTALLED):
            return f"{file.name}:{frame.line_num}"
    return None


# this package, and those beside JAX
_INSTALLED = tuple(
    f"{p.as_posix()}/"
    for p in (pathlib.Path(__file__).parent, pathlib.Path(jax.__file__).parents[1])
)


def variables(atoms: Iterable[Any]) -> list[Any]:
    """The atoms that are no literals."""
    return [v for v in atoms if not isinstance(v, Literal)]


def free(eqns: Sequence[Any]) -> list[Any]:
    """The variables that equations read and do not make."""
    made = {v for e in eqns for v in e.outvars}
    read = dict.fromkeys(v for e in eqns for v in variables(e.invars))
    return [v for v in read if v not in made]


def is_tracer(value: Any) -> bool:
    """Whether a value is being traced."""
    return isinstance(value, jax_core.Tracer)


def shaped_array(shape: tuple[int, ...], dtype: Any, weak_type: bool = False) -> Any:
    """The abstract value of an array."""
    return jax_core.ShapedArray(shape, dtype, weak_type=weak_type)


def shaped(aval: Any) -> jax.ShapeDtypeStruct:
    """What to trace a function with for an argument of that abstract value."""
    weak = bool(getattr(aval, "weak_type", False))
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=weak)


def scan_arity(eqn: Any) -> tuple[int, int]:
    """The number of constants and of carried values of a ``scan``.

    Its parameters are named differently from release to release; the shapes say it in all: what is
    scanned or stacked has one axis more outside the body than inside.
    """
    body, _ = open_jaxpr(eqn.params["jaxpr"])

    def same(outer: Sequence[Any], inner: Sequence[Any]) -> int:
        pairs = zip(outer, inner, strict=True)
        return sum(len(a.aval.shape) == len(b.aval.shape) for a, b in pairs)

    carried = same(eqn.outvars, body.outvars)
    return same(eqn.invars, body.invars) - carried, carried


def fresh_like(var: Any) -> Any:
    """A new variable with the type of ``var``."""
    return Var(var.aval)


def is_dropped(var: Any) -> bool:
    """Whether an output is unused by construction."""
    return type(var).__name__ == "DropVar"


def without_unread(eqn: Any) -> Any:
    """The equation without operands that nothing inside of it reads, such as those of a branch."""
    if eqn.primitive not in pe.dce_rules or eqn.effects:
        return eqn
    # since JAX 0.12.0.1 a rule is told, too, which operands are read elsewhere
    elsewhere = [[True] * len(eqn.invars)] if _rules_know_operands() else []
    rule: Callable[..., Any] = pe.dce_rules[eqn.primitive]
    read, smaller = rule([True] * len(eqn.outvars), *elsewhere, eqn)
    return eqn if smaller is None or all(read) else smaller


@functools.cache
def _rules_know_operands() -> bool:
    return "live_inputs" in inspect.signature(pe.dce_jaxpr).parameters


@functools.cache
def _debug_info() -> Any:
    return jax.make_jaxpr(lambda: ())().jaxpr.debug_info


def evaluator(
    eqns: Sequence[Any], invars: Sequence[Any], outvars: Sequence[Any]
) -> Callable[..., list[Any]]:
    """A function of ``invars``' values that evaluates ``eqns`` and returns ``outvars``' values.

    ``jaxpr_as_fun`` keeps source information and custom derivative rules.
    """
    return core.jaxpr_as_fun(closed(eqns, {}, invars, outvars))


def closed(
    eqns: Sequence[Any], consts: Mapping[Any, Any], invars: Sequence[Any], outvars: Sequence[Any]
) -> Any:
    """The closed jaxpr of equations, given the values of variables that are no inputs."""
    effects = frozenset().union(*(e.effects for e in eqns)) if eqns else frozenset()
    jaxpr = core.Jaxpr(
        tuple(consts), tuple(invars), tuple(outvars), list(eqns), effects, _debug_info()
    )
    return core.ClosedJaxpr(jaxpr, tuple(consts.values()))


def apply(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """The results of one equation on given operand values."""
    invars = [fresh_like(v) for v in eqn.invars]
    return evaluator([eqn.replace(invars=invars)], invars, eqn.outvars)(*values)


def evaluate_with(
    eqns: Sequence[Any],
    values: dict[Any, Any],
    outs: Sequence[Any],
    special: Callable[[Any, list[Any]], list[Any] | None],
) -> list[Any]:
    """Equation by equation, each as it is unless ``special`` has results for it."""

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in eqns:
        inputs = [read(v) for v in eqn.invars]
        results = special(eqn, inputs)
        results = apply(eqn, inputs) if results is None else results
        values.update(zip(eqn.outvars, results, strict=True))
    return [jnp.asarray(read(v)) for v in outs]


def define_primitive(
    name: str,
    impl: Callable[..., Any],
    abstract: Callable[..., Any],
    batch: Callable[..., Any],
    jvp: Callable[..., Any] | None = None,
    transpose: Callable[..., Any] | None = None,
    *,
    several: bool = False,
) -> Any:
    """A primitive evaluated, compiled, vmapped, differentiated and transposed as given.

    With ``several`` results all of them are lists.
    """
    primitive = Primitive(name)
    primitive.multiple_results = several
    primitive.def_impl(impl)
    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(impl, multiple_results=several))
    if jvp is not None:
        ad.primitive_jvps[primitive] = jvp
    if transpose is not None:
        ad.primitive_transposes[primitive] = transpose
    return primitive


_DERIVATIVES = frozenset({"JVPTrace", "LinearizeTrace"})


def trace_now() -> weakref.ref[Any]:
    """What Python runs under now: the innermost JAX transformation that may run it repeatedly.

    Derivatives are passed over: a function that is differentiated runs once.
    """
    with core.take_current_trace() as current:
        found: Any = current
        while type(found).__name__ in _DERIVATIVES:
            found = found.parent_trace
        return weakref.ref(found)


def define_linear(
    name: str,
    identity: Callable[..., Any],
    batch: Callable[..., Any],
    jvp: Callable[..., Any],
    back: Callable[..., Any] | None = None,
) -> Any:
    """A primitive ``(y, *others) -> y``, linear in ``y``; ``back`` is applied to cotangents."""

    def transpose(cotangent: Any, y: Any, *others: Any, **params: Any) -> list[Any]:
        if not is_zero(cotangent):
            send = back or primitive.bind
            cotangent = send(cotangent, *others, **params)
        return [cotangent, *(None for _ in others)]

    primitive = define_primitive(name, identity, identity, batch, jvp, transpose)
    return primitive


def is_zero(tangent: Any) -> bool:
    """Whether a tangent is zero because nothing is differentiated."""
    return isinstance(tangent, ad.Zero)


def zero_like(primal: Any) -> Any:
    """The tangent of what is not differentiated."""
    return ad.Zero(shaped_array(primal.shape, primal.dtype))


def evaluated(closed: Any, values: Sequence[Any]) -> list[Any]:
    """The results of a closed jaxpr on given inputs."""
    return core.jaxpr_as_fun(closed)(*values)


def depends(closed: Any) -> list[bool]:
    """Which outputs of a closed jaxpr may depend on its inputs, and not on constants alone."""
    reached = set(closed.jaxpr.invars)
    for eqn in closed.jaxpr.eqns:
        if any(v in reached for v in eqn.invars if not isinstance(v, Literal)):
            reached.update(eqn.outvars)
    return [not isinstance(v, Literal) and v in reached for v in closed.jaxpr.outvars]
