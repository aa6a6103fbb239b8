"""Loops, branches and calls of random programs.

Each form appends one step with blocks to a program that a `program_maker.Maker` makes; ``site``
is None, or draws inside of a block.
"""

from engine_programs import Block, Step, Variable


def _looped(maker, site, key, make):
    """What ``make`` makes, a block that runs once for each row; ``key`` is that of a run."""
    if site is None:
        return make()
    around, maker.key = maker.key, key
    maker.multiple *= maker.size
    made = make()
    maker.multiple //= maker.size
    maker.key = around
    return made


def _renamed(maker, variables):
    return [v._replace(name=maker.fresh(v.name)) for v in variables]


def _with_keys(maker, rows):
    """Rows, each with a key of its own."""
    key = f"jax.random.fold_in({maker.key}, {maker.fresh('')})"
    return f"(jax.random.split({key}, {maker.size}), {rows})"


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
    (c, x), xs = (v.name for v in inner), "{1}"
    if site is not None:
        inner[1], xs = inner[1]._replace(name=f"{x}[1]"), _with_keys(maker, "{1}")
    make = lambda: maker.block(
        f"{c}, {x}", scope, inner, [carry_type, y_type], "jnp.tanh({0}), {1}", 4, site
    )
    block = _looped(maker, site, f"{x}[0]", make)
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


def fori_loop(maker, steps, scope, site):
    rank = maker.random.choice([0, 1])
    init = maker.pick(scope, f"f{rank}", 0.3)
    inner = _renamed(maker, [Variable("t", "i0", False), Variable("a", f"f{rank}", True)])
    t, a = inner[0].name, inner[1].name
    make = lambda: maker.block(
        f"{t}, {a}", scope, inner, [f"f{rank}"], f"0.5 * {a} + jnp.tanh({{0}})", 4, site
    )
    block = _looped(maker, site, f"jax.random.fold_in({maker.key}, 1000 + {t})", make)
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
    params, inner = x.name, x
    if site is not None:
        inner, xs = x._replace(name=f"{x.name}[1]"), _with_keys(maker, "{0}")
    make = lambda: maker.block(params, scope, [inner], [result], "{0}", 4, site)
    block = _looped(maker, site, f"{x.name}[0]", make)
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


def pairs(maker, steps, scope, site):
    """A loop over a vector within a loop over it or another one."""
    assert site is None
    choose = maker.random.choice
    outer, inner = choose(["jax.lax.map", "jax.vmap"]), choose(["jax.lax.map", "jax.vmap"])
    combine = choose(["x * y", "jnp.sin(x + y)", "(x - 0.7 * y) ** 2", "jnp.logaddexp(x, y)"])
    reduce = choose(["jnp.sum", "jnp.prod", "jax.nn.logsumexp", "jnp.cumsum", "jnp.tanh"])
    loop = lambda over, fn, xs: (
        f"jax.lax.map({fn}, {xs})" if over == "jax.lax.map" else f"jax.vmap({fn})({xs})"
    )
    body = f"lambda x: {reduce}({loop(inner, f'lambda y: {combine}', '{1}')})"
    vectors = [maker.coerce(steps, scope, "f1"), maker.coerce(steps, scope, "f1")]
    rank = 2 if reduce in ("jnp.cumsum", "jnp.tanh") else 1
    return maker.add(steps, scope, f"f{rank}", loop(outer, body, "{0}"), vectors)


ENTRIES = [
    "{0}[t] * {1}[t]", "{0}[t] * {0}[(t + 1) % {N}]", "{0}[t] * {1}[{N} - 1 - t]", "{3}[t] @ {0}",
    "jnp.array({tab})[t, {2}]", "jnp.array({tab})[{2}, t]", "{3}[t, {2}]", "{3}[{2}, t]",
    "{3}[t][t]", "{3}[t, {N} - 1 - t]", "{0}[t] * {0}[{2}]", "{3}[:, t] @ {3}[t]",
    "jax.lax.dynamic_slice({3}, (t, {2}), (1, 1))[0, 0]", "{0}[t] * jnp.cumsum({0})[t]",
]  # fmt: skip


ARRAYS = [
    "v.at[t].set(E + 0.5 * v[t - 1])", "v.at[t].add(E * v[t])", "0.6 * jnp.roll(v, 1) + E", "0.7 * v[::-1] * E",
    "v.at[{2}].set(jnp.tanh(E + v[t]))", "jnp.tanh(v + E)", "jax.lax.dynamic_update_slice(v, jnp.sin(v[t] + E)[None], (t,))",
]  # fmt: skip


def _drawn(maker, steps, scope):
    """An index that depends on a draw."""
    drawn = [v for v in scope if v.type == "i0" and v.random]
    if drawn:
        return maker.random.choice(drawn)
    total = maker.coerce(steps, scope, "f0")
    return maker.add(steps, scope, "i0", "1 * ({0} > 0.31)", [total])


