"""Random programs as data: made from a seed, printed as source, run, and cut down.

A program is a `Block` of `Step`s, each an assignment of a template applied to earlier variables;
loops, branches and calls are steps with blocks of their own.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

import draws
import vipp_transforms as vt


class Step(NamedTuple):
    """``var = template(args)``; the template names operands ``{0}``, its own blocks ``{A}``."""

    var: str
    type: str
    template: str
    args: tuple[str, ...]
    blocks: tuple["Block", ...] = ()
    site: str | None = None


class Block(NamedTuple):
    """A function of named parameters that returns a template of variables."""

    params: str
    steps: tuple[Step, ...]
    template: str
    results: tuple[str, ...]


class Program(NamedTuple):
    """A program and the estimator (as source) of each of its sites."""

    seed: int
    size: int  # of every axis
    body: Block
    estimators: Mapping[str, str]


class Variable(NamedTuple):
    name: str
    type: str
    random: bool  # whether it depends on a draw


# -- source ----------------------------------------------------------------------------------------


def fill_in(template, args, names=()):
    for i, arg in enumerate(args):
        template = template.replace(f"{{{i}}}", arg)
    for letter, name in zip("ABC", names, strict=False):
        template = template.replace(f"{{{letter}}}", name)
    return template


def _lines(block, name, indent):
    pad = "    " * indent
    yield f"{pad}def {name}({block.params}):"
    for step in block.steps:
        names = [f"{step.var}_{letter}" for letter in "abc"[: len(step.blocks)]]
        for inner, inner_name in zip(step.blocks, names, strict=True):
            yield from _lines(inner, inner_name, indent + 1)
        yield f"{pad}    {step.var} = {fill_in(step.template, step.args, names)}"
    yield f"{pad}    return {fill_in(block.template, block.results)}"


def source(program):
    """The program as Python."""
    return "\n".join(_lines(program.body, "program", 0)) + "\n"


@jax.custom_jvp
def soft(x):
    """log(1 + exp(x)), its derivative given."""
    return jnp.logaddexp(x, 0.0)


soft.defjvp(lambda x, t: (soft(*x), jax.nn.sigmoid(*x) * t[0]))


@jax.custom_vjp
def soft_vjp(x):
    """The same, its derivative given backwards."""
    return jnp.logaddexp(x, 0.0)


soft_vjp.defvjp(lambda x: (soft_vjp(x), x), lambda x, g: (jax.nn.sigmoid(x) * g,))


@jax.custom_jvp
def quarters(x):
    """Logits of 1/4 or 3/4, as if that were ``x``: a few uniform numbers then do for all."""
    return jnp.where(x > 0, 1.0, -1.0) * math.log(3.0)


quarters.defjvp(lambda x, t: (quarters(*x), t[0]))


def custom(fn):
    """``fn`` with its derivative given: by itself."""
    fn_custom = jax.custom_jvp(fn)
    fn_custom.defjvp(lambda x, t: jax.jvp(fn, x, t))
    return fn_custom


def custom_vjp(fn):
    """``fn`` with its derivative given backwards: by itself."""
    fn_custom = jax.custom_vjp(fn)
    fn_custom.defvjp(lambda *x: jax.vjp(fn, *x), lambda back, g: back(g))
    return fn_custom


def bernoulli(logits=None, probs=None):
    """A Bernoulli whose draws can be enumerated."""
    return draws.BernoulliProbs(probs) if logits is None else draws.BernoulliLogits(logits)


def categorical(logits=None, probs=None):
    """A Categorical whose draws can be enumerated."""
    return draws.CategoricalProbs(probs) if logits is None else draws.CategoricalLogits(logits)


WORDS = {
    "jax": jax, "jnp": jnp, "soft": soft, "soft_vjp": soft_vjp, "quarters": quarters,
    "custom": custom, "custom_vjp": custom_vjp,
    "Bernoulli": bernoulli, "Categorical": categorical, "Normal": dist.Normal,
}  # fmt: skip


def function(program, forwards=False):
    """The program as a function of ``(theta, key, draw)``.

    ``forwards``: derivatives are given forwards throughout, so that there is a forward mode.
    """
    given = {"soft_vjp": soft, "custom_vjp": custom} if forwards else {}
    scope: dict[str, Any] = {**WORDS, **given}
    exec(compile(source(program), f"<program {program.seed}>", "exec"), scope)
    return scope["program"]


def estimator(text):
    """An estimator from its source."""
    return eval(text, {"vt": vt})


def sites(block):
    """The names of the sites of a block."""
    for step in block.steps:
        if step.site:
            yield step.site
        for inner in step.blocks:
            yield from sites(inner)


def _used(block):
    """The names that a block's live steps use."""
    names = set(base(r) for r in block.results)
    for step in block.steps:
        names |= {base(a) for a in step.args}
        for inner in step.blocks:
            names |= _used(inner)
    return names


def base(name):
    """The variable that a name with an index is an entry of."""
    return name.split("[")[0]


def _alive(block):
    steps, needed = [], {base(r) for r in block.results}
    for step in reversed(block.steps):
        if step.var in needed:
            step = step._replace(blocks=tuple(map(_alive, step.blocks)))
            needed |= {base(a) for a in step.args}
            for inner in step.blocks:
                needed |= _used(inner)
            steps.append(step)
    return block._replace(steps=tuple(reversed(steps)))


def alive(program):
    """The program without what its value does not need."""
    return program._replace(body=_alive(program.body))


def has_site(block):
    """Whether a block draws."""
    return any(s.site or any(map(has_site, s.blocks)) for s in block.steps)
