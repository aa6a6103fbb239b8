"""NumPyro's ``scan`` and ``cond``: what is in them, and how a handler reaches it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
from numpyro.handlers import substitute
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import Messenger

import vipp_transforms as vt
from vipp.language.keys import shared_key, wants_key
from vipp_transforms._jax import trace_now
from vipp_transforms.control_flow import MAX_UNROLLED
from vipp_transforms.unrolling import reason_to_unroll


class Scan(NamedTuple):
    """The arguments of a NumPyro ``scan``, its number of steps worked out."""

    step: Any
    carry: Any
    xs: Any
    length: int
    reverse: bool


def scan_of(msg: Any) -> Scan | None:
    """The scan that a message is, or None: a ``cond`` is a message of that type, too."""
    if msg["type"] != "control_flow" or len(msg["args"]) != 5:
        return None
    step, carry, xs, length, reverse = msg["args"]
    length = len(jax.tree.leaves(xs)[0]) if length is None else length
    return Scan(step, carry, xs, length, reverse)


# -- two ways in -----------------------------------------------------------------------------------


def within(msg: Any, handler: Callable[[], Messenger]) -> None:
    """Run the step of a scan, or the branches of a cond, under a handler: inside all others."""
    places = (0,) if scan_of(msg) is not None else (1, 2)

    def under(fn: Callable[..., Any]) -> Callable[..., Any]:
        def body(*args: Any) -> Any:
            with handler():
                return fn(*args)

        return body

    msg["args"] = tuple(under(x) if i in places else x for i, x in enumerate(msg["args"]))


def hand_to_steps(msg: Any, values: Mapping[str, Any]) -> frozenset[str]:
    """Have a ``scan`` go through the values given for the sites of all its steps; their names."""
    scan, inside = scan_of(msg), msg["inside"]
    if scan is None:
        return frozenset()
    names = values.keys() & inside.latent.keys() - {*inside.nested}
    expected = {n: (scan.length, *inside.shapes[n]) for n in names}
    sliced = {n: values[n] for n in sorted(names) if jnp.shape(values[n]) == expected[n]}
    if not sliced:
        return frozenset()

    def step(carry: Any, entries: Any) -> Any:
        x, given = entries
        with substitute(data=given):
            return scan.step(carry, x)

    msg["args"] = (step, scan.carry, (scan.xs, sliced), scan.length, scan.reverse)
    return frozenset(sliced)


class sites(Messenger):  # noqa: N801 (a NumPyro handler, named like NumPyro's)
    """Visits every sample site beneath it, in or out of NumPyro's ``scan`` and ``cond``.

    NumPyro runs these blocked off from the handlers outside, which their one message tells what to
    do at each site. It tells them of the sites again when all steps have been taken, with values.
    """

    def process_message(self, msg: Any) -> None:
        """Visit a site, or have those of a ``scan`` or ``cond`` visited."""
        if msg["type"] == "control_flow":
            msg["kwargs"]["substitute_stack"].append(("substitute", self._inside))
        elif msg["type"] == "sample":
            self.visit(msg)

    def _inside(self, msg: Any) -> Any:
        if msg["type"] != "sample":
            return None
        given = msg["value"] is not None
        self.visit(msg)
        return None if given else msg["value"]

    def visit(self, msg: Any) -> None:
        """Do what is to be done at a site; a value that it gets is its draw."""
        raise NotImplementedError


def looped(msg: Any) -> bool:
    """Whether a site is drawn in a loop: NumPyro marks it for its own use."""
    return "_scan_current_index" in msg["infer"] or "of_a_step" in msg


# among what a site's ``infer`` says: it is drawn in a loop that runs in reverse
REVERSED = "_reversed"


# -- looking ahead ---------------------------------------------------------------------------------


class Site(NamedTuple):
    """What is known of a site before its loop runs: the estimator asked for, a value's shape."""

    estimator: Any
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Inside:
    """What an abstract run found in the bodies of a ``scan`` or ``cond``.

    Attributes:
      latent: the sites to be drawn, by name.
      nested: those of them in a ``scan`` inside this ``scan``.
      shapes: of the values of all sites.
      plates: full size and subsample size by name.
      result: the shapes of what the ``scan`` or ``cond`` returns.
    """

    latent: Mapping[str, Any]
    nested: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    plates: Mapping[str, tuple[int, int | None]]
    result: Any

    def given(self, names: Iterable[str]) -> Inside:
        """The same with values for some of the sites."""
        return replace(self, latent={n: e for n, e in self.latent.items() if n not in names})


