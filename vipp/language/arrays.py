"""Arguments as arrays that a program may take apart by what JAX has not computed yet."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def as_jax(tree: Any) -> Any:
    """The same with JAX's arrays in place of NumPy's, which no index that is traced can be put to.

    Those that are not of numbers stay. Values are known still, in a program that JAX traces, too.
    """
    with jax.ensure_compile_time_eval():
        return jax.tree.map(lambda x: jnp.asarray(x) if _is_numbers(x) else x, tree)


def _is_numbers(x: Any) -> bool:
    if not isinstance(x, np.ndarray) or isinstance(x, np.ma.MaskedArray):
        return False
    return jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool
