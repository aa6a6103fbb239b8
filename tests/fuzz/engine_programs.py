"""Random programs as data: made from a seed, printed as source, run, and cut down.

A program is a `Block` of `Step`s, each an assignment of a template applied to earlier variables;
loops, branches and calls are steps with blocks of their own.
"""

import random
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import draws
from operation_table import BINARY, ELEMENTWISE, ROWS, TABLE, Operation

MAX_JOINT = 512  # joint values of all sites
MAX_RANK = 3


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


def _fill(template, args, names=()):
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
        yield f"{pad}    {step.var} = {_fill(step.template, step.args, names)}"
    yield f"{pad}    return {_fill(block.template, block.results)}"


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
    """Logits of the nearest quarter, as if that were ``x``: a few uniform numbers then do for all."""
    p = jnp.clip(jnp.round(4 * jax.nn.sigmoid(x)) / 4, 0.25, 0.75)
    return jnp.log(p) - jnp.log1p(-p)


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


def function(program, forwards=False):
    """The program as a function of ``(theta, key, draw)``.

    ``forwards``: derivatives are given forwards throughout, so that there is a forward mode.
    """
    scope: dict[str, Any] = {
        "jax": jax, "jnp": jnp, "soft": soft, "quarters": quarters, "soft_vjp": soft if forwards else soft_vjp,
        "custom": custom, "custom_vjp": custom if forwards else custom_vjp,
        "Bernoulli": _bernoulli, "Categorical": _categorical,
    }  # fmt: skip
    exec(compile(source(program), f"<program {program.seed}>", "exec"), scope)
    return scope["program"]


def _bernoulli(logits=None, probs=None):
    return draws.BernoulliProbs(probs) if logits is None else draws.BernoulliLogits(logits)


def _categorical(logits=None, probs=None):
    return draws.CategoricalProbs(probs) if logits is None else draws.CategoricalLogits(logits)


# -- making ----------------------------------------------------------------------------------------

CHEAP = ["vt.ScoreFunction()", "vt.Enumerate()", "vt.LocalExpectation()", "vt.MeasureValued()"]
SEVERAL = [
    "vt.ScoreFunction(2)", "vt.ScoreFunction(2, 'leave_one_out')", "vt.ScoreFunction(1, 0.7)",
    "vt.ScoreFunction(3, 'leave_one_out')", "vt.Automatic()",
    "vt.Mix(vt.LocalExpectation(), vt.ScoreFunction(), weight=0.3)",
    "vt.Mix(vt.MeasureValued(), vt.ScoreFunction(1, 0.2), weight=0.6)",
]  # fmt: skip
BINARY_ONLY = ["vt.DisARM()", "vt.ARM()"]


