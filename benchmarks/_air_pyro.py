"""AIR in Pyro, on the canvases of ``air.py``: run by it in an environment of its own.

The same networks and windows; the bound by ``TraceGraph_ELBO`` with a baseline for each flag, as in
Pyro's tutorial on the model, or by ``TraceEnum_ELBO``.

    python _air_pyro.py canvases.npz setting.json results.json --epochs 3
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceEnum_ELBO, TraceGraph_ELBO
from torch import nn
from torch.nn import functional

NOISE, BATCH = 0.3, 64


def perceptron(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        layers += [nn.Softplus()] if number else []
        layers.append(nn.Linear(before, after))
        nn.init.xavier_normal_(layers[-1].weight)
        nn.init.zeros_(layers[-1].bias)
    return nn.Sequential(*layers)


def hats(centre: torch.Tensor, size: torch.Tensor, to: int, source: int) -> torch.Tensor:
    points = centre[..., None] + size[..., None] * torch.linspace(-1.0, 1.0, to)
    at = (points + 1.0) * 0.5 * (source - 1)
    return functional.relu(1.0 - (at[..., None] - torch.arange(source)).abs())


def read(where: torch.Tensor, canvas: torch.Tensor, window: int) -> torch.Tensor:
    size, side = where[..., 0].exp(), canvas.shape[-1]
    across, down = (hats(where[..., i], size, window, side) for i in (1, 2))
    return down @ canvas @ across.mT


def write(where: torch.Tensor, picture: torch.Tensor, canvas: int) -> torch.Tensor:
    size, side = (-where[..., 0]).exp(), picture.shape[-1]
    across, down = (hats(-where[..., i] * size, size, canvas, side) for i in (1, 2))
    return down @ picture @ across.mT


class AIR(nn.Module):
    """Model and guide, after the setting's sizes."""

    def __init__(self, setting: dict[str, Any], enumerate_flags: bool) -> None:
        super().__init__()
        self.s, self.enumerated = setting, enumerate_flags
        pixels, code, hidden = setting["window"] ** 2, setting["code"], setting["hidden"]
        self.decoder = perceptron(code, hidden, pixels)
        self.look = perceptron(setting["canvas"] ** 2, hidden, hidden)
        self.cell = nn.GRUCell(hidden + code + 3, hidden)
        self.locate = perceptron(hidden, hidden, 7)
        self.encoder = perceptron(pixels, hidden, 2 * code)
        self.baseline = perceptron(hidden, hidden, 1)
        size = float(np.log(setting["window"] / setting["canvas"]))
        self.place = torch.tensor([size, 0.0, 0.0])
        self.spread = torch.tensor([setting["stretch"], 0.6, 0.6])

    def vector(self, name: str, loc: Any, scale: Any, present: torch.Tensor) -> torch.Tensor:
        return pyro.sample(name, dist.Normal(loc, scale).to_event(1).mask(present > 0))

    def model(self, x: torch.Tensor) -> None:
        pyro.module("decoder", self.decoder)
        count, side, code = len(x), self.s["window"], self.s["code"]
        with pyro.plate("canvases", count, dim=-1):
            canvas, present = torch.zeros_like(x), torch.ones(count)
            for t in range(self.s["objects"]):
                prior = dist.Bernoulli(torch.tensor(self.s["present"])).expand([count])
                present = present * pyro.sample(f"pres_{t}", prior.mask(present > 0))
                place, spread = self.place.expand(count, 3), self.spread.expand(count, 3)
                where = self.vector(f"where_{t}", place, spread, present)
                zero, one = torch.zeros(count, code), torch.ones(count, code)
                what = self.vector(f"what_{t}", zero, one, present)
                picture = torch.sigmoid(self.decoder(what) - 2.0)
                picture = picture.reshape(*picture.shape[:-1], side, side)
                drawn = write(where, picture, self.s["canvas"])
                canvas = canvas + present[..., None, None] * drawn
            pyro.sample("x", dist.Normal(canvas, NOISE).to_event(2), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        for name in ("look", "cell", "locate", "encoder", "baseline"):
            pyro.module(name, getattr(self, name))
        count, code = len(x), self.s["code"]
        with pyro.plate("canvases", count, dim=-1):
            state, present = torch.zeros(count, self.s["hidden"]), torch.ones(count)
            known, left = torch.zeros(count, code + 3), x
            for t in range(self.s["objects"]):
                seen = self.look(left.flatten(-2))
                state = self.cell(torch.cat([seen, known], -1), state)
                out = self.locate(state)
                flag = dist.Bernoulli(logits=out[:, 0] + 2.0).mask(present > 0)
                present = present * pyro.sample(f"pres_{t}", flag, infer=self.how(state))
                loc = self.place + self.spread * out[:, 1:4]
                scale = self.spread * functional.softplus(out[:, 4:])
                where = self.vector(f"where_{t}", loc, scale, present)
                glimpse = read(where, x, self.s["window"]).flatten(-2)
                mean, width = self.encoder(glimpse).chunk(2, -1)
                what = self.vector(f"what_{t}", mean, functional.softplus(width), present)
                known, left = self.seen(left, where, what, count)

    def seen(self, left: Any, where: Any, what: Any, count: int) -> Any:
        """What the next step knows. Enumeration repeats a later object's place for each flag."""
        where, what = (v.reshape(-1, count, v.shape[-1])[-1] for v in (where, what))
        return torch.cat([where, what], -1), left * (
            1.0 - write(where, torch.ones(count, 2, 2), self.s["canvas"])
        )

    def how(self, state: torch.Tensor) -> dict[str, Any]:
        if self.enumerated:
            return {"enumerate": "parallel"}
        value = self.baseline(state.detach()).squeeze(-1)
        return {"baseline": {"baseline_value": value}}

    @torch.no_grad()
    def count(self, x: torch.Tensor) -> torch.Tensor:
        trace = pyro.poutine.trace(self.guide).get_trace(x)  # pyright: ignore
        flags = [trace.nodes[f"pres_{t}"]["value"] for t in range(self.s["objects"])]
        return torch.stack(flags).cumprod(0).sum(0)


def trained(data: Any, setting: dict[str, Any], enumerate_flags: bool, epochs: int) -> Any:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    air = AIR(setting, enumerate_flags)
    loss = TraceEnum_ELBO(max_plate_nesting=1) if enumerate_flags else TraceGraph_ELBO()
    adam = pyro.optim.Adam({"lr": setting["rate"]})  # pyright: ignore
    svi = SVI(air.model, air.guide, adam, loss=loss)
    x, held_out = torch.tensor(data["x"]), torch.tensor(data["held_out"])
    counts = torch.tensor(data["held_out_counts"])
    seconds, cpu, accuracy = [], [], []
    for _ in range(epochs):
        order = torch.randperm(len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH)
        started, used = time.perf_counter(), time.process_time()
        for rows in order:
            svi.step(x[rows])
        seconds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
        accuracy.append(float((air.count(held_out) == counts).float().mean()))
        print(f"{seconds[-1]:.1f} s, counts right {accuracy[-1]:.3f}", flush=True)
    return seconds, cpu, accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("canvases")
    parser.add_argument("setting")
    parser.add_argument("results")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=["TraceGraph_ELBO", "TraceEnum_ELBO"])
    args = parser.parse_args()
    data = np.load(args.canvases)
    torch.set_num_threads(1)  # on small arrays and busy cores twice as fast as two
    with open(args.setting) as file:
        setting = json.load(file)
    found = {}
    for way in args.ways:
        print(way, flush=True)
        found[way] = trained(data, setting, way == "TraceEnum_ELBO", args.epochs)
    with open(args.results, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
