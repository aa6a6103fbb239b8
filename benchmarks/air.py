"""Attend, Infer, Repeat: one model, one guide, and what changes is the estimator or the objective.

How many digits are on a canvas, and where? Becker, Lew et al. (PLDI 2024, table 2, figure 7) train
Eslami et al.'s model under five gradient estimators and compare seconds per epoch and the accuracy
of the counts with Pyro's. The guide sees what no window has covered yet.

    python benchmarks/air.py [--size small|paper] [--epochs 20] [--only default enumeration]
                             [--data MNIST.npz] [--by-hand] [--pyro] [--out outputs]
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from _air import Setting, canvases, programs
from _air_beside import against_by_hand, against_pyro
from _air_pictures import accuracy_against_time, reconstructions
from _air_training import History, train
from _common import table

import vipp

SIZES = {
    "small": Setting(),
    "paper": Setting(50, 18, objects=3, window=20, code=20, hidden=128, stretch=0.03, rate=1e-3),
}
# seconds per epoch of 60,000 canvases of 50 x 50, on a GPU: genjax.vi, Pyro 1.8
PAPER = {
    "score function": (1.52, 12.28),
    "enumeration": (6.22, 122.93),
    "measure-valued": (1.74, None),
    "IWAE(2), score function": (2.28, 22.17),
    "IWAE(2), measure-valued": (3.74, None),
}
LEAVE_ONE_OUT = vipp.ScoreFunction(num_samples=2, baseline="leave_one_out")


def ways(objects: int) -> dict[str, tuple[vipp.Objective, dict[str, Any]]]:
    """Objectives, and the estimators of the flags."""

    def flags(each: Callable[[int], Any]) -> dict[str, Any]:
        return {f"pres_{t}": each(t) for t in range(objects)}

    score = flags(lambda t: vipp.ScoreFunction())
    weak = flags(lambda t: vipp.MeasureValued())
    last = objects - 1
    hybrid = flags(lambda t: vipp.Enumerate() if t == last else vipp.MeasureValued())
    mixed = flags(lambda t: vipp.Enumerate() if t == 0 else LEAVE_ONE_OUT)
    elbo, iwae = vipp.ELBO(), vipp.IWAE(num_particles=2)
    return {
        "default": (elbo, {}),
        "enumeration": (elbo, flags(lambda t: vipp.Enumerate())),
        "measure-valued": (elbo, weak),
        "leave-one-out, 2": (elbo, flags(lambda t: LEAVE_ONE_OUT)),
        "score function": (elbo, score),
        "measure-valued, last enumerated": (elbo, hybrid),
        "first enumerated, leave-one-out": (elbo, mixed),
        "IWAE(2), default": (iwae, {}),
        "IWAE(2), score function": (iwae, score),
        "IWAE(2), measure-valued": (iwae, weak),
        "IWAE(2), leave-one-out, 2": (iwae, flags(lambda t: LEAVE_ONE_OUT)),
        "reweighted wake-sleep(10)": (vipp.ReweightedWakeSleep(num_particles=10), {}),
        "wake-sleep": (vipp.ReweightedWakeSleep(num_particles=1, wake=0.0, sleep=1.0), {}),
    }


def pictures_of(path: str | None) -> np.ndarray | None:
    """Images of digits in an npz of packed bits, cut to what is drawn on; None for digits."""
    if path is None:
        return None
    bits = np.unpackbits(np.load(path)["train"][:10_000], axis=1)[:, :784]
    return bits.reshape(-1, 28, 28)[:, 4:24, 4:24].astype(float)


def report(name: str, history: History) -> list[Any]:
    reached = history.reached(0.95)
    return [
        name,
        float(np.median(history.seconds)),
        history.first,
        history.losses[-1],
        f"{history.accuracy[-1]:.3f}",
        f"{history.placed[-1]:.3f}",
        "never" if reached is None else f"{reached:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--count", type=int, default=4096, help="canvases to train on")
    parser.add_argument("--only", nargs="+", help="names of ways")
    parser.add_argument("--data", help="npz of bit-packed binarised MNIST, instead of the digits")
    parser.add_argument("--by-hand", action="store_true", help="only compare with plain JAX")
    parser.add_argument("--pyro", action="store_true", help="only time Pyro's beside vipp's")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs"))
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    setting, source = SIZES[args.size], pictures_of(args.data)
    data = canvases(setting, args.count, 0, source)
    held_out = canvases(setting, 1024, 1, source)
    every = ways(setting.objects)
    if args.by_hand:
        return against_by_hand(setting, data.x, every["leave-one-out, 2"], rounds=7)
    if args.pyro:
        shown = {name: every[name] for name in args.only or ["score function", "enumeration"]}
        return against_pyro(setting, data, held_out, shown, args.epochs)
    model, guide = programs(setting)
    found, rows = {}, []
    for name, (objective, chosen) in every.items():
        if args.only and name not in args.only:
            continue
        estimated = vipp.with_estimators(guide, chosen)
        found[name] = train(objective, model, estimated, data, held_out, setting, args.epochs)
        rows.append(report(name, found[name]))
        print(rows[-1], flush=True)
    header = ["way", "s / epoch", "first, CPU s", "loss", "counts right", "found", "s to 0.95"]
    table(f"{args.count} canvases of {setting.canvas} x {setting.canvas}", header, rows)
    kept = args.out / f"air_{args.size}.json"
    curves = json.loads(kept.read_text()) if kept.exists() else {}
    curves |= {name: (h.seconds, h.accuracy) for name, h in found.items()}
    kept.write_text(json.dumps(curves))  # of a run that was split by --only
    accuracy_against_time(curves, args.out / f"air_{args.size}_accuracy.png")
    name, history = max(found.items(), key=lambda item: item[1].placed[-1])
    path = args.out / f"air_{args.size}_seen.png"
    reconstructions(guide, history.params, setting, held_out.x[:10], path)
    print(f"Saved in {args.out}: accuracy against time, and reconstructions ({name})")


if __name__ == "__main__":
    main()