class Maker:
    """Makes one program."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.size = self.random.choice([2, 3, 3])
        self.joint, self.count, self.sites = 1, 0, {}
        self.lanes = {}  # per site
        self.multiple = 1  # how often the block being made runs
        self.used = set()

    def fresh(self, prefix):
        self.count += 1
        return f"{prefix}{self.count}"

    def number(self):
        return f"{self.random.choice((-1, 1)) * self.random.uniform(0.2, 1.2):.3f}"

    def numbers(self, rank):
        if rank == 0:
            return self.number()
        return "[" + ", ".join(self.numbers(rank - 1) for _ in range(self.size)) + "]"

    def constant(self, type_):
        """A literal."""
        kind, rank = type_[0], int(type_[1])
        floats = self.numbers(rank)
        if kind == "f":
            return floats if rank == 0 else f"jnp.array({floats})"
        if kind == "b":
            return f"(jnp.array({floats}) > 0)"
        index = self.random.randrange(self.size)
        return str(index) if rank == 0 else f"(jnp.array({floats}) > 0).astype(int)"

    def indices(self, distinct=False):
        values = list(range(self.size))
        if distinct:
            self.random.shuffle(values)
        else:
            values = [self.random.choice(values) for _ in values]
        return str(values)

    def fill(self, template, rank):
        size, choose = self.size, self.random.randrange
        ramp = f"0.0137 * jnp.arange({size**rank}.0).reshape({(size,) * rank})"
        fills = {
            "N": size, "r": self.number(), "i": choose(size), "j": choose(size),
            "ax": choose(max(rank, 1)), "rev": bool(choose(2)), "idx": self.indices(),
            "perm": self.indices(True), "row": self.numbers(1), "ramp": ramp,
        }  # fmt: skip
        for key, value in fills.items():
            template = template.replace(f"{{{key}}}", str(value))
        return template

    # -- operands

    def pick(self, scope, type_, literal=0.1):
        """A variable of a type, rather a late one that depends on a draw; or a literal."""
        fitting = [v for v in scope if v.type == type_]
        if not fitting or self.random.random() < literal:
            return Variable(self.constant(type_), type_, False)
        weights = [self.weight(v) * (1 + i) for i, v in enumerate(fitting)]
        return self.random.choices(fitting, weights)[0]

    def weight(self, variable):
        """What depends on a draw is wanted, most of all where nothing uses it yet."""
        if not variable.random:
            return 1
        return 3 if variable.name in self.used else 12

    def coerce(self, steps, scope, type_):
        """A variable of type floats, of any rank, made if there is none that is random."""
        fitting = [v for v in scope if v.type == type_ and v.random]
        if fitting and self.random.random() < 0.7:
            return self.pick(fitting, type_, 0)
        rank = int(type_[1])
        have = {v.type for v in scope if v.random and v.type[0] == "f"}
        steps_to = [
            (op, op.operands[0])
            for op in TABLE
            if op.result == type_ and len(op.operands) == 1 and op.operands[0] in have
        ]
        if not steps_to or rank > 2:
            return self.pick(scope, type_, 0.2)
        op, _ = self.random.choice(steps_to)
        return self.apply(steps, scope, op)

    def apply(self, steps, scope, op, rank=None):
        """Append a step that applies an operation."""
        if any("X" in t for t in (*op.operands, op.result)):
            kinds = {t[0] for t in op.operands if t[1] == "X"}
            ranks = [int(v.type[1]) for v in scope if v.type[0] in kinds]
            rank = self.random.choice(ranks or [1]) if rank is None else rank
        settle = lambda t: t.replace("X", str(rank))
        operands = [
            self.pick(scope, settle(t), 0.0 if i == 0 else 0.15) for i, t in enumerate(op.operands)
        ]
        template = self.fill(op.template, int(operands[0].type[1]))
        return self.add(steps, scope, settle(op.result), template, operands)

    def add(self, steps, scope, type_, template, operands, blocks=(), site=None, is_random=None):
        names = tuple(v.name for v in operands)
        self.used.update(map(_base, names))
        step = Step(self.fresh("v"), type_, template, names, tuple(blocks), site)
        depends = any(v.random for v in operands) or site is not None or any(map(_random, blocks))
        steps.append(step)
        variable = Variable(step.var, type_, depends if is_random is None else is_random)
        scope.append(variable)
        return variable

    def operation(self, steps, scope):
        """Append some operation."""
        have = {v.type for v in scope}
        kinds = {t[0] for t in have}
        roll = self.random.random()
        if roll < 0.2:
            op = Operation(self.random.choice(ELEMENTWISE), ("fX",), "fX")
        elif roll < 0.35:
            op = Operation(self.random.choice(BINARY), ("fX", "fX"), "fX")
        else:
            fits = lambda t: t in have or (t[1] == "X" and t[0] in kinds)
            fitting = [row for row in ROWS if fits(row[1].split()[0])]
            template, operands, result = self.random.choice(fitting)
            op = Operation(template, tuple(operands.split()), result)
        return self.apply(steps, scope, op)

    # -- loops, branches, calls

    def block(self, params, scope, inner, results, template, length, site=None):
        """A block of some steps returning variables of types ``results``.

        ``inner``: the parameters among the variables; ``site``: a function that draws first.
        """
        scope, steps = [*scope, *inner], []
        if site is not None:
            site(steps, scope)
        for _ in range(self.random.randint(1, length)):
            self.something(steps, scope, nested=True)
        made = [self.coerce(steps, scope, t) for t in results]
        self.used.update(_base(v.name) for v in made)
        return Block(params, tuple(steps), template, tuple(v.name for v in made))

    def structure(self, steps, scope, site=None):
        """Append a loop, a branch or a call; with a draw inside if ``site`` draws."""
        form = self.random.choice(FORMS_WITH_SITES if site else FORMS)
        return form(self, steps, scope, site)

    depth = 0

    def something(self, steps, scope, nested=False):
        if self.depth < 2 and self.random.random() < (0.12 if nested else 0.25):
            self.depth += 1
            made = self.structure(steps, scope)
            self.depth -= 1
            return made
        return self.operation(steps, scope)

    # -- sites

    def site(self, name, salt="{i}"):
        """A function that appends a draw."""

        def draw(steps, scope, fold=None):
            affordable = [r for r in (0, 1, 1, 1, 2) if self.affordable(2, r)]
            rank = self.random.choice(affordable or [0])
            categories = (
                self.size
                if self.random.random() < 0.25 and self.affordable(self.size, rank + 0)
                else 2
            )
            if self.random.random() < 0.2 and self.affordable(2, rank):
                categories = 2
            kind = "Categorical" if categories != 2 or self.random.random() < 0.1 else "Bernoulli"
            values = self.size if kind == "Categorical" else 2
            if not self.affordable(values, rank):
                kind, values = "Bernoulli", 2
            lanes = self.size**rank * self.multiple
            self.joint *= values**lanes
            self.lanes[name] = lanes
            t = f"theta[{self.random.randrange(3)}]"
            if kind == "Categorical" and rank < MAX_RANK - 1:
                x = self.coerce(steps, scope, f"f{rank + 1}")
                logits = f"0.7 * jnp.tanh({{0}}) + {t} * jnp.arange({self.size}.0)"
            elif kind == "Categorical":
                x = self.coerce(steps, scope, f"f{rank}")
                logits = f"{{0}}[..., None] * jnp.arange({self.size}.0) * {t}"
            else:
                x = self.coerce(steps, scope, f"f{rank}")
                logits = f"0.8 * jnp.tanh({{0}}) + {t}"
            coupled = kind == "Bernoulli" and self.lanes[name] <= 3 and self.random.random() < 0.15
            if coupled:
                arguments = f"logits=quarters({logits})"
            elif self.random.random() < 0.25:
                squash = "jax.nn.softmax" if kind == "Categorical" else "jax.nn.sigmoid"
                arguments = f"probs={squash}({logits})"
            else:
                arguments = f"logits={logits}"
            key = f"jax.random.fold_in(key, {len(self.sites)})"
            key = key if fold is None else f"jax.random.fold_in({key}, {fold})"
            as_float = kind == "Bernoulli" and self.random.random() < 0.8
            template = f'draw("{name}", {key}, {kind}({arguments}))'
            template = f"1.0 * {template}" if as_float else template
            self.sites[name] = "coupled" if coupled else kind
            type_ = ("f" if as_float else "i") + str(rank)
            return self.add(steps, scope, type_, template, [x], site=name)

        return draw

    def affordable(self, values, rank):
        return self.joint * values ** (self.size**rank * self.multiple) <= MAX_JOINT

    def repeated(self):
        """Whether a draw can be made ``size`` times more often."""
        return self.joint * 2 ** (self.multiple * self.size) <= MAX_JOINT

    def make(self):
        choose = self.random.random
        scope = [Variable(f"theta[{i}]", "f0", False) for i in range(3)]
        steps: list[Step] = []
        self.add(steps, scope, "f1", f"jnp.array({self.numbers(1)}) * theta[0]", [])
        self.add(steps, scope, "f2", f"jnp.array({self.numbers(2)}) + theta[1]", [])
        self.add(steps, scope, "i1", f"jnp.array({self.indices()})", [])
        for number in range(self.random.choices([1, 2, 3, 4], [3, 4, 2, 1])[0]):
            if not self.affordable(2, 0):
                break
            draw = self.site(f"z{number}")
            if choose() < 0.35 and self.repeated():
                self.structure(steps, scope, draw)
            else:
                draw(steps, scope)
            for _ in range(self.random.randint(1, 4)):
                self.something(steps, scope)
        for _ in range(self.random.randint(0, 3)):
            self.something(steps, scope)
        body = Block("theta, key, draw", tuple(steps), *self.terms(steps, scope))
        return body._replace(steps=tuple(steps))

    def terms(self, steps, scope):
        """A sum of terms as the program's value."""
        kinds = ["{0}", "{c} * {0}", "{0} ** 2", "jnp.tanh({0}) * theta[2]"]
        templates, made = [], []
        floats = [v for v in scope if v.random and v.type[0] in "fi"] or scope
        unused = [v for v in floats if v.name not in self.used]
        for i in range(self.random.choices([1, 2, 3], [3, 3, 1])[0]):
            chosen = self.random.choice(unused[-3:] or floats[-6:])
            unused = [v for v in unused if v != chosen]
            rank = int(chosen.type[1])
            reduce = self.random.choice(["{0}.sum()", "{0}.sum()", "jnp.sin({0}).sum()", "({0} ** 2).mean()",
                "jnp.prod(1.0 + 0.3 * jnp.tanh({0}))", "jax.nn.logsumexp({0})", "({0} * jnp.arange({s})).sum()"])  # fmt: skip
            reduce = "{0}" if rank == 0 else reduce.replace("{s}", f"{float(self.size)}")
            if rank or chosen.type[0] != "f":
                chosen = self.add(steps, scope, "f0", f"1.0 * {reduce}", [chosen])
            templates.append(
                self.random.choice(kinds).replace("{0}", f"{{{i}}}").replace("{c}", self.number())
            )
            made.append(chosen.name)
        return " + ".join(templates), tuple(made)

    def estimators(self):
        """Estimators, of which few draw often where many lanes are drawn."""
        chosen = {}
        for name, kind in self.sites.items():
            several = SEVERAL if self.lanes[name] <= 4 else SEVERAL[:2] + SEVERAL[4:]
            options = BINARY_ONLY if kind == "coupled" else CHEAP + several
            chosen[name] = self.random.choice(options)
        return chosen


