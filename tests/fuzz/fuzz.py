"""Compare random programs with brute force: ``python tests/fuzz/fuzz.py 0:5000``.

Prints every disagreement, cut down, as a program; then how many programs had which outcome, and
which primitives occurred. Exits with 1 if there was a disagreement.
"""

import gc
import os
import sys
import time
from collections import Counter

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax

import comparison
import engine_programs as programs
import language_maker
import language_programs as language
import program_maker
import shrinking

FAILURES = ("differs", "engine error", "brute error")


class Tally:
    """Counts over many programs."""

    def __init__(self):
        self.kinds, self.primitives, self.fallbacks = Counter(), Counter(), Counter()
        self.estimators, self.refusals, self.failed = Counter(), Counter(), []

    def add(self, program, outcome):
        self.kinds[outcome.kind] += 1
        self.primitives.update((outcome.primitives or {}).keys())
        self.fallbacks.update((outcome.fallbacks or {}).keys())
        if outcome.kind == "refused":
            self.refusals[outcome.detail.split(":")[1][:90]] += 1
        if outcome.kind == "agrees":
            self.estimators.update(program.estimators.values())
            self.estimators.update([getattr(program, "objective", "engine's own value")])
        if outcome.kind in FAILURES:
            self.failed.append(program.seed)

    def report(self):
        table = lambda counts: "\n".join(f"  {n:6d} {name}" for name, n in counts.most_common())
        yield f"outcomes\n{table(self.kinds)}"
        yield f"refused\n{table(self.refusals)}"
        yield f"estimators, of programs that agree\n{table(self.estimators)}"
        yield f"primitives ({len(self.primitives)}), in so many programs\n{table(self.primitives)}"
        yield f"of these evaluated by JAX, not by NumPy\n{table(self.fallbacks)}"
        yield f"disagreements: {self.failed or 'none'}"


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
    tally, start = Tally(), time.process_time()
    gc.disable()  # tracing makes many small objects that are soon gone
    for seed in seeds:
        program, outcome = comparison.run(make(seed))
        tally.add(program, outcome)
        if outcome.kind in FAILURES:
            small = shrinking.shrink(program, comparison.same_failure(outcome), seconds)
            print(describe(small, comparison.compare(small)), flush=True)
        if seed % 50 == 49:
            each = (time.process_time() - start) / (seed + 1 - seeds[0])
            print(f"# {seed + 1}: {dict(tally.kinds)}, {each:.2f} s each", flush=True)
            gc.collect()
        if seed % 500 == 499:
            jax.clear_caches()
    print("\n".join(tally.report()))
    print(f"{(time.process_time() - start) / max(len(seeds), 1):.2f} CPU seconds per program")
    return bool(tally.failed)


if __name__ == "__main__":
    first, last = map(int, sys.argv[1].split(":"))
    sys.exit(main(range(first, last)))
