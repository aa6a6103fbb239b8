"""Random models with guides, as data: printed as source, run by vipp or as plain arithmetic.

The source is written in the words of a language ``L``, of which `language_words` has two.
"""

import itertools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import draws
import vipp
from engine_programs import bernoulli, categorical, estimator, quarters
from language_words import DATA, PARAMS, Plain, Vipp


class Statement(NamedTuple):
    """One line of both programs (either may be empty), or a block of them.

    ``model`` and ``guide`` open a block where there are ``inner`` statements; ``after`` lines close
    it. ``defines`` is the variable that it makes, of the shape of its plates.
    """

    model: str
    guide: str
    inner: tuple["Statement", ...] = ()
    after: tuple[str, ...] = ()
    guide_after: tuple[str, ...] = ()
    site: str | None = None
    defines: str | None = None


class Pair(NamedTuple):
    """A model, a guide, and how the guide is trained."""

    seed: int
    statements: tuple[Statement, ...]
    estimators: Mapping[str, str]
    objective: str


# -- source ----------------------------------------------------------------------------------------


def _lines(statements, which, indent):
    pad = "    " * indent
    for s in statements:
        line = getattr(s, which)
        if line:
            yield from (pad + part for part in line.split("\n"))
        deeper = indent + bool(s.inner and line)
        inner = list(_lines(s.inner, which, deeper))
        yield from inner
        if line.endswith(":") and not inner and not s.after:
            yield f"{pad}    pass"
        yield from (pad + part for part in (s.after if which == "model" else s.guide_after))


def source(pair):
    """Both programs as Python."""
    model = ["def model(L, data):", "    p = L.param('p')", *_lines(pair.statements, "model", 1)]
    guide = ["def guide(L, data):", "    q = L.param('q')", *_lines(pair.statements, "guide", 1)]
    return "\n".join([*model, "", *guide]) + "\n"


def functions(pair):
    """The model and the guide, of ``(L, data)``."""
    scope = {
        "jnp": jnp, "jax": jax, "Bernoulli": bernoulli, "Categorical": categorical,
        "Normal": dist.Normal, "quarters": quarters,
    }  # fmt: skip
    exec(compile(source(pair), f"<pair {pair.seed}>", "exec"), scope)
    return scope["model"], scope["guide"]


# -- objectives ------------------------------------------------------------------------------------


def log_mean_exp(x):
    return jax.nn.logsumexp(x, 0) - math.log(len(x))


class Objective(NamedTuple):
    """An objective's source, its particles, and its value from log weights, particles first.

    ``guide``: what the guide's parameters follow, where that is something else.
    """

    source: str
    particles: int
    formula: object
    guide: object = None


def _piwae(x):
    return (log_mean_exp(x[:1]) + log_mean_exp(x[1:])) / 2


OBJECTIVES = [
    Objective("vipp.ELBO()", 1, lambda x: x[0]),
    Objective("vipp.ELBO(num_particles=2)", 2, lambda x: x.mean(0)),
    Objective("vipp.ELBO(stick_the_landing=True)", 1, lambda x: x[0]),
    Objective("vipp.ELBO(kl='analytic')", 1, lambda x: x[0]),
    Objective("vipp.IWAE(num_particles=2)", 2, log_mean_exp),
    Objective("vipp.IWAE(num_particles=2, per_plate=None)", 2, log_mean_exp),
    Objective("vipp.VIMCO(num_particles=2)", 2, log_mean_exp),
    Objective("vipp.PIWAE(num_bounds=2, num_particles=1)", 2, log_mean_exp, _piwae),
    Objective("vipp.Renyi(alpha=0.4, num_particles=2)", 2, lambda x: log_mean_exp(0.6 * x) / 0.6),
    Objective("vipp.Renyi(alpha=-0.5, num_particles=2, per_plate=None)", 2, lambda x: log_mean_exp(1.5 * x) / 1.5),
    Objective("vipp.CIWAE(num_particles=2, beta=0.3)", 2, lambda x: 0.3 * x.mean(0) + 0.7 * log_mean_exp(x)),
    Objective("vipp.MIWAE(num_bounds=2, num_particles=1)", 2, _piwae),
]  # fmt: skip