def _random(block):
    return any(s.site or any(map(_random, s.blocks)) for s in block.steps)


# Each form appends one step with blocks. ``site`` draws inside of it, or is None.


def _looped(maker, site, make):
    if site is None:
        return make()
    maker.multiple *= maker.size
    made = make()
    maker.multiple //= maker.size
    return made


def scan(maker, steps, scope, site):
    rank = maker.random.choice([0, 1, 1]) if site is None else maker.random.choice([0, 0, 1])
    over = maker.pick(scope, f"f{maker.random.choice([1, 2])}", 0.05)
    carry_type = f"f{rank}"
    init = maker.pick(scope, carry_type, 0.3)
    x_type = f"f{int(over.type[1]) - 1}"
    y_type = maker.random.choice(["f0", "f1"])
    is_random = init.random or over.random or site is not None
    inner = [Variable("c", carry_type, is_random), Variable("x", x_type, over.random)]
    inner = _renamed(maker, inner)
    c, x = inner[0].name, inner[1].name
    params = f"{c}, {x}" if site is None else f"{c}, key_and_x"
    if site is not None:
        inner[1] = inner[1]._replace(name="key_and_x[1]")
    make = lambda: maker.block(
        params, scope, inner, [carry_type, y_type], "jnp.tanh({0}), {1}", 4, _with_key(site)
    )
    block = _looped(maker, site, make)
    xs = (
        "{1}"
        if site is None
        else f"(jax.random.split(jax.random.fold_in(key, {maker.fresh('')}), {maker.size}), {{1}})"
    )
    reverse = ", reverse=True" if maker.random.random() < 0.3 else ""
    both = maker.add(
        steps,
        scope,
        "t",
        f"jax.lax.scan({{A}}, {{0}} + jnp.zeros({(maker.size,) * rank}), {xs}{reverse})",
        [init, over],
        [block],
    )
    maker.add(steps, scope, carry_type, "{0}[0]", [both])
    return maker.add(steps, scope, f"f{int(y_type[1]) + 1}", "{0}[1]", [both])


