"""The REBAR and RELAX estimators: the score function with a relaxed control variate."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vipp_transforms.checks import positive_int
from vipp_transforms.errors import SiteError
from vipp_transforms.estimators._linear import per_lane
from vipp_transforms.estimators._relaxation import (
    gumbel_behind,
    gumbel_given,
    relax,
    require_relaxable,
    require_temperature,
)
from vipp_transforms.estimators.base import (
    Axis,
    Estimator,
    Expansion,
    Learning,
    Local,
    Probe,
    Seen,
    SiteInfo,
    Source,
    Term,
    Traits,
    estimator,
)


@estimator
class REBAR(Estimator):
    r"""The score function, less the relaxed program's, plus the relaxed program's own gradient.

    .. math::
        [f(b) - \eta f(\tilde y)]\,\nabla \log q(b) + \eta \nabla f(y) - \eta \nabla f(\tilde y)

    with :math:`b` the choice, :math:`y = \mathrm{softmax}(z / \tau)` its relaxation and
    :math:`\tilde y` one given :math:`b`, coupled to have the same value: unbiased for every
    temperature and :math:`\eta`. The program must be differentiable at relaxed values; three
    evaluations.

    Args:
      temperature: :math:`\tau`, positive.
      eta: :math:`\eta`, the control variate's scale.

    Raises:
      ValueError: if ``temperature`` is not positive.

    Example:
      >>> import vipp
      >>> vipp.REBAR(temperature=0.5)
      REBAR(temperature=0.5, eta=1.0)

    References:
      Tucker, Mnih, Maddison, Lawson and Sohl-Dickstein, *REBAR: low-variance, unbiased gradient
      estimates for discrete latent variable models*, 2017, equation 7.
    """

    temperature: Any = 0.5
    eta: Any = 1.0
    traits: ClassVar[Traits] = Traits(relaxed=True, orders=1)

    def __post_init__(self) -> None:
        require_temperature("REBAR", self.temperature)

    def validate(self, site: SiteInfo) -> None:
        """A Bernoulli or a one-hot choice."""
        require_relaxable(site, "REBAR")

    def axis(self, site: SiteInfo) -> Axis | None:
        """The choice, its relaxation, and one given the choice."""
        return Axis(f"site:{site.name}", 3)

    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """The three values; the log probability of the choice, and the scale."""
        values = _relaxations(site, source, lambda here: here.estimator.temperature)
        scale = lambda here: here.estimator.eta
        return Expansion(values, (_log_prob(source), per_lane(source, scale)[None]))

    def contract(self, term: Term) -> jax.Array:
        """The score function of what the control variate leaves, and the control variate's own."""
        log_prob, eta = (p[0] for p in term.potentials)
        return _combine(term, log_prob, eta / term.lanes, 0.0, 0.0)


