"""The look at a model, a guide and their data before anything is compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import optax
from numpyro.infer import SVI

from vipp.diagnostics.causes import check_runs, check_started, check_valued
from vipp.diagnostics.data import (
    bad_numbers,
    check_arguments,
    check_density,
    check_observation,
    check_rows,
)
from vipp.diagnostics.fitting import (
    check_autoguide,
    check_batches,
    check_drawn,
    check_handled,
    check_known,
    check_length,
    check_minibatch,
    check_minibatch_size,
    check_nested,
    check_no_data,
    check_not_observed,
    check_plate,
    check_scale,
    check_shape,
    check_support,
)
from vipp.diagnostics.free_parameters import check_made_of_free
from vipp.diagnostics.gradients import warn_without_gradient, without_gradient
from vipp.diagnostics.parameters import (
    check_constraint,
    check_same,
    check_scales,
    check_start,
)
from vipp.diagnostics.plate_indices import check_indices
from vipp.diagnostics.records import Site, Watched, is_data, is_latent, naming_the_site
from vipp.language.arrays import as_jax
from vipp.language.keys import subsampling
from vipp.objectives.objective import check_objective
from vipp.programs.calls import check_calls, check_programs
from vipp_transforms.uncompiled import uncompiled


class Checked:
    """A model and a guide that are looked at while they run once, one after the other.

    ``numpyro.infer.SVI.init`` of the two does so, at no cost of its own, within :meth:`running`.

    Args:
      model: a NumPyro program.
      guide: a NumPyro program.
      in_batches: whether the data are one batch of many.
      init_params: initial values that were given, by name.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *,
        in_batches: bool = False,
        init_params: Mapping[str, Any] | None = None,
    ):
        check_programs(model, guide)
        self._programs = model, guide
        self._in_batches = in_batches
        self._given = dict(init_params or {})
        self._suspects: list[str] = []
        self.guide = Watched(guide, "guide", self._look_at_guide, self._enter_in_guide)
        self.model = Watched(model, "model", self._look_at_model, self._enter_in_model)

    def _look_at_guide(self, site: Site) -> None:
        if site["type"] == "param":
            self._look_at_start(site)
        self._look_at_both(site)

    def _look_at_start(self, site: Site) -> None:
        check_start(site)
        start = site["args"][0] if site["args"] else None
        if site["name"] in self._given and start is not None and not callable(start):
            check_started(start, self._given[site["name"]], site["name"])

    def _enter_in_guide(self, msg: Site) -> None:
        if msg["type"] == "param":
            check_constraint(msg)
            check_same(msg, self.guide.trace, "the guide")
        elif msg["type"] == "plate":
            check_minibatch_size(msg)
        elif msg["type"] == "sample":
            check_nested(msg)

    def _enter_in_model(self, msg: Site) -> None:
        if msg["type"] == "control_flow":
            check_length(msg, self.guide.trace)
        elif msg["type"] == "param":
            check_constraint(msg)
            check_same(msg, self.model.trace, "the model")
            check_same(msg, self.guide.trace, "the guide")
        elif msg["type"] == "sample":
            check_nested(msg)
            check_not_observed(msg, self.guide.trace)
        elif msg["type"] == "plate":
            check_minibatch_size(msg)

    def _look_at_both(self, site: Site) -> None:
        if is_data(site):
            check_observation(site)
        if site["type"] == "sample":
            check_scale(site)
            check_density(site, self._suspects)

    def _look_at_model(self, site: Site) -> None:
        drawn = self.guide.trace
        if site["type"] == "param" and site["name"] not in drawn:
            self._look_at_start(site)
        elif site["type"] == "plate":
            check_plate(site, drawn)
        elif is_latent(site):
            check_shape(site, drawn)
            check_support(site, drawn)
        self._look_at_both(site)

    @contextlib.contextmanager
    def running(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[None]:
        """While the two are run, at these arguments: what is wrong with them raises."""
        check_calls(*self._programs, args, kwargs)
        self._suspects = bad_numbers(self._programs[0], args, kwargs)
        search = lambda: self._search(args, kwargs)
        with naming_the_site(self._suspects, search), subsampling():
            check_autoguide(self._programs[1], args, kwargs, self._suspects)
            yield
        self._finish(args, kwargs)

    def _search(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """What an error comes from that was raised while the two ran."""
        for program in (self.guide, self.model):
            check_valued(program.sites)
        check_runs(*self._programs, args, kwargs, self._given)
        self._look_at_indices(args, kwargs)

    def _look_at_indices(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        sites = {**self.model.sites, **self.guide.sites}
        check_indices(*self._programs, sites, args, kwargs)

    def _finish(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Look at both programs together."""
        check_arguments(self.model.trace, self._programs[0], args, kwargs)
        check_rows(self.model.trace, self._programs[0], args, kwargs)
        for site in self.model.trace.values():
            if is_latent(site):
                check_drawn(site, self.guide.trace)
                check_minibatch(site, self.model.trace, self.guide.trace)
        check_known(self.guide.trace, self.model.trace)
        check_no_data(self.guide.trace)
        for program, sites in zip(self._programs, (self.model, self.guide), strict=True):
            check_handled(program, sites.trace)
        if self._in_batches:
            check_batches(self.model.trace)
        self._look_at_indices(args, kwargs)
        check_scales([*self.guide.trace.values(), *self.model.trace.values()])


def check(model: Any, guide: Any, objective: Any, *args: Any, **kwargs: Any) -> None:
    """Find mistakes in a model, a guide and their data: each raises, naming what is at fault.

    ``vipp.fit`` does so by itself. One run of each program, and one trace of the objective, whose
    own errors are raised, too; nothing is compiled as a whole.

    Args:
      model: a NumPyro program.
      guide: a NumPyro program.
      objective: what is to be maximised.
      *args: arguments of both.
      **kwargs: keyword arguments of both.

    Warns:
      NoGradientWarning: naming the parameters that the objective has no derivative in.

    Raises:
      CheckError: with the name of the site, parameter, plate or argument, what was got, what was
        expected, and the fix.

    Example:
      >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, vipp
      >>> def model(x):
      ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
      ...     numpyro.sample("x", dist.Normal(0.0, scale).expand([3]).to_event(1), obs=x)
      >>> def guide(x):
      ...     numpyro.sample("scale", dist.Normal(numpyro.param("m", 1.0), 0.1))
      >>> try:
      ...     vipp.check(model, guide, vipp.ELBO(), jnp.ones(3))
      ... except vipp.CheckError as error:
      ...     print(error.site, "|", error.got)
      scale | a guide with the support of Normal (Real())
    """
    check_objective("check", objective)
    args, kwargs = as_jax((args, kwargs))
    checked = Checked(model, guide)
    svi = SVI(checked.model, checked.guide, optax.identity(), loss=objective)
    key = jax.random.key(0)
    with uncompiled():
        with checked.running(args, kwargs):
            state = svi.init(key, *args, **kwargs)
        check_made_of_free(
            model, guide, svi.get_params(state), args, kwargs,
            drawn=checked.guide.sites, scored=checked.model.sites,
        )  # fmt: skip
    mutable = {**(state.mutable_state or {}), **objective.init_state()}

    def loss(params: Any) -> jax.Array:
        values = {**svi.constrain_fn(params), **mutable}  # pyright: ignore[reportOptionalCall]
        return objective.loss(key, values, model, guide, *args, **kwargs)

    params = svi.optim.get_params(state.optim_state)
    warn_without_gradient("check", without_gradient(loss, params), stacklevel=2)
