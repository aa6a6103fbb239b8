"""A program that asks Python or NumPy for a value that JAX has not computed is told by its line."""

from __future__ import annotations

import contextlib
import linecache
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from vipp.language.mistake import CheckError
from vipp_transforms.errors import SiteError

_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
)
_OTHERS = {"contextlib", "flax", "functools", "jax", "jaxlib", "numpy", "numpyro", "vipp"}
_OTHERS |= {"optax", "vipp_transforms"}


@contextlib.contextmanager
def naming_the_line(program: Any, record: Mapping[str, Any]) -> Iterator[None]:
    """While a program runs: such an error has its line, and the site before it.

    Another error has them in a note.

    Args:
      program: a NumPyro program.
      record: its sites so far.

    Raises:
      CheckError: naming the program.
    """
    try:
        yield
    except _ERRORS as error:
        after = _after(record)
        raise CheckError(
            getattr(program, "__name__", type(program).__name__),
            f"a program that needs the value of what JAX has not computed yet{after}, "
            f"{_line(error)}: {type(error).__name__}",
            "operations on arrays, whatever their values",
            "jnp.where or numpyro's cond for `if`, jax.numpy for NumPy, a mask for x[condition]; "
            "and Python's numbers for sizes, among the arguments",
        ) from error
    except (CheckError, SiteError):
        raise
    except Exception as error:
        name = getattr(program, "__name__", type(program).__name__)
        note = f"vipp: this arose in '{name}'{_after(record)}, {_line(error)}."
        if not any(str(n).startswith("vipp: ") for n in getattr(error, "__notes__", ())):
            error.add_note(note)
        raise


def _after(record: Mapping[str, Any]) -> str:
    before = [n for n, s in record.items() if s["type"] == "sample"]
    return f" after site '{before[-1]}'" if before else ""


def _line(error: BaseException) -> str:
    """The innermost line that is of no library beneath."""
    own = [
        (frame.f_code.co_filename, number)
        for frame, number in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").split(".")[0] not in _OTHERS
    ]
    if not own:
        return "in a library"
    file, number = own[-1]
    return f"in `{linecache.getline(file, number).strip()}` ({file}:{number})"
