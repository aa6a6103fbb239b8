"""Finite sites summed out exactly, by tensor variable elimination."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import funsor
import funsor.optimizer
import jax
import jax.numpy as jnp
from numpyro.contrib import funsor as funsor_handlers
from numpyro.handlers import block, condition, seed, substitute

from vipp.distributions.densities import exact
from vipp.language.keys import random_key
from vipp.programs.densities import SiteDensity, joint, subsampling
from vipp.programs.kept import check_exists, check_given, only
from vipp.programs.program import AbstractProgram, Change, Program
from vipp.programs.trace import Trace
from vipp.programs.weights import apart_from, enclosing_plates, one_density


@dataclass(frozen=True)
class ExactMarginalProgram(AbstractProgram):
    """A program with the finite sites that are not kept summed out; see :func:`vipp.marginal`."""

    base: AbstractProgram
    keep: tuple[str, ...]

    def rebuilt(self, change: Change) -> AbstractProgram:
        """The same of the program, changed."""
        return replace(self, base=change(self.base))

    def __call__(self) -> Any:
        """Run it for its return value."""
        return self.base()

    def simulate_sites(self) -> tuple[Trace, list[SiteDensity]]:
        """Draw all sites, and score those kept."""
        drawn, _ = self.base.simulate_sites()
        check_exists(self._name, self.keep, drawn)
        kept = only(drawn, [n for n in drawn if n in self.keep])
        return kept, self.log_density_sites(kept)

    def log_density_sites(self, trace: Trace) -> list[SiteDensity]:
        """The density of the kept values, the other sites summed out."""
        if not isinstance(self.base, Program):
            raise ValueError(
                f"{self._name}: sites of a NumPyro program can be summed out exactly, got "
                f"{type(self.base).__name__}. Fix: apply exact=True to the program inside."
            )
        check_given(self._name, self.keep, trace, "summed out")
        sites, auxiliary = self._sites(trace)
        outside, inside = apart_from(sites, auxiliary)
        log_density, names = _sum_out(self.base, trace, inside, outside)
        return [*outside, one_density(self._name, log_density, names, inside)]

    def _sites(self, trace: Trace) -> tuple[list[SiteDensity], tuple[str, ...]]:
        """The program's sites; the values of those summed out are of no importance."""
        assert isinstance(self.base, Program)
        drawn, sites, auxiliary = self.base.constant().complete(trace)
        check_exists(self._name, self.keep, drawn)
        for site in sites:
            if site.name in auxiliary and not site.fn.has_enumerate_support:
                raise ValueError(
                    f"{self._name}: site '{site.name}' cannot be summed out, as "
                    f"{type(site.fn).__name__} has no finite support. Fix: keep it, or integrate "
                    "it out with importance weights (exact=False)."
                )
        return sites, auxiliary

    @property
    def _name(self) -> str:
        return f"marginal({', '.join(self.keep)}, exact=True)"


def _sum_out(
    base: Program, given: Trace, sites: list[SiteDensity], outside: list[SiteDensity]
) -> tuple[jax.Array, tuple[str, ...]]:
    """The density of ``sites``, those without a value summed out, and the plates it is per."""
    nesting = max((-d for s in sites + outside for d in s.plates.values()), default=0)
    constants = {**base.params, **base.mutable, **given.subsamples}
    fn = substitute(seed(base.keyed(), random_key("marginal")), data=constants)
    fn = condition(fn, data=dict(given.values))  # NumPyro would enumerate what is substituted
    fn = funsor_handlers.enum(funsor_handlers.config_enumerate(fn), -1 - nesting)
    with block():  # the sites are no random choices of the objective
        with funsor_handlers.plate_to_enum_plate():
            record = funsor_handlers.trace(fn).get_trace(*base.args, **base.kwargs)
        names = {s.name for s in sites}
        found = [s for s in record.values() if s["type"] == "sample" and s["name"] in names]
        if any(n.startswith("_time") for s in found for n in s["infer"]["dim_to_name"].values()):
            enclosing_plates(None, sites)  # refuses subsampling
            total = funsor_handlers.log_density(fn, base.args, base.kwargs, {})[0]
            return total - joint(outside), ()
    return _product(found, enclosing_plates("auto", sites), sites)


def _product(
    record: list[Any], names: tuple[str, ...], sites: list[SiteDensity]
) -> tuple[jax.Array, tuple[str, ...]]:
    """Multiply the factors and sum them over all that was enumerated, plate element by element."""
    taken = subsampling(sites, names)
    factors, summed, plates = [], set(), set(names)
    for site in record:
        log_prob = exact(site["fn"]).log_prob(site["value"])
        if site["scale"] is not None:
            log_prob = site["scale"] / taken * log_prob
        dims = site["infer"]["dim_to_name"]
        factors.append(funsor.to_funsor(log_prob, funsor.Real, dims))
        plates |= {f.name for f in site["cond_indep_stack"]}
        if not site["is_observed"]:
            summed.add(site["name"])
    with funsor.interpretations.lazy:
        product = funsor.sum_product.sum_product(
            funsor.ops.logaddexp,
            funsor.ops.add,
            factors,
            eliminate=frozenset(summed | plates) - frozenset(names),
            plates=frozenset(plates),
        )
    result: Any = funsor.optimizer.apply_optimizer(product)
    present = tuple(n for n in names if n in result.inputs)  # a plate of one element has no axis
    data = result.align(present).data if present else result.data
    data = jnp.expand_dims(data, [i for i, n in enumerate(names) if n not in present])
    return data, names
