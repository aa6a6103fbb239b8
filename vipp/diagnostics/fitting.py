"""Whether a guide fits its model: names, plates, shapes and supports of the sites of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.handlers import block, seed
from numpyro.infer.autoguide import AutoGuide
from numpyro.primitives import Messenger
from numpyro.util import not_jax_tracer

from vipp.diagnostics.data import check_density, check_observation
from vipp.diagnostics.records import Site, Watched, is_data, is_latent
from vipp.distributions.answers import kind
from vipp.distributions.support import reaches_outside
from vipp.distributions.wrappers import factor
from vipp.language.control_flow import look_inside, scan_of
from vipp.language.keys import subsampling
from vipp.language.mistake import CheckError
from vipp.language.names import close
from vipp.language.steps_given import other_number

Sites = Mapping[str, Site]


def check_autoguide(
    guide: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], suspects: list[str]
) -> None:
    """An autoguide has continuous sites alone to draw, and data that it can start from."""
    if not isinstance(guide, AutoGuide):
        return
    if guide.prototype_trace is not None:  # it has its start: the model's own run looks at the data
        for site in guide.prototype_trace.values():
            _check_continuous(guide, site)
        return

    def look(site: Site) -> None:
        _check_continuous(guide, site)
        if is_data(site):  # it would look for a start, in vain
            check_observation(site)
            check_scale(site)
            check_density(site, suspects)

    enter = lambda msg: check_minibatch_size(msg) if msg["type"] == "plate" else None
    with block(), subsampling(), seed(rng_seed=0):
        Watched(guide.model, "model", look, enter)(*args, **kwargs)


def _check_continuous(guide: AutoGuide, site: Site) -> None:
    if is_latent(site) and site["fn"].support is not None and site["fn"].is_discrete:
        raise CheckError(
            site["name"],
            f"a discrete site ({kind(site['fn'])}) under {type(guide).__name__}",
            "continuous sites",
            "sum it out with vipp.marginal(model, keep=[...], exact=True), and make the "
            "autoguide of that",
        )


def check_drawn(site: Site, of_guide: Sites) -> None:
    """A latent site of the model is drawn by the guide."""
    name = site["name"]
    if name in of_guide:
        return
    drawn = sorted(n for n, s in of_guide.items() if is_latent(s))
    raise CheckError(
        name,
        f"a latent site of the model that the guide does not draw, which draws {drawn}"
        f"{close(name, drawn)}",
        "one that it draws",
        "draw it in the guide, observe it, or eliminate it with vipp.marginal",
    )


def check_known(of_guide: Sites, of_model: Sites) -> None:
    """A site that the guide draws is a latent one of the model."""
    for name, site in of_guide.items():
        if not is_latent(site) or site["infer"].get("is_auxiliary"):
            continue
        if name not in of_model:
            latent = sorted(n for n, s in of_model.items() if is_latent(s))
            raise CheckError(
                name,
                "a site that the guide draws and the model does not have, which has "
                f"{latent}{close(name, latent)}",
                "a latent site of the model",
                "rename it, or integrate it out of the guide: vipp.marginal(guide, keep=[...])",
            )
        if not is_latent(of_model[name]):
            raise CheckError(
                name,
                "a site that the guide draws and the model observes",
                "a latent site of the model",
                "leave it out of the guide, or pass the model no data for it",
            )


def check_batches(of_model: Sites) -> None:
    """Where data come in batches, the model says how many there are in all."""
    for name, site in of_model.items():
        if is_data(site) and site["scale"] is None:
            plates = _plates(site)
            plate = max(plates, key=plates.__getitem__, default="data")
            raise CheckError(
                name,
                f"a batch of observations that counts once, in plates {plates}",
                "a plate of the size of all data, of which a batch is a part",
                f'write numpyro.plate("{plate}", number_of_all_data, subsample_size=len(batch)), '
                "or put numpyro.handlers.scale around it, with scale=1.0 if each batch is all data",
            )


def check_minibatch_size(msg: Site) -> None:
    """A plate is as large as what is drawn of it."""
    size, count = msg["args"]
    if count is not None and count > size:
        raise CheckError(
            msg["name"],
            f"a plate of size {size} for a minibatch of {count}",
            "the number of all data",
            f'numpyro.plate("{msg["name"]}", number_of_all_data, subsample_size={count})',
        )


def check_nested(site: Site) -> None:
    """No plate is in one of its own name."""
    names = [frame.name for frame in site["cond_indep_stack"]]
    for name in names:
        if names.count(name) > 1:
            raise CheckError(
                name,
                f"a plate in another of this name, around site '{site['name']}'",
                "plates of different names",
                "rename one of them",
            )


def check_scale(site: Site) -> None:
    """A scale has an entry for each element of its site, and makes no more of them."""
    scale = () if site["scale"] is None else jnp.shape(site["scale"])
    value = jnp.shape(site["value"])
    batch = np.broadcast_shapes(site["fn"].batch_shape, value[: len(value) - site["fn"].event_dim])
    try:
        fits = np.broadcast_shapes(scale, batch) == batch
    except ValueError:
        fits = False
    if not fits:
        raise CheckError(
            site["name"],
            f"a scale of shape {scale}",
            f"a number, or the shape of the site's elements, {batch}",
            "give numpyro.handlers.scale that shape: broadcast it would count them several times",
        )


def check_handled(program: Any, sites: Sites) -> None:
    """What ``condition``, ``do`` and ``reparam`` are to change is there."""
    while isinstance(program, Messenger):
        if isinstance(program, handlers.block | handlers.scope):
            return  # what is beneath has names of its own
        of = {handlers.condition: "data", handlers.do: "data", handlers.reparam: "config"}
        given = getattr(program, of.get(type(program), ""), None)
        for name in given if isinstance(given, Mapping) else ():
            if name not in sites:
                raise CheckError(
                    name,
                    f"a site that numpyro.handlers.{type(program).__name__} is to change and that "
                    f"is not there, among {sorted(sites)}{close(name, sites)}",
                    "one of the program's sites",
                    "use the site's own name",
                )
        program = program.fn


def check_plate(site: Site, of_guide: Sites) -> None:
    """Plates of one name have one size and one minibatch."""
    name, other = site["name"], of_guide.get(site["name"])
    if other is None or other["type"] != "plate":
        return
    for what, at in (("size", 0), ("subsample size", 1)):
        theirs, ours = (s["args"][at] or s["args"][0] for s in (site, other))
        if ours != theirs:
            inside = [n for n, s in of_guide.items() if is_latent(s) and name in _plates(s)]
            raise CheckError(
                name,
                f"a plate of {what} {ours} in the guide, around {inside}, and {theirs} in the "
                "model",
                "the same in both",
                "give both programs the same data, and the plate the same arguments",
            )


def check_minibatch(site: Site, of_model: Sites, of_guide: Sites) -> None:
    """A site's values are of one minibatch in both programs, and counted as often."""
    name = site["name"]
    ours = of_guide[name]
    theirs, here = _minibatches(site, of_model), _minibatches(ours, of_guide)
    for frame in ours["cond_indep_stack"]:
        if frame.name in here:
            _check_positions(ours, frame, of_guide)
    if theirs == here or (not here and _scale(ours) == _scale(site)):
        return
    raise CheckError(
        name,
        f"values for a minibatch of plates {here} in the guide, and {theirs} in the model",
        "one minibatch, that of one plate",
        "give the plate the same name and arguments in both programs",
    )


