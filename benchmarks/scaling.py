"""Weak scaling of ``fit(mesh=...)``: the same number of rows for each device, of 1, 2 and 4 devices.

Devices are simulated: they share this machine's cores, so that wall time cannot stay the same as on
real ones. What can be seen is whether the work for a row stays the same: CPU seconds for so many
rows, of those of one device. Each row of the table is a program of its own, or two that are joined by
``jax.distributed`` over the loopback device. Two numbers of steps are run, and subtracted.

    python benchmarks/scaling.py [--rows 20000] [--steps 100]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from typing import Any

from _common import table

ROUNDS = 3


def child(port: int, processes: int, rank: int, devices: int, rows: int, steps: int) -> None:
    """Train on the devices, and print seconds and the last loss."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    import time

    import jax

    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, rank)
    import jax.numpy as jnp
    import numpy as np
    import numpyro
    import numpyro.distributions as dist
    import optax

    import vipp

    number = jax.device_count()
    draw = np.random.default_rng(0)
    x = draw.normal(size=(rows * number, 50)).astype(np.float32)
    y = x @ np.linspace(-1, 1, 50, dtype=np.float32)

    def model(x: Any, y: Any) -> None:
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([50]).to_event(1))
        with numpyro.plate("rows", len(x)):
            numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    def guide(x: Any, y: Any) -> None:
        loc = numpyro.param("loc", jnp.zeros(50))
        numpyro.sample("w", dist.Normal(loc, 0.01).to_event(1))

    mesh = jax.make_mesh((number,), ("data",))
    optim = optax.adam(0.05)

    def seconds(steps: int) -> tuple[float, float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        losses = vipp.fit(
            jax.random.key(0), vipp.ELBO(), model, guide, optim, steps, x, y, mesh=mesh,
            progress_bar=False,
        ).losses  # fmt: skip
        return time.perf_counter() - wall, time.process_time() - cpu, float(losses[-1]) / len(x)

    seconds(2)
    more = [np.subtract(seconds(3 * steps), seconds(steps)) / (2 * steps) for _ in range(ROUNDS)]
    wall, cpu, _ = np.median(more, axis=0)
    print(json.dumps([float(wall), float(cpu), seconds(steps)[2]]))


def measured(processes: int, devices: int, rows: int, steps: int) -> list[float]:
    """Wall and CPU seconds a step, of all processes together, and the loss of a row."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--child", str(port), str(processes)]
    more = [str(devices), str(rows), str(steps)]
    ranks = [
        subprocess.Popen([*command, str(rank), *more], stdout=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]
    found = [json.loads(each.communicate()[0].splitlines()[-1]) for each in ranks]
    return [max(x[0] for x in found), sum(x[1] for x in found), found[0][2]]


def main(rows: int, steps: int) -> None:
    """Print the table."""
    table_rows, first = [], None
    for processes, devices in ((1, 1), (1, 2), (1, 4), (2, 1)):
        wall, cpu, loss = measured(processes, devices, rows, steps)
        number = processes * devices
        first = cpu if first is None else first
        table_rows.append(
            [f"{processes} x {devices}", rows * number, 1e3 * wall, 1e3 * cpu,
             number * first / cpu, loss]
        )  # fmt: skip
    table(
        f"Weak scaling, {rows:,} rows of 50 for each device, {os.cpu_count()} cores",
        ["processes x devices", "rows", "wall ms a step", "CPU ms a step",
         "CPU of one device for as many rows, of this", "loss a row"],
        table_rows,
    )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*map(int, sys.argv[2:]))
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--rows", type=int, default=20_000)
        parser.add_argument("--steps", type=int, default=100)
        main(**vars(parser.parse_args()))
