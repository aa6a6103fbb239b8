"""AIR by other means on the same canvases: in plain JAX, and in Pyro in an environment of its own."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import venv
from typing import Any

import jax
import numpy as np
from _air import Canvases, Setting, programs
from _air_by_hand import updating
from _air_training import in_batches, key, optimiser, prepared
from _common import compiled, paired, table, verdict

import vipp

REQUIREMENTS = ["torch==2.13.0", "pyro-ppl==1.9.2"]


def against_by_hand(setting: Setting, x: jax.Array, way: Any, rounds: int) -> None:
    """Seconds per epoch of leave-one-out, of those of the same in plain JAX."""
    model, guide = programs(setting)
    objective, chosen = way
    svi, state, epoch, first = prepared(
        objective, model, vipp.with_estimators(guide, chosen), x, setting
    )
    params = svi.get_params(state)
    carry = params, optimiser(setting.rate).init(params), key(0)
    started = time.process_time()
    by_hand = compiled(in_batches(updating(setting, optimiser(setting.rate))), carry, key(0), x)
    compiling = {"by hand": time.process_time() - started, "vipp": first}
    taken = paired(
        {"by hand": (by_hand, (carry, key(0), x)), "vipp": (epoch, (state, key(0), x))}, rounds
    )
    rows = [[name, seconds, compiling[name]] for name, seconds in taken.items()]
    header = ["program", "s / epoch", "trace and compile, CPU s"]
    table(f"Leave-one-out of 2, {len(x)} canvases", header, rows)
    ratio = taken["vipp"] / taken["by hand"]
    print(f"seconds per epoch, of by hand: {ratio:.3f}, {verdict(ratio, 1.1)}")


def against_pyro(
    setting: Setting, data: Canvases, held_out: Canvases, ways: dict[str, Any], epochs: int
) -> None:
    """Seconds per epoch of Pyro's two bounds and of vipp's ``ways``, in turn, on one core each."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        python = _environment(folder)
        shown, counts = held_out.x, held_out.counts
        np.savez(folder / "canvases.npz", x=data.x, held_out=shown, held_out_counts=counts)
        (folder / "setting.json").write_text(json.dumps(dataclasses.asdict(setting)))
        script = pathlib.Path(__file__).with_name("_air_pyro.py")
        files = [folder / "canvases.npz", folder / "setting.json", folder / "results.json"]
        subprocess.run([python, script, *files, "--epochs", str(epochs)], check=True)
        found = json.loads(files[-1].read_text())
    rows = []
    for way, (seconds, cpu, _) in found.items():
        rows.append([f"Pyro, {way}", float(np.median(seconds)), float(np.median(cpu))])
    model, guide = programs(setting)
    for way, (objective, chosen) in ways.items():
        _, state, epoch, _ = prepared(
            objective, model, vipp.with_estimators(guide, chosen), data.x, setting
        )
        rows.append([f"vipp, {way}", *_seconds(epoch, state, data.x, max(3, epochs))])
    table(f"{len(data.x)} canvases", ["program", "s / epoch", "CPU s / epoch"], rows)


def _seconds(epoch: Any, state: Any, x: jax.Array, epochs: int) -> tuple[float, float]:
    taken = []
    for number in range(epochs):
        started, used = time.perf_counter(), time.process_time()
        state, _ = jax.block_until_ready(epoch(state, key(number), x))
        taken.append((time.perf_counter() - started, time.process_time() - used))
    wall, cpu = np.median(taken, axis=0)
    return float(wall), float(cpu)


def _environment(folder: pathlib.Path) -> str:
    """An environment with PyTorch and Pyro; its Python."""
    print(f"installing {' '.join(REQUIREMENTS)}; Python {sys.version.split()[0]}", flush=True)
    venv.create(folder / "venv", with_pip=True)
    python = str(folder / "venv" / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, *REQUIREMENTS], check=True)
    return python