def _check_positions(site: Site, frame: Any, of_guide: Sites) -> None:
    """A parameter that has one entry for each datum is not taken by the place in a minibatch."""
    params = {id(s["value"]): n for n, s in of_guide.items() if s["type"] == "param"}
    fn = factor(site["fn"])
    for value in vars(fn).values() if fn.event_dim == 0 else ():
        axis = np.ndim(value) - site["fn"].event_dim + frame.dim if id(value) in params else -1
        if axis >= 0 and np.shape(value)[axis] == frame.size > 1:
            raise CheckError(
                params[id(value)],
                f"a parameter of shape {np.shape(value)}, by places in the minibatch of plate "
                f"'{frame.name}', which has other data at each step",
                "one entry for each of the plate's data",
                f"with numpyro.plate('{frame.name}', ...) as i: take param[i] of a parameter of "
                "the plate's full size",
            )


def _minibatches(site: Site, sites: Sites) -> list[str]:
    """The plates around a site of which a step sees a part."""
    sizes = {n: s["args"] for n, s in sites.items() if s["type"] == "plate"}
    return sorted(n for n in _plates(site) if n in sizes and sizes[n][1] not in (None, sizes[n][0]))


def _scale(site: Site) -> Any:
    scale = 1.0 if site["scale"] is None else site["scale"]
    return float(scale) if not_jax_tracer(scale) and np.ndim(scale) == 0 else scale