def indexed(maker, steps, scope, site):
    """A loop that takes entries by its counter and by drawn indices."""
    assert site is None
    entry = maker.fill(maker.random.choice(ENTRIES), 1)
    update = maker.random.choice(
        ["a + E", "jnp.sin(a) * E + E", "jnp.tanh(a + E)", "a * (1 + 0.3 * E)"]
    )
    operands = [maker.coerce(steps, scope, "f1"), maker.coerce(steps, scope, "f1")]
    operands += [_drawn(maker, steps, scope), maker.coerce(steps, scope, "f2")]
    update = update.replace("E", f"({entry})")
    roll, length = maker.random.random(), maker.size
    if roll < 0.4:
        template = f"jax.lax.fori_loop(0, {length}, lambda t, a: {update}, {maker.number()})"
        return maker.add(steps, scope, "f0", template, operands)
    if roll < 0.6:
        update = maker.random.choice(ARRAYS).replace("E", f"({entry})")
        template = f"jax.lax.fori_loop(0, {length}, lambda t, v: {update}, 1.0 * {{0}})"
        return maker.add(steps, scope, "f1", template, operands)
    reverse = maker.random.random() < 0.3
    step = f"lambda a, t: ({update}, a * ({entry}))"
    start = f"{maker.number()}, jnp.arange({length}), reverse={reverse}"
    return maker.add(steps, scope, "f1", f"jax.lax.scan({step}, {start})[1]", operands)


PAIRS = [
    "{3}[s, t]", "{3}[t, s]", "{0}[s] * {1}[t]", "{0}[t] * {1}[t]", "{3}[s][t] * {0}[s]", "{3}[t, t] * {0}[s]",
    "{0}[(s + t) % {N}]", "jnp.array({tab})[s, {2}] * {0}[t]", "{3}[s] @ {3}[t]", "{3}[:, s] @ {3}[t]",
    "jnp.where(s < t, {0}[s] * {1}[t], 0.0)", "{3}[s, {2}] * {0}[t]", "{0}[t] * {0}[s]", "{3}[{2}, t] + {3}[s, s]",
    "jax.lax.dynamic_slice({3}, (s, t), (1, 1))[0, 0]", "{3}[{N} - 1 - s, t]", "jnp.cumsum({0})[s] * {1}[t]",
]  # fmt: skip


def counters(maker, steps, scope, site):
    """A loop within a loop of the same length, that takes entries by both counters."""
    assert site is None
    choose, n = maker.random.choice, maker.size
    entry = maker.fill(choose(PAIRS), 1)
    update = choose(["a + E", "jnp.tanh(a + E)", "a * (1 + 0.3 * E)"]).replace("E", f"({entry})")
    operands = [
        maker.coerce(steps, scope, "f1"),
        maker.coerce(steps, scope, "f1"),
        _drawn(maker, steps, scope),
    ]
    operands += [maker.coerce(steps, scope, "f2")]
    reverse = choose([True, False, False])
    inner, rank = choose([
        (f"jax.lax.fori_loop(0, {n}, lambda t, a: {update}, b)", 0),
        (f"jax.lax.scan(lambda a, t: ({update}, a * ({entry})), b, jnp.arange({n}), reverse={reverse})[1]", 1),
        (f"jax.lax.map(lambda t: b + {entry}, jnp.arange({n}))", 1),
        (f"jax.vmap(lambda t: b + {entry})(jnp.arange({n}))", 1),
    ])  # fmt: skip
    total = inner if rank == 0 else f"({inner}).sum()"
    outer, more = choose([
        (f"jax.lax.fori_loop(0, {n}, lambda s, b: jnp.tanh({total}), {maker.number()})", 0),
        (f"jax.lax.scan(lambda b, s: (jnp.sin({total}), {inner}), {maker.number()}, jnp.arange({n}), reverse={not reverse})[1]", rank + 1),
        (f"jax.lax.map(lambda s: (lambda b: {inner})({maker.number()}), jnp.arange({n}))", rank + 1),
        (f"jax.vmap(lambda b, s: {inner})({{1}}, jnp.arange({n}))", rank + 1),
    ])  # fmt: skip
    return maker.add(steps, scope, f"f{more}", outer, operands)


FORMS = [pairs, pairs, indexed, indexed, indexed, counters, counters, scan, scan, fori_loop, fori_loop, over_rows, over_rows, cond, cond, singular_cond, call, call, closed_call, closed_call]  # fmt: skip
FORMS_WITH_SITES = [scan, scan, scan, fori_loop, over_rows, over_rows, cond, singular_cond, call]
