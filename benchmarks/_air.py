"""What the benchmarks share: Attend, Infer, Repeat (Eslami et al. 2016), its canvases and its score.

A canvas is a sum of objects, each a small picture put at a place of its own. How many there are is
a chain of presence flags: an object is present if the one before it is and its flag is up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from _common import apply, dense
from numpyro import handlers
from scipy.ndimage import zoom
from sklearn.datasets import load_digits

NOISE = 0.3


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes: of canvases, digits and objects in pixels; how many objects; of the networks.

    One window over all digits is cheaper than one each unless its size is nearly given: ``stretch``
    is the prior scale of its logarithm, which larger canvases, of more nats, need smaller. They
    need a smaller learning rate as well, ``rate``: otherwise no object stays present.
    """

    canvas: int = 24
    digit: int = 9
    objects: int = 2
    window: int = 10
    code: int = 10
    hidden: int = 64
    present: float = 0.05
    stretch: float = 0.1
    rate: float = 3e-3

    @property
    def place(self) -> tuple[jax.Array, jax.Array]:
        """Prior mean and scale of a place: log of the size, of the canvas's, and the centre."""
        size = np.log(self.window / self.canvas)
        return jnp.array([size, 0.0, 0.0]), jnp.array([self.stretch, 0.6, 0.6])


class Canvases(NamedTuple):
    """Pixels, how many digits are on each, and where: centres in pixels, NaN for those absent."""

    x: jax.Array
    counts: jax.Array
    centres: np.ndarray


def canvases(setting: Setting, count: int, seed: int, source: np.ndarray | None = None) -> Canvases:
    """So many canvases of digits that don't overlap."""
    draw = np.random.default_rng(seed)
    pictures = load_digits().images / 16.0 if source is None else source
    side = setting.digit
    pictures = zoom(pictures, (1, side / pictures.shape[1], side / pictures.shape[2]), order=1)
    counts = draw.integers(0, setting.objects + 1, size=count)
    out = np.zeros((count, setting.canvas, setting.canvas), np.float32)
    centres = np.full((count, setting.objects, 2), np.nan)
    for canvas, centre, number in zip(out, centres, counts, strict=True):
        corners = _corners(draw, setting, number)
        centre[:number] = corners[:, ::-1] + 0.5 * (side - 1)  # across, down
        for corner in corners:
            part = tuple(slice(at, at + side) for at in corner)
            canvas[part] = np.maximum(canvas[part], pictures[draw.integers(len(pictures))])
    return Canvases(jnp.asarray(out.clip(0.0, 1.0)), jnp.asarray(counts), centres)


def _corners(draw: Any, setting: Setting, number: int) -> np.ndarray:
    while True:
        corners = draw.integers(0, setting.canvas - setting.digit + 1, size=(number, 2))
        apart = np.abs(corners[:, None] - corners[None]).max(-1) >= setting.digit
        if (apart | np.eye(number, dtype=bool)).all():
            return corners


def _hats(centre: jax.Array, size: jax.Array, to: int, source: int) -> jax.Array:
    """Bilinear weights ``(..., to, source)`` of the points ``centre + size * v``, v in [-1, 1]."""
    points = centre[..., None] + size[..., None] * jnp.linspace(-1.0, 1.0, to)
    at = (points + 1.0) * 0.5 * (source - 1)
    return jax.nn.relu(1.0 - jnp.abs(at[..., None] - jnp.arange(source)))


def read(where: jax.Array, canvas: jax.Array, window: int) -> jax.Array:
    """The part of a canvas at a place, as ``window x window`` pixels."""
    size, side = jnp.exp(where[..., 0]), canvas.shape[-1]
    across, down = (_hats(where[..., i], size, window, side) for i in (1, 2))
    return down @ canvas @ across.mT


def write(where: jax.Array, picture: jax.Array, canvas: int) -> jax.Array:
    """A picture put at a place of an empty canvas of ``canvas x canvas`` pixels."""
    size, side = jnp.exp(-where[..., 0]), picture.shape[-1]
    across, down = (_hats(-where[..., i] * size, size, canvas, side) for i in (1, 2))
    return down @ picture @ across.mT


def covered(where: jax.Array, canvas: int) -> jax.Array:
    """How far the window at a place covers each of ``canvas x canvas`` pixels, 0 to 1."""
    return write(where, jnp.ones((2, 2)), canvas)


def on_digits(setting: Setting, present: jax.Array, where: jax.Array, centres: Any) -> jax.Array:
    """Of each canvas, whether a present window's centre is within a quarter digit of each digit's."""
    at = (where[..., 1:] + 1.0) * 0.5 * (setting.canvas - 1)
    near = jnp.abs(at[:, :, None] - centres).max(-1) < 0.25 * setting.digit
    return ((near & (present[..., None] > 0)).any(0) | jnp.isnan(centres[..., 0])).all(-1)


def recur(layers: Any, given: jax.Array, state: jax.Array) -> jax.Array:
    """A gated recurrent unit, of which the input is already multiplied by its weights."""
    reset, update, new = jnp.split(given, 3, axis=-1)
    of_reset, of_update, of_new = jnp.split(state @ layers["state"] + layers["b"], 3, axis=-1)
    update = jax.nn.sigmoid(update + of_update)
    new = jnp.tanh(new + jax.nn.sigmoid(reset + of_reset) * of_new)
    return (1.0 - update) * new + update * state


def recurrent(key: jax.Array, sizes: Any, hidden: int) -> dict[str, jax.Array]:
    """Weights of such a unit for inputs of the sizes given, by name."""
    keys = jax.random.split(key, len(sizes) + 1)
    weights = {
        name: jax.random.normal(k, (size, 3 * hidden)) * size**-0.5
        for k, (name, size) in zip(keys, {"state": hidden, **sizes}.items(), strict=True)
    }
    return {**weights, "b": jnp.zeros(3 * hidden)}


def normal(loc: jax.Array, scale: Any, counts: jax.Array) -> Any:
    """A vector that counts only for objects that are present."""
    return dist.Normal(loc, scale).to_event(1).mask(counts > 0)


def picture(decoder: Any, what: jax.Array) -> jax.Array:
    """An object's pixels, faint at the start: otherwise all that is drawn is in the way."""
    pixels = jax.nn.sigmoid(apply(decoder, what) - 2.0)
    side = round(pixels.shape[-1] ** 0.5)
    return pixels.reshape(*pixels.shape[:-1], side, side)


def programs(setting: Setting) -> tuple[Callable[..., None], Callable[..., None]]:
    """Model and guide of canvases ``x``."""
    place, spread = setting.place
    pixels, code, hidden = setting.window**2, setting.code, setting.hidden

    def model(x: jax.Array, batch_size: int | None = None) -> None:
        decoder = numpyro.param("decoder", lambda key: dense(key, (code, hidden, pixels)))
        with numpyro.plate("canvases", len(x), subsample_size=batch_size):
            x = numpyro.subsample(x, event_dim=2)
            canvas, present = jnp.zeros(x.shape), jnp.ones(len(x))
            for t in range(setting.objects):
                prior = dist.Bernoulli(setting.present).mask(present > 0)
                present = present * numpyro.sample(f"pres_{t}", prior)
                where = numpyro.sample(f"where_{t}", normal(place, spread, present))
                what = numpyro.sample(f"what_{t}", normal(jnp.zeros(code), 1.0, present))
                drawn = write(where, picture(decoder, what), setting.canvas)
                canvas = canvas + present[..., None, None] * drawn
            numpyro.sample("x", dist.Normal(canvas, NOISE).to_event(2), obs=x)

    def guide(x: jax.Array, batch_size: int | None = None) -> None:
        look = numpyro.param("look", lambda key: dense(key, (x[0].size, hidden, hidden)))
        gates = numpyro.param(
            "gates", lambda key: recurrent(key, {"seen": hidden, "known": code + 3}, hidden)
        )
        locate = numpyro.param("locate", lambda key: dense(key, (hidden, hidden, 7)))
        encoder = numpyro.param("encoder", lambda key: dense(key, (pixels, hidden, 2 * code)))
        with numpyro.plate("canvases", len(x), subsample_size=batch_size):
            x = numpyro.subsample(x, event_dim=2)
            state, present = jnp.zeros((len(x), hidden)), jnp.ones(len(x))
            known, left = jnp.zeros((len(x), code + 3)), x
            for t in range(setting.objects):
                seen = apply(look, left.reshape(*left.shape[:-2], -1))
                state = recur(gates, seen @ gates["seen"] + known @ gates["known"], state)
                out = apply(locate, state)
                loc, scale = place + spread * out[..., 1:4], spread * jax.nn.softplus(out[..., 4:])
                flag = dist.Bernoulli(logits=out[..., 0] + 2.0).mask(present > 0)
                present = present * numpyro.sample(f"pres_{t}", flag)
                where = numpyro.sample(f"where_{t}", normal(loc, scale, present))
                glimpse = read(where, x, setting.window)
                mean, width = jnp.split(
                    apply(encoder, glimpse.reshape(*glimpse.shape[:-2], pixels)), 2, axis=-1
                )
                code_of = normal(mean, jax.nn.softplus(width), present)
                what = numpyro.sample(f"what_{t}", code_of)
                known = jnp.concatenate([where, what], axis=-1)
                left = left * (1.0 - covered(where, setting.canvas))

    return model, guide


def inferred(guide: Any, params: Any, key: jax.Array, x: jax.Array, objects: int) -> Any:
    """One draw of the guide: flags of what is present, places and codes, objects in front."""
    seeded = handlers.seed(handlers.substitute(guide, data=params), key)
    trace = handlers.trace(seeded).get_trace(x)
    flags, where, what = (
        jnp.stack([trace[f"{name}_{t}"]["value"] for t in range(objects)])
        for name in ("pres", "where", "what")
    )
    return jnp.cumprod(flags, 0), where, what
