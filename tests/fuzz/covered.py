"""What random programs hold and how they came out: the table that `make fuzz` ends with."""

import re
from collections import Counter, defaultdict

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.extend import core

import comparison
import draws
import engine_programs as programs
import language_programs as language
import language_words
from jaxpr_in_numpy import scan_arity, sub_jaxprs

COLUMNS = ("programs", "agreed", "refused", "disagreed")
COLUMN_OF = {"agrees": "agreed", "refused": "refused", "differs": "disagreed", "engine error": "disagreed"}  # fmt: skip


# -- primitives that are applied to what depends on a draw -----------------------------------------


def traced(program):
    """The jaxpr of one plain run."""
    key = jax.random.key(0)
    if isinstance(program, language.Pair):
        params = {k: jnp.asarray(v, float) for k, v in language_words.PARAMS.items()}
        return jax.make_jaxpr(lambda k: language.bound(program, k, params))(key)
    run, theta = programs.function(program), jnp.asarray(comparison.THETA, float)
    return jax.make_jaxpr(lambda k: run(theta, k, _drawn))(key)


def _drawn(name, key, d):
    if isinstance(d, dist.Normal):
        return d.loc + d.scale * draws.drawn(key, jnp.zeros((*d.batch_shape, 2)), False)
    return draws.plain(key, d)


_DRAWS = {"fuzz_draw", "fuzz_counted", "random_bits"}


def dependants(closed):
    """The names of the primitives that are applied to what depends on a draw."""
    found = set()
    _follow(closed, [False] * len(getattr(closed, "jaxpr", closed).invars), found)
    return found - _DRAWS


def _follow(jaxpr, depends, found):
    """Which results depend on a draw, given which operands do."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    known = {v for v, d in zip(jaxpr.invars, depends, strict=True) if d}
    read = lambda v: not isinstance(v, core.Literal) and v in known
    for eqn in jaxpr.eqns:
        name, inputs = eqn.primitive.name, list(map(read, eqn.invars))
        if name in _DRAWS:
            outputs = [True] * len(eqn.outvars)
        elif any(True for _ in sub_jaxprs(eqn)):
            outputs = _inside(eqn, inputs, found)
        else:
            outputs = [any(inputs)] * len(eqn.outvars)
        if any(outputs):
            found.add(name)
        known.update(v for v, d in zip(eqn.outvars, outputs, strict=True) if d)
    return list(map(read, jaxpr.outvars))


def _inside(eqn, inputs, found):
    inner = list(sub_jaxprs(eqn))
    sizes = [len(getattr(j, "jaxpr", j).invars) for j in inner]
    if eqn.primitive.name == "cond":
        each = [_follow(branch, inputs[1:], found) for branch in inner]
        return [inputs[0] or any(parts) for parts in zip(*each, strict=True)]
    if eqn.primitive.name == "scan":
        return _looped(eqn, inner[0], inputs, found)
    if sizes == [len(inputs)]:
        return _follow(inner[0], inputs, found)
    each = [_follow(j, [any(inputs)] * n, found) for j, n in zip(inner, sizes, strict=True)]
    return [any(inputs) or any(map(any, each))] * len(eqn.outvars)


def _looped(eqn, body, inputs, found):
    consts, carried = scan_arity(eqn)
    while True:
        outputs = _follow(body, inputs, found)
        carry = inputs[consts : consts + carried]
        grown = [a or b for a, b in zip(carry, outputs, strict=False)]
        if grown == carry:
            return outputs
        inputs = [*inputs[:consts], *grown, *inputs[consts + carried :]]


# -- constructs ------------------------------------------------------------------------------------

_FORMS = {
    "scan": r"jax\.lax\.scan\(", "fori_loop": r"fori_loop\(", "lax.map": r"jax\.lax\.map\(",
    "vmap": r"jax\.vmap\(", "cond": r"jax\.lax\.cond\(", "switch": r"jax\.lax\.switch\(",
    "while_loop": r"while_loop\(", "checkpoint": r"jax\.checkpoint\(", "jit": r"jax\.jit\(",
    "custom_jvp": r"custom\(|soft\(", "custom_vjp": r"custom_vjp\(|soft_vjp\(",
    "derivative within": r"jax\.(grad|jvp|jacrev|jacfwd|hessian)\(",
}  # fmt: skip
_LOOPS = ("scan", "fori_loop", "lax.map", "vmap")
_LOOP = "|".join(_FORMS[name] for name in _LOOPS)
_BRANCHES = ("cond", "switch")
_WORDS = {
    "plate": r"L\.plate\('[AB]'", "subsampled plate": r"L\.plate\('S'", "scale": r"L\.scale",
    "mask": r"L\.mask", "factor": r"L\.factor", "observation": r"obs=", "numpyro scan": r"L\.scan",
    "numpyro cond": r"L\.cond",
}  # fmt: skip


def _forms(template):
    return [name for name, pattern in _FORMS.items() if re.search(pattern, template)]


def constructs(program):
    """What a program is made of: loops, branches, calls and what is in them; words; draws."""
    if isinstance(program, language.Pair):
        text = language.source(program)
        found = {name for name, pattern in _WORDS.items() if re.search(pattern, text)}
        if re.search(r"\n( +)with L\.plate.*\n(\1 .*\n)*?\1 +with L\.plate", text):
            found.add("plate within a plate")
    else:
        found = set(_constructs(program.body, ()))
    return {*found, f"sites: {len(program.estimators)}"}


def _constructs(block, around):
    for step in block.steps:
        forms = _forms(step.template)
        kinds = [kind for kind in map(_kind, forms) if kind]
        yield from forms
        yield from (f"{kind} within a {outer}" for kind in kinds for outer in around)
        if len(re.findall(_LOOP, step.template)) > 1:
            yield "loop within a loop"
        if step.site:
            yield f"draw with {step.type[1]} axes"
            yield from (f"draw within a {outer}" for outer in around)
            if around.count("loop") > 1:
                yield "draw within a loop within a loop"
        for inner in step.blocks:
            yield from _constructs(inner, (*around, *kinds))


def _kind(form):
    return "loop" if form in _LOOPS else "branch" if form in _BRANCHES else None


# -- the table -------------------------------------------------------------------------------------


def reason(outcome):
    """A refusal's text without what is particular to its program."""
    text = outcome.detail.split(" Fix:")[0].removeprefix("ValueError: ").removeprefix("SiteError: ")
    text = re.sub(r"'[A-Za-z]*[0-9]+[#0-9]*'", "'...'", text.replace("\n", " "))
    return re.sub(r"\d+", "n", text)[:100]


