"""What is needed for its value alone, made of operands whose gradient is stopped.

It has no derivative anyway, and is not differentiated for nothing: the largest logit that a
normaliser is reckoned from, say, whose gradient is stopped after it was found.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from vipp_transforms import _jax
from vipp_transforms.equations import stopping
from vipp_transforms.flattening import Flat, Node, node_of


def undifferentiated(program: Flat) -> Flat:
    """A program in which what has no derivative is not differentiated."""
    moves = {*_jax.variables(program.outs)}
    for node in reversed(program.nodes):
        if not _stops(node) and not moves.isdisjoint(node.outs):
            moves.update(_jax.variables(node.operands))
    given = {*program.consts, *program.invars}
    stopped: dict[Any, Any] = {}
    nodes: list[Node] = []
    for node in program.nodes:
        if _stops(node) or not moves.isdisjoint(node.outs):
            nodes.append(node)
            continue
        for v in _jax.variables(node.operands):
            if v not in stopped and (v in moves or v in given) and _is_inexact(v):
                stopped[v] = _jax.fresh_like(v)
                nodes.append(node_of(stopping(v, stopped[v]), (v,), (stopped[v],)))
        read = lambda v: v if isinstance(v, _jax.Literal) else stopped.get(v, v)
        nodes.append(node._replace(operands=tuple(map(read, node.operands))))
    return dataclasses.replace(program, nodes=nodes)


def _stops(node: Node) -> bool:
    return node.eqn is not None and node.eqn.primitive.name == "stop_gradient"


def _is_inexact(atom: Any) -> bool:
    return hasattr(atom.aval, "dtype") and jnp.issubdtype(atom.aval.dtype, jnp.inexact)
