"""Whether the data fit the model: shapes, numbers, supports, and arguments that reach a site."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions.distribution import Independent, MaskedDistribution
from numpyro.util import not_jax_tracer

from vipp.diagnostics.records import Site, is_data, is_latent
from vipp.distributions.answers import kind
from vipp.distributions.support import each_number
from vipp.language.mistake import CheckError


def argument_names(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """Of all leaves of the arguments: as the model calls them, where it has a name for each."""
    try:
        known = inspect.signature(model).parameters.values()
    except (TypeError, ValueError):
        known = []
    own = [p.name for p in known if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    own += [str(i) for i in range(len(own), len(args))]
    key = lambda path: (
        path[1:] if path[0].idx else (jax.tree_util.DictKey(own[path[1].idx]), *path[2:])
    )
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path((args, dict(kwargs)))]
    return [jax.tree_util.keystr(key(path), simple=True, separator=".") for path in paths]


def bad_numbers(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """Which arguments have a NaN or an infinity, and where."""
    found = []
    named = argument_names(model, args, kwargs)
    for name, leaf in zip(named, jax.tree.leaves((args, dict(kwargs))), strict=True):
        bad = not_finite(leaf)
        if bad is not None:
            found.append(f"argument {name} is {np.asarray(leaf)[bad]} at index {bad}")
    return found


def check_density(site: Site, suspects: list[str]) -> None:
    """A site's log density is a number, where the data are not; what is masked does not count."""
    if not suspects and not_finite(site["value"]) is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPyro warns of what this is about to say
        bad = not_finite(site["fn"].log_prob(site["value"]))
    if bad is not None:
        if not suspects or np.ndim(site["value"]) > len(bad):
            bad += not_finite(np.asarray(site["value"])[bad]) or ()
        values = np.broadcast_to(np.asarray(site["value"]), site["fn"].shape())
        there = f" for the value {values[bad]}" if values.shape[: len(bad)] else ""
        raise CheckError(
            site["name"],
            f"a log density that is not finite at index {bad}{there}"
            + (f" ({'; '.join(suspects)})" if suspects else ""),
            "finite numbers",
            "correct or remove these data, or leave them out of the likelihood with obs_mask or "
            "numpyro.handlers.mask",
        )


def not_finite(value: Any) -> tuple[int, ...] | None:
    """The index of the first NaN or infinity."""
    if not isinstance(value, np.ndarray | jax.Array) or not not_jax_tracer(value):
        return None
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return None
    bad = ~np.isfinite(np.asarray(value))
    return tuple(int(i) for i in np.argwhere(bad)[0]) if bad.any() else None


def check_observation(site: Site) -> None:
    """Observations are real numbers of their site's shape, and are possible."""
    _check_numbers(site["name"], site["value"])
    _check_shape(site["name"], site)
    _check_support(site["name"], site)


def _check_numbers(name: str, value: Any) -> None:
    array = isinstance(value, jax.Array | np.ndarray | np.generic)
    array = array or hasattr(value, "__jax_array__")
    real = isinstance(value, int | float)
    if array and not isinstance(value, np.ma.MaskedArray):
        real = any(jnp.issubdtype(value.dtype, k) for k in (jnp.floating, jnp.integer, jnp.bool_))
    if not real:
        kind_of_value = f"array of {value.dtype}" if array else type(value).__name__
        if isinstance(value, np.ma.MaskedArray):
            kind_of_value = "MaskedArray"
        raise CheckError(
            name, f"observations that are {_article(kind_of_value)}", "an array of real numbers",
            "give jnp.asarray(...) of them, of numbers alone; what is missing is left out with "
            "obs_mask",
        )  # fmt: skip


def _article(word: str) -> str:
    return f"an {word}" if word[0].lower() in "aeiou" else f"a {word}"


