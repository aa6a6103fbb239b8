"""What `fit` does between steps: batches, looks, stopping, checkpoints."""

import itertools
import json
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import orbax.checkpoint as orbax
import pytest
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.svi import SVIState

import vipp
from vipp.training.run import LONG, extend

KEY = jax.random.key(0)
X = jnp.array([1.9, 2.3, 2.1, 1.7])
DATA = np.random.default_rng(0).normal(2.0, 1.0, 40).astype(np.float32)
BATCHES = [DATA[i : i + 10] for i in range(0, 40, 10)]
ADAM = optax.adam(0.05)


def model(x, size=None):
    with numpyro.plate("data", size or len(x), subsample_size=len(x)):
        numpyro.sample("x", dist.Normal(numpyro.param("mean", 0.0), 1.0), obs=x)


def guide(x, size=None):
    pass


def train(steps=40, *args, programs=(model, guide), **kwargs):
    kwargs = {"progress_bar": False, **kwargs}
    args = args or ((40,) if "batches" in kwargs else (X,))
    return vipp.fit(KEY, vipp.ELBO(), *programs, ADAM, steps, *args, **kwargs)


def same(one, other):
    np.testing.assert_array_equal(one.losses, other.losses)
    np.testing.assert_array_equal(one.params["mean"], other.params["mean"])


def by_hand(batches, size=40):
    """The likelihood's exact gradient, one batch after the other."""
    losses, mean, state = [], jnp.zeros(()), ADAM.init(jnp.zeros(()))
    for x in batches:
        loss = lambda m, x=x: -size / len(x) * dist.Normal(m, 1.0).log_prob(x).sum()
        value, slope = jax.value_and_grad(loss)(mean)
        update, state = ADAM.update(slope, state)
        mean = mean + update
        losses.append(value)
    return np.array(losses), mean


# -- batches -------------------------------------------------------------------------------------


def test_batches_are_taken_in_turn_and_scaled():
    result = train(10, batches=BATCHES)
    losses, mean = by_hand(itertools.islice(itertools.cycle(BATCHES), 10))
    np.testing.assert_allclose(result.losses, losses, rtol=1e-5)
    np.testing.assert_allclose(result.params["mean"], mean, rtol=1e-5)


def test_batches_of_other_lengths():
    ragged = [(x,) for x in (*BATCHES[:2], DATA[:3])]
    result = train(6, batches=ragged)
    losses, _ = by_hand([x for (x,) in ragged] * 2)
    np.testing.assert_allclose(result.losses, losses, rtol=1e-5)


def test_an_iterator_of_batches_ends_training_once():
    with pytest.warns(UserWarning, match="batches ended after 4 of 10 steps"):
        result = train(10, batches=iter(BATCHES))
    assert len(result.losses) == 4 and "batches ended" in result.stopped


def test_batches_of_a_size_that_is_not_known_are_refused():
    with pytest.raises(vipp.CheckError, match=r"'x'.*counts once.*plate\(\"data\", number_of_all"):
        train(2, 10, batches=BATCHES)


def test_a_batch_of_more_axes_is_refused_with_what_there_is():
    """It would be broadcast: each of its data counted as often as there are."""
    with pytest.raises(ValueError, match=r"\(10, 1\),\) at step 2, expected.*axes") as error:
        train(4, batches=[*BATCHES[:2], BATCHES[2][:, None]])
    assert len(error.value.result.losses) == 2


@pytest.mark.parametrize("held_out", [X.at[1].set(jnp.nan), X[:, None]], ids=["nan", "column"])
def test_held_out_data_are_looked_at(held_out):
    with pytest.raises(vipp.CheckError, match="'x': got .*, at the arguments in validate="):
        train(2, validate=(held_out,))


def test_no_batches():
    with pytest.raises(ValueError, match="batches has no batch"):
        train(2, batches=[])


def test_an_error_of_the_loader_reaches_the_caller_with_what_there_is():
    def loader():
        yield from BATCHES
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone") as error:
        train(10, batches=loader())
    assert len(error.value.result.losses) == 4


