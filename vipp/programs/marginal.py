"""Programs with some of their choices integrated out by importance weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.handlers import block, trace

from vipp.language.replicate import replicate
from vipp.programs.composed import Binding, Composed
from vipp.programs.densities import SiteDensity, joint_per_plate
from vipp.programs.fixed_values import check_anywhere
from vipp.programs.kept import check_exists, check_given, only
from vipp.programs.program import AbstractProgram, Change, Program
from vipp.programs.standing import run_summed_out
from vipp.programs.summed_out import ExactMarginalProgram
from vipp.programs.support import check_same_support
from vipp.programs.trace import Trace
from vipp.programs.weights import apart_from, enclosing_plates, log_mean_exp, one_density
from vipp_transforms.checks import positive_int

Propose = Callable[[dict[str, Any]], AbstractProgram]


def marginal(
    program: Any,
    keep: Sequence[str],
    proposal: Callable[..., Any] | None = None,
    num_particles: int = 1,
    *,
    exact: bool = False,
    parallel: bool | None = None,
) -> Any:
    r"""A program with all its latent sites but those kept integrated out.

    Its density is estimated by importance weights,

    .. math:: \hat p(x, z) = \frac1K \sum_{k=1}^K \frac{p(x, z, u_k)}{r(u_k; z)},
        \quad u_k \sim r(\cdot; z)

    which ``log_density`` computes, so that :math:`E[\hat p] = p(x, z)`; ``simulate`` puts the
    auxiliary values that it drew in the place of :math:`u_1`, so that
    :math:`E[1/\hat p \mid z] = 1 / p(x, z)`. Bounds therefore stay bounds, with this program as
    model or guide: an ``ELBO`` with such a guide is the hierarchical bound (HVI), and with several
    particles the importance weighted one (IWHVI); ``IWAE`` makes it the doubly importance weighted
    one (DIWHVI). Plates that enclose all auxiliary sites and all that comes after the first have
    weights of their own for each element.

    Args:
      program: a NumPyro program, or one made by ``marginal`` or ``normalize``; inside an objective
        also a :class:`vipp.Program`.
      keep: the latent sites that stay.
      proposal: a program ``proposal(kept, *args)`` that draws the other sites, ``kept`` being a
        dict of the kept values; None to draw them as ``program`` does, the kept ones given.
      num_particles: ``K``, at least 1.
      exact: sum the other sites out instead, by variable elimination: they must have finite
        supports. Sequences are written with NumPyro's ``scan``.
      parallel: with ``exact``, whether a chain of ``T`` steps is summed in a tree of
        :math:`\log T` levels of products of tables, and not step by step; None where that pays,
        on accelerators and for few states.

    Returns:
      A program of the same arguments.

    Raises:
      ValueError: if ``num_particles`` is not a positive int or ``exact`` comes with a proposal;
        when drawn from or scored: if a kept site does not exist, if the proposal misses a site or
        has another support, or if a site to be summed out has no finite support.

    Example:
      >>> import jax, numpyro, numpyro.distributions as dist, vipp
      >>> def mixture():
      ...     c = numpyro.sample("c", dist.Bernoulli(0.25))
      ...     numpyro.sample("z", dist.Normal(2.0 * c, 1.0))
      >>> def log_density(key):
      ...     p = vipp.marginal(vipp.Program(mixture, {}), keep=["z"], exact=True)
      ...     return vipp.expectation(lambda: p.log_density(vipp.Trace({"z": 1.0})))(key)
      >>> round(float(log_density(jax.random.key(0))), 4)  # of Normal(1): both components agree
      -1.4189

    References:
      Ranganath, Tran and Blei, *Hierarchical variational models*, 2016 (HVI).
      Sobolev and Vetrov, *Importance weighted hierarchical variational inference*, 2019.
      Becker, Lew et al., PLDI 2024, section 5.
    """
    positive_int("marginal: num_particles", num_particles)
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    if exact and (proposal is not None or num_particles != 1):
        raise ValueError(
            "marginal(exact=True) sums the other sites out, got a proposal or num_particles. Fix: "
            "leave them out, or drop exact=True."
        )
    if proposal is not None and not _takes_kept(proposal):
        raise ValueError(
            f"marginal({', '.join(keep)}): the proposal takes no positional argument, expected the "
            "kept values before the program's own. Fix: def proposal(kept, *args)."
        )
    if parallel and not exact:
        raise ValueError(
            "marginal: parallel=True is a way to take exact sums, got no exact=True. Fix: leave it "
            "out, or add exact=True."
        )
    made = Marginal(program, keep, proposal, num_particles, exact, parallel)
    if isinstance(program, AbstractProgram):
        return made.of(program, _binding(program))
    return made


def _takes_kept(proposal: Callable[..., Any]) -> bool:
    kinds = {p.kind for p in inspect.signature(proposal).parameters.values()}
    return bool(kinds - {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD})


def _innermost(program: AbstractProgram) -> AbstractProgram:
    """The program that marginals of marginals are of: the auxiliary sites of all are its own."""
    while isinstance(program, MarginalProgram | ExactMarginalProgram):
        program = program.base
    return program


def _binding(program: AbstractProgram) -> Binding:
    p = _innermost(program)
    if isinstance(p, Program):
        return Binding(p.params, p.args, p.kwargs, p.mutable)
    return Binding({})


@dataclass(frozen=True)
class Marginal(Composed):
    """What :func:`marginal` makes of a NumPyro program."""

    program: Any
    keep: tuple[str, ...]
    proposal: Any
    num_particles: int
    exact: bool
    parallel: bool | None = None

    def bind(self, binding: Binding) -> AbstractProgram:
        """The program as an objective sees it."""
        return self.of(binding.program(self.program), binding)

    def of(self, base: AbstractProgram, binding: Binding) -> AbstractProgram:
        """The marginal of a program that is bound already."""
        if self.exact:
            return ExactMarginalProgram(base, self.keep, self.parallel)
        if self.proposal is None:
            base = _innermost(base)
            if not isinstance(base, Program):
                raise ValueError(
                    f"marginal({', '.join(self.keep)}): the sites of {type(base).__name__} cannot "
                    "be drawn given others. Fix: give a proposal of the sites that are not kept."
                )
            return MarginalProgram(base, self.keep, None, self.num_particles)
        propose: Propose = lambda kept: binding.after(kept).program(self.proposal)
        return MarginalProgram(base, self.keep, propose, self.num_particles)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it as a NumPyro program."""
        if self.exact:
            return run_summed_out(self.program, self.keep, args, kwargs, self.parallel)
        return super().__call__(*args, **kwargs)

    def _run(self, args: Any, kwargs: Any) -> Any:
        hidden = lambda site: (
            site["type"] == "sample" and not site["is_observed"] and site["name"] not in self.keep
        )
        with trace() as record, block(hide_fn=hidden):
            result = self.program(*args, **kwargs)
        if self.proposal is not None:  # for its parameters
            kept = {n: record[n]["value"] for n in self.keep if n in record}
            with block(hide_fn=lambda site: site["type"] in ("sample", "deterministic", "plate")):
                self.proposal(kept, *args, **kwargs)
        return result