def _check_shape(name: str, site: Site) -> None:
    """No observation is counted twice; but a scalar may stand for every element."""
    got, wanted = jnp.shape(site["value"]), tuple(site["fn"].shape())
    try:
        counted = math.prod(np.broadcast_shapes(got, wanted))
    except ValueError:  # they don't broadcast
        counted = -1
    if counted == math.prod(got) or got == ():
        return
    plates = {f.name: f.size for f in site["cond_indep_stack"]}
    raise CheckError(
        name,
        f"observations of shape {got}",
        f"the shape of the distribution, {wanted} (plates {plates})",
        "give the data that shape (x[:, 0], x.squeeze(-1)) and the distribution's parameters, too: "
        "broadcast against each other they would count every observation several times",
    )


def _check_support(name: str, site: Site) -> None:
    value, support = site["value"], site["fn"].support
    if support is None or not not_jax_tracer(value):
        return
    support = each_number(support) or support  # to say which number it is
    inside = support(jnp.asarray(value))
    inside |= jnp.isnan(value) | _masked(site["fn"], jnp.ndim(inside))
    if not not_jax_tracer(inside) or np.asarray(inside).all():
        return
    inside = np.asarray(inside)
    at = tuple(int(i) for i in np.argwhere(~inside)[0])
    first = np.asarray(value)[at] if np.ndim(value) else np.asarray(value)
    raise CheckError(
        name,
        f"the observation {first} at index {at}, one of {int((~inside).sum())} outside",
        f"values in the support of {kind(site['fn'])} ({support})",
        "correct the data, or choose a likelihood with that support",
    )


def _masked(fn: Any, ndim: int) -> Any:
    """Where a mask leaves values out, with an axis for each of ``ndim``."""
    if not isinstance(fn, MaskedDistribution):
        return _masked(fn.base_dist, ndim) if isinstance(fn, Independent) else jnp.array(False)
    out = jnp.broadcast_to(~jnp.asarray(fn._mask), fn.batch_shape)
    return out.reshape(out.shape + (1,) * (ndim - out.ndim))


def check_rows(
    sites: Mapping[str, Site], model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """A plate that draws a minibatch of an argument's rows observes those, and not the first."""
    named = argument_names(model, args, kwargs)
    data = {
        name: np.asarray(leaf)
        for name, leaf in zip(named, jax.tree.leaves((args, dict(kwargs))), strict=True)
        if isinstance(leaf, np.ndarray | jax.Array) and not_jax_tracer(leaf) and np.ndim(leaf)
    }
    for name, site in sites.items():
        for frame in site["cond_indep_stack"] if is_data(site) else ():
            plate = sites.get(frame.name)
            if plate is None or plate["type"] != "plate" or not not_jax_tracer(site["value"]):
                continue
            size, rows = plate["args"][0], np.asarray(plate["value"])
            argument = _first_rows(np.asarray(site["value"]), rows, size, data)
            if argument is not None:
                raise CheckError(
                    name,
                    f"the first {len(rows)} rows of argument {argument}, whichever of its "
                    f"{size} plate '{frame.name}' draws",
                    "those that it draws",
                    f"with numpyro.plate('{frame.name}', ...) as i: obs={argument}[i]",
                )


def _first_rows(
    seen: np.ndarray, rows: np.ndarray, size: int, data: Mapping[str, np.ndarray]
) -> str | None:
    """The argument whose first rows are seen, where no argument has these at ``rows``."""
    whole = {n: x for n, x in data.items() if len(x) == size > len(rows)}
    if any(np.array_equal(seen, x[rows]) for x in whole.values()):
        return None
    return next((n for n, x in whole.items() if np.array_equal(seen, x[: len(rows)])), None)


def check_arguments(
    sites: Mapping[str, Site],
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    """An argument that is named like a site is its observation."""
    for name, value in _named(model, args, kwargs).items():
        unused = name in sites and is_latent(sites[name])
        if unused and isinstance(value, np.ndarray | jax.Array):
            raise CheckError(
                name,
                "an argument of this name, and a latent site that does not observe it",
                "obs= at the site, or another name",
                f"write numpyro.sample('{name}', ..., obs={name}), or rename one of the two",
            )


def _named(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return dict(inspect.signature(model).bind_partial(*args, **kwargs).arguments)
    except (TypeError, ValueError):  # not written in Python, or called wrongly: it says so itself
        return dict(kwargs)
