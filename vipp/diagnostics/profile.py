"""Which estimators make the least noise for the time that they take, found by measuring them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpyro.distributions import biject_to

from vipp.diagnostics.candidates import candidates_of, check_candidates
from vipp.diagnostics.gradient_draws import Problem
from vipp.diagnostics.guide_choices import GuideChoice, Look, is_moving, look
from vipp.diagnostics.measurements import Measurements
from vipp.diagnostics.profile_result import Profile
from vipp.diagnostics.profile_search import Search
from vipp.language.state import SUFFIX
from vipp.objectives.objective import Objective
from vipp.programs.composed import Composed
from vipp_transforms.checks import positive_int

_FEWEST_CALLS = 3


def profile(
    objective: Objective | Sequence[Objective],
    model: Any,
    guide: Any,
    params: Mapping[str, Any],
    *args: Any,
    candidates: Mapping[str, Sequence[Any]] | None = None,
    seconds: float | None = None,
    num_draws: int = 64,
    verify: int = 3,
    seed: int = 0,
    **kwargs: Any,
) -> Profile:
    r"""Measure the noise and the time of a gradient under different estimators of a guide's sites.

    For each site and each candidate, the other sites being as they are, are measured the variance
    :math:`\operatorname{tr} \operatorname{Cov}[\hat g]` of the gradient in the unconstrained
    parameters, the seconds of one gradient, and their product, which is what so many seconds of
    averaging leave of the noise. Of a biased estimator also the bias
    :math:`\lVert E \hat g - E \hat g_0 \rVert`, against the guide's present estimators.

    What a site contributes, :math:`V_i = E \operatorname{Var}[\hat g \mid \text{all other draws}]`,
    is measured by drawing that site anew and nothing else. Where the plan shows that no term
    depends on two sites, their contributions add up, and combinations are predicted; the few best
    are measured. Where sites meet, the prediction is a guess, and the search goes on from the best
    that was measured, site by site. No combination is compiled twice.

    Args:
      objective: such as ``vipp.ELBO()``; or several, the present one first, of which the others
        are measured with the best estimators found for the first.
      model: a NumPyro program.
      guide: a NumPyro program.
      params: constrained values by name, such as ``result.params`` of :func:`vipp.fit`, and what
        else the programs need: mutable state.
      *args: arguments of both programs.
      candidates: by site, lists of estimators; the present one is always among them. Of sites that
        are not named, the candidates are those of a list that fit its support and distribution.
      seconds: when to stop, compilation included; None to measure everything.
      num_draws: how many gradients are drawn of each candidate, or some more; at least 32.
      verify: how many combinations are measured, at least 1.
      seed: of all draws.
      **kwargs: keyword arguments of both programs.

    Returns:
      A :class:`Profile`: ``print(profile)``, ``profile.plot()``, and
      ``vipp.with_estimators(guide, profile.best())``.

    Raises:
      ValueError: naming a site that ``candidates`` has and the guide doesn't, a parameter without a
        value, or a value without a parameter.
      TypeError: naming a site with what is no list of estimators.
      vipp.SiteError: naming a site that a candidate of ``candidates`` does not fit.

    Example:
      >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, vipp
      >>> def model():
      ...     z = numpyro.sample("z", dist.Bernoulli(0.5))
      ...     numpyro.sample("x", dist.Normal(z, 1.0), obs=0.3)
      >>> guide = lambda: numpyro.sample("z", dist.Bernoulli(numpyro.param("p", 0.5)))
      >>> found = vipp.profile(
      ...     vipp.ELBO(), model, guide, {"p": 0.3}, candidates={"z": [vipp.ScoreFunction()]})
      >>> found.best()
      {'z': Enumerate(max_evaluations=65536)}
      >>> found.rows[1].estimators["z"].num_samples, found.rows[1].variance.value > 0
      (1, True)

    References:
      Efron and Stein, *The jackknife estimate of variance*, 1981.
      Glynn and Whitt, *The asymptotic efficiency of simulation estimators*, 1992.
    """
    started = time.perf_counter()
    objectives = _objectives(objective)
    _check_numbers(seconds, num_draws, verify)
    if isinstance(guide, Composed):
        raise TypeError(
            f"profile: the guide is {type(guide).__name__.lower()}(...), expected a NumPyro "
            "program whose sites with_estimators can reach. Fix: profile the program inside, or "
            "give its sites estimators before it is composed."
        )
    given = {**objectives[0].init_state(), **params}
    found = look(objectives[0], model, guide, given, args, kwargs)
    asked = check_candidates(candidates or {}, found.choices)
    options = {n: asked.get(n) or candidates_of(c) for n, c in found.choices.items()}
    problem = _problem(model, given, found, args, kwargs)
    deadline = None if seconds is None else started + seconds
    replaced = {n for n, c in found.choices.items() if options[n][0] is not c.estimator}
    alone = {n for n, c in found.choices.items() if _left_alone(c)} - replaced
    measurements = Measurements(
        problem, guide, objectives, options, frozenset(alone), jax.random.key(seed), deadline
    )
    rounds = max(-(-num_draws // problem.together), _FEWEST_CALLS)
    return Search(found, measurements, frozenset(asked), rounds, verify).profile()


def _left_alone(choice: GuideChoice) -> bool:
    """Whether a site keeps its estimator best if none is given to it.

    It may be none of the engine's, or hold arrays of the program, such as a state.
    """
    estimator = choice.estimator
    arrays = [x for x in jax.tree.leaves(estimator) if isinstance(x, jax.ShapeDtypeStruct)]
    return bool(arrays) or estimator.traits.direct or choice.looped or choice.own


def _objectives(given: Any) -> tuple[Objective, ...]:
    several = tuple(given) if isinstance(given, Sequence) else (given,)
    for each in several:
        if not isinstance(each, Objective):
            raise TypeError(
                f"profile: expected an objective such as vipp.ELBO(), or a list of them, got "
                f"{each!r}. Fix: pass an instance."
            )
    if not several:
        raise ValueError("profile: got no objective. Fix: pass vipp.ELBO() or a list of some.")
    return several


def _check_numbers(seconds: Any, num_draws: Any, verify: Any) -> None:
    positive_int("profile: num_draws", num_draws)
    positive_int("profile: verify", verify)
    if num_draws < 32:
        raise ValueError(f"profile: num_draws must be at least 32, got {num_draws}.")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"profile: seconds must be positive or None, got {seconds!r}.")


def _problem(model: Any, params: Mapping[str, Any], found: Look, args: Any, kwargs: Any) -> Problem:
    """The programs, at unconstrained values of the parameters that are real numbers."""
    moving, transforms, constants = {}, {}, {}
    for name, x in params.items():
        if name in found.constraints and not name.endswith(SUFFIX) and is_moving(x):
            transforms[name] = biject_to(found.constraints[name])
            moving[name] = jax.tree.map(jax.numpy.asarray, transforms[name].inv(x))
        else:
            constants[name] = x
    if not moving:
        raise ValueError(
            "profile: none of the parameters is made of real numbers, so there is no gradient. "
            f"Got {sorted(params)}. Fix: pass result.params of vipp.fit."
        )
    bad = [
        n for n, x in moving.items() if not all(np.isfinite(v).all() for v in jax.tree.leaves(x))
    ]
    if bad:
        raise ValueError(
            f"profile: parameter '{bad[0]}' is not finite, or not inside its constraint, expected "
            "values at which there is a gradient. Fix: pass those of a run that went well."
        )
    sites = tuple(n for n, c in found.choices.items() if not c.own)
    return Problem(model, moving, constants, transforms, args, kwargs, sites)