def _renamed(maker, variables):
    return [v._replace(name=maker.fresh(v.name)) for v in variables]


def _with_key(site):
    """A draw whose key is the loop's own."""
    if site is None:
        return None

    def draw(steps, scope):
        made = site(steps, scope)
        step = steps[-1]
        steps[-1] = step._replace(
            template=step.template.replace("fold_in(key,", "fold_in(key_and_x[0],")
        )
        return made

    return draw


def fori_loop(maker, steps, scope, site):
    rank = maker.random.choice([0, 1])
    init = maker.pick(scope, f"f{rank}", 0.3)
    inner = _renamed(maker, [Variable("t", "i0", False), Variable("a", f"f{rank}", True)])
    t, a = inner[0].name, inner[1].name
    start = None if site is None else lambda s, v: site(s, v, fold=t)
    make = lambda: maker.block(
        f"{t}, {a}", scope, inner, [f"f{rank}"], f"0.5 * {a} + jnp.tanh({{0}})", 4, start
    )
    block = _looped(maker, site, make)
    template = (
        f"jax.lax.fori_loop(0, {maker.size}, {{A}}, {{0}} + jnp.zeros({(maker.size,) * rank}))"
    )
    return maker.add(steps, scope, f"f{rank}", template, [init], [block])


def over_rows(maker, steps, scope, site):
    """``lax.map`` or ``vmap`` over rows, or over row numbers."""
    function = maker.random.choice(
        ["jax.lax.map({A}, %s)", "jax.vmap({A})(%s)", "jax.vmap({A}, out_axes=-1)(%s)"]
    )
    rank = maker.random.choice([1, 2])
    over = maker.pick(scope, f"f{rank}", 0.0)
    x = Variable(maker.fresh("x"), f"f{rank - 1}", over.random)
    xs = "{0}"
    if site is None and maker.random.random() < 0.3:
        x, xs = x._replace(type="i0", random=False), f"jnp.arange({maker.size})"
    result = maker.random.choice(["f0", "f1"])
    if site is None:
        params, inner = x.name, [x]
    else:
        params, inner = "key_and_x", [x._replace(name="key_and_x[1]")]
        xs = f"(jax.random.split(jax.random.fold_in(key, {maker.fresh('')}), {maker.size}), {{0}})"
        function = function.replace("(%s)", "(%s)")
    make = lambda: maker.block(params, scope, inner, [result], "{0}", 4, _with_key(site))
    block = _looped(maker, site, make)
    function = function.replace("%s", xs)
    return maker.add(steps, scope, f"f{int(result[1]) + 1}", function, [over], [block])


