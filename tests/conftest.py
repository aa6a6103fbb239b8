"""Settings for the whole session: CPU, no network, deterministic, strict where that is possible."""

import contextlib
import gc
import itertools
import os
import pathlib
import socket

from compilation import xla_flags
from quick import first_rows, spread

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["XLA_FLAGS"] = xla_flags()

import hypothesis
import jax
import numpy as np
import pytest

from vipp_transforms.uncompiled import uncompiled

# what one process has compiled, the others and the next run need not: half of a test's time
if jax.config.jax_compilation_cache_dir is None:
    folder = pathlib.Path(__file__).parents[1] / ".cache" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(folder))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
gc.set_threshold(200_000, 50, 1000)  # traces are many small objects, most of them alive

hypothesis.settings.register_profile(
    "vipp", derandomize=True, deadline=None, max_examples=50, database=None
)
hypothesis.settings.load_profile("vipp")


def pytest_addoption(parser):
    parser.addoption(
        "--compile-all",
        action="store_true",
        help="run by XLA, as for a user, what tests marked uncompiled leave to NumPy (slower)",
    )
    parser.addoption(
        "--check-leaks",
        action="store_true",
        help="run every test under jax.checking_leaks() (slow: JAX caches nothing meanwhile)",
    )


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    """What a module computes when it is imported, NumPy does: JAX would compile each operation."""
    with uncompiled():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    asked = item.get_closest_marker("uncompiled") and not item.config.getoption("--compile-all")
    with uncompiled() if asked else contextlib.nullcontext():
        return (yield)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish():
    """Pytest collects garbage five times at its end, each for seconds: once is enough."""
    gc.collect()
    gc.freeze()


ITEMS = pytest.StashKey[list]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Mark the rows that are not in the quick set (support/quick.py) before ``-m`` selects."""
    for item in items:
        if isinstance(item, pytest.DoctestItem):  # an example shows how to call, and is no law
            item.add_marker("thorough")
    tables = (item for item in items if hasattr(item, "callspec"))
    for _, rows in itertools.groupby(tables, lambda item: (item.path, item.originalname)):
        rows = list(rows)
        quick = first_rows([row.callspec.params for row in rows])
        few = rows[0].get_closest_marker("few")
        quick = quick if few is None else spread(quick, *few.args)
        for row, kept in zip(rows, quick, strict=True):
            if not kept:
                row.add_marker("thorough")
    config.stash[ITEMS] = list(items)


@pytest.fixture
def collected(request):
    """Everything that was collected, before ``-m`` and ``-k`` selected of it."""
    return request.config.stash[ITEMS]


def pytest_itemcollected(item):
    """A name with an address in it would differ between the processes that share the tests."""
    assert " at 0x" not in item.nodeid, f"{item.nodeid}: name the case, with ids=label"


@pytest.fixture(autouse=True)
def _strict_jax(request):
    """Rank promotion raises in the engine's tests; leaks are checked where a test asks for it.

    NumPyro itself promotes ranks (a plate over a distribution with event dimensions does), so the
    language's tests cannot raise by default: mark those that can with `rank_promotion("raise")`.
    """
    marker = request.node.get_closest_marker("rank_promotion")
    if marker is not None:
        mode = marker.args[0]
    else:
        mode = "raise" if "test_transforms" in request.path.parts else "allow"
    leaks = request.config.getoption("--check-leaks") or request.node.get_closest_marker(
        "check_leaks"
    )
    with jax.numpy_rank_promotion(mode), jax.check_tracer_leaks(bool(leaks)):
        yield


@pytest.fixture(autouse=True)
def _seeded_numpy():
    np.random.seed(0)  # noqa: NPY002


@pytest.fixture(autouse=True, scope="session")
def _no_network():
    """A test that opens a connection fails; local (non-internet) sockets stay usable."""
    connect = socket.socket.connect

    def refuse(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            raise RuntimeError(f"a test tried to connect to {address!r}; tests use no network")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.fixture
def x64():
    """Double precision for one test, for comparisons that should be exact."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)