def look_inside(msg: Any) -> Inside:
    """Run the bodies of a ``scan`` or ``cond`` abstractly, under the handlers it has met so far."""
    seen, plates = _Seen(), _SeenPlates()
    ahead = {**msg, "kwargs": dict(msg["kwargs"])}
    ahead["kwargs"]["substitute_stack"] = list(msg["kwargs"]["substitute_stack"])
    ahead["kwargs"]["rng_key"] = jax.random.key(0)
    within(ahead, lambda: plates)
    seen.process_message(ahead)
    run = lambda: _result(ahead["fn"](*ahead["args"], **ahead["kwargs"]))
    result = jax.eval_shape(run)
    nested = tuple(plates.looped) if scan_of(msg) is not None else ()
    return Inside(seen.latent, nested, seen.shapes, plates.found, result)


def _result(value: Any) -> Any:
    """What a ``scan`` or ``cond`` returns to its caller, without its trace."""
    if isinstance(value[1], PytreeTrace):
        return value[0]
    (_, _, carry), (_, ys) = value
    return carry, ys


class _Seen(sites):
    """Notes the sites."""

    def __init__(self) -> None:
        super().__init__()
        self.latent: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def visit(self, msg: Any) -> None:
        given = msg["is_observed"] or msg["value"] is not None
        if not given:
            if msg.get("shares_key"):
                raise shared_key(msg)
            self.latent[msg["name"]] = msg["infer"].get("estimator")
        shape = msg["kwargs"]["sample_shape"] + msg["fn"].shape()
        self.shapes[msg["name"]] = jnp.shape(msg["value"]) if given else tuple(shape)


