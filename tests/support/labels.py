"""Names of test cases that are the same in every process."""

import re


def label(thing):
    """How a thing prints, without the address of anything in it."""
    return re.sub(r"<function (?:.*\.)?([^. ]+) at 0x[0-9a-f]+>", r"\1", repr(thing))[:60]