def test_a_series_keeps_no_block_whole():
    """Of a million steps, one a block, are the losses kept, and nothing else of the blocks."""
    series = []
    for step in range(5_000):
        extend(series, np.full(4096, step, np.float32)[:1])
    np.testing.assert_array_equal(np.concatenate(series), np.arange(5_000))
    assert sum(x.nbytes if x.base is None else x.base.nbytes for x in series) == 4 * 5_000


# -- looks ---------------------------------------------------------------------------------------


def test_looks_change_nothing_and_are_kept():
    seen = []
    result = train(50, validate=(X + 1.0,), log_every=20, callback=seen.append)
    same(result, train(50))
    assert [p.step for p in seen] == [20, 40, 50] == result.metrics["step"].tolist()
    np.testing.assert_allclose(result.metrics["loss"][0], result.losses[:20].mean(), rtol=1e-6)
    bound = dist.Normal(result.params["mean"], 1.0).log_prob(X + 1.0).sum()
    np.testing.assert_allclose(result.metrics["validation"][-1], bound, rtol=1e-5)
    same(seen[-1].result(), result)


def test_metrics_of_the_gradient():
    """A gradient without noise, and one whose signal and noise are known."""

    def drawn(x):
        m = numpyro.sample("m", dist.Normal(3.0, 1.0))
        numpyro.sample("x", dist.Normal(m, 1.0).expand([4]).to_event(1), obs=x)

    def of_drawn(x):
        numpyro.sample("m", dist.Normal(numpyro.param("loc", 0.0), 1.0))

    metrics = train(1, log_every=1, metrics=True).metrics
    assert metrics["bound_error"][0] < 1e-5 and metrics["signal_to_noise/mean"][0] > 1e5
    sgd = optax.sgd(0.0)
    fit = vipp.fit(
        KEY, vipp.ELBO(), drawn, of_drawn, sgd, 1, X, metrics=True, log_every=1, progress_bar=False
    )
    # the gradient is 3 + sum(x) - 5 z + z = 11 - 4 z, with z of mean 0 and deviation 1
    assert abs(fit.metrics["gradient_norm"][0] - 11.0) < 4 * 4 / 4
    assert 1.5 < fit.metrics["signal_to_noise/loc"][0] < 5.0


def test_metrics_of_a_parameter_of_several_arrays():
    """Such as those of a module: each has a signal and noise of its own."""

    def of_dict(x):
        part = numpyro.param("net", {"bias": jnp.zeros(()), "kernel": jnp.ones(2)})
        numpyro.sample(
            "x",
            dist.Normal(part["bias"] + part["kernel"].sum(), 1.0).expand([4]).to_event(1),
            obs=x,
        )

    fit = vipp.fit(
        KEY, vipp.ELBO(), of_dict, guide, optax.sgd(0.0), 1, X, metrics=True, log_every=1,
        progress_bar=False,
    )  # fmt: skip
    # the gradient is sum(x) - 4 * 2 = 0 for each of three numbers, without noise
    assert fit.metrics["gradient_norm"][0] < 1e-5
    assert {"signal_to_noise/net['bias']", "signal_to_noise/net['kernel']"} < set(fit.metrics)


def test_a_callback_stops():
    result = train(50, log_every=10, callback=lambda p: p.step == 20)
    assert len(result.losses) == 20 and "callback" in result.stopped


def test_an_error_of_a_callback_loses_nothing():
    def callback(progress):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine") as error:
        train(50, log_every=10, callback=callback)
    same(error.value.result, train(10))


@pytest.mark.few(1)
@pytest.mark.parametrize("held_out", [None, (X + 50.0,)])
def test_early_stopping_has_the_best_parameters(held_out):
    """A step size at which the mean is left behind: the best look is not the last."""
    result = vipp.fit(
        KEY, vipp.ELBO(), model, guide, optax.sgd(0.52), 200, X,
        validate=held_out, log_every=1, stop=vipp.EarlyStopping(patience=3), progress_bar=False,
    )  # fmt: skip
    seen = -result.metrics["loss"] if held_out is None else result.metrics["validation"]
    best = int(seen.argmax())
    assert len(result.losses) == best + 1 + 3 and "3 looks" in result.stopped
    steps = vipp.fit(
        KEY, vipp.ELBO(), model, guide, optax.sgd(0.52), best + 1, X, progress_bar=False
    )
    np.testing.assert_array_equal(result.params["mean"], steps.params["mean"])