class _SeenPlates(Messenger):
    """Notes the plates, and the latent sites of loops, from the inside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, tuple[int, int | None]] = {}
        self.looped: list[str] = []

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "control_flow":
            within(msg, lambda: self)
            if scan_of(msg) is not None:
                self.looped += look_inside(msg).latent
        elif msg["type"] == "plate":
            self.found.setdefault(msg["name"], msg["args"])


class _own_keys(Messenger):  # noqa: N801
    """In the body of a ``scan`` or ``cond``, which has a key for each step: marks what shares it.

    These are the draws under a JAX transformation that begins inside of the body.
    """

    def __enter__(self) -> None:
        self.began = trace_now()
        return super().__enter__()

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "control_flow":
            within(msg, _own_keys)
        elif wants_key(msg) and trace_now() != self.began:
            if msg["type"] == "prng_key":
                raise shared_key(msg)
            msg["shares_key"] = True  # a handler further out may give it a value


class own_sites(Messenger):  # noqa: N801
    """Refuses a site under a JAX transformation that began inside a program scored by its trace.

    In the body of a ``scan`` or ``cond``, which NumPyro's handlers outside do not reach, parameters
    have the values given; one without is refused.
    """

    def __init__(self, params: Mapping[str, Any] | None = None, *, in_body: bool = False):
        super().__init__()
        self.params, self.in_body = params or {}, in_body

    def __enter__(self) -> None:
        self.began = trace_now()
        return super().__enter__()

    def process_message(self, msg: Any) -> None:
        """Look at the site."""
        if msg["type"] == "control_flow":
            within(msg, lambda: own_sites(self.params, in_body=True))
        elif msg["type"] == "param" and self.in_body and msg["name"] in self.params:
            msg["value"] = self.params[msg["name"]]
        elif msg["type"] == "param" and self.in_body:
            raise vt.SiteError(
                f"Parameter '{msg['name']}' is declared in the body of a scan or cond, expected "
                "outside of it, where it gets its value. Fix: call numpyro.param before, and use "
                "what it returns inside."
            )
        elif msg["type"] == "sample" and trace_now() != self.began:
            raise vt.SiteError(
                f"Site '{msg['name']}' of a model or guide stands under a JAX transformation (jit, "
                "vmap, scan, map, cond, while_loop, checkpoint) that began inside the program, "
                "from which neither its value nor its density comes out. Expected none. Fix: use "
                "numpyro.contrib.control_flow.scan or cond, or a plate; or sample outside of it."
            )


class _reversed(Messenger):  # noqa: N801
    """Marks the sites of a loop that runs from its last step to its first."""

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "sample":
            msg["infer"] = {**msg["infer"], REVERSED: True}


class _plates_as_drawn(Messenger):  # noqa: N801
    """Gives plates the indices that were drawn outside."""

    def __init__(self, indices: Mapping[str, jax.Array]):
        super().__init__()
        self.indices = indices

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "control_flow":
            within(msg, lambda: _plates_as_drawn(self.indices))
        elif msg["type"] == "plate" and msg["value"] is None:
            msg["value"] = self.indices.get(msg["name"])


# -- running them ----------------------------------------------------------------------------------


class control_flow(Messenger):  # noqa: N801
    """Prepares each ``scan`` and ``cond``: looks inside, draws its plates, unrolls where asked to.

    A plate is drawn once, outside, where the trace shows it; all steps have the same subsample. A
    scan whose message says, in ``unrolled_for``, for which site it is to be unrolled runs step by
    step: site ``z`` of step ``t`` is then called ``z[t]``. So does one of which ``given`` has such
    values, and in a program that is scored one with another inside, which NumPyro doesn't score.

    Args:
      given: values that the program is run with, or None.
      scored: whether the values drawn will be given to a program again.
    """

    def __init__(self, given: Any = None, scored: bool = False):
        super().__init__()
        self.given = given
        self.scored = scored
        self.unrolled = False
        self.path: tuple[int, ...] = ()
        self.lengths: tuple[int, ...] = ()
        self.shapes: dict[str, tuple[int, ...]] = {}

    def process_message(self, msg: Any) -> None:
        """Prepare a ``scan`` or ``cond``, or name a site of an unrolled step."""
        if msg["type"] == "control_flow":
            self._prepare(msg)
        elif self.path and msg["type"] in ("sample", "deterministic"):
            self._name(msg)

    def _prepare(self, msg: Any) -> None:
        if "inside" in msg or msg["value"] is not None or msg["kwargs"].get("enum"):
            return
        within(msg, _own_keys)
        msg["inside"] = inside = look_inside(msg)
        indices: dict[str, jax.Array] = {}
        for name, (size, subsample_size) in inside.plates.items():
            with numpyro.plate(name, size, subsample_size) as index:
                indices[name] = index
        within(msg, lambda: _plates_as_drawn(indices))
        if self.path and self.given is not None:
            msg["inside"] = inside = self._give_step(msg, inside)
        scan = scan_of(msg)
        if scan is None:
            return
        if scan.reverse:
            within(msg, _reversed)
        self.shapes.update(inside.shapes)
        run, msg["fn"] = msg["fn"], lambda *args, **kwargs: self._run(msg, run, args, kwargs)
        unrolled = list(inside.nested) if self.scored else []
        if self.given is not None and self.given.unrolled:
            unrolled += [n for n in inside.latent if n not in self.given]
        if unrolled:
            msg["unrolled_for"] = unrolled[0]

    def _give_step(self, msg: Any, inside: Inside) -> Inside:
        """Give the sites of a loop or branch in a step their values, which have the step's name."""
        found = {n: self._value(n) for n in inside.latent}
        data = {n: x for n, x in found.items() if x is not None}
        msg["kwargs"]["substitute_stack"].append(("substitute", data))
        return inside.given(data)

    def _value(self, name: str) -> Any:
        """The value given for a site of this step, by its name or among those of all steps."""
        step = self.given.values.get(name + self._suffix)
        stacked = self.given.values.get(name)
        return step if step is not None or stacked is None else stacked[self.path]

    @property
    def _suffix(self) -> str:
        return "".join(f"[{t}]" for t in self.path)

    def _run(self, msg: Any, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        site = msg.get("unrolled_for")
        scan = scan_of(msg)
        if site is None or scan is None:
            return run(*args, **kwargs)
        self.unrolled = True
        before = self.path, self.lengths
        self.lengths = (*before[1], scan.length)
        self._check_length(site, msg["inside"])
        carry, stacked = scan.carry, [None] * scan.length
        for t in reversed(range(scan.length)) if scan.reverse else range(scan.length):
            self.path = (*before[0], t)
            carry, stacked[t] = scan.step(carry, jax.tree.map(lambda x, t=t: x[t], scan.xs))
        self.path, self.lengths = before
        ys = jax.tree.map(lambda *y: jnp.stack(y), *stacked) if stacked else None
        return (scan.length, None, carry), (PytreeTrace({}), ys)

    def _name(self, msg: Any) -> None:
        """Give a site of a step the step's name, and its part of a value given for all steps."""
        name = msg["name"]
        msg["of_a_step"] = True
        msg["name"] = name + self._suffix
        if msg["type"] != "sample":
            return
        value = msg["value"]
        if value is None:
            msg["value"] = None if self.given is None else self._value(name)
        elif name in self.shapes and jnp.shape(value) == (*self.lengths, *self.shapes[name]):
            msg["value"] = value[self.path]

    def _check_length(self, site: str, inside: Inside) -> None:
        steps = 1
        for length in self.lengths:
            steps *= length
        if steps <= MAX_UNROLLED:
            return
        estimator = inside.latent.get(site)
        who = f"site '{site}'" if estimator is None else f"site '{site}' with {estimator!r}"
        why = reason_to_unroll(site)
        who = who if why is None else f"{who}, as {why}"
        raise vt.SiteError(
            f"A scan of {steps} steps would have to be unrolled for {who}, expected at most "
            f"{MAX_UNROLLED} steps. Fix: use ScoreFunction(num_samples=2, "
            "baseline='leave_one_out'), or sum it out (vipp.marginal with exact=True)."
        )
