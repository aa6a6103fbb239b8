"""Smaller programs that still fail."""

import time

import language_programs as language
from engine_programs import alive, sites, source

LITERALS = {"f0": "0.7", "i0": "1", "b0": "True"}


def weight(program):
    """What shrinks: the length of the source, estimators and objective included."""
    plain = {"vt.Enumerate()": 5, "vt.ScoreFunction()": 6, "None": 7}
    each = sum(plain.get(e, 10 + len(e)) for e in program.estimators.values())
    if isinstance(program, language.Pair):
        return len(language.source(program)) + each + len(program.objective)
    return len(source(program)) + each


def shrink(program, fails, seconds=60.0):
    """The smallest program found that ``fails``."""
    until, changed = time.monotonic() + seconds, True
    while changed:
        changed = False
        for candidate in candidates(program):
            if time.monotonic() > until:
                return program
            if weight(candidate) < weight(program) and fails(candidate):
                program, changed = candidate, True
                break
    return program


def candidates(program):
    """Programs with a part left out or made simpler."""
    if isinstance(program, language.Pair):
        yield from language.smaller(program)
    for body in () if isinstance(program, language.Pair) else _blocks(program.body, []):
        live = alive(program._replace(body=body))
        used = set(sites(live.body))
        yield live._replace(estimators={k: e for k, e in program.estimators.items() if k in used})
    for name, estimator in program.estimators.items():
        for simpler in ("vt.Enumerate()", "vt.ScoreFunction()", "vt.ScoreFunction(2)"):
            if estimator != simpler:
                yield program._replace(estimators={**program.estimators, name: simpler})


def _blocks(block, scope):
    """The block with one part left out."""
    if len(block.results) > 1 and " + " in block.template and "=" not in block.template:
        for name in block.results:
            yield block._replace(template="{0}", results=(name,))
    names = list(scope)
    for i, step in enumerate(block.steps):
        rest = (block.steps[:i], block.steps[i + 1 :])
        for other in _replacements(step, names):
            yield _renamed(block._replace(steps=rest[0] + rest[1]), {step.var: other})
        for j, inner in enumerate(step.blocks):
            for smaller in _blocks(inner, names):
                blocks = (*step.blocks[:j], smaller, *step.blocks[j + 1 :])
                yield block._replace(steps=(*rest[0], step._replace(blocks=blocks), *rest[1]))
        for j, arg in enumerate(step.args):
            literal = LITERALS.get(_type_of(arg, names))
            if literal:
                args = (*step.args[:j], literal, *step.args[j + 1 :])
                yield block._replace(steps=(*rest[0], step._replace(args=args), *rest[1]))
        names.append((step.var, step.type))


def _type_of(arg, names):
    return dict(names).get(arg)


def _replacements(step, names):
    """What may stand for a step: a literal, or an earlier variable of its type."""
    if step.type in LITERALS:
        yield LITERALS[step.type]
    yield from (name for name, type_ in reversed(names) if type_ == step.type)


def _renamed(block, names):
    rename = lambda xs: tuple(names.get(x, x) for x in xs)
    steps = tuple(
        s._replace(args=rename(s.args), blocks=tuple(_renamed(b, names) for b in s.blocks))
        for s in block.steps
    )
    return block._replace(steps=steps, results=rename(block.results))
