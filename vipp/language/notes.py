"""What an objective says of how it was put together, for whoever asks."""

from __future__ import annotations

from typing import Any

from numpyro.primitives import Messenger, apply_stack


def note(text: str) -> None:
    """Say something that depends on the programs."""
    apply_stack(
        {"type": "note", "fn": lambda: None, "args": (), "kwargs": {}, "value": text}
    )  # fmt: skip


class noting(Messenger):  # noqa: N801 (a NumPyro handler, named like NumPyro's)
    """Notes what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: dict[str, None] = {}

    def process_message(self, msg: Any) -> None:
        """Note it."""
        if msg["type"] == "note":
            self.said[msg["value"]] = None
