"""Programs normalised by sampling importance resampling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.handlers import block, trace

from vipp.language.keys import minibatch, random_key
from vipp.language.replicate import replicate
from vipp.language.sample import sample
from vipp.programs.composed import Binding, Composed
from vipp.programs.densities import SiteDensity
from vipp.programs.fixed_values import check_anywhere
from vipp.programs.program import AbstractProgram, Change
from vipp.programs.support import check_same_support
from vipp.programs.trace import Trace
from vipp.programs.weights import at_values, log_mean_exp, one_density, weigh_sites
from vipp_transforms.checks import positive_int

INDEX = "normalize$index"


def normalize(program: Any, proposal: Any, num_particles: int, estimator: Any = None) -> Any:
    r"""The posterior of a program, by sampling importance resampling: a guide of its own.

    .. math::
        z_k \sim q, \quad w_k = \frac{p(x, z_k)}{q(z_k)}, \quad
        j \sim \mathrm{Categorical}(w), \quad z = z_j

    ``simulate`` returns ``z`` with :math:`p(x, z) / \frac1K \sum_k w_k`, whose inverse is unbiased
    for the inverse of the density of ``z``; ``log_density`` puts ``z`` among ``K - 1`` fresh
    draws, and is unbiased. So ``ELBO`` with this guide is the bound ``IWAE(K)``. Plates that
    enclose every site of both programs are resampled element by element.

    Args:
      program: the model: a NumPyro program or one made by :func:`vipp.marginal`.
      proposal: draws the same latent sites, from the same arguments.
      num_particles: ``K``, at least 1.
      estimator: of the index's gradient; None for enumeration.

    Returns:
      A program of the same arguments.

    Raises:
      ValueError: if ``num_particles`` is not a positive int; when drawn from or scored, naming a
        site that only one of the programs has or that has different supports.

    Example:
      >>> import jax, numpyro, numpyro.distributions as dist, vipp
      >>> def coin(heads):
      ...     p = numpyro.sample("p", dist.Beta(10, 10))
      ...     numpyro.sample("heads", dist.Binomial(10, p), obs=heads)
      >>> def prior(heads):
      ...     numpyro.sample("p", dist.Beta(10, 10))
      >>> posterior = vipp.normalize(coin, prior, num_particles=100)
      >>> draws = numpyro.infer.Predictive(posterior, num_samples=2_000)(jax.random.key(0), 6)
      >>> round(float(draws["p"].mean()), 2)
      0.53

    References:
      Rubin, *Using the SIR algorithm to simulate posterior distributions*, 1988.
      Cremer, Morris and Duvenaud, *Reinterpreting importance-weighted autoencoders*, 2017.
    """
    positive_int("normalize: num_particles", num_particles)
    if isinstance(program, AbstractProgram):
        return NormalizedProgram(program, proposal, num_particles, estimator)
    return Normalized(program, proposal, num_particles, estimator)


@dataclass(frozen=True)
class Normalized(Composed):
    """What :func:`normalize` makes of NumPyro programs."""

    program: Any
    proposal: Any
    num_particles: int
    estimator: Any = None

    def bind(self, binding: Binding) -> AbstractProgram:
        """The program as an objective sees it."""
        target, proposal = binding.program(self.program), binding.program(self.proposal)
        return NormalizedProgram(target, proposal, self.num_particles, self.estimator)

    def _run(self, args: Any, kwargs: Any) -> Any:
        found: dict[str, Any] = {}
        hidden = lambda site: site["type"] not in ("param", "mutable", "prng_key")
        for program in (self.proposal, self.program):  # their parameters are this program's
            with (
                trace() as record,
                block(hide_fn=hidden),
                numpyro.handlers.seed(rng_seed=random_key("normalize")),
            ):
                program(*args, **kwargs)
            found |= {n: s["value"] for n, s in record.items() if s["type"] == "param"}
        bound = self.bind(Binding(found, args, kwargs))
        hidden = lambda site: site["type"] != "prng_key"
        with block(hide_fn=hidden), minibatch(random_key("normalize")):
            drawn, _ = bound.simulate()
        for name, value in drawn.values.items():
            numpyro.sample(name, dist.Delta(value, event_dim=jnp.ndim(value)))
        return drawn.values


@dataclass(frozen=True)
class NormalizedProgram(AbstractProgram):
    """Sampling importance resampling; see :func:`normalize`."""

    target: AbstractProgram
    proposal: AbstractProgram
    num_particles: int
    estimator: Any = None

    def rebuilt(self, change: Change) -> AbstractProgram:
        """The same of both programs, changed."""
        return replace(self, target=change(self.target), proposal=change(self.proposal))

    def constant(self) -> AbstractProgram:
        """Refused, as the density is estimated."""
        raise ValueError(
            "normalize(...): an objective that draws from its guide as a constant needs the "
            "guide's exact density, got an estimated one. Fix: use ELBO or IWAE with it."
        )

    def __call__(self) -> Any:
        """Draw the values."""
        return self.simulate_sites()[0].values

    def simulate_sites(self) -> tuple[Trace, list[SiteDensity]]:
        """Draw particles, and choose one by its weight."""

        def draw() -> tuple[Trace, _Particle]:
            drawn, of_q = self.proposal.simulate_sites()
            return drawn, self._weigh(drawn, of_q)

        drawn, all_ = replicate(draw, self.num_particles)
        logits = jnp.moveaxis(all_.log_w, 0, -1)
        index = sample(INDEX, dist.Categorical(logits=logits), self.estimator)
        chosen = {n: all_.choose(n, x, index) for n, x in drawn.values.items()}
        same = {n: x[0] for n, x in drawn.subsamples.items()}
        # E[1/w] = 1/q: the chosen one's own weight is among those averaged
        log_density = _take(all_.log_p, index) - log_mean_exp(all_.log_w)
        density = one_density("normalize", log_density, all_.names, all_.sites)
        return replace(drawn, values=chosen, subsamples=same), [density]

    def log_density_sites(self, trace: Trace) -> list[SiteDensity]:
        """The values given, scored among other particles."""
        of_q = self.proposal.log_density_sites(trace)
        check_anywhere("normalize: the proposal", of_q, self.target.log_density_sites(trace))
        given = self._weigh(trace, of_q, drawn=False)
        log_w = given.log_w[None]
        if self.num_particles > 1:
            draw = lambda: self._weigh(*self.proposal.simulate_sites()).log_w
            # E[w] = q: the values given take one particle's place, the others are drawn
            log_w = jnp.concatenate([log_w, replicate(draw, self.num_particles - 1)])
        log_density = given.log_p - log_mean_exp(log_w)
        return [one_density("normalize", log_density, given.names, given.sites)]

    def _weigh(self, values: Trace, of_q: list[SiteDensity], *, drawn: bool = True) -> _Particle:
        of_p = self.target.log_density_sites(values)
        check_same_support("normalize, its proposal", of_p, of_q)
        w = weigh_sites(of_p, of_q, drawn=drawn)
        facts = [s.facts() for s in (*of_p, *of_q)]
        return _Particle(w.log_p, w.log_p - w.log_q, w.names, facts)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("log_p", "log_w"),
    meta_fields=("names", "sites"),
)
@dataclass(frozen=True, eq=False)
class _Particle:
    """One draw of the proposal, weighed; or all of them."""

    log_p: jax.Array
    log_w: jax.Array
    names: tuple[str, ...]
    sites: list[SiteDensity]

    def choose(self, name: str, values: jax.Array, index: jax.Array) -> jax.Array:
        """A site's values at ``index``, each element of the plates its own."""
        found = [s for s in self.sites if s.name == name]
        if self.names and not found:
            raise ValueError(
                f"normalize: site '{name}' is one of a program whose density is estimated, inside "
                f"plate '{self.names[0]}'. Fix: normalize the program itself."
            )
        index = at_values(index, found[0], self.names) if found else index
        ndim = jnp.ndim(values) - 1
        return _take(values, jnp.expand_dims(index, range(ndim - index.ndim)))


def _take(values: jax.Array, index: jax.Array) -> jax.Array:
    """``values[index, i, j, ...]`` for every ``i, j, ...``; the index broadcasts to these."""
    return jnp.take_along_axis(values, index[None], axis=0)[0]
