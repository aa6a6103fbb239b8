"""Pictures of a training run and of what it gave, by matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vipp.diagnostics.rank_band import ecdf, simultaneous_band
from vipp.language.names import close

# Okabe and Ito's colours, which tell apart whatever one's eyes
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#808080"
_COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B0A000")
_STYLES = ("-", "--", ":", "-.")
_MOST_COORDINATES = 8
_BINS = 100
_NO_SIGNAL = 16**-0.5


def plot_losses(result: Any, ax: Any = None) -> Any:
    """Draw the losses of a training run, with a band in which nine of ten lie.

    The line is the mean of each hundredth of the steps. Where they were measured, the held-out data
    are drawn, too; of several starts the means of all, the others thin. Losses above the frame, of
    the first tenth of the steps, are not shown, and it says where they begin.

    Args:
      result: of :func:`vipp.fit`.
      ax: matplotlib ``Axes`` to draw on; None for new ones.

    Returns:
      The ``Axes``. Needs ``vipp[plots]``.

    Raises:
      ImportError: if matplotlib is not installed.

    Example:
      >>> import jax, numpyro, numpyro.distributions as dist, optax, vipp
      >>> model = lambda: numpyro.sample("z", dist.Normal(3.0, 1.0))
      >>> guide = lambda: numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))
      >>> result = vipp.fit(
      ...     jax.random.key(0), vipp.ELBO(), model, guide, optax.adam(0.1), 100,
      ...     progress_bar=False)
      >>> vipp.plot_losses(result).get_ylabel()
      'loss: minus the bound, nats'
    """
    ax = _new_axes("plot_losses") if ax is None else ax
    losses = np.asarray(result.losses)
    if result.restarts is not None:
        for number, other in enumerate(np.asarray(result.restarts.losses)):
            if number != result.restarts.best:
                ax.plot(*_means(other), color=GREY, lw=0.8, alpha=0.7)
        ax.plot([], [], color=GREY, lw=0.8, label="other starts")
    steps, means = _means(losses)
    low, high = np.array([np.quantile(x, (0.05, 0.95)) for x in _binned(losses)]).T
    ax.fill_between(steps, low, high, color=BLUE, alpha=0.25, lw=0, label="nine of ten steps")
    ax.plot(steps, means, color=BLUE, label="mean")
    held_out = -np.asarray(result.metrics.get("validation", []))
    if held_out.size:
        ax.plot(result.metrics["step"], held_out, ORANGE, ls="--", label="held-out data")
    _frame(ax, losses[0], [low, high, held_out])
    ax.set(xlabel="step", ylabel="loss: minus the bound, nats")
    ax.legend(frameon=False)
    return ax


def _binned(series: np.ndarray) -> list[np.ndarray]:
    return np.array_split(series, min(len(series), _BINS))


def _means(series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    series = series[np.isfinite(series)]
    ends = np.cumsum([len(x) for x in _binned(series)])
    return ends, np.array([x.mean() for x in _binned(series)])


def _frame(ax: Any, start: float, lines: Sequence[np.ndarray]) -> None:
    """Let what comes after the first tenth fill the picture."""
    late = np.concatenate([line[len(line) // 10 :] for line in lines])
    bottom, top = late.min(), late.max()
    room = 0.1 * (top - bottom) or 1.0
    if start > top + room:
        ax.set_ylim(bottom - room, top + room)
        ax.annotate(
            f"begins at {start:.4g}", (0.98, 0.97), xycoords="axes fraction", ha="right", va="top",
            color=GREY,
        )  # fmt: skip


def plot_signal_to_noise(result: Any, ax: Any = None) -> Any:
    """Draw how far each parameter's gradient stands out of its noise, look by look.

    The ratio is that of ``fit(metrics=True)``: below 1 a step goes mostly where chance leads it. It
    is measured by 16 gradients, which have a ratio of about 0.25 where there is no signal at all.
    The lines are geometric means over a tenth of the looks; points are single ones.

    Args:
      result: of ``vipp.fit(..., metrics=True)``.
      ax: matplotlib ``Axes`` to draw on; None for new ones.

    Returns:
      The ``Axes``, with a logarithmic scale. Needs ``vipp[plots]``.

    Raises:
      ImportError: if matplotlib is not installed.
      ValueError: if the run measured none.

    Example:
      >>> import jax, numpyro, numpyro.distributions as dist, optax, vipp
      >>> model = lambda: numpyro.sample("z", dist.Normal(3.0, 1.0))
      >>> guide = lambda: numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 0.5))
      >>> result = vipp.fit(
      ...     jax.random.key(0), vipp.ELBO(), model, guide, optax.adam(0.1), 100, metrics=True,
      ...     progress_bar=False)
      >>> vipp.plot_signal_to_noise(result).get_yscale()
      'log'
    """
    prefix = "signal_to_noise/"
    ratios = {n[len(prefix) :]: x for n, x in result.metrics.items() if n.startswith(prefix)}
    if not ratios:
        raise ValueError(
            "plot_signal_to_noise: the run measured no gradients, got metrics "
            f"{sorted(result.metrics)}. Fix: vipp.fit(..., metrics=True)."
        )
    ax = _new_axes("plot_signal_to_noise") if ax is None else ax
    for height, text in ((1.0, "as much noise as signal"), (_NO_SIGNAL, "no signal")):
        ax.axhline(height, color=GREY, lw=0.8, ls=":")
        ax.annotate(
            text, (0.99, height), xycoords=("axes fraction", "data"), ha="right", va="bottom",
            color=GREY,
        )  # fmt: skip
    for number, (name, ratio) in enumerate(ratios.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        style = _STYLES[number // len(_COLOURS) % len(_STYLES)]
        steps = result.metrics["step"]
        ax.plot(steps, ratio, ".", color=colour, ms=3, alpha=0.4, mew=0)
        ax.plot(steps, _smooth(ratio), style, color=colour, label=name)
    ax.set(xlabel="step", ylabel="signal-to-noise ratio of the gradient", yscale="log")
    ax.legend(frameon=False, title="parameter", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def _smooth(ratio: np.ndarray) -> np.ndarray:
    """Geometric means of the looks around each."""
    logs = np.log(np.maximum(ratio, np.finfo(np.float32).tiny))
    half = len(logs) // 20
    near = [logs[max(0, i - half) : i + half + 1] for i in range(len(logs))]
    return np.exp([x.mean() for x in near])


def plot_pairs(
    draws: Mapping[str, Any],
    reference: Mapping[str, Any] | None = None,
    names: Sequence[str] | None = None,
) -> Any:
    r"""Draw a posterior by its coordinates and their pairs, beside a reference such as MCMC's.

    On the diagonal are densities; below it regions that hold 50% and 90% of the draws.

    Args:
      draws: by site, as :meth:`vipp.FitResult.sample_posterior` gives them: the draws in front.
      reference: draws of the same sites, as of ``numpyro.infer.MCMC.get_samples``, or None.
      names: the sites to draw; None for all real ones. At most 8 coordinates.

    Returns:
      The matplotlib ``Figure``. Needs ``vipp[plots]``.

    Raises:
      ImportError: if matplotlib is not installed.
      ValueError: naming a site that the draws or the reference do not have, or whose shapes are
        different, or if there are too many coordinates.

    Example:
      >>> import numpy as np, vipp
      >>> normal = np.random.default_rng(0).normal
      >>> draws = {"w": normal(size=(100, 2)), "b": normal(size=100)}
      >>> len(vipp.plot_pairs(draws).axes)
      9
    """
    chosen = _chosen(draws, names)
    both = [("guide", dict(_coordinates(draws, chosen)), BLUE, "solid")]
    if reference is not None:
        _check_reference(draws, reference, chosen)
        both.append(("reference", dict(_coordinates(reference, chosen)), ORANGE, "dashed"))
    labels = list(both[0][1])
    if not 1 <= len(labels) <= _MOST_COORDINATES:
        raise ValueError(
            f"plot_pairs: {len(labels)} coordinates, expected 1 to {_MOST_COORDINATES}. Fix: give "
            f"the names of some of the sites {chosen}, or slices of their draws."
        )
    size = len(labels)
    figure, axes = pyplot("plot_pairs").subplots(
        size, size, figsize=(1.2 + 1.7 * size,) * 2, squeeze=False, layout="constrained"
    )
    for row, column in np.ndindex(size, size):
        ax = axes[row, column]
        if column > row:
            ax.axis("off")
            continue
        for _, x, colour, style in both:
            if row == column:
                _density(ax, x[labels[row]], colour, style)
            else:
                _region(ax, x[labels[column]], x[labels[row]], colour, style)
        _label(ax, labels, row, column)
        ax.set_xlim(*_range([x[labels[column]] for _, x, _, _ in both]))
        if row != column:
            ax.set_ylim(*_range([x[labels[row]] for _, x, _, _ in both]))
    handles = [
        axes[0, 0].plot([], [], color=colour, ls=style, label=name)[0]
        for name, _, colour, style in both
    ]
    figure.legend(handles=handles, loc="upper right", frameon=False)
    return figure


def _chosen(draws: Mapping[str, Any], names: Sequence[str] | None) -> list[str]:
    real = [n for n, x in draws.items() if np.issubdtype(np.asarray(x).dtype, np.floating)]
    for name in names or ():
        if name not in draws:
            raise ValueError(
                f"plot_pairs: no draws of site '{name}', got {sorted(draws)}{close(name, draws)}. "
                "Fix: use one of these names."
            )
    return real if names is None else list(names)


def _check_reference(draws: Any, reference: Any, names: Sequence[str]) -> None:
    for name in names:
        if name not in reference:
            raise ValueError(
                f"plot_pairs: the reference has no draws of site '{name}', got "
                f"{sorted(reference)}{close(name, reference)}. Fix: add them, or leave the site "
                "out of names."
            )
        got, wanted = np.shape(reference[name])[1:], np.shape(draws[name])[1:]
        if got != wanted:
            raise ValueError(
                f"plot_pairs: site '{name}' has values of shape {got} in the reference, expected "
                f"{wanted} as in the draws. Fix: give both with the draws along the first axis."
            )


def _coordinates(draws: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for name in names:
        values = np.asarray(draws[name], float)
        for index in np.ndindex(values.shape[1:]):
            place = f"[{', '.join(map(str, index))}]" if index else ""
            yield name + place, values[(slice(None), *index)]


def _range(several: Sequence[np.ndarray]) -> tuple[float, float]:
    """What holds nearly all draws."""
    ends = np.array([np.quantile(x, (0.001, 0.999)) for x in several])
    low, high = ends[:, 0].min(), ends[:, 1].max()
    room = 0.1 * (high - low) or 1.0
    return low - room, high + room


def _density(ax: Any, x: np.ndarray, colour: str, style: str) -> None:
    if np.ptp(x) == 0:
        ax.axvline(x[0], color=colour, ls=style)
        return
    grid = np.linspace(x.min(), x.max(), 200)
    ax.plot(grid, _kde(x)(grid), color=colour, ls=style)
    ax.set_yticks([])


def _region(ax: Any, x: np.ndarray, y: np.ndarray, colour: str, style: str) -> None:
    ax.plot(x[:500], y[:500], ".", color=colour, ms=3, alpha=0.35, mew=0)
    if np.linalg.matrix_rank(np.cov(x, y)) < 2:  # on a line there is no region
        return
    density = _kde(np.stack([x, y]))
    at_draws = np.sort(density(np.stack([x[:1_000], y[:1_000]])))
    margin = lambda v: 0.1 * np.ptp(v)
    grid = np.meshgrid(*(np.linspace(v.min() - margin(v), v.max() + margin(v), 60) for v in (x, y)))
    height = density(np.stack([g.ravel() for g in grid])).reshape(grid[0].shape)
    levels = np.quantile(at_draws, (0.1, 0.5))
    ax.contour(*grid, height, levels=levels, colors=colour, linestyles=style, linewidths=(1, 1.6))


def _kde(values: np.ndarray) -> Any:
    import scipy.stats  # takes a second, which `import vipp` should not

    return scipy.stats.gaussian_kde(values)


def _label(ax: Any, labels: Sequence[str], row: int, column: int) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelbottom=row == len(labels) - 1, labelleft=column == 0 != row)
    if row == len(labels) - 1:
        ax.set_xlabel(labels[column])
    if column == 0:
        ax.set_ylabel("density" if row == 0 else labels[row])


def plot_calibration(
    calibration: Any, names: Sequence[str] | None = None, level: float = 0.95
) -> Any:
    r"""Draw whether ranks of simulation-based calibration are uniform: the ECDF less its line.

    Where the guide is the posterior, all of a curve stays in the band with probability ``level``. A
    guide that is too narrow rises above the band on the left and falls below it on the right, one
    that is too wide does the reverse, and one that is shifted leaves it to one side.

    Args:
      calibration: of :func:`vipp.calibration`.
      names: the sites to draw, a picture each; None for all.
      level: of the band, for one coordinate.

    Returns:
      The matplotlib ``Figure``. Needs ``vipp[plots]``.

    Raises:
      ImportError: if matplotlib is not installed.
      ValueError: naming a site that has no ranks, or if ``level`` is not between 0 and 1.

    Example:
      >>> import numpy as np, vipp
      >>> ranks = {"z": np.random.default_rng(0).integers(0, 100, 200)}
      >>> figure = vipp.plot_calibration(vipp.Calibration(ranks, 99))
      >>> figure.axes[0].get_title()
      'z'

    References:
      Säilynoja, Bürkner and Vehtari, *Graphical test for discrete uniformity and its applications
      in goodness-of-fit evaluation and multiple sample comparison*, 2022.
    """
    if not 0 < level < 1:
        raise ValueError(f"plot_calibration: level must be between 0 and 1, got {level!r}.")
    ranks, number = calibration.ranks, calibration.num_samples
    names = list(ranks) if names is None else names
    for name in names:
        if name not in ranks:
            raise ValueError(
                f"plot_calibration: no ranks of site '{name}', got {sorted(ranks)}"
                f"{close(name, ranks)}. Fix: use one of these names."
            )
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    figure, axes = pyplot("plot_calibration").subplots(
        rows, columns, figsize=(1 + 3.2 * columns, 0.6 + 2.6 * rows), squeeze=False, sharex=True,
        sharey=True, layout="constrained",
    )  # fmt: skip
    places = np.arange(1, number + 1) / (number + 1)
    lower, upper = simultaneous_band(len(ranks[names[0]]), number, level)
    for name, ax in zip(names, axes.flat, strict=False):
        ax.fill_between(
            places, lower - places, upper - places, step="mid", color=GREY, alpha=0.3, lw=0
        )
        ax.axhline(0.0, color=GREY, lw=0.8)
        flat = ranks[name].reshape(len(ranks[name]), -1)
        for column in flat.T:
            share = ecdf(column, number)
            outside = bool(((share < lower) | (share > upper)).any())
            ax.step(places, share - places, where="mid", color=ORANGE if outside else BLUE, lw=1)
        ax.set_title(name)
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    axes[0, 0].plot([], [], color=BLUE, label=f"within the {level:.0%} band")
    axes[0, 0].plot([], [], color=ORANGE, label="leaves it")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.supxlabel("rank of the true value among the guide's draws", fontsize="medium")
    figure.supylabel("ECDF less that of uniform ranks", fontsize="medium")
    return figure


def _new_axes(what: str) -> Any:
    return pyplot(what).subplots(figsize=(6.4, 4.0), layout="constrained")[1]


def pyplot(what: str) -> Any:
    """``matplotlib.pyplot``, or an error that says how to install it."""
    try:
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError(
            f"{what} needs matplotlib, which is not installed. Fix: pip install 'vipp[plots]'."
        ) from error
    return matplotlib.pyplot
