"""Random models with guides, each made from a seed."""

import math
import random
import re
from typing import NamedTuple

from language_programs import OBJECTIVES, Pair, Statement
from program_maker import CHEAP, SEVERAL

SIZE = 3  # of plates and loops
MAX_JOINT = 512


class Variable(NamedTuple):
    """A latent value and the plates that it lies in, outermost first."""

    name: str
    plates: tuple[str, ...]


class Maker:
    """Makes one pair of programs."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.objective = self.random.choice(OBJECTIVES)
        self.joint, self.multiple, self.count = 1, 1, 0
        self.lanes, self.plates, self.coupled = {}, [], set()
        self.continuous = set()
        self.looped = False

    def fresh(self, prefix):
        self.count += 1
        return f"{prefix}{self.count}"

    def number(self):
        return f"{self.random.choice((-1, 1)) * self.random.uniform(0.3, 1.3):.2f}"

    def afford(self, values, lanes):
        return self.joint * values ** (lanes * self.objective.particles) <= MAX_JOINT

    def size(self):
        return math.prod(2 if p == "S" else SIZE for p in self.plates) * self.multiple

    def features(self, scope, extra=()):
        """A sum of some earlier variables, of the shape of the present plates or less."""
        parts = [f"{self.number()} * {x}" for x in extra]
        for v in self.random.sample(scope, min(len(scope), self.random.randint(0, 2))):
            inside = set(v.plates) <= set(self.plates)
            parts.append(f"{self.number()} * {v.name}" + ("" if inside else ".sum()"))
        return " + ".join(parts) or self.number()

    def data(self):
        """Data of the shape of the present plates, and the index of a subsampled one."""
        if self.plates in (["A"], ["B"]):
            return "data['x']"
        if self.plates == ["S"]:
            return "data['s'][iS]"
        if sorted(self.plates) == ["A", "B"]:
            return "data['y']"
        return "x" if self.looped and not self.plates else "0.6"

    def latent(self, scope, name=None, extra=()):
        plain = name is not None  # the branches of a cond draw from distributions of one kind
        # the score of a continuous draw has mean 0 under its own noise alone
        scored = re.search("VIMCO|landing|analytic", self.objective.source)
        sizes = (2,) if plain else (2, 2, 2, 3, 3) if scored else (2, 2, 2, 3, 3, 4)
        affordable = [v for v in sizes if self.afford(v, self.size())]
        if not affordable:
            return []
        values, name = self.random.choice(affordable), name or self.fresh("z")
        self.joint *= values ** (self.size() * self.objective.particles)
        self.lanes[name] = self.size()
        t = self.random.randrange(3)
        p = f"p[{t}] + {self.features(scope, extra)}"
        q = f"q[{t}] + {self.features(scope, [*extra, self.data()])}"
        if values == 4:
            family = "Normal({}, 0.8)"
            self.continuous.add(name)
        elif values == 2:
            if not plain and self.size() <= 3 and self.random.random() < 0.12:
                self.coupled.add(name)
                q = f"quarters({q})"
            family = "Bernoulli(logits={})"
            if not plain and name not in self.coupled and self.random.random() < 0.2:
                family = "Bernoulli(probs=jax.nn.sigmoid({}))"
        else:
            family = "Categorical(logits=jnp.stack([{0}, 0.2 + 0.0 * ({0}), -0.4 * ({0})], -1))"
            if self.random.random() < 0.3:
                family = family.replace("logits=", "probs=jax.nn.softmax(").replace(
                    ", -1))", ", -1), -1))"
                )
        line = f"{name} = L.sample('{name}', {family})"
        scope.append(Variable(name, tuple(self.plates)))
        return [Statement(line.format(p), line.format(q), site=name, defines=name)]

    def observed(self, scope, extra=()):
        name = self.fresh("x")
        loc = f"p[{self.random.randrange(3)}] * ({self.features(scope, extra)})"
        if self.random.random() < 0.3:
            line = f"L.sample('{name}', Bernoulli(logits={loc}), obs=1 * ({self.data()} > 0))"
        else:
            line = f"L.sample('{name}', Normal({loc}, 0.9), obs={self.data()})"
        return [Statement(line, "")]

    def factor(self, scope, extra=()):
        name, value = self.fresh("f"), f"p[0] * jnp.sin({self.features(scope, extra)})"
        if self.plates:
            value = f"{value} + 0.0 * {self.data()}"
        line = f"L.factor('{name}', {value})"
        return [Statement(line, line.replace("p[0]", "q[0]") if self.random.random() < 0.2 else "")]

    def plate(self, scope, extra=()):
        if len(self.plates) == 2 or "S" in self.plates or self.multiple > 1:
            return self.latent(scope, extra=extra)
        name = "A" if not self.plates else "B"
        # of other bounds a minibatch has to be one of the whole programs
        often = 0.3 if "ELBO" in self.objective.source else 0.05
        if not self.plates and self.random.random() < often:
            name = "S"
        if name == "A" and self.random.random() < 0.3:
            name = "B"
        if name in self.plates or (self.plates == ["B"]):
            name = "A"
        line = (
            "with L.plate('S', 4, 2) as iS:" if name == "S" else f"with L.plate('{name}', {SIZE}):"
        )
        self.plates.append(name)
        inner = self.several(scope, 3, extra)
        self.plates.pop()
        return [Statement(line, line, tuple(inner))] if inner else []

    def scaled(self, scope, extra=()):
        if self.random.random() < 0.5:
            line = f"with L.scale({abs(float(self.number()))}):"
        else:
            keep = "data['m']" if self.plates == ["A"] else "data['w'][1] > 0.7"
            keep = self.random.choice([keep, "data['w'][0] > 0.7"]) if not self.plates else keep
            line = f"with L.mask({keep}):"
        inner = self.several(scope, 2, extra)
        where = self.random.choice([(line, ""), (line, line), (line, line), ("", line)])
        return [Statement(*where, tuple(inner))] if inner else []

    def scan(self, scope, extra=()):
        if self.plates or self.looped or not self.afford(2, SIZE):
            return self.latent(scope, extra=extra)
        step = self.fresh("step")
        self.multiple, self.looped = SIZE, True
        inner_scope = list(scope)
        inner = self.latent(inner_scope, extra=["c"])
        if self.random.random() < 0.8:
            inner += self.observed(inner_scope, ["c"])
        if self.random.random() < 0.25:
            inner += self.factor(inner_scope, ["c"])
        self.multiple, self.looped = 1, False
        new = [v.name for v in inner_scope[len(scope) :]]
        carry = f"{self.number()} * c + {self.number()} * ({' + '.join(new) or 'x'})"
        carry = f"jnp.tanh({carry})" if self.random.random() < 0.5 else carry
        end, out = f"    return {carry}, {new[-1] if new else 'c'}", self.fresh("s")
        after = (end, f"_, {out} = L.scan({step}, 0.1, data['x'])")
        if new:
            scope.append(Variable(out, ("T",)))
        line = f"def {step}(c, x):"
        return [Statement(line, line, tuple(inner), after, after)]

    def cond(self, scope, extra=()):
        deciding = [v for v in scope if not v.plates]
        if self.plates or self.looped or not deciding or not self.afford(4, 1):
            return self.latent(scope, extra=extra)
        name, made = self.fresh("z"), []
        which = self.random.choice(deciding).name
        for letter in "yn":
            inner = self.latent(list(scope), name=name)
            line = f"def {letter}_{name}(operand):"
            end = (f"    return {name}",)
            made.append(Statement(line, line, tuple(inner), end, end))
        line = f"{name} = L.cond({which} > 0, y_{name}, n_{name}, 0.0)"
        scope.append(Variable(name, ()))
        return [*made, Statement(line, line, defines=name)]

    def several(self, scope, most, extra=()):
        made = []
        for _ in range(self.random.randint(1, most)):
            kinds = [
                self.latent,
                self.latent,
                self.observed,
                self.observed,
                self.factor,
                self.plate,
                self.plate,
                self.scaled,
            ]
            if not self.plates:
                kinds += [self.scan, self.scan, self.cond]
            made += self.random.choice(kinds)(scope, extra=extra)
        return made

    def make(self, seed):
        scope = []
        whole = self.random.random() < 0.15
        self.plates = ["S"] if whole else []
        statements = (*self.latent(scope), *self.several(scope, 4), *self.observed(scope))
        if whole:
            line = "with L.plate('S', 4, 2) as iS:"
            statements = (Statement(line, line, statements),)
        return Pair(seed, statements, self.estimators(), self.objective.source)

    def estimators(self):
        chosen = {}
        for name, lanes in self.lanes.items():
            several = SEVERAL if lanes * self.objective.particles <= 4 else SEVERAL[4:5]
            options = ["vt.DisARM()", "vt.ARM()"] if name in self.coupled else CHEAP + several
            options = [o for o in options if "vt.ScoreFunction(1, " not in o]
            options = ["vt.Pathwise()"] if name in self.continuous else options
            chosen[name] = self.random.choice([*options, "None"])
        return chosen


def make(seed):
    """The pair of a seed."""
    return Maker(seed).make(seed)