def cond(maker, steps, scope, site):
    operand = maker.pick(scope, f"f{maker.random.choice([0, 1, 2])}", 0.1)
    result = maker.random.choice(["f0", "f1", "f1"])
    x = Variable(maker.fresh("x"), operand.type, operand.random)
    if maker.random.random() < 0.7:
        which, template = (
            maker.coerce(steps, scope, "f0"),
            "jax.lax.cond({1} > 0.0713, {A}, {B}, {0})",
        )
        count = 2
    else:
        which, count = maker.pick(scope, "i0", 0.0), 3
        template = "jax.lax.switch({1}, [{A}, {B}, {C}], {0})"
    blocks = [
        maker.block(x.name, scope, [x], [result], "{0} * 1.0", 3, site if i == 0 else None)
        for i in range(count)
    ]
    return maker.add(steps, scope, result, template, [operand, which], blocks)


def singular_cond(maker, steps, scope, site):
    """A branch that is not a number where it is not taken."""
    operand = maker.coerce(steps, scope, "f0")
    x = Variable(maker.fresh("x"), "f0", operand.random)
    first = Block(x.name, (), "jnp.sqrt({0}) + jnp.log({0})", (x.name,))
    if site is not None:
        inner: list[Step] = []
        z = site(inner, [*scope, x])
        rank = int(z.type[1])
        total = "{1}" if rank == 0 else "{1}.sum()"
        first = Block(x.name, tuple(inner), "jnp.sqrt({0}) * " + total, (x.name, z.name))
    second = maker.block(x.name, scope, [x], ["f0"], "{0} * 1.0", 2)
    return maker.add(
        steps, scope, "f0", "jax.lax.cond({0} > 0.0, {A}, {B}, {0})", [operand], [first, second]
    )


