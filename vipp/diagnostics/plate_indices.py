"""Whether arrays have the entries that the indices of plates, and those among the data, ask for.

JAX gives an entry that is not there as the last one, silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.autoguide import AutoGuide
from numpyro.util import not_jax_tracer

from vipp.diagnostics.data import argument_names
from vipp.diagnostics.free_parameters import rerun
from vipp.diagnostics.records import Site
from vipp.language.mistake import CheckError
from vipp_transforms import _jax
from vipp_transforms.reach import Labels, Walk, reach

_SAME = (
    "gather",
    "convert_element_type",
    "broadcast_in_dim",
    "reshape",
    "squeeze",
    "copy",
    "slice",
)
_NOTHING: Labels = frozenset()


class _Index(NamedTuple):
    """Indices below ``size``, in a column of a table of indices; or whether they are negative."""

    name: str
    what: str
    size: int
    column: int = 0
    negative: bool = False


class _Named(NamedTuple):
    """Made of an argument or a parameter."""

    name: str
    what: str


def check_indices(
    model: Any,
    guide: Any,
    sites: Mapping[str, Site],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    """Both programs are written down with indices that are not known yet.

    Args:
      model: a NumPyro program.
      guide: a NumPyro program; an autoguide's plates are the model's.
      sites: those of both, as far as they are known.
      args: arguments of both.
      kwargs: keyword arguments of both.

    Raises:
      CheckError: naming an argument, parameter or plate whose indices go beyond an array's end.
    """
    plates = {n: s for n, s in sites.items() if s["type"] == "plate" and s["value"] is not None}
    indices = {n: s["value"] for n, s in plates.items()}
    params = {n: s["value"] for n, s in sites.items() if s["type"] == "param"}
    leaves, structure = jax.tree.flatten((args, dict(kwargs)))
    arrays = {i: x for i, x in enumerate(leaves) if _is_array(x)}
    if not indices and not any(_is_index(x) for x in arrays.values()):
        return

    def run(indices: Any, arrays: dict[int, Any], params: Any) -> Any:
        given = [arrays.get(i, x) for i, x in enumerate(leaves)]
        args, kwargs = jax.tree.unflatten(structure, given)
        programs = [model] if isinstance(guide, AutoGuide) else [guide, model]
        found = [rerun(p, {**params, **indices}, args, kwargs).values() for p in programs]
        return [
            (s["value"], jax.tree.leaves(s["fn"])) for run in found for s in run if _is_sample(s)
        ]

    try:
        closed, _ = _jax.trace(run, indices, arrays, params)
    except Exception:  # a program that looks at its arguments: it is run as it is
        return
    names = argument_names(model, args, kwargs)
    labels = (
        {n: frozenset({_Index(n, f"the indices of plate '{n}'", s["args"][0])})
         for n, s in plates.items()},
        {i: _of_argument(names[i], x) for i, x in arrays.items()},
        {n: jax.tree.map(lambda _, n=n: frozenset({_Named(n, "the parameter")}), x)
         for n, x in params.items()},
    )  # fmt: skip
    is_label = lambda x: isinstance(x, frozenset)
    reach(closed, jax.tree.leaves(labels, is_leaf=is_label), Walk(known=_known))


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray) and jnp.ndim(x) > 0 and x.dtype != object


def _is_sample(site: Site) -> bool:
    return site["type"] == "sample"


def _is_index(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.integer) and x.size and not_jax_tracer(x))


def _of_argument(name: str, x: Any) -> Labels:
    named = frozenset({_Named(name, f"argument {name}")})
    if not _is_index(x):
        return named
    largest = int(np.max(np.asarray(x)))
    return named | {_Index(name, f"the values of argument {name}, up to {largest},", largest + 1)}


def _known(eqn: Any, operands: list[Labels]) -> list[Labels] | None:
    """What a result has of an index or a name: the walk goes into calls and loops by itself."""
    name = eqn.primitive.name
    if name in ("scan", "while", "cond") or _jax.called(eqn) is not None:
        return None
    if name == "gather":
        _look(eqn, *operands[:2])
    indices = [frozenset(x for x in o if isinstance(x, _Index)) for o in operands]
    if name == "gather":  # entries of the first, which are indices if those are
        indices = indices[:1]
    names = _NOTHING.union(*(frozenset(x for x in o if isinstance(x, _Named)) for o in operands))
    return [names | _index(eqn, indices)] * len(eqn.outvars)


def _index(eqn: Any, operands: list[Labels]) -> Labels:
    """Which indices of a plate a result still is."""
    name = eqn.primitive.name
    if name in _SAME:
        return operands[0]
    if name == "lt" and _is_zero(eqn.invars[1]):
        return frozenset(i._replace(negative=True) for i in operands[0])
    if name == "select_n" and any(i.negative for i in operands[0]):  # -1 is the last one
        return operands[1]
    if name == "concatenate":
        axis, first, found = eqn.params["dimension"], 0, set()
        for atom, labels in zip(eqn.invars, operands, strict=True):
            found |= {i._replace(column=i.column + first) for i in labels}
            first += atom.aval.shape[axis]
        return frozenset(found)
    return _NOTHING


def _is_zero(atom: Any) -> bool:
    return isinstance(atom, _jax.Literal) and np.ndim(atom.val) == 0 and atom.val == 0


def _look(eqn: Any, operand: Labels, indices: Labels) -> None:
    numbers, shape = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
    if "CLIP" in str(eqn.params["mode"]):  # asked for
        return
    for index in indices:
        if not isinstance(index, _Index) or index.column >= len(numbers.start_index_map):
            continue
        axis = numbers.start_index_map[index.column]
        if shape[axis] < index.size:
            named = sorted(x for x in operand if isinstance(x, _Named))
            array = f"{named[0].what}, " if len(named) == 1 else "an array "
            one = named[0] if len(named) == 1 and index.what.startswith("the ind") else index
            raise CheckError(
                one.name,
                f"{array}of shape {tuple(shape)} at {index.what} of size {index.size}: beyond an "
                "array's end JAX repeats its last entry",
                f"at least {index.size} entries along axis {axis}",
                "give plates the size of the data, and what has an entry for each that size; count "
                "indices from 0; or ask for the last entry with array.at[i].get(mode='clip')",
            )
