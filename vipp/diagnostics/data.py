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

from vipp.diagnostics.mistake import CheckError
from vipp.diagnostics.records import Site, is_data, is_latent
from vipp.distributions.answers import kind
from vipp.distributions.support import each_number


def bad_numbers(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """Which arguments have a NaN or an infinity, and where."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path((args, dict(kwargs))):
        bad = not_finite(leaf)
        if bad is not None:
            name = jax.tree_util.keystr(path[1:], simple=True, separator=".")
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
    dtype = getattr(value, "dtype", None)
    strange = str(dtype) in ("object", "complex64", "complex128")
    if isinstance(value, list | tuple | str) or strange:
        kind_of_value = type(value).__name__ if dtype is None else f"array of {dtype}"
        raise CheckError(
            name, f"observations that are a {kind_of_value}", "an array of real numbers",
            "give jnp.asarray(...) of them, of numbers alone",
        )  # fmt: skip


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


def check_rows(sites: Mapping[str, Site], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """A plate that draws a minibatch of an argument's rows observes those, and not the first."""
    data = {
        jax.tree_util.keystr(path[1:], simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path((args, dict(kwargs)))
        if isinstance(leaf, np.ndarray | jax.Array) and not_jax_tracer(leaf) and np.ndim(leaf)
    }
    for name, site in sites.items():
        for frame in site["cond_indep_stack"] if is_data(site) else ():
            plate = sites.get(frame.name)
            if plate is None or plate["type"] != "plate" or not not_jax_tracer(site["value"]):
                continue
            size, rows, seen = (
                plate["args"][0],
                np.asarray(plate["value"]),
                np.asarray(site["value"]),
            )
            for argument, all_rows in data.items():
                if len(all_rows) != size or len(rows) == size:
                    continue
                first = all_rows[: len(rows)]
                if np.array_equal(seen, first) and not np.array_equal(seen, all_rows[rows]):
                    raise CheckError(
                        name,
                        f"the first {len(rows)} rows of argument {argument}, whichever of its "
                        f"{size} plate '{frame.name}' draws",
                        "those that it draws",
                        f"with numpyro.plate('{frame.name}', ...) as i: obs={argument}[i]",
                    )


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
