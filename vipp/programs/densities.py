"""The log densities of one run of a program, site by site, summed as a bound needs them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import Delta

import vipp_transforms as vt
from vipp.distributions.densities import guarded
from vipp.distributions.edges import hold_support, may_move
from vipp.distributions.lanes import lane_distribution
from vipp.distributions.wrappers import factor, masked
from vipp_transforms.orders import limited

_UNKNOWN: Any = None


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("log_prob", "scale", "fn", "value", "intermediates"),
    meta_fields=(
        "name",
        "plates",
        "subsampling",
        "observed",
        "infer",
        "event_dim",
        "deterministic",
        "estimated",
    ),
)
@dataclass(frozen=True, eq=False)
class SiteDensity:
    """One site's log density.

    Attributes:
      name: of the site.
      log_prob: unscaled, one entry per batch element.
      scale: what the site counts, or None for once.
      plates: enclosing plates by name, with their (negative) dimension in ``log_prob``.
      subsampling: by plate name, full size over subsample size.
      fn: its distribution; None for the density of several sites together.
      observed: whether its value is data.
      infer: its configuration, the estimator included.
      event_dim: how many axes of a value are those of one batch element.
      value: what is scored; None for the density of several sites together.
      deterministic: whether the value follows from those drawn before (a ``Delta``).
      estimated: whether the density is an estimate.
      intermediates: what the draw went through on its way to the value.
    """

    name: str
    log_prob: jax.Array
    scale: Any
    plates: Mapping[str, int]
    subsampling: Mapping[str, float]
    fn: Any = None
    observed: bool = False
    infer: Mapping[str, Any] = field(default_factory=dict)
    event_dim: int = 0
    value: Any = None
    deterministic: bool = False
    estimated: bool = False
    intermediates: Any = None

    def facts(self) -> SiteDensity:
        """What is known of the site before it is drawn: no array, and nothing that holds one."""
        return replace(self.counted(), log_prob=_UNKNOWN, scale=None)

    def counted(self) -> SiteDensity:
        """What a sum of densities needs of it, and what is known before it is drawn."""
        return replace(self, fn=None, infer={}, value=None, intermediates=None)

    @property
    def random(self) -> bool:
        """Whether its value is drawn by chance."""
        return not self.observed and not self.deterministic

    def as_drawn(self) -> SiteDensity:
        """The density that the value was drawn with: whatever scales and masks count of it."""
        if self.fn is None or not masked(self.fn):
            return replace(self, scale=None)
        lanes = lane_distribution(self.fn)
        events = len(lanes.batch_shape) - len(self.fn.batch_shape)
        log_prob = lanes.log_prob(self.value).sum([-1 - i for i in range(events)])
        return replace(self, log_prob=jnp.broadcast_to(log_prob, self.log_prob.shape), scale=None)

    @property
    def may_move(self) -> bool:
        """Whether the support that it is drawn from may move with a parameter."""
        return self.random and (self.fn is None or may_move(self.fn))

    def held(self, what: str) -> SiteDensity:
        """The same, not to be differentiated in what moves its support."""
        return replace(self, log_prob=self.hold(self.log_prob, what))

    def hold(self, x: jax.Array, what: str) -> jax.Array:
        """``x``, not to be differentiated in what moves the support that the site is drawn from.

        Args:
          x: an array that depends on the density.
          what: whose law it is that the support stays, for the error.
        """
        if not self.random or self.fn is None:
            return x
        why = (
            f"{what} relies on the score of the guide, which does not see the mass at the moving "
            "end. Fix: use ELBO() or IWAE(num_particles=...) with Pathwise(), or"
        )
        return hold_support(self.fn, x, self.name, why)

    def total(self) -> jax.Array:
        """The site's contribution to the joint log density."""
        return scaled(self.log_prob, self.scale).sum()

    def check_inside(self, names: tuple[str, ...]) -> None:
        """Raise unless the site is inside the plates ``names``."""
        outside = [n for n in names if n not in self.plates]
        if outside:
            raise ValueError(
                f"Site '{self.name}' is outside plate '{outside[0]}', got plates "
                f"{sorted(self.plates)}; expected every site inside it, as there is one bound per "
                "element. Fix: move the site into the plate, or leave the plate out of per_plate."
            )

    def per_plate(self, names: tuple[str, ...]) -> jax.Array:
        """The contribution per element of the plates ``names``, without their subsampling scale."""
        self.check_inside(names)
        taken = math.prod(self.subsampling[n] for n in names)
        scale = self.scale if self.scale is None or taken == 1 else self.scale / taken
        ndim = self.log_prob.ndim
        kept = [ndim + self.plates[n] for n in names]
        summed = scaled(self.log_prob, scale).sum([a for a in range(ndim) if a not in kept])
        order = sorted(kept)
        return jnp.transpose(summed, [order.index(a) for a in kept])


