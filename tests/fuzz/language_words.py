"""Two meanings of the words that random models are written in.

`Vipp` is NumPyro's and vipp's own; `Plain` knows neither and adds up scaled, masked log densities.
"""

import contextlib
import itertools
import math
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import cond, scan

import draws
import vipp

DATA = {
    "x": np.array([0.31, -0.72, 1.13]), "y": np.array([[0.4, -0.2, 0.9], [1.2, 0.1, -0.6], [-0.3, 0.8, 0.5]]),
    "s": np.array([0.9, -0.4, 0.2, -1.1]), "m": np.array([True, False, True]), "w": np.array([0.5, 1.3, 0.8]),
}  # fmt: skip
PARAMS = {"p": np.array([0.317, -0.541, 0.233]), "q": np.array([-0.211, 0.467, 0.389])}
DIRECTION = {"p": np.array([0.7, -0.4, 0.9]), "q": np.array([-0.5, 0.8, 0.6])}


class Vipp:
    """NumPyro's words, and vipp's ``sample``."""

    def __init__(self, estimators):
        self.estimators = estimators

    def param(self, name):
        return numpyro.param(name, jnp.asarray(PARAMS[name], float))

    def sample(self, name, d, obs=None):
        return vipp.sample(name, d, self.estimators.get(name), obs=obs)

    def plate(self, name, size, subsample_size=None):
        return numpyro.plate(name, size, subsample_size=subsample_size)

    def scale(self, factor):
        return numpyro.handlers.scale(scale=factor)

    def mask(self, keep):
        return numpyro.handlers.mask(mask=keep)

    factor = staticmethod(numpyro.factor)
    scan = staticmethod(scan)
    cond = staticmethod(cond)


class Term(NamedTuple):
    """A log density: its site, plates by name, entries without and with subsampling's scale."""

    site: str
    observed: bool
    plates: Mapping[str, int]
    log_prob: jax.Array
    ratio: float


class Plain:
    """Log densities added up, draws counted, loops unrolled, all branches taken and selected."""

    def __init__(self, params, key=None, given=None, minibatches=None):
        self.params, self.key, self.given = params, key, given
        self.minibatches = {} if minibatches is None else minibatches
        self.values, self.terms, self.path = {}, [], ()
        self.frames, self.scales, self.masks, self.taken = [], [], [], []

    def param(self, name):
        return self.params[name]

    def _key(self, *label):
        return jax.random.fold_in(self.key, zlib.crc32(repr(label).encode()) >> 1)

    @contextlib.contextmanager
    def plate(self, name, size, subsample_size=None):
        taken = {f[1] for f in self.frames}
        dim = next(d for d in itertools.count(1) if d not in taken)
        index = jnp.arange(size)
        if subsample_size is not None:
            index = self.minibatches[name, size, subsample_size]
        self.frames.append((name, dim, len(index), size / len(index)))
        yield index
        self.frames.pop()

    @contextlib.contextmanager
    def scale(self, factor):
        self.scales.append(factor)
        yield
        self.scales.pop()

    @contextlib.contextmanager
    def mask(self, keep):
        self.masks.append(keep)
        yield
        self.masks.pop()

    def _add(self, name, observed, log_prob):
        for factor in self.scales:
            log_prob = factor * log_prob
        for keep in [*self.masks, *self.taken]:
            log_prob = jnp.where(keep, log_prob, 0.0)
        plates = {f[0]: f[1] for f in self.frames}
        ratio = math.prod(f[3] for f in self.frames)
        self.terms.append(Term(name, observed, plates, log_prob, ratio))

    def _shape(self):
        sizes = {f[1]: f[2] for f in self.frames}
        return tuple(sizes.get(i, 1) for i in range(max(sizes, default=0), 0, -1))

    def sample(self, name, d, obs=None):
        batch = jnp.broadcast_shapes(self._shape(), d.batch_shape)
        label = (name, *self.path)
        value = obs
        if obs is None and self.given is not None:
            value = self.given[label]
        elif obs is None:
            value = draws.plain(self._key(label, self.branch), d, batch)
        self.values[label] = value
        log_prob = jnp.broadcast_to(_log_prob(d, value, batch), batch)
        self._add(name, obs is not None, log_prob)
        return value

    branch = ""

    def factor(self, name, value):
        shape = jnp.broadcast_shapes(self._shape(), jnp.shape(value))
        self._add(name, True, jnp.broadcast_to(value, shape))

    def scan(self, step, carry, xs):
        path, out = self.path, []
        for t in range(len(jax.tree.leaves(xs)[0])):
            self.path = (*path, t)
            carry, y = step(carry, jax.tree.map(lambda x: x[t], xs))
            out.append(y)
        self.path = path
        return carry, None if out[0] is None else jnp.stack(out)

    def cond(self, which, yes, no, operand):
        results, seen, branch = [], [], self.branch
        for keep, fn, letter in ((which, yes, "y"), (~which, no, "n")):
            self.taken.append(keep)
            self.branch = branch + letter
            before = dict(self.values)
            results.append(fn(operand))
            seen.append({k: v for k, v in self.values.items() if k not in before})
            self.values = before
            self.taken.pop()
        self.branch = branch
        for label in seen[0]:
            self.values[label] = jnp.where(which, seen[0][label], seen[1][label])
        return jax.tree.map(lambda a, b: jnp.where(which, a, b), *results)


def _log_prob(d, value, batch):
    if isinstance(d, dist.Normal):
        error = (value - d.loc) / d.scale
        return -0.5 * error**2 - jnp.log(d.scale) - 0.5 * math.log(2 * math.pi)
    table = draws.log_table(d)
    table = jnp.broadcast_to(table, (*batch, table.shape[-1]))
    index = jnp.broadcast_to(jnp.asarray(value, int), batch)[..., None]
    return jnp.take_along_axis(table, index, -1)[..., 0]
