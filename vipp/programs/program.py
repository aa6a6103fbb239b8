"""A NumPyro program together with its parameters and arguments."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
from numpyro.handlers import block, trace

from vipp.language.control_flow import Scan, control_flow, own_sites
from vipp.language.keys import minibatch_key, random_key, seeded
from vipp.programs import handlers
from vipp.programs.auxiliary import auxiliaries, check_known
from vipp.programs.densities import (
    SiteDensity,
    first_order,
    joint,
    joint_per_plate,
    landed,
    site_densities,
)
from vipp.programs.scores import tell
from vipp.programs.trace import Trace
from vipp.programs.unknown_values import naming_the_line
from vipp_transforms.constant import detached
from vipp_transforms.estimate import estimate

PerPlate = str | tuple[str, ...] | None


Change = Callable[["AbstractProgram"], "AbstractProgram"]


class AbstractProgram(abc.ABC):
    """What an objective draws from and scores: a NumPyro program, or one made of others."""

    def simulate(
        self,
        *,
        per_plate: PerPlate = None,
        stick_the_landing: bool = False,
    ) -> tuple[Trace, jax.Array]:
        r"""Run the program.

        Args:
          per_plate: as in :meth:`log_density`.
          stick_the_landing: score what is drawn at random with constant parameters, so that the
            gradient keeps the path through the draw alone (Roeder, Wu and Duvenaud 2017): still
            unbiased, with no variance where the guide is exact; it costs a second run. Factors
            and observed sites keep their gradient.

        Returns:
          The latent values, and :math:`\log w` with :math:`E[1/w] = 1/q(z)` given the values:
          their log density, unless that is only estimated. A scalar, or one entry per plate
          element.

        References:
          Lew, Ghavamizadeh, Rinard and Mansinghka, *Probabilistic programming with stochastic
          probabilities*, PLDI 2023.
        """
        drawn, sites = self.simulate_sites()
        if stick_the_landing:
            sites = self.landed(drawn, sites)
        return drawn, _reduce(sites, per_plate)

    def landed(self, drawn: Trace, sites: list[SiteDensity]) -> list[SiteDensity]:
        """The densities ``sites`` of a draw, of random sites those under constant parameters.

        Raises:
          ValueError: naming a site whose density is estimated.
          vipp.SiteError: when differentiated in what moves the support of a site, or twice.
        """
        what = "stick_the_landing=True"
        constant = landed(sites, self.stop_gradient().log_density_sites(drawn))
        scores = {s.name: s.log_prob for s in sites if s.random}
        if any(s.may_move for s in sites):
            # with the values given: a support may move with those drawn before
            fixed = self.held(what).log_density_sites(detached(drawn))
            scores = {s.name: s.log_prob for s in fixed if s.name in scores}
        live = {s.name: s.log_prob for s in sites}

        def once(site: SiteDensity) -> SiteDensity:
            x, score = site.log_prob, scores[site.name]
            return replace(site, log_prob=first_order(x, score, what, live[site.name]))

        return [once(s) if s.name in scores else s for s in constant]

    def log_density(self, trace: Trace, per_plate: PerPlate = None) -> jax.Array:
        r"""The log density of latent values and observations.

        Args:
          trace: a value for every latent site.
          per_plate: name(s) of plates that enclose every site; the density is then given per
            element, without the scale of those plates' subsampling.

        Returns:
          :math:`\log w` with :math:`E[w] = p(z)`: a scalar, or an array with one axis per named
          plate.

        Raises:
          ValueError: naming a latent site without a value, or a value without a site.
        """
        return _reduce(self.log_density_sites(trace), per_plate)

    def stop_gradient(self) -> AbstractProgram:
        """The same program with its parameters constant."""
        return self.rebuilt(lambda p: p.stop_gradient())

    def constant(self) -> AbstractProgram:
        """The same program, drawn from as it is now.

        The values carry no gradient, whatever the estimators of their sites, and only their log
        density does: for objectives whose draws are not theirs to optimise. A draw that
        stays does not see a support that moves: the density is :meth:`held`.

        Raises:
          ValueError: if the density is only estimated.
        """
        return self.rebuilt(lambda p: p.constant())

    def held(self, what: str) -> AbstractProgram:
        """The same program, its log density not to be differentiated in what moves its support.

        Args:
          what: whose law it is that the expected score is nought, for the error.
        """
        return self.rebuilt(lambda p: p.held(what))

    @abc.abstractmethod
    def rebuilt(self, change: Change) -> AbstractProgram:
        """The same program made of other ones, each of them changed."""

    @abc.abstractmethod
    def __call__(self) -> Any:
        """Run it for its return value."""

    @abc.abstractmethod
    def simulate_sites(self) -> tuple[Trace, list[SiteDensity]]:
        """Like :meth:`simulate`, with the density site by site."""

    @abc.abstractmethod
    def log_density_sites(self, trace: Trace) -> list[SiteDensity]:
        """Like :meth:`log_density`, site by site."""


@dataclass(frozen=True)
class Program(AbstractProgram):
    r"""A model or guide as an objective sees it: something to draw from and to score.

    Args:
      fn: a NumPyro program.
      params: constrained parameter values by name.
      args: the program's arguments.
      kwargs: the program's keyword arguments.
      mutable: where the values of ``numpyro.mutable`` sites are kept from one run to the next.
      differentiable: whether its draws carry a gradient; see :meth:`constant`.
      held_for: what needs supports that stay; see :meth:`held`.

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
    mutable: dict[str, Any] = field(default_factory=dict, repr=False)
    differentiable: bool = True
    held_for: str = ""

    def stop_gradient(self) -> Program:
        """The same program with its parameters constant."""
        return replace(self, params=jax.lax.stop_gradient(dict(self.params)))

    def constant(self) -> Program:
        """The same program, drawn from as it is now."""
        return replace(self, differentiable=False, held_for=self.held_for or "constant()")

    def held(self, what: str) -> Program:
        """The same program, its log density not to be differentiated in what moves its support."""
        return replace(self, held_for=what)

    def rebuilt(self, change: Change) -> AbstractProgram:
        """The program itself, which is made of no other."""
        return change(self)

    def __call__(self) -> Any:
        """Run it for its return value."""
        return self._run().result

    def simulate_sites(self) -> tuple[Trace, list[SiteDensity]]:
        """Like :meth:`simulate`, with the density site by site."""
        run = self._run()
        return run.drawn, run.densities

    def log_density_sites(self, trace: Trace) -> list[SiteDensity]:
        """Like :meth:`log_density`, site by site."""
        run = self._run(trace)
        check_known(trace, {n for n, s in run.record.items() if s["type"] == "sample"})
        return run.densities

    def complete(self, trace: Trace) -> tuple[Trace, list[SiteDensity], tuple[str, ...]]:
        """Draw the sites that ``trace`` has no value for, the others being given.

        Returns:
          All values, all densities, and the names of the sites drawn.
        """
        run = self._run(trace, all_given=False)
        drawn = run.drawn
        return drawn, run.densities, tuple(name for name in drawn if name not in trace)

    def complete_aside(self, trace: Trace) -> Trace:
        """What :meth:`complete` draws, with a key and mutable state that nobody else sees."""
        aside = replace(self, mutable=dict(self.mutable))
        with block(), seeded(rng_seed=jax.random.key(0)):
            record = aside._run(trace, all_given=False).record
        return Trace({n: s["value"] for n, s in record.items() if handlers.latent(s)})

    def simulate_data(self) -> tuple[Trace, dict[str, Any]]:
        """Run the program forward, its data drawn as well; nothing carries a gradient.

        Returns:
          The latent values, and those of the observed sites by name.
        """
        observed = handlers.Unobserve()
        run = replace(self, differentiable=False)._run(inner=observed)
        drawn = run.drawn
        data = {n: run.record[n]["value"] for n in observed.names}
        latent = {n: x for n, x in drawn.values.items() if n not in data}
        return jax.lax.stop_gradient((replace(drawn, values=latent), data))

    def predict(self, trace: Trace, names: Sequence[str] | None = None) -> dict[str, Any]:
        """The data drawn anew, given latent values, by site.

        Args:
          trace: values; what has none is drawn.
          names: of sites, beside which the deterministic ones are given, too; None for the
            observed ones alone.
        """
        observed = handlers.Unobserve()
        run = replace(self, differentiable=False)._run(trace, all_given=False, inner=observed)
        if names is not None:
            derived = [n for n, s in run.record.items() if s["type"] == "deterministic"]
            names = [*names, *derived]
        return {n: run.record[n]["value"] for n in names or observed.names}

    def run(self, given: Trace | None = None) -> tuple[Trace, list[SiteDensity], Any]:
        """Run the program: its latent values (``given``, or drawn), densities, and result."""
        run = self._run(given)
        return run.drawn, run.densities, run.result

    def before_scan(
        self, given: Trace | None = None
    ) -> tuple[Trace, list[SiteDensity], Scan | None, list[str]]:
        """Run the program up to its first ``scan``.

        Returns:
          The latent values and densities before it, it, and the names of the sites after it.
        """
        taking = handlers.TakeScan()
        run = self._run(given, inner=taking)
        return run.drawn, run.densities, taking.scan, taking.after

    def keyed(self) -> Callable[..., Any]:
        """The NumPyro program, its subsampled plates drawing the objective's minibatch."""
        key = minibatch_key()
        return self.fn if key is None else handlers.PlateKeys(self.fn, key)

    def _run(
        self,
        given: Trace | None = None,
        *,
        all_given: bool = True,
        inner: Any = None,
    ) -> _Run:
        """Run it.

        Args:
          given: values to take; None to draw all.
          all_given: whether a latent site without one of these is an error.
          inner: a handler to run it under.
        """
        key = random_key("A Program")
        data = {} if given is None else {**given.values, **given.subsamples}
        loops = control_flow(given, scored=True)
        with (
            trace() as record,
            nullcontext() if self.differentiable else handlers.Constant(),
            seeded(rng_seed=key),
            handlers.Given({**self.params, **self.mutable, **data}, given if all_given else None),
            loops,
            own_sites(self.params),
            inner or nullcontext(),
            naming_the_line(self.fn, record),
        ):
            result = self.keyed()(*self.args, **self.kwargs)
        drawn_here: list[str] = []
        for name, site in record.items():
            if site["type"] == "mutable":
                self.mutable[name] = site["value"]
            elif given is not None and all_given and handlers.latent(site) and name not in given:
                if not handlers.imputed(site):
                    raise handlers.missing(name, given)
                drawn_here.append(name)
        for name in drawn_here:  # drawn from their own density, which cancels
            del record[name]
        return _Run(record, result, loops.unrolled, self)