def call(maker, steps, scope, site):
    wrap = maker.random.choice(
        ["jax.jit({A})", "jax.checkpoint({A})", "jax.jit(jax.checkpoint({A}))"]
    )
    operand = maker.pick(scope, f"f{maker.random.choice([0, 1, 2])}", 0.1)
    result = maker.random.choice(["f0", "f1", "f2"])
    x = Variable(maker.fresh("x"), operand.type, operand.random)
    block = maker.block(x.name, scope, [x], [result], "{0} * 1.0", 4, site)
    return maker.add(steps, scope, result, wrap + "({0})", [operand], [block])


def closed_call(maker, steps, scope, site):
    """A call of a function of its operands alone."""
    assert site is None
    wrap = maker.random.choice(["custom({A})", "custom_vjp({A})", "jax.vmap({A})", "jax.vmap({A}, in_axes=1)",
                                "jax.grad({A})", "jax.jacrev({A})", "jax.vmap({A}, in_axes=1, out_axes=1)"])  # fmt: skip
    mapped = "vmap" in wrap
    operand = maker.pick(scope, f"f{maker.random.choice([1, 2])}" if not mapped else "f2", 0.05)
    rank = int(operand.type[1])
    result = "f0" if "grad" in wrap else maker.random.choice(["f0", "f1"])
    if "out_axes=1" in wrap or "jacrev" in wrap:
        result, operand, rank = ("f1", operand, rank)
    x = Variable(maker.fresh("x"), f"f{rank - mapped}", True)
    block = maker.block(x.name, [], [x], [result], "{0} * 1.0", 3)
    out = {"jax.grad({A})": rank, "jax.jacrev({A})": rank + 1}.get(wrap, int(result[1]) + mapped)
    return maker.add(
        steps, scope, f"f{out}", wrap + "({0})", [operand], [block], is_random=operand.random
    )


FORMS = [scan, scan, fori_loop, fori_loop, over_rows, over_rows, cond, cond, singular_cond, call, call, closed_call, closed_call]  # fmt: skip
FORMS_WITH_SITES = [scan, scan, scan, fori_loop, over_rows, over_rows, cond, singular_cond, call]


def make(seed):
    """The program of a seed."""
    maker = Maker(seed)
    body = maker.make()
    program = Program(seed, maker.size, body, {})
    program = alive(program)
    chosen = maker.estimators()
    used = set(sites(program.body))
    return program._replace(estimators={k: e for k, e in chosen.items() if k in used})


# -- cutting down ----------------------------------------------------------------------------------


def sites(block):
    """The names of the sites of a block."""
    for step in block.steps:
        if step.site:
            yield step.site
        for inner in step.blocks:
            yield from sites(inner)


def _used(block):
    """The names that a block's live steps use."""
    names = set(_base(r) for r in block.results)
    for step in block.steps:
        names |= {_base(a) for a in step.args}
        for inner in step.blocks:
            names |= _used(inner)
    return names


def _base(name):
    return name.split("[")[0]


def _alive(block):
    steps, needed = [], {_base(r) for r in block.results}
    for step in reversed(block.steps):
        if step.var in needed:
            step = step._replace(blocks=tuple(map(_alive, step.blocks)))
            needed |= {_base(a) for a in step.args}
            for inner in step.blocks:
                needed |= _used(inner)
            steps.append(step)
    return block._replace(steps=tuple(reversed(steps)))


def alive(program):
    """The program without what its value does not need."""
    return program._replace(body=_alive(program.body))
