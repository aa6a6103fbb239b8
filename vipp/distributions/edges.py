"""Where the support of a distribution ends, and densities that hold it still."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.custom_derivatives import SymbolicZero
from numpyro.distributions import constraints, transforms

from vipp.distributions.wrappers import factor, parts
from vipp_transforms.errors import SiteError

_ENDLESS = (type(constraints.real), type(constraints.complex))
_INDEPENDENT = type(constraints.independent(constraints.real, 1))


class Edge(NamedTuple):
    """A value at which the support ends.

    Attributes:
      of: the parameter that it comes from, for errors.
      value: a number or an array.
    """

    of: str
    value: Any


class _Boundary(NamedTuple):
    """Of a support.

    Attributes:
      edges: the values at which it ends.
      elsewhere: whether it also ends where no list of values says, as the simplex does.
    """

    edges: tuple[Edge, ...] = ()
    elsewhere: bool = False


_AT_A_SITE = (
    "a score function or a weak derivative does not see the mass at the moving end. Fix: use "
    "Pathwise(), or"
)


def hold_support(fn: Any, log_prob: jax.Array, name: str, why: str = _AT_A_SITE) -> jax.Array:
    r"""``log_prob``, which may not be differentiated in what moves the support of ``fn``.

    .. math:: \partial_\theta \int_{a}^{b(\theta)} q_\theta f
        = \int_{a}^{b(\theta)} f\, \partial_\theta q_\theta + b'(\theta)\, q_\theta(b) f(b)

    A score function or a weak derivative estimates the first term alone. Asking for the derivative
    is what raises, not a bound that is traced: one that is data, or held constant, is right.

    Args:
      fn: a distribution.
      log_prob: its log density at some value.
      name: of the site.
      why: what sees too little, and what to use instead, for the error.
    """
    moving = _traced(fn)
    if not moving:
        return log_prob
    what = type(factor(fn)).__name__, ", ".join(dict.fromkeys(e.of for e in moving))

    @jax.custom_jvp
    def held(log_prob: jax.Array, *values: jax.Array) -> jax.Array:
        return log_prob

    def refuse(primals: Any, tangents: Any) -> Any:
        if not all(isinstance(t, SymbolicZero) for t in tangents[1:]):
            raise _moves(name, *what, why)
        slope, values = tangents[0], primals[1:]
        slope = jnp.zeros_like(primals[0]) if isinstance(slope, SymbolicZero) else slope
        return held(*primals), held(slope, *values)  # both may be differentiated again

    held.defjvp(refuse, symbolic_zeros=True)
    return held(log_prob, *(e.value for e in moving))


def may_move(fn: Any) -> bool:
    """Whether the support of ``fn`` ends where an array says."""
    return bool(_traced(fn))


def _traced(fn: Any) -> list[Edge]:
    found = [e for e in edges(fn) if isinstance(e.value, jax.Array)]
    return [e for e in found if jnp.issubdtype(e.value.dtype, jnp.inexact)]


def _moves(name: str, kind: str, what: str, why: str) -> SiteError:
    return SiteError(
        f"Site '{name}': the support of {kind} moves with a parameter that the gradient is taken "
        f"in ({what}), expected one that stays where it is: {why} hold the bound fixed (a number, "
        "or jax.lax.stop_gradient of it)."
    )


def edges(fn: Any) -> tuple[Edge, ...]:
    """The values at which the support of ``fn`` ends, those that are numbers included."""
    return _boundary(fn).edges


def _boundary(fn: Any) -> _Boundary:
    fn = factor(fn)
    if isinstance(fn, dist.Delta):
        return _Boundary((Edge("v", fn.v),))
    if isinstance(fn, dist.Levy):  # put together again from its leaves it forgets its support
        return _Boundary((Edge("loc", fn.loc),))
    if isinstance(fn, dist.TransformedDistribution):
        found = _boundary(fn.base_dist)
        for transform in fn.transforms:
            found = _transformed(found, transform)
        return found
    own = _ends(fn.support)
    inner = [_boundary(part) for part in parts(fn)]
    found = tuple(Edge(_parameter(fn, e), e.value) for e in own.edges)
    return _Boundary(found + sum((b.edges for b in inner), ()), own.elsewhere)


def _parameter(fn: Any, edge: Edge) -> str:
    """The name under which a distribution keeps a bound."""
    names = [k for k, v in vars(fn).items() if v is edge.value and not k.startswith("_")]
    return names[0] if names else edge.of


def _ends(support: Any) -> _Boundary:
    """The boundary of a constraint."""
    while isinstance(support, _INDEPENDENT):
        support = support.base_constraint
    if support is None or isinstance(support, _ENDLESS):
        return _Boundary()
    bounds = {k: v for k, v in vars(support).items() if k in ("lower_bound", "upper_bound")}
    found = tuple(Edge(f"its {k.replace('_', ' ')}", v) for k, v in bounds.items() if _finite(v))
    return _Boundary(found, elsewhere=support.is_discrete or not bounds)


def _finite(value: Any) -> bool:
    return isinstance(value, jax.Array) or bool(np.all(np.isfinite(value)))


def _transformed(before: _Boundary, transform: Any) -> _Boundary:
    """The boundary after a transform; an end at zero is not moved by a scale."""
    if isinstance(transform, transforms.ComposeTransform):
        for part in transform.parts:
            before = _transformed(before, part)
        return before
    if before == _Boundary():
        return _ends(transform.codomain)
    held = [x for x in jax.tree.leaves(transform) if isinstance(x, jax.Array)]
    own = tuple(Edge(_of(transform), x) for x in held)
    if before.elsewhere or transform.domain.event_dim > 0:
        return _Boundary(before.edges + own, before.elsewhere)
    moved = (Edge(_where(e, transform), _at(transform, e.value)) for e in before.edges)
    return _Boundary(tuple(e for e in moved if _finite(e.value)))


def _where(edge: Edge, transform: Any) -> str:
    return edge.of if isinstance(edge.value, jax.Array) else _of(transform)


def _of(transform: Any) -> str:
    return f"a parameter of {type(transform).__name__}"


def _at(transform: Any, end: Any) -> Any:
    """Where a transform takes an end; what it does not depend on does not enter."""
    fixed = not isinstance(end, jax.Array)
    if isinstance(transform, transforms.AffineTransform) and fixed and np.all(end == 0):
        return transform.loc
    if isinstance(transform, transforms.PowerTransform) and fixed and np.all(end == 1):
        return end
    if isinstance(transform, transforms.PowerTransform) and fixed and np.all(end == 0):
        positive = (
            isinstance(transform.exponent, jax.Array)
            or np.min(np.asarray(transform.exponent, float)) > 0
        )
        return end if positive else np.inf
    if fixed and not any(isinstance(x, jax.Array) for x in jax.tree.leaves(transform)):
        with jax.ensure_compile_time_eval():
            return np.asarray(transform(jnp.asarray(end, float)))
    return transform(end)
