"""Compare random programs with brute force: ``python tests/fuzz/fuzz.py 0:5000``.

Prints every disagreement, cut down, as a program; in the end a table of what the programs held and
how they came out. Exits with 1 if there was a disagreement.
"""

import gc
import os
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax

import comparison
import covered
import engine_programs as programs
import language_maker
import language_programs as language
import program_maker
import shrinking

DISAGREEMENTS = ("differs", "engine error")
FAILURES = (*DISAGREEMENTS, "brute error")


def describe(program, outcome):
    """A failure: what was got and expected, and the program."""
    lines = [f"seed {program.seed}: {outcome.kind} {outcome.detail[:600]}"]
    if outcome.expected is not None:
        lines.append(f"(value, slope): engine {outcome.got}, brute force {outcome.expected}")
    text = [programs.source(program)] if isinstance(program, programs.Program) else []
    text = text or [f"# {program.objective}", language.source(program)]
    estimators = ", ".join(f"{k}: {v}" for k, v in program.estimators.items())
    return "\n".join([*lines, f"estimators {{{estimators}}}", *text])


def make(seed):
    """Of six seeds five are programs of the engine and one is a model with a guide."""
    return language_maker.make(seed) if seed % 6 == 5 else program_maker.make(seed)


def main(seeds, seconds=60.0):
    """Compare the programs of ``seeds``; whether some disagreed."""
    table, start = covered.Table(), time.process_time()
    gc.disable()  # tracing makes many small objects that are soon gone
    for count, seed in enumerate(seeds, start=1):
        program, outcome = comparison.run(make(seed))
        table.add(program, outcome)
        if outcome.kind in DISAGREEMENTS:
            small = shrinking.shrink(program, comparison.same_failure(outcome), seconds)
            print(describe(small, comparison.compare(small)), flush=True)
        if count % 50 == 0:
            gc.collect()
        if count % 500 == 0:
            jax.clear_caches()
            each = (time.process_time() - start) / count
            print(f"# {count} of {len(seeds)}, {each:.2f} s each: {table.summary()}", flush=True)
    print("\n".join(table.lines()))
    print(f"{(time.process_time() - start) / max(len(seeds), 1):.2f} CPU seconds per program")
    return bool(table.disagreed)


if __name__ == "__main__":
    first, last = map(int, sys.argv[1].split(":"))
    sys.exit(main(range(first, last)))
