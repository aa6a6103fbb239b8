"""A program under the engine, averaged over its estimators' draws, against the program itself."""

import re
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import draws
import engine_programs as programs
import language_programs as language
import language_words
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


def forwards(program):
    """Whether the derivative is taken in forward mode: two programs in three, as it is faster."""
    return program.seed % 3 > 0


def engine_estimate(program):
    """``(key, theta) -> (value, gradient)``, or in forward mode the slope for the gradient."""
    estimators = {name: programs.estimator(e) for name, e in program.estimators.items()}
    run = programs.function(program, forwards(program))

    def draw(name, key, distribution):
        return vt.sample(key, distribution, estimators[name], name=name)

    def estimate(key, theta):
        value = lambda t: vt.surrogate(lambda t: (run(t, key, draw), None))(t)[0]
        if forwards(program):
            return jax.jvp(value, (theta,), (jnp.asarray(DIRECTION, theta.dtype),))
        return jax.value_and_grad(value)(theta)

    return estimate


def plain(program):
    """``(key, theta) -> (value, slope along DIRECTION)`` of the program as it stands."""
    run = programs.function(program, forwards=True)

    def draw(name, key, distribution):
        return draws.plain(key, distribution)

    def both(key, theta):
        tangent = jnp.asarray(DIRECTION, theta.dtype)
        return jax.jvp(lambda t: run(t, key, draw), (theta,), (tangent,))

    return both


def averaged(fn, *args, slope_from=None):
    """The mean of a function's results over all of its draws, or why there is none."""
    try:
        return draws.mean(draws.trace(fn, *args), slope_from)
    except draws.TooMany as error:
        return Outcome("too large", str(error))
    except vt.SiteError as error:
        return Outcome("refused" if "Fix:" in str(error) else "error", str(error))
    except Exception as error:
        refused = isinstance(error, ValueError) and "Fix:" in str(error)
        return Outcome("refused" if refused else "error", f"{type(error).__name__}: {error}")


def truth(program):
    """The program's own expectation and its slope along a direction."""
    if isinstance(program, language.Pair):
        return _bound(program)
    return averaged(plain(program), jnp.asarray(THETA, float), slope_from=0)


def _bound(pair):
    """An objective's expected value and slope."""
    params = {k: jnp.asarray(v, float) for k, v in language_words.PARAMS.items()}
    direction = {k: jnp.asarray(v, float) for k, v in language_words.DIRECTION.items()}
    if "PIWAE" not in pair.objective:
        return averaged(_along(pair, direction, "formula"), params, slope_from=0)
    parts = []
    for follow, which in (("p", "formula"), ("q", "guide")):
        only = {k: v if k == follow else 0 * v for k, v in direction.items()}
        parts.append(averaged(_along(pair, only, which), params, slope_from=0))
        if isinstance(parts[-1], Outcome):
            return parts[-1]
    return parts[0]._replace(values=[parts[0].values[0], parts[0].values[1] + parts[1].values[1]])


def _along(pair, direction, which):
    return lambda key, params: jax.jvp(
        lambda p: language.bound(pair, key, p, which), (params,), (direction,)
    )


def estimate(program):
    """The value and the slope that vipp estimates, as a function, and its arguments."""
    if isinstance(program, language.Pair):
        return language.estimate(program)
    return engine_estimate(program), (jnp.asarray(THETA, float),)


def slope(program, gradients):
    """A gradient along the direction."""
    if isinstance(program, language.Pair):
        each = zip(gradients, sorted(language_words.DIRECTION), strict=True)
        return sum(g @ language_words.DIRECTION[name] for g, name in each)
    return gradients[0] if forwards(program) else gradients[0] @ DIRECTION


def compare(program, expected=None):
    """Whether the estimate has the program's expectation, in value and in slope."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = truth(program) if expected is None else expected
        if isinstance(expected, Outcome):
            kind = {"too large": "too large"}.get(expected.kind, "brute error")
            return expected._replace(kind=kind)
        if not np.isfinite(expected.values).all():
            return Outcome("not finite", str(expected.values))
        fn, args = estimate(program)
        return _judged(program, expected, averaged(fn, *args))


def _judged(program, expected, mean):
    want, met = np.array(expected.values), expected.primitives
    if isinstance(mean, Outcome):
        kind = {"error": "engine error", "too large": "engine too large"}.get(mean.kind, mean.kind)
        return mean._replace(kind=kind, expected=want, primitives=met)
    value, *gradients = mean.values
    got = np.array([value, slope(program, gradients)])
    fallbacks = mean.fallbacks + expected.fallbacks
    single = bool(fallbacks) and not jax.config.jax_enable_x64
    close = np.abs(got - want) <= (5e-4 if single else 2e-5) * (1 + np.abs(want).max())
    return Outcome(
        "agrees" if close.all() else "differs", "", got, want, mean.joint, met, fallbacks
    )


def run(program):
    """The program, under estimators that are averaged fast enough, and its outcome."""
    if not program.estimators:
        return program, Outcome("no sites")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = truth(program)
    outcome = compare(program, expected)
    for lighter in LIGHTER:
        if outcome.kind != "engine too large":
            break
        program = program._replace(
            estimators={k: lighter(e) for k, e in program.estimators.items()}
        )
        outcome = compare(program, expected)
    return program, outcome


def _plain_samples(estimator):
    return (
        "vt.ScoreFunction()"
        if re.search(r"ScoreFunction|Double|Mix|Automatic", estimator)
        else estimator
    )


def _all(estimator):
    return lambda e: e if e in ("vt.Pathwise()", "None") else estimator


LIGHTER = (_plain_samples, _all("vt.ScoreFunction()"), _all("vt.Enumerate()"))


def same_failure(outcome):
    """A test for programs that fail as that one did."""
    head = outcome.detail.split(":")[0]

    def fails(program):
        if not program.estimators:
            return False
        found = compare(program)
        return found.kind == outcome.kind and found.detail.split(":")[0] == head

    return fails
