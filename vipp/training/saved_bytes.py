"""Arrays and notes as one row of bytes, with a digest that tells if any of them was damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_MAGIC = b"vipp.fit"
_DIGEST = hashlib.sha256().digest_size


def to_bytes(arrays: Sequence[np.ndarray], notes: Mapping[str, Any]) -> np.ndarray:
    """One array of bytes.

    Args:
      arrays: of any dtypes.
      notes: of numbers, strings, lists and dicts.
    """
    described = [[str(x.dtype), list(x.shape)] for x in arrays]
    text = json.dumps({"arrays": described, "notes": notes}).encode()
    parts = [np.ascontiguousarray(x).tobytes() for x in arrays]
    rest = b"".join([len(text).to_bytes(8, "little"), text, *parts])
    return np.frombuffer(_MAGIC + hashlib.sha256(rest).digest() + rest, np.uint8)


def from_bytes(saved: np.ndarray) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The arrays and notes that :func:`to_bytes` was given.

    Raises:
      ValueError: if these are other bytes than it returned.
    """
    whole = saved.tobytes()
    at = len(_MAGIC) + _DIGEST
    if hashlib.sha256(memoryview(whole)[at:]).digest() != whole[len(_MAGIC) : at]:
        raise ValueError("its bytes are not those that were written")
    start = at + 8
    end = start + int.from_bytes(whole[at:start], "little")
    header = json.loads(whole[start:end])
    arrays = []
    for dtype, shape in header["arrays"]:
        x = np.ndarray(shape, np.dtype(dtype), whole, end)
        arrays.append(x)
        end += x.nbytes
    return arrays, header["notes"]