def check_not_observed(msg: Site, of_guide: Sites) -> None:
    """What the model leaves open is not observed by the guide."""
    ours = of_guide.get(msg["name"])
    if ours is not None and is_data(ours) and is_latent(msg):
        raise CheckError(
            msg["name"],
            "a latent site of the model that the guide observes",
            "one that it draws",
            "leave obs= out in the guide, or observe it in the model",
        )


def check_no_data(of_guide: Sites) -> None:
    """The guide observes nothing: its density would be taken off the bound."""
    for name, site in of_guide.items():
        if is_data(site):
            raise CheckError(
                name,
                "observations in the guide",
                "latent sites alone: the model is what observes",
                "leave it out of the guide, or exchange the two if model and guide are given in "
                "the wrong order; a density that is to count there is numpyro.factor's",
            )


def check_shape(site: Site, of_guide: Sites) -> None:
    """What the guide draws has the shape that the model's distribution has."""
    name = site["name"]
    if name not in of_guide or not is_latent(of_guide[name]):
        return
    got, wanted = jnp.shape(of_guide[name]["value"]), tuple(site["fn"].shape())
    dims = lambda s: {f.name: f.dim for f in s["cond_indep_stack"] if f.size > 1}
    ours, theirs = dims(of_guide[name]), dims(site)
    moved = [n for n in ours if n in theirs and ours[n] != theirs[n]]
    if moved and got == wanted:
        raise CheckError(
            name,
            f"values along dimension {ours[moved[0]]} for plate '{moved[0]}' in the guide",
            f"dimension {theirs[moved[0]]}, as in the model",
            "give the plate the same dim= in both programs",
        )
    if got != wanted:
        raise CheckError(
            name,
            f"values of shape {got} from the guide (in plates {_plates(of_guide[name])})",
            f"shape {wanted} as in the model (in plates {_plates(site)})",
            "put the site into the same plates in both programs, with parameters of that shape",
        )


def check_length(msg: Site, of_guide: Sites) -> None:
    """A loop of the model has as many steps as the guide drew values for."""
    scan = scan_of(msg)
    if scan is None:
        return
    drawn = {n: s["value"] for n, s in of_guide.items() if is_latent(s)}
    found = other_number(scan, look_inside(msg), drawn)
    if found is not None:
        raise CheckError(
            found.name,
            f"values for {found.given} steps from the guide",
            f"{found.expected}, those of the model's scan",
            "scan over the same sequence in both programs",
        )


def check_support(site: Site, of_guide: Sites) -> None:
    """What the guide draws is possible under the model."""
    ours = of_guide.get(site["name"])
    if ours is None or not is_latent(ours) or _possible(ours, site):
        return
    got, wanted = ours["fn"].event_dim, site["fn"].event_dim
    if got != wanted:
        raise CheckError(
            site["name"],
            f"a {kind(ours['fn'])} with event_dim={got} in the guide",
            f"event_dim={wanted}, that of the model's {kind(site['fn'])}",
            "write .to_event(...) alike in both programs",
        )
    raise CheckError(
        site["name"],
        f"a guide with the support of {kind(ours['fn'])} ({ours['fn'].support})",
        f"a support within that of the model's {kind(site['fn'])} ({site['fn'].support})",
        "draw it from a distribution with that support, for instance a transformed one",
    )


def _possible(ours: Site, theirs: Site) -> bool:
    if isinstance(factor(ours["fn"]), dist.Delta):  # whatever its support is said to be: its value
        inside = theirs["fn"].support(ours["value"])
        return not not_jax_tracer(inside) or bool(np.all(np.asarray(inside)))
    return not reaches_outside(ours["fn"], theirs["fn"])


def _plates(site: Site) -> dict[str, int]:
    return {f.name: f.size for f in site["cond_indep_stack"]}
