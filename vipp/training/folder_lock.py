"""A lock on an open file, which ends with the process however that ends."""

from __future__ import annotations

from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    def lock(file: IO[str]) -> None:
        """Lock a file.

        Raises:
          OSError: if it is locked already.
        """
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore
else:

    def lock(file: IO[str]) -> None:
        """Lock a file.

        Raises:
          OSError: if it is locked already.
        """
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
