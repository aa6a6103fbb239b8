"""Random programs of the engine, each made from a seed."""

import random

from engine_programs import Block, Program, Step, Variable, alive, base, has_site, sites
from operation_table import BINARY, ELEMENTWISE, ROWS, TABLE, Operation
from program_forms import FORMS, FORMS_WITH_SITES

MAX_JOINT = 512
MAX_RANK = 3

CHEAP = ["vt.ScoreFunction()", "vt.LocalExpectation()", "vt.MeasureValued()"]
CHEAP += 3 * ["vt.Enumerate()"]  # whose value shows most mistakes
SEVERAL = [
    "vt.ScoreFunction(2)", "vt.ScoreFunction(2, 'leave_one_out')", "vt.ScoreFunction(1, 0.7)",
    "vt.ScoreFunction(3, 'leave_one_out')", "vt.DoubleControlVariates(2)", "vt.FittedControlVariates(3)", "vt.Automatic(max_samples=2)",
    "vt.ScoreFunction(2, 'leave_one_out', differentiate='first')",
    "vt.FittedControlVariates(3, differentiate='first')",
    "vt.Mix(vt.LocalExpectation(), vt.ScoreFunction(), weight=0.3)",
    "vt.Mix(vt.MeasureValued(), vt.ScoreFunction(1, 0.2), weight=0.6)",
]  # fmt: skip
BINARY_ONLY = ["vt.DisARM()", "vt.ARM()"]


def _draw(steps, scope, site):
    return site(steps, scope)


class Maker:
    """Makes one program."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.size = self.random.choice([2, 3, 3])
        self.joint, self.most = 1, MAX_JOINT  # joint values of all sites
        self.count, self.sites = 0, {}
        self.lanes = {}  # per site
        self.multiple = 1  # how often the block being made runs
        self.key = "key"  # of a run
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
            "perm": self.indices(True), "row": self.numbers(1), "tab": self.numbers(2), "ramp": ramp,
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
        self.used.update(map(base, names))
        step = Step(self.fresh("v"), type_, template, names, tuple(blocks), site)
        depends = any(v.random for v in operands) or site is not None or any(map(has_site, blocks))
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
            indexed = [row for row in fitting if {"i0", "i1"} & set(row[1].split())]
            fitting = indexed if indexed and self.random.random() < 0.3 else fitting
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
        self.used.update(base(v.name) for v in made)
        return Block(params, tuple(steps), template, tuple(v.name for v in made))

    def structure(self, steps, scope, site=None):
        """Append a loop, a branch or a call; with a draw inside if ``site`` draws.

        The draw may be inside another one that is inside.
        """
        form = self.random.choice(FORMS_WITH_SITES if site else FORMS)
        if site is None or self.random.random() > 0.3:
            return form(self, steps, scope, site)
        deeper = lambda steps, scope: (self.structure if self.repeated() else _draw)(
            steps, scope, site
        )
        return form(self, steps, scope, deeper)

    depth = 0

    def something(self, steps, scope, nested=False):
        if self.depth < 2 and self.random.random() < (0.2 if nested else 0.35):
            self.depth += 1
            made = self.structure(steps, scope)
            self.depth -= 1
            return made
        return self.operation(steps, scope)

    # -- sites

    def site(self, name):
        """A function that appends a draw."""

        def draw(steps, scope):
            rank = self.random.choice([r for r in (0, 1, 1, 1, 2) if self.affordable(2, r)] or [0])
            kind, values = self.kind(rank)
            self.lanes[name] = self.size**rank * self.multiple
            self.joint *= values ** self.lanes[name]
            family, x = self.family(steps, scope, kind, rank)
            key = f"jax.random.fold_in({self.key}, {len(self.sites)})"
            as_float = "Bernoulli" in kind and self.random.random() < 0.6
            template = f'draw("{name}", {key}, {family})'
            template = f"1.0 * {template}" if as_float else template
            self.sites[name] = kind
            type_ = ("f" if as_float or kind == "Normal" else "i") + str(rank)
            return self.add(steps, scope, type_, template, [x], site=name)

        return draw

    def kind(self, rank):
        """A kind of distribution that can be afforded, and the number of its values."""
        kinds = [("Categorical", self.size, 3), ("Bernoulli of a quarter", 2, 2), ("Normal", 4, 1)]
        fitting = [k for k in kinds if self.affordable(k[1], rank)] + [("Bernoulli", 2, 10)]
        if self.size**rank * self.multiple > 3:
            fitting = [k for k in fitting if k[0] in ("Categorical", "Bernoulli")]
        return self.random.choices([k[:2] for k in fitting], [k[2] for k in fitting])[0]

    def family(self, steps, scope, kind, rank):
        """A distribution as source, and the variable that its parameter is made of."""
        t = f"theta[{self.random.randrange(3)}]"
        if kind == "Normal":
            return f"Normal(jnp.sin({{0}}) + {t}, 0.6)", self.coerce(steps, scope, f"f{rank}")
        probs = self.random.random() < 0.25
        if kind == "Categorical":
            x = self.coerce(steps, scope, f"f{rank + 1}" if rank < MAX_RANK - 1 else f"f{rank}")
            logits = f"0.7 * jnp.tanh({{0}}) + {t} * jnp.arange({self.size}.0)"
            if rank == MAX_RANK - 1:
                logits = f"{{0}}[..., None] * jnp.arange({self.size}.0) * {t}"
            arguments = f"probs=jax.nn.softmax({logits})" if probs else f"logits={logits}"
            return f"Categorical({arguments})", x
        x, logits = self.coerce(steps, scope, f"f{rank}"), f"0.8 * jnp.tanh({{0}}) + {t}"
        if kind == "Bernoulli of a quarter":
            return f"Bernoulli(logits=quarters({logits}))", x
        arguments = f"probs=jax.nn.sigmoid({logits})" if probs else f"logits={logits}"
        return f"Bernoulli({arguments})", x

    def affordable(self, values, rank):
        return self.joint * values ** (self.size**rank * self.multiple) <= self.most

    def repeated(self):
        """Whether a draw can be made ``size`` times more often."""
        return self.joint * 2 ** (self.multiple * self.size) <= self.most

    def make(self):
        choose = self.random.random
        scope = [Variable(f"theta[{i}]", "f0", False) for i in range(3)]
        steps: list[Step] = []
        self.add(steps, scope, "f1", f"jnp.array({self.numbers(1)}) * theta[0]", [])
        self.add(steps, scope, "f2", f"jnp.array({self.numbers(2)}) + theta[1]", [])
        self.add(steps, scope, "i1", f"jnp.array({self.indices()})", [])
        planned = self.random.choices([1, 2, 3, 4], [3, 4, 3, 2])[0]
        for number in range(planned):
            self.most = MAX_JOINT // 4 ** (planned - 1 - number)  # something is left for the others
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
            special = {"Bernoulli of a quarter": BINARY_ONLY, "Normal": ["vt.Pathwise()"]}
            chosen[name] = self.random.choice(special.get(kind, CHEAP + several))
        return chosen


def make(seed):
    """The program of a seed: the first of a few whose value depends on all draws, or on some."""
    for attempt in range(10):
        maker = Maker(f"{seed}.{attempt}")
        program = alive(Program(seed, maker.size, maker.make(), {}))
        chosen, used = maker.estimators(), set(sites(program.body))
        if used and (attempt > 4 or used == set(chosen)):
            break
    return program._replace(estimators={k: e for k, e in chosen.items() if k in used})
