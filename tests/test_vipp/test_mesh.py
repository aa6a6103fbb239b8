"""Data shared out over devices: the losses and parameters of one device."""

import json
import socket
import subprocess
import sys

import numpy as np
import pytest

RUN = """
import json, os, sys, tempfile
sys.path[:0] = json.loads(sys.argv[1])
port, processes, rank, devices = map(int, sys.argv[2:])
os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
os.environ["JAX_PLATFORMS"] = "cpu"
import jax
if processes > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, rank)
import jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist, optax, vipp
x = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
y = x @ np.array([1, -1, 2], np.float32)
def model(x, y, size=400):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with numpyro.plate("N", size, subsample_size=len(x)):
        numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)
def guide(x, y, size=400):
    loc = numpyro.param("loc", jnp.zeros(3))
    numpyro.sample("w", dist.Normal(loc, 0.1).to_event(1))
adam = optax.adam(0.05)
def train(x, y, steps=30, **kwargs):
    result = vipp.fit(
        jax.random.key(0), vipp.ELBO(), model, guide, adam, steps,
        *([] if x is None else [x, y]), progress_bar=False, **kwargs)
    return [np.asarray(result.losses).tolist(), np.asarray(result.params["loc"]).tolist()]
mesh = jax.make_mesh((jax.device_count(),), ("data",))
found = {"shared": train(x, y, mesh=mesh)}
if processes == 1:
    batches = [(x[i : i + 40], y[i : i + 40]) for i in range(0, 400, 40)]
    found["one"] = train(x, y)
    found["shared batches"] = train(None, None, batches=batches, mesh=mesh)
    found["batches"] = train(None, None, batches=batches)
    several = {"num_restarts": 2, "validate": (jnp.array(x), jnp.array(y)), "log_every": 10}
    found["shared restarts"] = train(x, y, mesh=mesh, **several)
    found["restarts"] = train(x, y, **several)
    with tempfile.TemporaryDirectory() as folder:
        train(x, y, steps=20, mesh=mesh, checkpoint=folder)
        found["resumed"] = train(x, y, mesh=mesh, checkpoint=folder)
    try:
        train(x[:399], y[:399], size=399, mesh=mesh)
    except ValueError as error:
        found["refused"] = str(error)
else:
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    def whole(local):  # of which each process has read its rows alone
        return jax.make_array_from_process_local_data(rows, local)
    mine = slice(20 * rank, 20 * (rank + 1))
    batches = [(whole(x[i : i + 40][mine]), whole(y[i : i + 40][mine])) for i in range(0, 400, 40)]
    found["own rows"] = train(None, None, batches=batches, mesh=mesh)
print(json.dumps(found))
"""


def started(processes, devices):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", RUN, json.dumps(sys.path), str(port), str(processes)]
    ranks = [
        subprocess.Popen([*command, str(rank), str(devices)], stdout=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]
    return [json.loads(each.communicate()[0].splitlines()[-1]) for each in ranks]


@pytest.mark.thorough
def test_losses_are_those_of_one_device():
    (four,), (first, second) = started(1, 4), started(2, 1)
    same = [(four, "shared", "one"), (first, "shared", "one"), (first, "own rows", "batches")]
    same += [(four, f"shared {what}", what) for what in ("batches", "restarts")]
    for shared, name, alone in same:
        for got, wanted in zip(shared[name], four[alone], strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5)
    assert first == second and four["resumed"] == four["shared"]
    assert "plate 'N' has 399 elements in a step, which 4 devices" in four["refused"]
