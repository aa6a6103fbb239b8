"""What compiles to the same program: what is made again of equal values, and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer.autoguide import AutoNormal

from vipp import ELBO, fit
from vipp.training.identity import identity

RATE, LEAST, SETTINGS = 0.1, 0.0, {"rate": 0.1}
ARRAY, OTHER = jnp.ones(2), jnp.ones(2)
NUMPY, LIST, LEARNT = np.ones(2), [1.0], AutoNormal(lambda: None)


def rate(step):
    return RATE / (1 + step)


class Experiment:
    rate = 0.1

    def optimiser(self):
        return optax.adam(lambda step: self.rate / (1 + step))


def model_of(scale, prior=dist.Normal):
    def model(x):
        z = numpyro.sample("z", prior(0.0, scale))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


def recursive(depth):
    def model(level=0):
        return level if level == depth else model(level + 1)

    return model


def marked(mark):
    def model():
        pass

    model.mark = mark
    return model


def importing():
    def model():
        from math import pi

        return pi

    return model


def decayed(rate, factor=0.9):
    return optax.chain(optax.clip(1.0), optax.adam(optax.exponential_decay(rate, 100, factor)))


def by_label(rate):
    return optax.multi_transform({"a": optax.adam(rate), "b": optax.sgd(0.1)}, lambda params: "a")


warmup = lambda peak: optax.sgd(optax.warmup_cosine_decay_schedule(0.0, peak, 10, 100))
injected = lambda rate: optax.inject_hyperparams(optax.adam)(rate)
own_schedule = lambda rate: numpyro.optim.SGD(lambda step: rate / (1 + step))
through_module = lambda: optax.adam(lambda step: rate(step) + LEAST)
through_dict = lambda: optax.adam(lambda step: SETTINGS["rate"])
through_optax = lambda rate: numpyro.optim.optax_to_numpyro(optax.adam(rate))
part = lambda scale: functools.partial(model_of(scale), 1.0)

SAME = {
    "Adam": lambda: optax.adam(1e-3),
    "a chain with a schedule": lambda: decayed(1e-3),
    "joined schedules": lambda: warmup(1.0),
    "by label": lambda: by_label(1e-3),
    "injected": lambda: injected(1e-3),
    "NumPyro's Adam": lambda: numpyro.optim.Adam(1e-3),
    "NumPyro's, own schedule": lambda: own_schedule(0.1),
    "optax in NumPyro": lambda: through_optax(1e-3),
    "BFGS": lambda: numpyro.optim.Minimize(),
    "a schedule that reads its module": through_module,
    "a model of a number": lambda: model_of(2.0),
    "a model of an array": lambda: model_of(ARRAY),
    "a model of a model": lambda: model_of(1.0, lambda loc, scale: dist.Normal(loc, scale)),
    "partial": lambda: part(2.0),
    "recursive": lambda: recursive(2),
}
DIFFERENT = {
    "another rate": (lambda: optax.adam(1e-3), lambda: optax.adam(2e-3)),
    "another optimiser": (lambda: optax.adam(1e-3), lambda: optax.sgd(1e-3)),
    "another schedule": (lambda: decayed(1e-3), lambda: decayed(1e-3, 0.8)),
    "no chain": (lambda: decayed(1e-3), lambda: optax.adam(1e-3)),
    "another peak": (lambda: warmup(1.0), lambda: warmup(2.0)),
    "another rate by label": (lambda: by_label(1e-3), lambda: by_label(2e-3)),
    "another rate injected": (lambda: injected(1e-3), lambda: injected(2e-3)),
    "another rate in NumPyro": (lambda: through_optax(0.1), lambda: through_optax(0.2)),
    "another of NumPyro's": (lambda: numpyro.optim.Adam(0.1), lambda: numpyro.optim.SGD(0.1)),
    "another own schedule": (lambda: own_schedule(0.1), lambda: own_schedule(0.2)),
    "another number": (lambda: model_of(2.0), lambda: model_of(3.0)),
    "another type": (lambda: model_of(1), lambda: model_of(True)),
    "another zero": (lambda: model_of(0.0), lambda: model_of(-0.0)),
    "another array": (lambda: model_of(ARRAY), lambda: model_of(OTHER)),
    "another default": (lambda: model_of(1.0), lambda: model_of(1.0, dist.Laplace)),
    "another partial": (lambda: part(2.0), lambda: part(3.0)),
    "another depth": (lambda: recursive(2), lambda: recursive(3)),
}
CHANGEABLE = {  # the same things around it, in which something may have been changed in between
    "an object": lambda e=Experiment(): e.optimiser(),  # noqa: B008
    "a dict of the user's": through_dict,
    "an array of NumPy's": lambda: model_of(NUMPY),
    "a list": lambda: model_of(LIST),
    "an autoguide": lambda: model_of(LEARNT),
    "a class": lambda: model_of(Experiment),
    "a bound method": lambda: model_of(LIST.append),
    "attributes": lambda: marked(1),
    "an import": importing,
}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME)
def test_what_is_made_again_is_the_same(make):
    one, other = make(), make()
    assert one is not other
    assert identity(one) == identity(other)
    assert hash(identity(one)) == hash(identity(other))


@pytest.mark.parametrize("one,other", DIFFERENT.values(), ids=DIFFERENT)
def test_of_other_values_it_is_not(one, other):
    assert identity(one()) != identity(other())


@pytest.mark.parametrize("make", CHANGEABLE.values(), ids=CHANGEABLE)
def test_what_reads_something_changeable_is_itself(make):
    one, other = make(), make()
    assert identity(one) == identity(one) != identity(other)


def test_what_a_module_holds_now_is_read(monkeypatch):
    """By a schedule in an optimiser, and by a function that the schedule calls."""
    before, optimiser = identity(through_module()), through_module()
    for name in ("LEAST", "RATE"):
        with monkeypatch.context() as changed:
            changed.setitem(globals(), name, 0.5)
            assert identity(through_module()) != before != identity(optimiser)
        assert identity(through_module()) == before == identity(optimiser)


class Read:
    """A model that is no function, and one of its methods."""

    def __call__(self):
        return rate(1.0)

    def method(self):
        return self.other()

    def other(self):
        return RATE


def reading_a_list():
    LIST.append(RATE)


def of_rate():
    return RATE


def own_update(updates, state, params=None):
    return reading_a_list(), state


READ = Read()
HOLDING = {
    "an instance": READ,
    "a method": READ.method,
    "a handler": numpyro.handlers.condition(of_rate, {}),
    "handlers": numpyro.handlers.mask(numpyro.handlers.scale(of_rate, 0.5), mask=True),
    "a partial that reads a list": functools.partial(reading_a_list),
    "a function of a handler": lambda: HOLDING["a handler"](),
    "an optimiser": optax.GradientTransformation(lambda params: (), own_update),
    "a chain": optax.chain(
        optax.GradientTransformation(lambda params: (), own_update), optax.scale(1.0)),
    "a schedule in an objective": ELBO(beta=lambda step: RATE),
    "a guide": AutoNormal(of_rate),
    "a decorated function": functools.wraps(of_rate)(lambda: reading_a_list()),
}  # fmt: skip


@pytest.mark.parametrize("thing", HOLDING.values(), ids=HOLDING)
def test_what_the_functions_in_a_thing_read_counts(thing, monkeypatch):
    before = identity(thing)
    assert identity(thing) == before
    monkeypatch.setitem(globals(), "RATE", 0.2)
    assert identity(thing) != before
    monkeypatch.undo()
    assert identity(thing) == before


def test_a_key_keeps_what_it_compares_alive():
    """Else something else could come to lie where the array was, and be taken for it."""
    key = identity(model_of(jnp.ones(3)))
    assert all(identity(model_of(jnp.ones(3))) != key for _ in range(20))


def test_a_fit_with_an_optimiser_made_again_compiles_nothing():
    """Its guide made again, too. The model runs once to initialise, oftener to be compiled."""
    runs = []

    def model(x):
        runs.append(x)
        numpyro.sample("x", dist.Normal(numpyro.param("m", 0.0), 1.0), obs=x)

    def first_step(rate):
        del runs[:]
        optim = optax.chain(optax.clip(10.0), optax.sgd(rate))
        key, nothing = jax.random.key(0), lambda x: None
        moved = fit(key, ELBO(), model, nothing, optim, 1, ARRAY, progress_bar=False).params["m"]
        return len(runs), float(moved)

    count, moved = first_step(0.1)
    assert first_step(0.1) == (1, moved)
    assert first_step(0.2) == (count, pytest.approx(2 * moved))
