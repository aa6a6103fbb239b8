"""Pictures: what they show is what was measured, and what can't be drawn is refused by name."""

import sys

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import vipp
from vipp.diagnostics.rank_band import ecdf, simultaneous_band
from vipp.training.result import FitResult, Restarts

DRAW = np.random.default_rng(0)
STEPS = np.arange(20, 401, 20)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def run(losses=None, metrics=None, restarts=None):
    losses = DRAW.normal(3.0, 1.0, 400) if losses is None else losses
    return FitResult({}, losses, None, None, None, metrics or {}, restarts=restarts)


def lines(ax):
    return {line.get_label(): line for line in ax.lines}


def test_losses():
    losses = np.concatenate([np.full(10, 1e4), DRAW.normal(3.0, 1.0, 390)])
    other = np.where(np.arange(400) < 50, losses, np.nan)  # met one that is not finite
    several = Restarts(jnp.stack([losses, other]), None, 0)
    ax = vipp.plot_losses(run(losses, {"step": STEPS, "validation": -STEPS / 100}, several))
    drawn = lines(ax)
    np.testing.assert_allclose(drawn["mean"].get_ydata(), losses.reshape(100, 4).mean(1), rtol=1e-5)
    np.testing.assert_allclose(drawn["held-out data"].get_ydata(), STEPS / 100)
    assert "other starts" in drawn and ax.get_ylim()[1] < 10
    assert ax.texts[0].get_text() == "begins at 1e+04"
    assert len(vipp.plot_losses(run(losses[:3])).lines) == 1  # as many points as steps
    assert vipp.plot_losses(run(), ax) is ax


def test_signal_to_noise():
    metrics = {"step": STEPS, "signal_to_noise/m": np.full(20, 4.0), "signal_to_noise/s": STEPS}
    drawn = lines(vipp.plot_signal_to_noise(run(metrics=metrics)))
    np.testing.assert_allclose(drawn["m"].get_ydata(), 4.0)
    np.testing.assert_allclose(drawn["s"].get_ydata()[1], np.prod([20, 40, 60.0]) ** (1 / 3))


def test_pairs():
    draws = {
        "w": DRAW.normal(size=(200, 2)),
        "b": DRAW.normal(size=200),
        "k": DRAW.integers(0, 2, 200),
    }
    figure = vipp.plot_pairs(draws, {n: x + 9.0 for n, x in draws.items()}, names=["b", "w"])
    axes = np.array(figure.axes).reshape(3, 3)
    assert [ax.get_xlabel() for ax in axes[2]] == ["b", "w[0]", "w[1]"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["density", "w[0]", "w[1]"]
    low, high = axes[2, 1].get_xlim()  # both sets are in sight
    assert low < draws["w"][:, 0].mean() and high > 9.0
    constant = {"a": np.zeros(50), "b": DRAW.normal(size=50)}
    assert len(vipp.plot_pairs(constant).axes) == 4


def test_calibration():
    """A guide that is right stays in the band, one that is too narrow leaves it."""
    right = DRAW.integers(0, 100, (300, 2))
    narrow = np.where(DRAW.uniform(size=300) < 0.4, DRAW.choice([0, 99], 300), right[:, 0])
    figure = vipp.plot_calibration(vipp.Calibration({"right": right, "narrow": narrow}, 99))
    first, second = figure.axes[:2]
    colour = {text: line.get_color() for text, line in lines(first).items()}
    curves = lambda ax: [line for line in ax.lines if len(line.get_xdata()) == 99]
    assert [x.get_color() for x in curves(first)] == [colour["within the 95% band"]] * 2
    assert [x.get_color() for x in curves(second)] == [colour["leaves it"]]
    np.testing.assert_allclose(
        curves(second)[0].get_ydata(), ecdf(narrow, 99) - np.arange(1, 100) / 100
    )


def test_a_band_holds_as_often_as_it_says():
    """Of sets of uniform ranks, all of the curve of 95%; the pointwise one of far fewer."""
    lower, upper = simultaneous_band(200, 19)
    ranks = np.random.default_rng(1).integers(0, 20, (2_000, 200))
    shares = np.stack([ecdf(row, 19) for row in ranks])
    inside = ((shares >= lower) & (shares <= upper)).all(1).mean()
    assert 0.935 < inside < 0.975  # 4.5 standard errors, and counts are whole numbers


NINE = {"w": np.zeros((10, 9))}
Z = {"z": np.zeros(10)}
REFUSED = {
    "no metrics": (lambda: vipp.plot_signal_to_noise(run()), r"no gradients.*metrics=True"),
    "coordinates": (lambda: vipp.plot_pairs(NINE), r"9 coordinates, expected 1 to 8.*\['w'\]"),
    "no site": (lambda: vipp.plot_pairs(Z, names=["zz"]), "site 'zz'.*did you mean 'z'"),
    "no reference": (lambda: vipp.plot_pairs(Z, {"zz": Z["z"]}), "reference has no draws of site 'z'"),
    "shapes": (lambda: vipp.plot_pairs(Z, {"z": NINE["w"]}), r"'z'.*\(9,\).*expected \(\)"),
    "no ranks": (
        lambda: vipp.plot_calibration(vipp.Calibration({"z": np.arange(9)}, 9), ["y"]),
        "no ranks of site 'y'",
    ),
    "level": (
        lambda: vipp.plot_calibration(vipp.Calibration({"z": np.arange(9)}, 9), level=2), "level"
    ),
}  # fmt: skip


@pytest.mark.parametrize("draw, says", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_drawn_is_refused(draw, says):
    with pytest.raises(ValueError, match=says):
        draw()


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"plot_pairs.*pip install 'vipp\[plots\]'"):
        vipp.plot_pairs(Z)
