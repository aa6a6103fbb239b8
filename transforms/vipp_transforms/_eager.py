"""How JAX evaluates at once what nothing traces, and how that is done otherwise.

What is internal to JAX here is met in this file alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

from vipp_transforms import _jax

try:
    from jaxlib._jax import batched_device_put
except ImportError:
    batched_device_put = None

with jax.ensure_compile_time_eval(), core.take_current_trace() as _outermost:
    EvalTrace = type(_outermost)  # what evaluates at once what nothing traces
    _EVALUATING = _outermost


def running(attempt: Callable[[Any, Sequence[Any], dict[str, Any]], Any]) -> Any:
    """A trace that evaluates at once: primitives by ``attempt``, or as JAX does if that is None."""

    class Running(EvalTrace):
        __slots__ = ()

        def process_primitive(self, primitive: Any, args: Any, params: Any, /) -> Any:
            with core.set_current_trace(_EVALUATING):
                results = attempt(primitive, args, params)
            return (
                super().process_primitive(primitive, args, params) if results is None else results
            )

        def process_custom_jvp_call(
            self, primitive: Any, fun: Any, jvp: Any, args: Any, /, **rest: Any
        ) -> Any:
            with core.set_current_trace(self):
                return fun.call_wrapped(*args)

        def process_custom_vjp_call(
            self, primitive: Any, fun: Any, fwd: Any, bwd: Any, args: Any, /, **rest: Any
        ) -> Any:
            with core.set_current_trace(self):
                return fun.call_wrapped(*args)

    return Running()


def results_of(primitive: Any, operands: Sequence[Any], params: Mapping[str, Any]) -> list[Any]:
    """The abstract values of a primitive's results."""
    avals = list(map(jax.typeof, operands))
    if primitive.name == "stage":  # it has no such rule in JAX 0.12
        return avals
    results, _ = primitive.abstract_eval(*avals, **params)
    return list(results) if primitive.multiple_results else [results]


def placed(x: Any, aval: Any) -> Any:
    """A NumPy array as JAX has it, of that abstract value, on the device that is usual now."""
    sharding = _usual_place(jax.config.jax_default_device)  # pyright: ignore
    aval = _jax.shaped_array(aval.shape, aval.dtype).update(weak_type=aval.weak_type)
    if batched_device_put is not None:  # a tenth of the time of jax.device_put
        return batched_device_put(aval, sharding, [x], list(sharding.device_set), False)
    array = jax.device_put(x)
    return type(array)(aval, sharding, [array], committed=False)


@functools.cache
def _usual_place(default: Any) -> Any:
    return jax.device_put(0.0).sharding
