"""The sites of a model and a guide, looked at one by one as the programs run."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpyro
from numpyro.handlers import trace

from vipp.language.control_flow import own_sites, within
from vipp.language.mistake import CheckError
from vipp.programs.unknown_values import naming_the_line

Site = Mapping[str, Any]  # one of NumPyro's messages


def is_latent(site: Site) -> bool:
    """Whether it is a random choice that is not observed."""
    return site["type"] == "sample" and not site["is_observed"]


def is_data(site: Site) -> bool:
    """Whether it is an observation; a factor is none."""
    return site["type"] == "sample" and site["is_observed"] and site["fn"].shape() != (0,)


class Watched(trace):
    """A program whose sites are recorded, each looked at before the program goes on.

    Args:
      program: a model or guide.
      what: which of the two.
      look: called with every site.
      enter: called with every message, before anything has answered it.
    """

    def __init__(
        self,
        program: Callable[..., Any],
        what: str,
        look: Callable[[Site], None],
        enter: Callable[[Site], None] = lambda msg: None,
    ):
        super().__init__(program)
        self.what, self.look, self.enter = what, look, enter

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        with self as sites, naming_the_line(self.fn, sites):
            return self.fn(*args, **kwargs)  # pyright: ignore[reportOptionalCall]

    @property
    def sites(self) -> Mapping[str, Site]:
        """Those so far."""
        return getattr(self, "trace", {})

    def process_message(self, msg: Any) -> None:
        """Refuse a second site of a name, and a parameter in the body of a loop."""
        if msg["type"] == "control_flow":
            within(msg, lambda: own_sites(in_body=True))
        if msg["type"] in ("sample", "deterministic") and msg["name"] in self.trace:
            raise CheckError(
                msg["name"],
                f"two sites of this name in the {self.what}",
                "names that are unique within a program",
                "rename one of them, or use numpyro.handlers.scope",
            )
        self.enter(msg)
        super().process_message(msg)

    def postprocess_message(self, msg: Any) -> None:
        """Record the site."""
        if msg["type"] == "param" and isinstance(msg["value"], int | float):
            msg["value"] = jnp.asarray(msg["value"])  # an object of its own, to be known again by
        super().postprocess_message(msg)
        if msg["type"] == "prng_key" or "name" not in msg:
            return
        if msg["name"] in self.trace:  # as it is now: SVI takes the constraint of a parameter away
            self.trace[msg["name"]] = {**msg, "kwargs": dict(msg.get("kwargs") or {})}
        self.look(msg)


@contextlib.contextmanager
def naming_the_site(suspects: list[str], search: Callable[[], None]) -> Iterator[None]:
    """An error that NumPyro or JAX raises within a ``sample`` or ``plate`` statement names it.

    Args:
      suspects: what is known to be wrong with the arguments, to be named where no site can be.
      search: looks for the cause, and raises if it finds it.
    """
    try:
        yield
    except CheckError:
        raise
    except Exception as error:
        search()
        if not isinstance(error, AssertionError | RuntimeError | TypeError | ValueError):
            raise
        statement, name = _failing(error)
        if name is None and suspects:
            raise CheckError(
                "arguments", f"{'; '.join(suspects)} ({error})", "finite numbers",
                "correct or remove these data",
            ) from error  # fmt: skip
        if name is None or f"'{name}'" in str(error):
            raise
        text = str(error).rstrip(".") or "an assertion of NumPyro that does not hold"
        if statement == "plate":
            raise CheckError(
                name, f"a plate that NumPyro refuses ({text})",
                "a dimension that no enclosing plate has, a positive size, and a name of its own",
                "leave out dim=, or give each of the nested plates its own negative one; rename it "
                "if a site has its name",
            ) from error  # fmt: skip
        if "Invalid type for 'fn'" in text:
            raise CheckError(
                str(name), f"what is no distribution ({text})", "one of numpyro.distributions",
                "write numpyro.sample('name', dist.Normal(0.0, 1.0)), the name first",
            ) from error  # fmt: skip
        raise CheckError(
            name, f"{type(error).__name__}: {text}",
            "a distribution whose batch shape fits the plates around it",
            "give its parameters the sizes of the plates, at their dimensions",
        ) from error  # fmt: skip


def _failing(error: BaseException) -> tuple[str, str | None]:
    """The innermost ``sample`` or ``plate`` statement that an error comes from."""
    statements = {numpyro.sample.__code__: "sample", numpyro.plate.__init__.__code__: "plate"}
    found: tuple[str, str | None] = ("", None)
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code in statements:
            found = statements[frame.f_code], frame.f_locals.get("name")
    return found