def scaled(log_prob: jax.Array, scale: Any) -> jax.Array:
    """``log_prob`` times what its site counts."""
    if scale is None or (isinstance(scale, int | float) and scale == 1):
        return log_prob
    return scale * log_prob


def site_densities(trace: Mapping[str, Any]) -> list[SiteDensity]:
    """The densities of all sample sites of a NumPyro trace."""
    return [site_density(s, trace) for s in trace.values() if s["type"] == "sample"]


def site_density(site: Mapping[str, Any], trace: Mapping[str, Any]) -> SiteDensity:
    """The density of one sample site of a NumPyro trace."""
    fn, value = guarded(site["fn"], observed=site["is_observed"]), site["value"]
    _check_shape(site)
    intermediates = site["intermediates"]
    log_prob = jnp.asarray(_log_prob(site, fn))
    if log_prob.ndim < len(fn.batch_shape):
        log_prob = jnp.broadcast_to(log_prob, fn.batch_shape)
    frames = site["cond_indep_stack"]
    ratios = {f.name: _full_size(site, trace, f) / f.size for f in frames}
    plates = {f.name: f.dim for f in frames}
    about = (site["fn"], site["is_observed"], site["infer"], fn.event_dim, value)
    fixed = isinstance(factor(fn), Delta)
    density = SiteDensity(site["name"], log_prob, site["scale"], plates, ratios, *about, fixed)
    return replace(density, intermediates=intermediates)


def _log_prob(site: Mapping[str, Any], fn: Any) -> Any:
    value, intermediates = site["value"], site["intermediates"]
    # a folded distribution is drawn through one that is folded, and scores without
    if intermediates and "intermediates" not in inspect.signature(factor(fn).log_prob).parameters:
        intermediates = None
    try:
        return fn.log_prob(value, intermediates) if intermediates else fn.log_prob(value)
    except TypeError as error:
        if intermediates or not _takes_indices(fn, value):
            raise
        raise _index_expected(site) from error


def _takes_indices(fn: Any, value: Any) -> bool:
    """Whether a density that fails at floats is one of integers."""
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        return False
    try:
        jax.eval_shape(lambda: fn.log_prob(jnp.asarray(value).astype(int)))
    except TypeError:
        return False
    return True


def _index_expected(site: Mapping[str, Any]) -> vt.SiteError:
    what = (
        f"Site '{site['name']}': {type(site['fn']).__name__} takes the value as an index, expected "
        f"integers, got {jnp.result_type(site['value'])}"
    )
    if site["is_observed"]:
        return vt.SiteError(f"{what}. Fix: convert the data, obs.astype(int).")
    return vt.SiteError(
        f"{what}: a relaxed value (REBAR, GumbelSoftmax and the like) is none. Fix: make it a "
        "Bernoulli or a OneHotCategorical in both programs, or use an estimator that keeps the "
        "values: LocalExpectation(), or ScoreFunction(num_samples=2, baseline='leave_one_out')."
    )


