"""How the tests' programs are compiled: for a single use, so fast to compile, though slow to run."""

import os
import subprocess
import sys

PLAIN = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# twice as fast again
FASTEST = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def xla_flags() -> str:
    """The value of ``XLA_FLAGS``: the environment's own, or the fastest that this XLA knows.

    XLA aborts a process at a flag that it doesn't know, so a process of its own tries them. The
    workers of pytest-xdist inherit what their controller found.
    """
    if "XLA_FLAGS" in os.environ:
        return os.environ["XLA_FLAGS"]
    both = f"{PLAIN} {FASTEST}"
    probe = [sys.executable, "-c", "import jax; jax.devices()"]
    tried = subprocess.run(probe, env={**os.environ, "XLA_FLAGS": both}, capture_output=True)
    return PLAIN if tried.returncode else both