def bound(pair, key, params, which="formula"):
    """One value of the objective, its draws made with `draws`."""
    model, guide = functions(pair)
    config = next(o for o in OBJECTIVES if o.source == pair.objective)
    minibatches = _minibatches(source(pair), key)
    data = _data()
    runs = []
    for k in range(config.particles):
        of_q = Plain(params, jax.random.fold_in(key, 1 + k), minibatches=minibatches)
        guide(of_q, data)
        of_p = Plain(params, given=of_q.values, minibatches=minibatches)
        model(of_p, data)
        runs.append((of_p.terms, of_q.terms))
    names = (
        _common(runs[0])
        if "per_plate=None" not in pair.objective
        and config.particles > 1
        and "ELBO" not in pair.objective
        else ()
    )
    log_w = jnp.stack([_per_plate(p, names) - _per_plate(q, names) for p, q in runs])
    ratio = 1.0
    if names:
        ratio = _plate_ratio(source(pair), names)
    formula = getattr(config, which) or config.formula
    return ratio * formula(log_w).sum()


def _minibatches(text, key):
    """All ways to subsample are equally likely, and drawn like everything else."""
    found = {}
    if "L.plate('S', 4, 2)" in text:
        subsets = np.array(list(itertools.combinations(range(4), 2)))
        which = draws.drawn(jax.random.fold_in(key, 0), jnp.full(6, -math.log(6.0)), True)
        found["S", 4, 2] = jnp.asarray(subsets)[which]
    return found


def _plate_ratio(text, names):
    return 2.0 if "S" in names and "L.plate('S', 4, 2)" in text else 1.0


def _common(run):
    terms = [*run[0], *run[1]]
    shared = set.intersection(*(set(t.plates.items()) for t in terms)) if terms else set()
    return tuple(n for n, _ in sorted(shared, key=lambda item: -item[1]))


def _per_plate(terms, names):
    total = 0.0
    for t in terms:
        x, ndim = jnp.asarray(t.log_prob), jnp.ndim(t.log_prob)
        kept = [ndim - t.plates[n] for n in names]
        ratio = t.ratio / (2.0 if "S" in names else 1.0)
        total = total + ratio * x.sum(tuple(a for a in range(ndim) if a not in kept))
    return total


def estimate(pair):
    """``(key, params) -> (value, gradient)`` as vipp estimates them, and the parameters."""
    estimators = {name: estimator(e) for name, e in pair.estimators.items()}
    words, (model, guide) = Vipp(estimators), functions(pair)
    objective = eval(pair.objective, {"vipp": vipp})
    data = _data()
    one = vipp.value_and_grad(
        objective, lambda data: model(words, data), lambda data: guide(words, data)
    )
    params = {k: jnp.asarray(v, float) for k, v in PARAMS.items()}
    return lambda key, params: one(key, params, data), (params,)


def _data():
    return {k: jnp.asarray(v, float if v.dtype.kind == "f" else v.dtype) for k, v in DATA.items()}


# -- cutting down ----------------------------------------------------------------------------------


def smaller(pair):
    """Pairs with a statement left out, or with a simpler objective."""
    for statements, gone in _without(pair.statements):
        statements = tuple(_forget(s, gone) for s in statements)
        used = set(_sites(statements))
        yield pair._replace(
            statements=statements,
            estimators={k: e for k, e in pair.estimators.items() if k in used},
        )
    for objective in ("vipp.ELBO()", "vipp.IWAE(num_particles=2)"):
        yield pair._replace(objective=objective)


def _sites(statements):
    for s in statements:
        if s.site:
            yield s.site
        yield from _sites(s.inner)


def _without(statements):
    """The statements with one left out, or a block's inside for the block; and what that defined."""
    for i, s in enumerate(statements):
        before, after = statements[:i], statements[i + 1 :]
        names = [*_sites((s,)), *([s.defines] if s.defines else [])]
        yield before + after, names
        if s.inner and not s.after:
            yield before + s.inner + after, []
        for inner, gone in _without(s.inner):
            yield (*before, s._replace(inner=inner), *after), gone
        if s.model and s.guide and not s.site and s.inner and not s.after:
            yield (*before, s._replace(model=""), *after), []
            yield (*before, s._replace(guide=""), *after), []


def _forget(s, names):
    """A statement in which a number stands for variables that are gone."""

    def text(line):
        for name in names:
            line = re.sub(rf"(?<![\w'\"]){name}(?![\w'\"])", "jnp.array(0.5)", line)
        return line

    lines = {k: text(getattr(s, k)) for k in ("model", "guide")}
    after = {k: tuple(map(text, getattr(s, k))) for k in ("after", "guide_after")}
    return s._replace(**lines, **after, inner=tuple(_forget(x, names) for x in s.inner))
