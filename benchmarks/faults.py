"""Checkpoints on a full disk, a read-only one, in files that were damaged, and of two runs at once.

Disks are real file systems of memory; where none can be mounted (not Linux, not root) they are left
out. Each fault meets a run of 40
steps, saved every 10; then the fault is taken away and the run goes on, and is compared with one
that nothing happened to.

    python benchmarks/faults.py
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from _common import table

import vipp

KEY, X, ADAM, STEPS = jax.random.key(0), jnp.array([1.9, 2.3, 2.1, 1.7]), optax.adam(0.05), 40


def model(x: Any) -> None:
    """Of 2,000 parameters, so that a checkpoint has some size."""
    shift = numpyro.param("shift", jnp.zeros(2_000)).sum()
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(numpyro.param("mean", 0.0) + shift, 1.0), obs=x)


def train(folder: Any = None, steps: int = STEPS, **kwargs: Any) -> Any:
    """A run."""
    if folder is not None:
        kwargs |= {"checkpoint": str(folder), "checkpoint_every": 10}
    guide = lambda x: None
    return vipp.fit(KEY, vipp.ELBO(), model, guide, ADAM, steps, X, progress_bar=False, **kwargs)


@contextlib.contextmanager
def disk(size: str) -> Iterator[pathlib.Path]:
    """A file system of a size."""
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
        try:
            yield pathlib.Path(place)
        finally:
            subprocess.run(["umount", place], check=True)


def remount(place: pathlib.Path, options: str) -> None:
    """Change how a file system is mounted."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def said(run: Callable[[], Any]) -> tuple[str, Any]:
    """The error, and the result that it has."""
    try:
        return "no error", run()
    except vipp.CheckpointError as error:
        return str(error).partition("checkpoint: ")[2], getattr(error, "result", None)


def same(one: Any, other: Any) -> bool:
    """Whether two results are so bit by bit."""
    pairs = zip([one.losses, *one.params.values()], [other.losses, *other.params.values()])
    return all(np.array_equal(a, b) for a, b in pairs)


def row(name: str, folder: pathlib.Path, mend: Callable[[], Any]) -> list[Any]:
    """What a run says, what it keeps, and whether it goes on when the fault is mended."""
    text, result = said(lambda: train(folder))
    kept = "-" if result is None else f"{len(result.losses)} steps"
    mend()
    return [name, text[:110], kept, goes_on(folder)]


def goes_on(folder: pathlib.Path) -> str:
    """Whether the run ends where one that nothing happened to does."""
    return "yes" if same(train(folder), train()) else "NO"


def disks() -> Iterator[list[Any]]:
    """A row for each disk that can't be written to."""
    for size in ("32k", "48k", "72k"):
        with disk(size) as place:
            yield row(f"disk of {size}", place / "run", lambda: remount(place, "size=8m"))
    with disk("8m") as place:
        train(place / "run", 20)
        remount(place, "ro")
        yield row("read-only", place / "run", lambda: remount(place, "rw"))


CHANGES: dict[str, Callable[[bytes], bytes | None]] = {
    "cut in half": lambda b: b[: len(b) // 2],
    "a byte flipped": lambda b: b[: len(b) // 2] + b"~" + b[len(b) // 2 + 1 :],
    "deleted": lambda b: None,
}


def damages(before: pathlib.Path, parent: pathlib.Path) -> Iterator[list[Any]]:
    """A row for each file of a checkpoint, and what may happen to it."""
    files = [p.relative_to(before) for p in (before / "20").rglob("*") if p.is_file()]
    for file in sorted(files, key=lambda p: (len(p.parts), p)):
        for number, (what, change) in enumerate(CHANGES.items()):
            folder = shutil.copytree(before, parent / str(number), dirs_exist_ok=False)
            content = change((folder / file).read_bytes())
            (folder / file).unlink()
            if content is not None:
                (folder / file).write_bytes(content)
            name = "/".join(part[:12] for part in file.parts[1:])
            yield row(f"{name} {what}", folder, lambda: _move_away(folder))
            shutil.rmtree(folder)


def _move_away(folder: pathlib.Path) -> None:
    if not (folder / "40").exists():  # refused: the run did not get there
        shutil.rmtree(folder / "20")


def main() -> None:
    """Print the table."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax shows its threads' tracebacks
    mountable = sys.platform == "linux" and os.geteuid() == 0
    rows = list(disks()) if mountable else []
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place) / "run"
        train(folder, 20)
        rows += damages(folder, pathlib.Path(place))
        heard: list[str] = []
        second = lambda progress: heard.append(said(lambda: train(folder))[0])
        train(folder, log_every=25, callback=second)
        rows.append(["two runs in one folder", heard[0][:110], "-", goes_on(folder)])
    table("Faults", ["fault", "what the run says", "in .result", "goes on bit by bit"], rows)


if __name__ == "__main__":
    main()