@estimator
class RELAX(Estimator):
    r"""REBAR with a control variate that learns, by gradient descent on the variance.

    .. math::
        c_\phi(y) = \eta f(\mathrm{softmax}(z / \tau)) + r_\psi(y), \qquad
        \min_\phi \mathrm{Var}[\hat g_\phi] \;\text{by}\; \nabla_\phi \hat g_\phi^2

    in place of REBAR's :math:`\eta f`, with :math:`\phi = (\tau, \eta, \psi)` and :math:`r_\psi` a
    network of one hidden layer over the choices of one batch element. The parameters are those of
    one more ``numpyro.param`` site, named after this one, which ``vipp.sample`` or
    ``vipp.with_estimators`` makes; training does not change what the objective is. Unbiased for any
    :math:`\phi`. Three evaluations, and three more (with their derivatives) to learn.

    Args:
      hidden: units of the hidden layer, at least 1.
      parameters: :math:`\phi`, made by :meth:`init`; None where vipp is to keep them.

    Raises:
      ValueError: if ``hidden`` is not a positive int.

    Example:
      >>> import vipp
      >>> vipp.RELAX(hidden=8)
      RELAX(hidden=8)

    References:
      Grathwohl, Choi, Wu, Roeder and Duvenaud, *Backpropagation through the void*, 2018.
    """

    hidden: int = 16
    parameters: Any = dataclasses.field(default=None, repr=False)
    traits: ClassVar[Traits] = Traits(relaxed=True, orders=1)

    def __post_init__(self) -> None:
        positive_int("RELAX: hidden", self.hidden)

    @property
    def learning(self) -> Learning | None:
        """Its parameters, trained on the squared gradient (whose mean they don't change)."""

        def observe(probe: Probe) -> Seen:
            gradient = probe.gradient(probe.estimator)
            return Seen(loss=sum((jnp.square(g).sum() for g in gradient), start=jnp.zeros(())))

        def init(key: Any, site: SiteInfo) -> Any:
            return self.init(key, max(1, math.prod(site.event_shape)))

        def fill(kept: Any) -> RELAX:
            return dataclasses.replace(self, parameters=kept)

        return Learning(observe, init if self.parameters is None else None, fill)

    def init(self, key: Any, size: int) -> dict[str, jax.Array]:
        """Parameters for values of ``size`` numbers: REBAR with temperature 1/2."""
        weights = jax.random.normal(key, (size, self.hidden)) / size**0.5
        return {
            "log_temperature": jnp.log(jnp.asarray(0.5)),
            "eta": jnp.ones(()),
            "weights": weights,
            "bias": jnp.zeros(self.hidden),
            "out": jnp.zeros(self.hidden),
        }

    def validate(self, site: SiteInfo) -> None:
        """A Bernoulli or a one-hot choice, and parameters."""
        require_relaxable(site, "RELAX")
        if self.parameters is None:
            raise SiteError(
                f"Site '{site.name}': RELAX has parameters that the program does not know of. Fix: "
                "set it with vipp.sample(..., estimator=) or vipp.with_estimators, not through "
                "infer={'estimator': ...}."
            )

    def axis(self, site: SiteInfo) -> Axis | None:
        """The choice, its relaxation, and one given the choice."""
        return Axis(f"site:{site.name}", 3)

    def expand(self, site: SiteInfo, source: Source) -> Expansion:
        """The three values; the log probability, the scale, and the network at the relaxations."""
        learned = lambda here: here.estimator.parameters
        values = _relaxations(site, source, lambda here: jnp.exp(learned(here)["log_temperature"]))
        scale = per_lane(source, lambda here: learned(here)["eta"])[None]

        def network(here: Local, x: jax.Array) -> jax.Array:
            return _network(learned(here), x, site)

        soft, given = (source.map(network, value)[None] for value in values[1:])
        return Expansion(values, (_log_prob(source), scale, soft, given))

    def contract(self, term: Term) -> jax.Array:
        """As REBAR, the network's values added to the control variate's."""
        log_prob, eta, soft, given = (p[0] for p in term.potentials)
        size = self.parameters["weights"].shape[0]
        together = term.mixed[len(term.mixed) - _group(term.site, size) :]
        if not (term.finest and all(together)):
            soft = given = 0.0  # the network sees lanes that this term does not
        return _combine(term, log_prob, eta / term.lanes, soft, given)


def _relaxations(site: SiteInfo, source: Source, temperature: Any) -> jax.Array:
    """The choice, and two relaxations of equal value: free, and given the choice."""

    def soften(perturb: Any) -> jax.Array:
        def value(here: Local, logits: jax.Array, one_hot: jax.Array) -> jax.Array:
            return jax.nn.softmax(perturb(here.key, logits, one_hot) / temperature(here))

        return relax(site, source, value)

    drawn = source.draw().astype(jnp.result_type(float))
    return jnp.stack([drawn, soften(gumbel_behind), soften(gumbel_given)])


def _log_prob(source: Source) -> jax.Array:
    log_prob = lambda here, x: here.distribution.log_prob(x)
    return source.map(log_prob, source.draw().astype(jnp.result_type(float)))[None]


def _combine(term: Term, log_prob: Any, eta: Any, soft: Any, given: Any) -> jax.Array:
    hard, at_soft, at_given = term.value
    ratio = jnp.exp(log_prob - jax.lax.stop_gradient(log_prob))
    free, conditional = eta * at_soft + soft, eta * at_given + given
    # the ratio is one: its derivative takes the conditional value as it is
    return (hard - conditional) * ratio + free


def _group(site: SiteInfo, size: int) -> int:
    """How many trailing lane axes make, with the event, ``size`` numbers."""
    return _trailing(site, site.lane_shape, size)


def _trailing(site: SiteInfo, lanes: tuple[int, ...], size: int) -> int:
    for count in range(len(lanes) + 1):
        together = lanes[len(lanes) - count :]
        if math.prod((*together, *site.event_shape)) == size:
            return count
    raise SiteError(
        f"Site '{site.name}': RELAX has parameters for {size} numbers, expected as many as a "
        f"batch element of its value has (lanes {lanes}, event {site.event_shape}). Fix: "
        "make them with RELAX.init(key, size)."
    )


def _network(parameters: Any, x: jax.Array, site: SiteInfo) -> jax.Array:
    """The network's value for each batch element, shared out among its lanes."""
    size = parameters["weights"].shape[0]
    batch = x.shape[: x.ndim - len(site.event_shape)]
    outer = batch[: len(batch) - _trailing(site, batch, size)]  # never lanes of a vmap
    hidden = x.reshape((*outer, size)) @ parameters["weights"]
    hidden = jnp.tanh(hidden + parameters["bias"].reshape((1,) * len(outer) + (-1,)))
    value = (hidden @ parameters["out"]) / max(math.prod(batch[len(outer) :]), 1)
    return jnp.broadcast_to(jnp.expand_dims(value, range(len(outer), len(batch))), batch)