@dataclass(frozen=True)
class MarginalProgram(AbstractProgram):
    """A program with the sites that are not kept integrated out; see :func:`marginal`."""

    base: AbstractProgram
    keep: tuple[str, ...]
    propose: Propose | None
    num_particles: int

    def rebuilt(self, change: Change) -> AbstractProgram:
        """The same of the program and its proposal, changed."""
        propose = self.propose
        changed = None if propose is None else lambda kept: change(propose(kept))
        return replace(self, base=change(self.base), propose=changed)

    def constant(self) -> AbstractProgram:
        """Refused, as the density is estimated."""
        raise ValueError(
            f"{self._name}: an objective that draws from its guide as a constant needs the "
            "guide's exact density, got an estimated one. Fix: use ELBO or IWAE with this "
            "guide, or marginal(..., exact=True)."
        )

    def __call__(self) -> Any:
        """Run it for its return value."""
        return self.base()

    def simulate_sites(self) -> tuple[Trace, list[SiteDensity]]:
        """Draw all sites, and estimate the density of those kept."""
        drawn, of_p = self.base.simulate_sites()
        check_exists(self._name, self.keep, drawn)
        kept = only(drawn, [n for n in drawn if n in self.keep])
        auxiliary = tuple(n for n in drawn if n not in self.keep)
        if self.propose is None:
            of_q = [s for s in of_p if s.name in auxiliary]
        else:
            with self._naming_the_proposal():
                of_q = self.propose(dict(kept.values)).log_density_sites(only(drawn, auxiliary))
                check_anywhere("The proposal", of_q, of_p)
            check_same_support(self._name, of_p, of_q)
        first = _Weighed.of(of_p, of_q, auxiliary)
        log_w = first.log_w[None]
        if self.num_particles > 1:
            # what was drawn along is one of the particles, so that E[1/w] = 1/p(kept)
            others = replicate(lambda: self._particle(kept).log_w, self.num_particles - 1)
            log_w = jnp.concatenate([log_w, others])
        return kept, self._densities(first, log_w)

    def log_density_sites(self, trace: Trace) -> list[SiteDensity]:
        """The estimated density of the kept values, with what does not depend on the others."""
        check_given(self._name, self.keep, trace, "integrated out")
        kept = only(trace, self.keep)
        # all drawn anew given the kept values, so that E[w] = p(kept)
        all_: _Weighed = replicate(lambda: self._particle(kept), self.num_particles)
        first = jax.tree.map(lambda x: x[0] if isinstance(x, jax.Array) else x, all_)
        return self._densities(first, all_.log_w)

    # -- one particle ------------------------------------------------------------------------

    def _particle(self, kept: Trace) -> _Weighed:
        if self.propose is None:
            assert isinstance(self.base, Program)
            drawn, of_p, auxiliary = self.base.complete(kept)
            check_exists(self._name, self.keep, drawn)
            of_q = [s for s in of_p if s.name in auxiliary]
            return _Weighed.of(of_p, of_q, auxiliary)
        rest, of_q = self.propose(dict(kept.values)).simulate_sites()
        values = Trace(
            {**kept.values, **rest.values},
            {**rest.subsamples, **kept.subsamples},
            kept.auxiliary + rest.auxiliary,
            kept.unrolled or rest.unrolled,
            kept.random_auxiliary + rest.random_auxiliary,
        )
        with self._naming_the_proposal():
            of_p = self.base.log_density_sites(values)
        if not rest.random_auxiliary:  # else they may follow from what is drawn
            check_anywhere("The proposal", of_q, of_p)
        check_same_support(self._name, of_p, of_q)
        return _Weighed.of(of_p, of_q, tuple(rest))

    def _densities(self, first: _Weighed, log_w: jax.Array) -> list[SiteDensity]:
        average = log_mean_exp(log_w)
        return [*first.outside, one_density(self._name, average, first.names, first.inside)]

    # -- errors ------------------------------------------------------------------------------

    @contextmanager
    def _naming_the_proposal(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            if self.propose is None:
                raise
            raise ValueError(
                f"{self._name}: its proposal must draw the program's sites that are not kept, "
                f"each with the support it has there. {error}"
            ) from None

    @property
    def _name(self) -> str:
        return f"marginal({', '.join(self.keep)})"


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("log_w", "outside"),
    meta_fields=("names", "inside"),
)
@dataclass(frozen=True, eq=False)
class _Weighed:
    """One particle: its weight, and the densities that are the same for all of them."""

    log_w: jax.Array
    names: tuple[str, ...]
    inside: list[SiteDensity]
    outside: list[SiteDensity]

    @staticmethod
    def of(
        of_p: list[SiteDensity], of_q: list[SiteDensity], auxiliary: tuple[str, ...]
    ) -> _Weighed:
        outside, inside = apart_from(of_p, auxiliary)
        if not inside:
            return _Weighed(jnp.zeros(()), (), [], outside)
        names = enclosing_plates("auto", [*inside, *of_q])
        both = [s for s in inside if any(s is q for q in of_q)]  # they cancel
        log_p = joint_per_plate([s for s in inside if s not in both], names)
        log_q = joint_per_plate([s for s in of_q if s not in both], names)
        shape = tuple(inside[0].log_prob.shape[inside[0].plates[n]] for n in names)
        facts = [s.facts() for s in (*inside, *of_q)]
        return _Weighed(jnp.broadcast_to(log_p - log_q, shape), names, facts, outside)