def _full_size(site: Mapping[str, Any], trace: Mapping[str, Any], frame: Any) -> int:
    if frame.name in trace:
        return trace[frame.name]["args"][0]
    if site["scale"] is None or (isinstance(site["scale"], int | float) and site["scale"] == 1):
        return frame.size
    raise ValueError(
        f"Site '{site['name']}' counts {site['scale']} times inside plate '{frame.name}', which is "
        "hidden from the trace, so that its subsample is not known. Expected a plate that the "
        f"trace shows. Fix: do not block '{frame.name}' (numpyro.handlers.block)."
    )


def _check_shape(site: Mapping[str, Any]) -> None:
    got, expected = jnp.shape(site["value"]), tuple(site["fn"].shape())
    try:
        jnp.broadcast_shapes(got, expected)
    except ValueError:
        kind = "an observation" if site["is_observed"] else "a value"
        raise ValueError(
            f"Site '{site['name']}' has {kind} of shape {got}, expected one that broadcasts with "
            f"{expected}. Fix: give model and guide the same shape at this site."
        ) from None


def joint(sites: Iterable[SiteDensity]) -> jax.Array:
    """The joint log density, scales included; a scalar."""
    return sum((s.total() for s in sites), start=jnp.zeros(()))


def joint_per_plate(sites: Iterable[SiteDensity], names: tuple[str, ...]) -> jax.Array:
    """The joint log density per element of ``names``, without those plates' subsampling scale."""
    return sum((s.per_plate(names) for s in sites), start=jnp.zeros(()))


def common_plates(sites: Iterable[SiteDensity]) -> tuple[str, ...]:
    """The plates that enclose every site, outermost dimension first."""
    stacks = [s.plates for s in sites]
    if not stacks:
        return ()
    shared = set.intersection(*(set(s.items()) for s in stacks))
    return tuple(name for name, dim in sorted(shared, key=lambda item: item[1]))


def subsampling(sites: Iterable[SiteDensity], names: tuple[str, ...]) -> float:
    """Full size over subsample size of the plates ``names``."""
    ratios: dict[str, float] = {}
    for site in sites:
        ratios.update(site.subsampling)
    return math.prod(ratios[n] for n in names)


def landed(sites: Iterable[SiteDensity], constant: Iterable[SiteDensity]) -> list[SiteDensity]:
    r"""The densities of a draw, of random sites those under constant parameters.

    What a draw's own density would add to the gradient is nothing in expectation,
    :math:`E_q[\nabla_\phi \log q_\phi] = 0`, where its support stays (see
    :meth:`SiteDensity.held`); that is not so of factors, observed sites, and the volume that a
    deterministic site accounts for.

    Args:
      sites: as drawn.
      constant: of the same values, the parameters constant.

    Raises:
      ValueError: naming one whose density is estimated, as another estimate is no bound.
    """
    found = {s.name: s for s in constant}
    for site in sites:
        if site.estimated:
            raise ValueError(
                f"stick_the_landing scores the draw again, but the density of {site.name} is an "
                "estimate that belongs to the draw. Fix: leave stick_the_landing out, or sum the "
                "other sites out (exact=True)."
            )
    return [replace(found[s.name], scale=s.scale) if s.random else s for s in sites]


_OF_A_GUIDE = (
    "Expected no derivative of a derivative in the guide's parameters, of which the first is all "
    "that its surrogate knows. Fix: use ELBO() or IWAE(num_particles=...), with estimators whose "
    "derivatives are right to all orders."
)


def first_order(x: jax.Array, score: jax.Array, what: str, witness: jax.Array | None = None) -> Any:
    """``x``, which is not differentiated twice where once is in the guide's parameters.

    Args:
      x: an array.
      score: the log density of draws, of that shape: it depends on these parameters.
      what: the objective, for the error.
      witness: of which the derivatives are counted, of that shape; ``x`` itself, if None.

    Raises:
      SiteError: when differentiated once more.
    """
    return limited(x, [score], 1, what, witness=witness, advice=_OF_A_GUIDE)
