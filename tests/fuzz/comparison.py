"""A program under the engine, averaged over its estimators' draws, against the program itself."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import draws
import engine_programs as programs
import vipp_transforms as vt

THETA = np.array([0.4137, -0.3291, 0.7213])
DIRECTION = np.array([0.83, -0.61, 0.47])


class Outcome(NamedTuple):
    """What a comparison found.

    ``kind`` is one of: agrees, refused, too large, differs, engine error, brute error, not finite.
    """

    kind: str
    detail: str = ""
    got: Any = None
    expected: Any = None
    joint: int = 0
    primitives: Any = None
    fallbacks: Any = None


def estimator(text):
    """An estimator from its source."""
    return eval(text, {"vt": vt})


def engine_estimate(program):
    """``(key, theta) -> (value, gradient)``, as a user of the engine has it."""
    estimators = {name: estimator(e) for name, e in program.estimators.items()}
    run = programs.function(program)

    def draw(name, key, distribution):
        return vt.sample(key, distribution, estimators[name], name=name)

    def estimate(key, theta):
        fn = lambda t: (run(t, key, draw), None)
        return jax.value_and_grad(lambda t: vt.surrogate(fn)(t)[0])(theta)

    return estimate


def plain(program):
    """``(key, theta) -> (value, slope along DIRECTION)`` of the program as it stands."""
    run = programs.function(program, forwards=True)

    def draw(name, key, distribution):
        return draws.drawn(key, draws.log_table(distribution), counted=True)

    def both(key, theta):
        tangent = jnp.asarray(DIRECTION, theta.dtype)
        return jax.jvp(lambda t: run(t, key, draw), (theta,), (tangent,))

    return both


def truth(program):
    """The program's own expectation and its slope: a `draws.Mean`, or why there is none."""
    theta = jnp.asarray(THETA, jnp.result_type(float))
    try:
        expected = draws.mean(draws.trace(plain(program), theta), slope_from=0)
    except draws.TooMany as error:
        return Outcome("too large", f"brute force: {error}")
    except Exception as error:
        return Outcome("brute error", f"{type(error).__name__}: {error}")
    if not np.isfinite(expected.values).all():
        return Outcome("not finite", str(expected.values))
    return expected


def compare(program, expected=None):
    """Whether the engine's estimate has the program's expectation, in value and in slope."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = expected or truth(program)
        return expected if isinstance(expected, Outcome) else _compare(program, expected)


def _compare(program, expected):
    theta = jnp.asarray(THETA, jnp.result_type(float))
    want, met = np.array(expected.values), expected.primitives
    try:
        mean = draws.mean(draws.trace(engine_estimate(program), theta))
    except draws.TooMany as error:
        return Outcome("too large", f"engine: {error}", primitives=met)
    except vt.SiteError as error:
        kind = "refused" if "Fix:" in str(error) else "engine error"
        return Outcome(kind, str(error), expected=want, primitives=met)
    except Exception as error:
        return Outcome("engine error", f"{type(error).__name__}: {error}", None, want)
    value, gradient = mean.values
    got = np.array([value, gradient @ DIRECTION])
    fallbacks = mean.fallbacks + expected.fallbacks
    single = bool(fallbacks) and not jax.config.jax_enable_x64
    close = np.abs(got - want) <= (5e-4 if single else 2e-5) * (1 + np.abs(want).max())
    return Outcome(
        "agrees" if close.all() else "differs", "", got, want, mean.joint, met, fallbacks
    )


def run(seed):
    """The program of a seed, under estimators that are averaged fast enough, and its outcome."""
    program = programs.make(seed)
    if not program.estimators:
        return program, Outcome("no sites")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = truth(program)
    outcome = compare(program, expected)
    for lighter in LIGHTER:
        if not outcome.detail.startswith("engine: "):
            break
        program = program._replace(
            estimators={k: lighter(e) for k, e in program.estimators.items()}
        )
        outcome = compare(program, expected)
    return program, outcome


def _plain_samples(estimator):
    kept = (
        "vt.Enumerate()",
        "vt.LocalExpectation()",
        "vt.MeasureValued()",
        "vt.DisARM()",
        "vt.ARM()",
    )
    return estimator if estimator in kept else "vt.ScoreFunction()"


LIGHTER = (_plain_samples, lambda e: "vt.ScoreFunction()", lambda e: "vt.Enumerate()")


def same_failure(outcome):
    """A test for programs that fail as that one did."""
    head = outcome.detail.split(":")[0]

    def fails(program):
        if not program.estimators:
            return False
        found = compare(program)
        return found.kind == outcome.kind and found.detail.split(":")[0] == head

    return fails
