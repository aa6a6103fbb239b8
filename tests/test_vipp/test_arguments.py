"""What an objective is made with: help, mistakes, schedules, copies, equality."""

import copy
import inspect
import pickle
import pydoc
import typing

import jax.numpy as jnp
import optax
import pytest

import vipp
from labels import label

OBJECTIVES = [
    vipp.AnnealedBound, vipp.CIWAE, vipp.CUBO, vipp.ELBO, vipp.FilteringBound, vipp.ForwardKL,
    vipp.IWAE, vipp.MIWAE, vipp.PIWAE, vipp.Renyi, vipp.ReweightedWakeSleep, vipp.TVO, vipp.VarGrad,
    vipp.VIMCO,
]  # fmt: skip


@vipp.objective
def mine(p, q, k=3, *, temperature: float, f=None):
    """An objective of one's own."""


@pytest.mark.parametrize("kind", [*OBJECTIVES, mine], ids=lambda k: k.__name__)
def test_help_shows_the_arguments(kind):
    parameters = inspect.signature(kind).parameters
    assert list(parameters) == list(kind.arguments)
    assert {p.kind for p in parameters.values()} <= {inspect.Parameter.KEYWORD_ONLY}
    text = pydoc.render_doc(kind, renderer=pydoc.plaintext)
    assert f"|  {kind.__name__}(*, " in text
    assert kind.__doc__.splitlines()[0] in text


def test_the_signature_in_full():
    assert str(inspect.signature(vipp.IWAE)) == (
        "(*, num_particles: int, per_plate: str | tuple[str, ...] | None = 'auto', "
        "doubly_reparameterised: bool = False)"
    )
    parameters = inspect.signature(mine).parameters
    assert list(map(str, parameters.values()))[::2] == ["k=3", "f=None"]
    assert typing.get_args(parameters["temperature"].annotation)[0] is float  # or a schedule


MISTAKES = [
    (lambda: vipp.IWAE(8), r"given by name, got 8\. Fix: IWAE\(num_particles=8\)\."),
    (lambda: vipp.Renyi(0.5, 8), r"Fix: Renyi\(alpha=0.5, num_particles=8\)\."),
    (lambda: vipp.IWAE(8, per_plate=None), r"IWAE\(num_particles=8, per_plate=None\)"),
    (lambda: vipp.ELBO(1, 2, 3, 4, 5), r"Fix: use \['num_particles', 'beta'"),
    (lambda: vipp.IWAE(), r"'num_particles' is required\. Fix: IWAE\(num_particles=\.\.\.\)"),
    (lambda: vipp.MIWAE(), "arguments 'num_bounds', 'num_particles' are required"),
    (lambda: vipp.CIWAE(beta=0.5), r"Fix: CIWAE\(num_particles=\.\.\., beta=0.5\)"),
    (lambda: vipp.ELBO(particles=3), r"unknown argument 'particles', expected one of \['num_"),
    (
        lambda: vipp.IWAE(particles=3),
        r"\(did you mean 'num_particles'\?\)\. Fix: IWAE\(num_particles=3\)",
    ),
    (lambda: vipp.ELBO(qqq=3), "Fix: use one of these"),
    (lambda: mine(2), r"mine: .* got 2\. Fix: mine\(k=2\)"),
    (lambda: mine(), r"Fix: mine\(temperature=\.\.\.\)"),
    (lambda: mine(temprature=1.0), r"Fix: mine\(temperature=1.0\)"),
    (lambda: vipp.objective(lambda p: 0), "does not take two programs. Fix: "),
    (lambda: vipp.objective(lambda *programs: 0), "does not take two programs. Fix: "),
    (lambda: vipp.objective(lambda p, *, q: 0), "does not take two programs. Fix: "),
    (lambda: vipp.objective(lambda p, q, **rest: 0), r"takes '\*\*rest'.*Fix: name each"),
]


@pytest.mark.parametrize("make, message", MISTAKES, ids=[m for _, m in MISTAKES])
def test_mistakes(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_shown_as_written():
    assert repr(vipp.IWAE(num_particles=3)) == "IWAE(num_particles=3)"
    assert repr(vipp.ELBO(kl=["z"], num_particles=1)) == "ELBO(kl=['z'])"


SCHEDULE = optax.linear_schedule(0.0, 1.0, 50)


@pytest.mark.parametrize(
    "make",
    [
        lambda: vipp.IWAE(num_particles=8),
        lambda: vipp.ELBO(kl=["z"]),
        lambda: vipp.ELBO(beta=SCHEDULE),
        lambda: vipp.TVO(num_particles=2, partition=(0.0, 0.3)),
        lambda: mine(temperature=2.0),
        lambda: vipp.ELBO() - 0.5 * vipp.IWAE(num_particles=2),
    ],
    ids=lambda make: label(make()),
)
def test_equal_by_value(make):
    one, other = make(), make()
    assert one == other and hash(one) == hash(other)
    assert {one: "found"}[other] == "found"
    for again in (copy.copy(one), copy.deepcopy(one)):
        assert again == one and repr(again) == repr(one)
    if SCHEDULE not in one.schedules.values():  # optax's are closures, which don't pickle
        again = pickle.loads(pickle.dumps(one))
        assert again == one and repr(again) == repr(one)


def test_unequal():
    made = [
        vipp.IWAE(num_particles=8), vipp.IWAE(num_particles=9), vipp.VIMCO(num_particles=8),
        vipp.IWAE(num_particles=8, per_plate=None), 2.0 * vipp.IWAE(num_particles=8),
        vipp.ELBO(beta=SCHEDULE), vipp.ELBO(beta=lambda step: 1.0), vipp.ELBO(beta=0.5),
    ]  # fmt: skip
    assert len(set(made)) == len(made)
    assert vipp.ELBO() != "ELBO()"


def test_arrays_are_equal_by_being_the_same():
    z = {"z": jnp.zeros(3)}
    assert vipp.ForwardKL(samples=z) == vipp.ForwardKL(samples=dict(z))
    assert hash(vipp.ForwardKL(samples=z)) == hash(vipp.ForwardKL(samples=dict(z)))
    assert vipp.ForwardKL(samples=z) != vipp.ForwardKL(samples={"z": jnp.zeros(3)})
