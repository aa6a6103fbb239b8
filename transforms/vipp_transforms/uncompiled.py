"""Programs run once, on few numbers, without XLA compiling anything for them."""

from __future__ import annotations

import contextlib
import functools
import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from vipp_transforms import _eager, _jax
from vipp_transforms.numpy_rules import RULES, NoRuleError

MOST_NUMBERS = 2**18  # of an array: on more of them compiled code is worth its compiling
_KINDS = frozenset("biuf")
_RANDOM = frozenset(  # those that compute by other operations, and not by compiling themselves
    f"random_{what}" for what in "bits fold_in gamma seed split unwrap wrap".split()
)
_KEYS: dict[Any, Any] = {}  # the kinds of keys that were met, by dtype
_KNOWN: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Here, what JAX would run operation by operation, compiling each, NumPy does.

    Values are ``jax.Array``s as ever, and the same but for rounding; random bits are the same.
    Large arrays, those on a device that was chosen, loops, and what there is no rule for are left
    to JAX, as is everything under a transformation that was begun before.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> with uncompiled():
      ...     x = jax.grad(lambda x: jnp.exp(x) * x)(0.0)
      >>> float(x)
      1.0
    """
    with core.take_current_trace() as current:
        usual = type(current) is _eager.EvalTrace
    usual &= jax.sharding.get_abstract_mesh().empty
    if not usual or jax.config.jax_debug_nans:  # pyright: ignore[reportAttributeAccessIssue]
        yield
        return
    with core.set_current_trace(_trace()):
        yield


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Here, whatever is being traced outside, arrays are made now, as in :func:`uncompiled`.

    Raises:
      TypeError: where something that is traced takes part.
    """
    with core.set_current_trace(_untraced()):
        yield


@functools.cache
def _trace() -> Any:
    return _eager.running(_attempt)


@functools.cache
def _untraced() -> Any:
    return _eager.running(_attempt_untraced)


def _attempt_untraced(primitive: Any, operands: Sequence[Any], params: dict[str, Any]) -> Any:
    if any(map(_jax.is_tracer, operands)):
        raise TypeError(f"{primitive.name} of something that is traced, expected of arrays")
    return _attempt(primitive, operands, params)


def _attempt(primitive: Any, operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """The results of a primitive, a list of them if it has several; None if they need JAX."""
    if primitive.name in _RANDOM:
        with core.set_current_trace(_trace()):
            return primitive.impl(*operands, **params)
    jaxpr = _jax.called_by(primitive, params)
    known = _ruled(primitive.name, map(jax.typeof, operands)) if jaxpr is None else _known(jaxpr)
    if not known or not all(map(_small, operands)):
        return None
    try:
        if jaxpr is not None:
            avals = [v.aval for v in _jax.open_jaxpr(jaxpr)[0].outvars]
            with np.errstate(all="ignore"):
                results = _evaluate(jaxpr, [_number(x) for x in operands])
        else:
            avals = _eager.results_of(primitive, operands, params)
            with np.errstate(all="ignore"):
                results = _apply(primitive.name, avals, map(_number, operands), params)
    except NoRuleError:
        return None
    arrays = [_array(x, aval) for x, aval in zip(results, avals, strict=True)]
    return arrays if primitive.multiple_results else arrays[0]


def _small(x: Any) -> bool:
    """Whether an operand is of few numbers, on a device that nobody chose."""
    if isinstance(x, jax.Array):
        if _jax.is_key(x):
            return _usual(jax.random.key_data(x))
        return _usual(x) and _plain(x)
    return _plain(jax.typeof(x))


def _usual(x: Any) -> bool:
    return not _jax.is_tracer(x) and x.is_fully_addressable and not x.committed


def _plain(aval: Any) -> bool:
    if _jax.is_key(aval):
        return math.prod(aval.shape) <= MOST_NUMBERS
    dtype = np.dtype(aval.dtype)
    size = math.prod(aval.shape)
    return dtype.kind in _KINDS and dtype != np.float16 and size <= MOST_NUMBERS


def _known(jaxpr: Any) -> bool:
    """Whether there are rules for all of a jaxpr, and its arrays are small."""
    if jaxpr not in _KNOWN:
        inner, consts = _jax.open_jaxpr(jaxpr)
        _KNOWN[jaxpr] = all(map(_small, consts)) and all(map(_equation_known, inner.eqns))
    return _KNOWN[jaxpr]


def _equation_known(eqn: Any) -> bool:
    if eqn.effects or not all(_plain(v.aval) for v in (*eqn.invars, *eqn.outvars)):
        return False
    inside = _jax.called(eqn)
    if inside is not None:
        return _known(inside)
    name = eqn.primitive.name
    return name in _RANDOM or _ruled(name, [v.aval for v in eqn.invars])


def _ruled(name: str, operands: Iterable[Any]) -> bool:
    """Whether there is a rule. NumPy moves keys about, but doesn't compare them."""
    return name in RULES and not (name in ("eq", "ne") and any(map(_jax.is_key, operands)))


def _evaluate(jaxpr: Any, operands: Sequence[Any]) -> list[Any]:
    inner, consts = _jax.open_jaxpr(jaxpr)
    values = dict(zip(inner.constvars, map(_number, consts), strict=True))
    values.update(zip(inner.invars, operands, strict=True))

    def read(atom: Any) -> Any:
        return _number(atom.val, atom.aval) if isinstance(atom, _jax.Literal) else values[atom]

    for eqn in inner.eqns:
        inputs, inside = [read(v) for v in eqn.invars], _jax.called(eqn)
        if inside is not None:
            results = _evaluate(inside, inputs)
        elif eqn.primitive.name in _RANDOM:
            arrays = [_array(x, v.aval) for x, v in zip(inputs, eqn.invars, strict=True)]
            with core.set_current_trace(_trace()):
                results = [_number(eqn.primitive.impl(*arrays, **eqn.params))]
        else:
            avals = [v.aval for v in eqn.outvars]
            results = _apply(eqn.primitive.name, avals, inputs, eqn.params)
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in inner.outvars]


def _apply(name: str, avals: Sequence[Any], operands: Any, params: Any) -> list[Any]:
    if not all(map(_plain, avals)):
        raise NoRuleError
    results = RULES[name](*operands, **params)
    results = results if isinstance(results, list | tuple) else [results]
    return [np.asarray(x, _dtype(a)).reshape(a.shape) for x, a in zip(results, avals, strict=True)]


def _dtype(aval: Any) -> Any:
    return _data_type(aval.dtype) if _jax.is_key(aval) else aval.dtype


def _data_type(key: Any) -> Any:
    """The one number that stands for a key."""
    return np.dtype((np.void, 4 * math.prod(_KEYS[key][1])))


def _number(x: Any, aval: Any = None) -> Any:
    if isinstance(x, jax.Array) and _jax.is_key(x):
        data = np.asarray(jax.random.key_data(x))
        own = data.shape[x.ndim :]
        _KEYS[x.dtype] = jax.random.key_impl(x), own
        return np.ascontiguousarray(data).view(_data_type(x.dtype)).reshape(x.shape)
    if isinstance(x, jax.Array):
        return np.asarray(x)
    return np.asarray(x, jax.typeof(x).dtype if aval is None else aval.dtype)


def _array(x: Any, aval: Any) -> Any:
    if _jax.is_key(aval):
        impl, own = _KEYS[aval.dtype]
        data = np.ascontiguousarray(x).view(np.uint32).reshape(x.shape + own)
        return jax.random.wrap_key_data(jax.device_put(data.copy()), impl=impl)
    return _eager.placed(np.array(x), aval)
