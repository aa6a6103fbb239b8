"""Pictures of AIR: the accuracy of its counts against time, and what it sees."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from _air import Setting, inferred, picture, write
from _air_training import key

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = ("#D55E00", "#0072B2", "#009E73")


def accuracy_against_time(
    found: Mapping[str, tuple[list[float], list[float]]], path: pathlib.Path
) -> None:
    """Of each way the seconds of its epochs, and the accuracy after each."""
    figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    lines = plt.get_cmap("tab10").colors + plt.get_cmap("Dark2").colors  # pyright: ignore
    for number, (name, (seconds, accuracy)) in enumerate(found.items()):
        style = "--" if name.startswith("IWAE") else ":" if "sleep" in name else "-"
        axis.plot(np.cumsum(seconds), accuracy, style, color=lines[number], label=name)
    axis.axhline(0.95, color="0.7", lw=0.8, zorder=0)
    axis.set(xlabel="seconds of training", ylabel="counts right", xscale="log", ylim=(0, 1.02))
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def boxes(setting: Setting, where: jax.Array) -> np.ndarray:
    """Left, top and side in pixels of windows at ``where``."""
    side = jnp.exp(where[..., 0])
    pixels = 0.5 * (setting.canvas - 1)
    corners = [(where[..., i] - side + 1.0) * pixels for i in (1, 2)]
    return np.stack([*corners, 2.0 * side * pixels], axis=-1)


def seen(guide: Any, params: Any, setting: Setting, x: jax.Array) -> Any:
    """Flags, boxes and the reconstructed canvases of one draw of the guide."""
    present, where, what = inferred(guide, params, key(11), x, setting.objects)
    drawn = write(where, picture(params["decoder"], what), setting.canvas)
    return present, boxes(setting, where), (present[..., None, None] * drawn).sum(0)


def reconstructions(
    guide: Any, params: Any, setting: Setting, x: jax.Array, path: pathlib.Path
) -> None:
    """Canvases above, what the model makes of them below, with the windows."""
    present, squares, made = seen(guide, params, setting, x)
    figure, axes = plt.subplots(2, len(x), figsize=(1.1 * len(x), 2.4), layout="constrained")
    for column, both in enumerate(zip(x, made, strict=True)):
        for axis, canvas in zip(axes[:, column], both, strict=True):
            axis.imshow(canvas, cmap="gray_r", vmin=0.0, vmax=1.0)
            axis.set(xticks=[], yticks=[])
            for t in range(setting.objects):
                if present[t, column]:
                    left, top, side = squares[t, column]
                    box = plt.Rectangle((left, top), side, side, fill=False, ec=COLOURS[t])
                    axis.add_patch(box)
    figure.savefig(path, dpi=130)
    plt.close(figure)