class _Run(NamedTuple):
    """One run of a program: its sites, its result, and whether its scans were unrolled."""

    record: Mapping[str, Any]
    result: Any
    unrolled: bool
    program: Program

    @property
    def drawn(self) -> Trace:
        """The latent values."""
        latent = {n: s for n, s in self.record.items() if handlers.latent(s)}
        plates = {
            n: s["value"]
            for n, s in self.record.items()
            if s["type"] == "plate" and s["args"][1] not in (None, s["args"][0])
        }
        auxiliary = tuple(n for n, s in latent.items() if s["infer"].get("is_auxiliary"))
        values = {n: s["value"] for n, s in latent.items()}

        def again(random: dict[str, Any]) -> Mapping[str, Any]:
            given = Trace(random, plates, unrolled=self.unrolled)
            return self.program.complete_aside(given).values

        found = auxiliaries(latent, auxiliary, again)
        return Trace(values, plates, auxiliary, self.unrolled, found)

    @property
    def densities(self) -> list[SiteDensity]:
        """Of all sites."""
        found, what = site_densities(self.record), self.program.held_for
        tell(self.program.fn, found)
        return [s.held(what) for s in found] if what else found


def _reduce(sites: list[SiteDensity], per_plate: PerPlate) -> jax.Array:
    names = () if per_plate is None else per_plate
    names = (names,) if isinstance(names, str) else tuple(names)
    x = joint_per_plate(sites, names) if names else joint(sites)
    for site in sites:
        for plate, ratio in site.subsampling.items():
            if ratio != 1 and plate not in names:
                return estimate(x, site.name, plate)
    return x
