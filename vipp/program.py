"""A NumPyro program together with its parameters and arguments."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from numpyro.handlers import seed, substitute, trace
from numpyro.primitives import Messenger

from vipp.densities import SiteDensity, joint, joint_per_plate, site_densities
from vipp.replicate import random_key
from vipp.trace import Trace

PerPlate = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Program:
    r"""A model or guide as an objective sees it: something to draw from and to score.

    Args:
      fn: a NumPyro program.
      params: constrained parameter values by name.
      args: the program's arguments.
      kwargs: the program's keyword arguments.
      plate_key: PRNG key that subsampled plates draw with, so that all particles see one minibatch;
        None to draw afresh in each run.
      mutable: where the values of ``numpyro.mutable`` sites are kept from one run to the next.

    Example:
      >>> import jax, numpyro, numpyro.distributions as dist, vipp
      >>> p = vipp.Program(lambda: numpyro.sample("z", dist.Normal()), {}, (), {})
      >>> def log_density():
      ...     z, log_p = p.simulate()
      ...     return p.log_density(z) - log_p
      >>> float(vipp.expectation(log_density)(jax.random.key(0)))
      0.0
    """

    fn: Callable[..., Any]
    params: Mapping[str, Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    plate_key: Any = None
    mutable: dict[str, Any] = field(default_factory=dict, repr=False)

    def simulate(
        self, *, per_plate: PerPlate = None, stick_the_landing: bool = False
    ) -> tuple[Trace, jax.Array]:
        """Run the program.

        Args:
          per_plate: as in :meth:`log_density`.
          stick_the_landing: score the draw with constant parameters, so that the gradient keeps
            the path through the draw alone (Roeder, Wu and Duvenaud 2017): still unbiased, with
            no variance where the guide is exact; it costs a second run.

        Returns:
          The latent values, and their log density: a scalar, or one entry per plate element.
        """
        drawn, sites = self.simulate_sites()
        if stick_the_landing:
            return drawn, self.stop_gradient().log_density(drawn, per_plate)
        return drawn, _reduce(sites, per_plate)

    def log_density(self, trace: Trace, per_plate: PerPlate = None) -> jax.Array:
        """The log density of latent values and observations.

        Args:
          trace: a value for every latent site.
          per_plate: name(s) of plates that enclose every site; the density is then given per
            element, without the scale of those plates' subsampling.

        Returns:
          A scalar, or an array with one axis per named plate.

        Raises:
          ValueError: naming a latent site without a value, or a value without a site.
        """
        return _reduce(self.log_density_sites(trace), per_plate)

    def stop_gradient(self) -> Program:
        """The same program with its parameters constant."""
        return replace(self, params=jax.lax.stop_gradient(dict(self.params)))

    def __call__(self) -> Any:
        """Run it for its return value."""
        return self._run({})[1]

    def simulate_sites(self) -> tuple[Trace, list[SiteDensity]]:
        """Like :meth:`simulate`, with the density site by site."""
        record, _ = self._run({})
        return _drawn(record), site_densities(record)

    def log_density_sites(self, trace: Trace) -> list[SiteDensity]:
        """Like :meth:`log_density`, site by site."""
        record, _ = self._run({**trace.values, **trace.subsamples}, given=trace)
        names = {n for n, s in record.items() if s["type"] == "sample"}
        for name in trace.values:
            if name not in names and name not in trace.auxiliary:
                raise ValueError(
                    f"Site '{name}' has a value but the program has no such site, got sites "
                    f"{sorted(names)}. Fix: rename it, add it to the program, or mark it "
                    "infer={'is_auxiliary': True} where it was drawn."
                )
        return site_densities(record)

    def _run(self, data: Mapping[str, Any], given: Trace | None = None) -> tuple[Any, Any]:
        key, fn = random_key("A Program"), self.fn
        if self.plate_key is not None:
            fn = _PlateKeys(fn, self.plate_key)
        with (
            trace() as record,
            seed(rng_seed=key),
            _Given({**self.params, **self.mutable, **data}, given),
        ):
            result = fn(*self.args, **self.kwargs)
        for name, site in record.items():
            if site["type"] == "mutable":
                self.mutable[name] = site["value"]
            elif given is not None and _latent(site) and name not in given:
                raise _missing(name, given)
        return record, result


class _PlateKeys(Messenger):
    """Gives each subsampled plate a key by its name, the same in every program and particle."""

    def __init__(self, fn: Callable[..., Any], key: Any):
        super().__init__(fn)
        self.key = key

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "plate" and msg["value"] is None and msg["kwargs"]["rng_key"] is None:
            salt = zlib.crc32(msg["name"].encode()) >> 1
            msg["kwargs"]["rng_key"] = jax.random.fold_in(self.key, salt)


class _Given(substitute):
    """Substitutes values, and refuses a latent site that has none where all must have one."""

    def __init__(self, data: dict[str, Any], given: Trace | None):
        super().__init__(data=data)
        self.given = given

    def process_message(self, msg: Any) -> None:
        super().process_message(msg)
        if self.given is not None and _latent(msg) and msg["value"] is None:
            raise _missing(msg["name"], self.given)


def _latent(site: Mapping[str, Any]) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def _missing(name: str, given: Trace) -> ValueError:
    return ValueError(
        f"Site '{name}' is latent here but was given no value, got values for "
        f"{sorted(given.values)}. Fix: draw '{name}' in the guide, observe it, or eliminate it "
        "(vipp.marginal)."
    )


def _drawn(record: Mapping[str, Any]) -> Trace:
    latent = {n: s for n, s in record.items() if _latent(s)}
    plates = {
        n: s["value"]
        for n, s in record.items()
        if s["type"] == "plate" and s["args"][1] not in (None, s["args"][0])
    }
    auxiliary = tuple(n for n, s in latent.items() if s["infer"].get("is_auxiliary"))
    return Trace({n: s["value"] for n, s in latent.items()}, plates, auxiliary)


def _reduce(sites: list[SiteDensity], per_plate: PerPlate) -> jax.Array:
    if per_plate is None:
        return joint(sites)
    names = (per_plate,) if isinstance(per_plate, str) else tuple(per_plate)
    return joint_per_plate(sites, names)