def test_an_interrupt_returns_what_there_is():
    def callback(progress):
        if progress.step == 20:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted at step 20"):
        result = train(50, log_every=10, callback=callback)
    same(result, train(20))
    assert result.stopped == "interrupted at step 20"


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"log_every": 0}, ValueError, "log_every"),
        ({"stop": 5}, TypeError, "EarlyStopping"),
        ({"checkpoint_every": -1}, ValueError, "checkpoint_every"),
        ({"validate": X}, TypeError, r"validate must be a tuple.*Fix: validate=\(x,\)"),
        ({"checkpoint": True}, TypeError, "checkpoint must be the name of a folder, got True.*Fix"),
        (
            {"batches": lambda: BATCHES},
            TypeError,
            "batches must be an iterable.*got <function.*Fix",
        ),
        (
            {"batches": [list(BATCHES)]},
            TypeError,
            r"batches: got a list of 4, .*Fix: tuple\(batch\)",
        ),
        (
            {"mesh": 4},
            TypeError,
            "mesh must be a jax.sharding.Mesh, got 4. Fix: mesh=jax.make_mesh",
        ),
        ({"callback": 5}, TypeError, "callback must be a function of one argument, .* got 5.*Fix"),
        ({"callback": lambda: None}, TypeError, "callback must be a function of one.*Fix"),
        ({"init_params": [0.0]}, TypeError, "init_params must be a dict .* got list.*Fix"),
        (
            {"init_params": {"mean": X}},
            ValueError,
            r"'mean': got shape \(4,\) in init_params.*\(\)",
        ),
        ({"validate": (X, 4, 5)}, ValueError, r"'model': got a model called with 3 .*validate="),
        ({"log_evry": 5}, ValueError, "'model': .*log_evry= .*did you mean 'log_every'"),
        ({"init_state": 1}, TypeError, "init_state must be an SVIState, got int.*Fix"),
        ({"init_state": SVIState((0, {}), None, KEY)}, ValueError, "got .*, expected .*Fix"),
    ],
)
def test_wrong_arguments(wrong, error, message):
    with pytest.raises(error, match=message):
        train(2, **wrong)