class Table:
    """Counts over programs."""

    def __init__(self):
        self.outcomes, self.refusals, self.apart = Counter(), Counter(), defaultdict(list)
        self.disagreed, self.fallbacks = [], Counter()
        self.rows = {s: defaultdict(Counter) for s in SECTIONS}

    def add(self, program, outcome):
        """Count a program."""
        column = COLUMN_OF.get(outcome.kind)
        if column is None:
            self.apart[outcome.kind].append(program.seed)
            return
        self.outcomes[column] += 1
        self.fallbacks.update((outcome.fallbacks or {}).keys())
        if column == "refused":
            self.refusals[reason(outcome)] += 1
        if column == "disagreed":
            self.disagreed.append(program.seed)
        for section, features in SECTIONS.items():
            for name in set(features(program)):
                self.rows[section][name].update(["programs", column])

    def summary(self):
        """One line."""
        apart = {f"not compared ({kind})": len(seeds) for kind, seeds in self.apart.items()}
        return _counts(self.outcomes + Counter(apart))

    def lines(self):
        """The table as text."""
        yield from ("", self.summary())
        for section, rows in self.rows.items():
            yield from ("", f"{section} ({len(rows)})", "  " + "".join(f"{c:>10}" for c in COLUMNS))
            for name, row in sorted(rows.items(), key=lambda item: (-item[1]["programs"], item[0])):
                yield "  " + "".join(f"{row[c]:10d}" for c in COLUMNS) + f"  {name}"
        yield from ("", "refused, by reason")
        yield from (f"  {n:10d}  {text}" for text, n in self.refusals.most_common())
        yield from ("", "not compared: the generator's own programs, by what is wrong with them")
        for kind, seeds in self.apart.items():
            yield f"  {len(seeds):10d}  {kind}, such as {seeds[:5]}"
        yield from ("", f"evaluated by JAX, not by NumPy: {_counts(self.fallbacks)}")
        yield f"disagreements: {self.disagreed or 'none'}"


def _counts(counter):
    return ", ".join(f"{n} {name}" for name, n in counter.most_common()) or "none"


SECTIONS = {
    "primitives applied to what depends on a draw": lambda p: dependants(traced(p)),
    "estimators": lambda p: [e.replace("vt.", "") for e in p.estimators.values()],
    "objectives": lambda p: [getattr(p, "objective", "(the engine's own value)")],
    "constructs": constructs,
}