@pytest.mark.parametrize("wrong", [{"patience": 0}, {"min_delta": -1.0}])
def test_early_stopping_arguments(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        vipp.EarlyStopping(**wrong)


# -- restarts --------------------------------------------------------------------------------------


def two_peaks(x):
    z = numpyro.sample("z", dist.Normal(0.0, 3.0))
    likelihood = dist.Normal(z**2 + 0.3 * z, 1.0).expand([4]).to_event(1)
    numpyro.sample("x", likelihood, obs=x)


def somewhere(x):
    loc = numpyro.param("loc", lambda key: 3.0 * jax.random.normal(key))
    numpyro.sample("z", dist.Normal(loc, 0.1))


STARTS = jax.random.split(KEY, 4)


def restarted(key=KEY, guide=somewhere, **kwargs):
    kwargs = {"num_restarts": 4, "progress_bar": False, **kwargs}
    return vipp.fit(key, vipp.ELBO(), two_peaks, guide, ADAM, 40, X, **kwargs)


def test_restarts_are_the_runs_of_their_keys_and_the_best_is_kept():
    several, alone = restarted(), [restarted(key, num_restarts=1) for key in STARTS]
    losses = np.stack([one.losses for one in alone])
    np.testing.assert_allclose(several.restarts.losses, losses, rtol=1e-4)
    train = vipp.trainer(vipp.ELBO(), two_peaks, somewhere, ADAM, 40)
    params, mapped = jax.jit(jax.vmap(train, (0, None)))(STARTS, X)
    np.testing.assert_allclose(mapped, losses, rtol=1e-4)
    np.testing.assert_allclose(params["loc"], [one.params["loc"] for one in alone], rtol=1e-4)
    bounds = -losses[:, -4:].mean(1)
    np.testing.assert_allclose(several.restarts.bounds, bounds, rtol=1e-4)
    best = several.restarts.best
    assert best == bounds.argmax() and alone[0].restarts is None
    np.testing.assert_allclose(several.params["loc"], alone[best].params["loc"], rtol=1e-4)
    np.testing.assert_array_equal(several.losses, several.restarts.losses[best])
    # the best for held-out data far to one side is the one whose mean is furthest there
    means = np.array([one.params["loc"] ** 2 + 0.3 * one.params["loc"] for one in alone])
    for side, furthest in ((9.0, means.argmax()), (-9.0, means.argmin())):
        held_out = restarted(validate=(jnp.full(4, side),))
        np.testing.assert_array_equal(held_out.restarts.losses, several.restarts.losses)
        assert held_out.restarts.best == furthest == held_out.restarts.bounds.argmax()


@pytest.mark.thorough
def test_restarts_of_an_autoguide_start_as_new_ones():
    several = restarted(guide=AutoNormal(two_peaks, init_scale=0.1))
    alone = [
        restarted(key, guide=AutoNormal(two_peaks, init_scale=0.1), num_restarts=1)
        for key in STARTS
    ]
    losses = np.stack([one.losses for one in alone])
    assert len(set(losses[:, 0].tolist())) == 4
    guide = AutoNormal(two_peaks, init_scale=0.1)
    train = vipp.trainer(vipp.ELBO(), two_peaks, guide, ADAM, 40)
    np.testing.assert_allclose(jax.vmap(train, (0, None))(STARTS, X)[1], losses, rtol=1e-4)
    assert guide.prototype_trace is None  # nothing that was traced stays in it
    np.testing.assert_allclose(several.restarts.losses, losses, rtol=1e-4)


def test_a_restart_that_fails_is_left_out():
    """With a warning; the others go on. If none is left, the last that failed is told of."""

    def start(x):
        w = numpyro.param("w", lambda key: jax.random.uniform(key))
        numpyro.factor("f", jnp.where(w > edge, jnp.nan, w))

    train = lambda steps: vipp.fit(
        KEY, vipp.ELBO(), start, guide, optax.sgd(0.1), steps, X, num_restarts=4, progress_bar=False
    )
    edge = 1.25
    with pytest.warns(UserWarning, match=r"restarts \[.*\] of 4 met a loss") as caught:
        result = train(6)
    lost = np.isnan(result.restarts.bounds)
    assert str(np.flatnonzero(lost).tolist()) in str(caught[0].message)
    assert 0 < lost.sum() < 4 and np.isfinite(result.losses).all()
    np.testing.assert_array_equal(lost, np.isnan(result.restarts.losses[:, -1]))
    alone = vipp.trainer(vipp.ELBO(), start, guide, optax.sgd(0.1), 6)
    params, losses = jax.vmap(alone, (0, None))(STARTS, X)
    np.testing.assert_allclose(losses, result.restarts.losses, rtol=1e-5)
    assert params["w"].max() < edge + 0.1
    with pytest.raises(vipp.NonFiniteError, match="site 'f' under the model is nan") as error:
        train(50)
    assert error.value.step == np.isfinite(error.value.result.losses).sum()


def anywhere(x, size=None):
    with numpyro.plate("data", size or len(x), subsample_size=len(x)):
        mean = numpyro.param("mean", lambda key: 9.0 * jax.random.normal(key))
        numpyro.sample("x", dist.Normal(mean, 1.0), obs=x)


FAST = optax.adam(2.0)  # from further away it gets nearer for longer, then goes too far
ASKED = {
    "looks": {"log_every": 7, "metrics": True},
    "stopping": {"stop": vipp.EarlyStopping(patience=2), "log_every": 1},
    "stopping by held-out data": {
        "stop": vipp.EarlyStopping(patience=2), "log_every": 1, "validate": (X + 3.0,),
    },
    "batches": {"batches": BATCHES, "log_every": 7},
}  # fmt: skip


def from_anywhere(key, number, *args, **asked):
    args = args or ((40,) if "batches" in asked else (X,))
    return vipp.fit(
        key, vipp.ELBO(), anywhere, guide, FAST, 30, *args, num_restarts=number,
        progress_bar=False, **asked,
    )  # fmt: skip


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_each_restart_is_looked_at_and_stopped_as_one_alone(asked):
    """The bound has no noise, so that nothing depends on the draws of a look."""
    several = from_anywhere(KEY, 4, **asked)
    alone = [from_anywhere(key, 1, **asked) for key in STARTS]
    for losses, one in zip(several.restarts.losses, alone):
        np.testing.assert_allclose(losses[: len(one.losses)], one.losses, rtol=1e-4)
        assert np.isnan(losses[len(one.losses) :]).all()
    best = alone[several.restarts.best]
    assert several.stopped == best.stopped and several.losses.shape == best.losses.shape
    np.testing.assert_allclose(several.params["mean"], best.params["mean"], rtol=1e-4)
    for name in ("step", "loss", *(["validation"] if "validate" in asked else [])):
        np.testing.assert_allclose(several.metrics[name], best.metrics[name], rtol=1e-4)
    assert several.metrics.keys() == best.metrics.keys()
    if "stop" in asked:
        assert len({len(one.losses) for one in alone}) > 1
        seen = [one.metrics.get("validation", -one.metrics["loss"]).max() for one in alone]
        np.testing.assert_allclose(several.restarts.bounds, seen, rtol=1e-4)
        assert several.restarts.best == np.argmax(seen)


def test_starts_that_ended_by_themselves_stay_ended_where_the_run_goes_on(tmp_path):
    """One of three, two, or all have ended when it is killed; the others go on, bit by bit."""
    asked = {**ASKED["stopping"], "checkpoint_every": 1}
    whole = from_anywhere(KEY, 3, **asked)
    first, second, last = np.sort(np.isfinite(whole.restarts.losses).sum(1)).tolist()
    assert 1 < first < second < last < 30
    for death in (first - 1, first, second, last - 1):
        folder = {"checkpoint": str(tmp_path / str(death))}
        with pytest.raises(Killed):
            from_anywhere(KEY, 3, **asked, **folder, callback=killed_at(death))
        for _ in range(2):
            again = from_anywhere(KEY, 3, **asked, **folder)
            jax.tree.map(np.testing.assert_array_equal, again.restarts, whole.restarts)
            np.testing.assert_array_equal(again.losses, whole.losses)
            jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
            jax.tree.map(np.testing.assert_array_equal, again.metrics, whole.metrics)
            assert again.stopped == whole.stopped
    for now in (None, vipp.EarlyStopping(patience=20)):
        other = {**asked, "checkpoint": str(tmp_path / str(first)), "stop": now}
        with pytest.raises(vipp.CheckpointError, match=r"\[0, 1, 2\] that its stop.*not have.*Fix"):
            from_anywhere(KEY, 3, **other)
    # none had ended: another rule is as good
    with pytest.raises(Killed):
        folder = {"checkpoint": str(tmp_path / "early"), "checkpoint_every": 1}
        from_anywhere(KEY, 3, log_every=1, **folder, callback=killed_at(1))
    later = from_anywhere(KEY, 3, **asked, checkpoint=folder["checkpoint"])
    assert later.restarts.losses.shape[1] >= last


def test_restarts_call_back_with_the_best_and_are_stopped_together():
    seen = []
    several = from_anywhere(
        KEY, 4, log_every=10, callback=lambda p: seen.append(p) or len(seen) > 1
    )
    assert [p.step for p in seen] == [10, 20] and several.restarts.losses.shape == (4, 20)
    bounds = -np.asarray(several.restarts.losses)[:, 10:].mean(1)
    np.testing.assert_allclose(seen[1].metrics["loss"], -bounds.max(), rtol=1e-6)
    np.testing.assert_array_equal(seen[1].result().losses, several.losses)


def test_restarts_go_on_from_one_state_no_more():
    with pytest.raises(ValueError, match="init_state is one state.*Fix: leave out num_restarts"):
        restarted(init_state=1)


# -- checkpoints ---------------------------------------------------------------------------------


def drawn(x):
    numpyro.sample("z", dist.Normal(numpyro.param("mean", 0.0), 1.0))


def noisy(x):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Killed(Exception):
    pass


def killed_at(step):
    def callback(progress):
        if progress.step == step:
            raise Killed

    return callback


SETTINGS = [
    {"programs": (noisy, drawn)},
    {},
    {"batches": BATCHES},
    {"stop": vipp.EarlyStopping(patience=2), "validate": (X + 0.3,), "log_every": 5},
    {"stop": vipp.EarlyStopping(patience=2), "log_every": 5, "num_restarts": 3},
]


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("settings", "unit"),
    list(zip(SETTINGS, [LONG // 40, 1, 1, 1, 1], strict=True)),
    ids=["long", "plain", "batches", "stopping", "restarts"],
)
def test_a_run_that_was_killed_goes_on_bit_by_bit(settings, unit, tmp_path):
    steps = 40 * unit
    folder = {"checkpoint": str(tmp_path / "run"), "checkpoint_every": 8 * unit}
    folder["log_every"] = 5 * unit
    whole = train(steps, **settings)
    with pytest.raises(Killed):
        train(steps, callback=killed_at(15 * unit), **{**folder, **settings})
    again = train(steps, **{**folder, **settings})
    same(again, whole)
    assert again.metrics["step"][0] == 5 * unit and again.stopped == whole.stopped
    same(train(steps, **{**folder, **settings}), whole)  # nothing is left to do
    assert sum(p.name.isdigit() for p in (tmp_path / "run").iterdir()) <= 2


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("once") / "run"
    train(20, checkpoint=str(folder), checkpoint_every=10)
    return folder


@pytest.fixture
def saved(twenty, tmp_path):
    return pathlib.Path(shutil.copytree(twenty, tmp_path / "run"))


def of_the_data(change):
    """A fault in the files that hold the numbers."""

    def fault(saved):
        for path in (saved / "20" / "d").iterdir():
            change(path)

    return fault


def flip(path):
    whole = bytearray(path.read_bytes())
    whole[-9] ^= 1
    path.write_bytes(bytes(whole))


def shorten(path):
    path.write_bytes(path.read_bytes()[:-8])


def of_somebody_else(saved):
    shutil.rmtree(saved / "20")
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(saved / "20", {"w": np.zeros(3)})


def with_numbers_of_its_own(saved):
    """Whole, and read without an error, but not what was written."""
    with orbax.StandardCheckpointer() as checkpointer:
        whole = checkpointer.restore(saved / "20")
        whole["run"] = np.asarray(whole["run"]).copy()
        whole["run"][-1] ^= 1
        checkpointer.save(saved / "20", whole, force=True)


def half_written(saved):
    shutil.rmtree(saved / "20")
    (saved / "20").mkdir()


DAMAGED = "20 is damaged.*Fix: move it away"
FAULTS = {
    "bit flipped": (of_the_data(flip), DAMAGED),
    "truncated": (of_the_data(shorten), DAMAGED),
    "data gone": (of_the_data(pathlib.Path.unlink), DAMAGED),
    "metadata gone": (lambda saved: (saved / "20" / "_METADATA").unlink(), DAMAGED),
    "half-written": (half_written, DAMAGED),
    "other bytes": (with_numbers_of_its_own, "20 is damaged.*not those that were written"),
    "of somebody else": (of_somebody_else, "20 was not written by vipp.fit.*folder of its own"),
}


@pytest.mark.parametrize("fault, says", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_told_and_the_checkpoint_before_it_is_there(fault, says, saved):
    fault(saved)
    with pytest.raises(vipp.CheckpointError, match=says):
        train(30, checkpoint=str(saved))
    shutil.move(saved / "20", saved / "away")
    same(train(30, checkpoint=str(saved)), train(30))


def test_what_a_killed_run_left_half_written_is_written_anew(saved):
    shutil.move(saved / "20", saved / "20.orbax-checkpoint-tmp")
    same(train(20, checkpoint=str(saved)), train(20))
    assert sorted(p.name for p in saved.iterdir()) == [".lock", "10", "20"]


def second(x):
    numpyro.param("second", jnp.zeros(3))
    model(x)


def heavier(x):
    with numpyro.handlers.scale(scale=2.0):
        model(x)


def slower_from_step_20_on(by):
    def update(updates, state, params=None):
        moves, new = ADAM.update(updates, state, params)
        return jax.tree.map(lambda x: by ** (state[0].count >= 20) * x, moves), new

    return optax.GradientTransformation(ADAM.init, update)


OTHERS = {
    "shapes": ({"model": second}, r".*other shapes or dtypes \(int32\[\], now float32\[3\]"),
    "key": ({"key": jax.random.key(1)}, "another rng_key"),
    "no optimiser": ({"optim": None}, r"another optimiser \(one that was given, now None\)"),
    "objective": ({"objective": vipp.IWAE(num_particles=2)}, "another objective"),
    "model": ({"model": heavier}, "other losses at its start.*another model"),
    "data": ({"x": X + 1.0}, "another digest of the data"),
    "a little of the data": ({"x": X.at[2].add(1e-6)}, "another digest of the data"),
    "optimiser": ({"optim": optax.adam(0.04)}, "other losses at its start.*optimiser"),
    "later steps": ({"optim": slower_from_step_20_on(0.5)}, "other losses in its next.*optimiser"),
    "a little of it": ({"optim": slower_from_step_20_on(0.997)}, "other steps ahead.*optimiser"),
    "number of steps": ({"steps": 19}, "20 steps, more than the 19 asked for"),
}


@pytest.mark.filterwarnings("ignore::vipp.NoGradientWarning")
@pytest.mark.parametrize("other, says", OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_run_is_refused(other, says, saved):
    run = {"key": KEY, "objective": vipp.ELBO(), "model": model, "optim": ADAM, "steps": 20, "x": X}
    key, objective, program, optim, steps, x = (run | other).values()
    with pytest.raises(vipp.CheckpointError, match=f"20 is of a run with {says}"):
        vipp.fit(
            key, objective, program, guide, optim, steps, x, progress_bar=False,
            checkpoint=str(saved),
        )  # fmt: skip
    assert sorted(p.name for p in saved.iterdir()) == [".lock", "10", "20"]


REORDERED = [BATCHES[0], *BATCHES[:0:-1]]
OTHER_BATCHES = {
    "optimiser": (
        optax.adam(0.04),
        BATCHES,
        "with other (losses in its next|steps ahead).*optimis",
    ),
    "sizes": (ADAM, [x[:8] for x in BATCHES], "with other losses at its start"),
    "order": (ADAM, REORDERED, "the 6 batches before it are others.*another order.*Fix"),
    "an array": (ADAM, [*BATCHES[:3], BATCHES[3] + 1e-6], "the 6 batches before it are others"),
}


def test_other_batches_or_another_optimiser_of_batches_are_refused(tmp_path):
    """Whatever of the batches' first losses is the same."""
    fit = lambda steps, optim, batches: vipp.fit(
        KEY, vipp.ELBO(), model, guide, optim, steps, 40, batches=batches, progress_bar=False,
        checkpoint=str(tmp_path / "run"),
    )  # fmt: skip
    fit(6, ADAM, BATCHES)
    for optim, batches, says in OTHER_BATCHES.values():
        with pytest.raises(vipp.CheckpointError, match=says):
            fit(12, optim, batches)
    as_jax = [jnp.asarray(x) for x in BATCHES]
    same(fit(12, ADAM, as_jax), train(12, batches=BATCHES))


@pytest.mark.parametrize(
    "ending",
    [{"callback": lambda p: p.step == 10}, {"stop": vipp.EarlyStopping(1), "validate": (X + 9,)}],
    ids=["callback", "stop"],
)
def test_what_ended_a_run_and_is_not_asked_for_again_ends_it_no_more(ending, tmp_path):
    looks = {"log_every": 5, "checkpoint": tmp_path / "run"}
    ended = lambda: train(20, **looks, **ending)
    if "stop" in ending:
        ending |= {"validate": (X - 9,)}  # the first look is the best
    first = ended()
    same(first, ended())
    assert len(first.losses) == 10
    more = train(20, **looks, metrics=True)
    same(more, train(20))
    np.testing.assert_array_equal(np.isnan(more.metrics["bound"]), [True, True, False, False])


def test_several_starts_one_by_one_have_folders_of_their_own(tmp_path):
    fit = lambda number: vipp.fit(
        KEY, vipp.ELBO(), anywhere, guide, None, 20, X, num_restarts=number, progress_bar=False,
        checkpoint=tmp_path,
    )  # fmt: skip
    fit(2)
    with pytest.raises(vipp.CheckpointError, match="several starts, one by one.*start-0.*Fix"):
        fit(1)
    (tmp_path / "10").mkdir()
    with pytest.raises(vipp.CheckpointError, match="one start, or several in one loop.*'10'.*Fix"):
        fit(2)


def test_one_folder_for_two_runs_is_refused(saved):
    def callback(progress):
        with pytest.raises(vipp.CheckpointError, match="another run is at work"):
            train(20, checkpoint=str(saved))
        return True

    train(30, checkpoint=str(saved), log_every=25, callback=callback)


def test_a_place_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(vipp.CheckpointError, match="can't be written to"):
        train(20, checkpoint=str(tmp_path / "file" / "run"))


def test_a_write_that_fails_leaves_the_run_and_the_checkpoints_before(saved, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(orbax.StandardCheckpointer, "save", full)
    monkeypatch.setattr(orbax.StandardCheckpointer, "close", full)
    with pytest.raises(
        vipp.CheckpointError, match=r"step 30 can't.*No space left.*\[10, 20\]"
    ) as error:
        train(30, checkpoint=str(saved), checkpoint_every=10)
    same(error.value.result, train(30))
    monkeypatch.undo()
    same(train(30, checkpoint=str(saved), checkpoint_every=50), train(30))
    assert {p.name for p in saved.iterdir() if p.name.isdigit()} == {"20", "30"}


def test_checkpoints_of_several_processes_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(vipp.CheckpointError, match="a run of 2 processes, expected one.*Fix"):
        train(2, checkpoint=str(tmp_path))


def test_without_orbax(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"pip install 'vipp\[checkpoint\]'"):
        train(2, checkpoint=str(tmp_path))


RUN = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import jax, numpyro, numpyro.distributions as dist, optax, vipp, jax.numpy as jnp
"""
PROGRAMS = """
def model(x):
    with numpyro.plate("data", 1000, subsample_size=10) as i:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x[i])
def guide(x):
    m = numpyro.param("m", jnp.zeros(1000))
    with numpyro.plate("data", 1000, subsample_size=10) as i:
        numpyro.sample("z", dist.Normal(m[i], 0.7))
def run(folder):
    return vipp.fit(
        jax.random.key(0), vipp.ELBO(), model, guide, optax.adam(0.1), 12_000,
        jnp.arange(1000.0) / 500, checkpoint=folder, checkpoint_every=400, progress_bar=False)
"""
STARTED = """
print("ready", flush=True)
run(sys.argv[2])
"""


@pytest.mark.thorough
def test_killed_by_the_system_and_started_again(tmp_path):
    """SIGKILL at some moment of the run, three times, then to the end, in another process."""

    def started(folder):
        script = RUN + PROGRAMS + STARTED
        command = [sys.executable, "-c", script, json.dumps(sys.path), str(tmp_path / folder)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    for delay in np.random.default_rng(1).uniform(1.5, 6.0, 3):
        process = started("killed")
        assert process.stdout.readline() == "ready\n"
        try:
            process.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
    here = {"vipp": vipp, "jax": jax, "jnp": jnp, "numpyro": numpyro, "dist": dist, "optax": optax}
    exec(PROGRAMS, here)
    whole, killed = (here["run"](str(tmp_path / folder)) for folder in ("whole", "killed"))
    np.testing.assert_array_equal(killed.losses, whole.losses)
    np.testing.assert_array_equal(killed.params["m"], whole.params["m"])
    assert len([p for p in pathlib.Path(tmp_path / "killed").iterdir() if p.name.isdigit()]) == 2
